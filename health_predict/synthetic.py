"""A seeded synthetic cohort with the published schema: what the project runs on by default.

Here live the generator (`cohort`) and the network it draws by. How the aggregate profile is made
from the published file is not here but in `synthetic_profile`; reading the published archive, the
contract and the label belong to `encounters`, which takes a synthetic table as it takes the real
one.

Rows are drawn first, each by a small Bayesian network whose tables move with the tenth of the
file; the outcome follows from two logistic models; readmitted rows are then linked to later rows
of the same race, gender and age, which makes patients. What is therefore not kept: a patient's
diagnoses and drugs do not resemble those of the same patient's next visit, and levels seen in
fewer than 11 published encounters (rare codes, drugs and drug combinations) never appear.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from health_predict import schema

TENTHS = 10
_PRIOR_UNITS = 0.5  # weight of the coarser table, beside rows of tens of units and more
_RAKES = 3  # rounds after which every share by tenth is expected within .01 of the observed
_FIRST_ENCOUNTER, _FIRST_PATIENT = 500_000_000, 200_000_000  # above every published identifier
_AGE_STEP = 0.05  # share of return visits that fall in the next age band; published: .052
ORAL = tuple(m for m in schema.MEDICATIONS if m != "insulin")

Values = dict[str, pd.Categorical]


class Step(NamedTuple):
    """One draw of the network: a column, its joint parents, and single parents that tilt it.

    Whatever the parents say, the shares within each tenth are raked to the observed ones.
    """

    column: str
    parents: tuple[str, ...] = ("tenth",)
    tilts: tuple[str, ...] = ()
    within: str = ""  # the drawn diagnosis group the code must lie in


NETWORK = (
    Step("race"),
    Step("gender", ("race",)),
    Step("age", ("tenth",), ("race", "gender")),
    Step("weight"),
    Step("admission_source_id", ("tenth",), ("generation",)),
    Step("admission_type_id", ("tenth", "admission_source_id")),
    Step("medical_specialty", ("tenth", "admission_source_id"), ("generation",)),
    Step("payer_code", ("tenth",), ("generation", "race")),
    Step("diag_1_group", ("medical_specialty",), ("age", "admission_type_id", "gender")),
    Step("diag_1", ("tenth",), ("generation",), within="diag_1_group"),
    Step("diag_2_group", ("diag_1_group",), ("generation",)),
    Step("diag_2", ("tenth",), within="diag_2_group"),
    Step("diag_3_group", ("diag_2_group",), ("generation",)),
    Step("diag_3", ("tenth",), within="diag_3_group"),
    Step("number_diagnoses", ("third_known",), ("age", "diag_1_group")),
    Step(
        "discharge_disposition_id",
        ("tenth",),
        ("generation", "diag_1_group", "admission_source_id", "number_diagnoses"),
    ),
    Step(
        "time_in_hospital",
        ("diag_1_group",),
        ("number_diagnoses", "discharge_disposition_id", "generation"),
    ),
    Step("num_procedures", ("diag_1_group",), ("stay", "medical_specialty")),
    Step("num_lab_procedures", ("tenth",), ("admission_source_id", "stay")),
    Step("max_glu_serum", ("tenth", "admission_source_id")),
    Step("A1Cresult", ("tenth",), ("age", "diag_1_group")),
    Step("insulin", ("tenth", "A1Cresult"), ("age", "diag_1_group")),
    Step("regimen", ("insulin",), ("generation", "A1Cresult")),
    Step(
        "num_medications",
        ("stay",),
        ("num_procedures", "diag_1_group", "number_diagnoses", "insulin", "diabetesMed"),
    ),
    Step(
        "number_inpatient",
        ("tenth",),
        ("generation", "diag_1_group", "discharge_disposition_id", "number_diagnoses"),
    ),
    Step("number_emergency", ("tenth", "inpatient"), ("generation",)),
    Step("number_outpatient", ("tenth", "inpatient"), ("emergency",)),
)
LINKS = (
    Step("revisit", ("tenth", "inpatient")),
    Step("returns", ("readmitted", "tenth"), ("inpatient",)),
    Step("wait", ("returns",)),
)
"""Whether a row is a later visit of its patient, has a later visit, and after how many hundredths
of the file: drawn like columns, used to make patients, and not published."""

_CHAPTERS = (  # first ICD-9 root of each group; circulatory disease is split where risk differs
    (1, "infection"), (140, "neoplasm"), (240, "endocrine"), (250, "diabetes"),
    (251, "endocrine"), (280, "blood"), (290, "mental"), (320, "nervous"), (390, "heart"),
    (401, "hypertension"), (410, "ischaemia"), (415, "heart"), (427, "rhythm"),
    (428, "heart failure"), (429, "heart"), (430, "cerebral"), (440, "vessel"),
    (460, "respiratory"), (490, "chronic lung"), (500, "respiratory"), (520, "digestive"),
    (580, "urinary"), (630, "pregnancy"), (680, "skin"), (710, "musculoskeletal"),
    (740, "congenital"), (780, "symptom"), (800, "injury"),
)  # fmt: skip


def chapter(code: str) -> str:
    """Returns the group of an ICD-9 code."""
    if not code[0].isdigit():
        return {"V": "V code", "E": "E code"}.get(code[0], code)
    return [name for start, name in _CHAPTERS if start <= max(1.0, float(code))][-1]


def _band(*starts: int) -> Callable[[str], str]:
    def name(value: str) -> str:
        return str(max(start for start in (0, *starts) if start <= int(value)))

    return name


def _generation(age: str) -> str:
    return _band(30, 50, 60, 70, 80)(age[1:].split("-")[0])


BANDS: dict[str, tuple[str, Callable[[str], str]]] = {
    "generation": ("age", _generation),
    "diag_1_root": ("diag_1", lambda code: code.split(".")[0]),
    "third_known": ("diag_3", lambda code: "no" if code == schema.MISSING else "yes"),
    "stay": ("time_in_hospital", _band(1, 2, 3, 4, 5, 7, 10)),
    "labs": ("num_lab_procedures", _band(1, 2, 20, 35, 50, 65)),
    "drugs": ("num_medications", _band(1, 6, 10, 14, 18, 25)),
    "inpatient": ("number_inpatient", _band(1, 2, 3, 4, 6)),
    "emergency": ("number_emergency", _band(1, 2, 4)),
    "outpatient": ("number_outpatient", _band(1, 2, 4)),
}
"""Coarser views of a column, used as parents and terms only: name -> (column, value -> band)."""


def cohort(rows: int, seed: int = 0) -> pd.DataFrame:
    """Draws a synthetic cohort in encounter order.

    The drift is over relative position: whatever `rows` is, its tenths follow those of the
    published file. A patient has about 1.4 encounters; fewer in small cohorts (1.2 at 500 rows),
    where fewer rows fit together.

    Args:
        rows: Number of encounters, at least 1.
        seed: Seed; equal (rows, seed) give equal tables.

    Returns:
        `rows` x 50 strings, columns `schema.COLUMNS`, `?` for missing, index 0..rows-1,
        `encounter_id` increasing; identifiers lie above every published one.

    Raises:
        ValueError: If `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"a cohort needs at least 1 row, not {rows}")
    profile, rng = load_profile(), np.random.default_rng(seed)
    tenths = [str(t) for t in range(TENTHS)]
    values: Values = {"tenth": pd.Categorical.from_codes(tenth_of(rows), tenths)}
    for step in NETWORK:
        add(values, step.column, _draw(profile["tables"][step.column], step, values, rng))
        if step.column == "regimen":
            values.update(_treatment(values["insulin"], values["regimen"]))
    values[schema.OUTCOME] = _outcome(profile["models"], values, rng)
    for step in LINKS:
        add(values, step.column, _draw(profile["tables"][step.column], step, values, rng))
    identifiers = {
        schema.ENCOUNTER_ID: _FIRST_ENCOUNTER + rng.integers(1, 50, rows).cumsum(),
        schema.PATIENT: _FIRST_PATIENT + _patients(values, rng),
    }
    columns = {c: identifiers[c].astype(str) for c in schema.IDENTIFIERS}
    columns |= {c: strings(values[c]) for c in schema.COLUMNS if c in values}
    return pd.DataFrame(columns, columns=list(schema.COLUMNS), dtype=object)


@cache
def load_profile() -> dict[str, Any]:
    """Returns the committed profile, as `synthetic_profile` made it; read once per process."""
    text = files("health_predict").joinpath("synthetic_profile.json").read_text("utf-8")
    return json.loads(text)


def tenth_of(rows: int) -> np.ndarray:
    """Returns for each of `rows` rows in order which tenth of the file it lies in."""
    return np.arange(rows) * TENTHS // rows


def strings(column: pd.Categorical) -> np.ndarray:
    """Returns a column's values (n,)."""
    return np.asarray(column.categories, dtype=object)[column.codes]


def relabel(column: pd.Categorical, rename: Callable[[str], str]) -> pd.Categorical:
    """Returns a column with each level renamed, levels of one new name merged."""
    codes, levels = pd.factorize(np.array([rename(v) for v in column.categories], dtype=object))
    return pd.Categorical.from_codes(codes[column.codes], levels)


def add(values: Values, name: str, column: pd.Categorical) -> None:
    """Adds a column to `values`, and its coarser views."""
    values[name] = column
    for band, (source, rename) in BANDS.items():
        if source == name:
            values[band] = relabel(column, rename)


def combine(values: Values, names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """Returns for each row the index of its combination of levels, and the combinations."""
    columns = [values[name] for name in names]
    if not columns:
        return np.zeros(len(values["tenth"]), dtype=int), [""]
    sizes = [len(column.categories) for column in columns]
    joint = np.ravel_multi_index([column.codes for column in columns], sizes)
    present, codes = np.unique(joint, return_inverse=True)
    parts = np.unravel_index(present, sizes)
    texts = [np.asarray(c.categories, dtype=object)[p] for c, p in zip(columns, parts, strict=True)]
    return codes, ["|".join(key) for key in zip(*texts, strict=True)]


def _shares(rows: Mapping[str, list[int]], keys: list[str], prior: np.ndarray) -> np.ndarray:
    """Returns keys x levels shares: the stored rows, what they suppress spread as in the prior."""
    units, rest = np.zeros(prior.shape), np.zeros((len(keys), 1))
    for i, key in enumerate(keys):
        rest[i], *stored = rows.get(key, [0])
        units[i, : len(stored)] = stored
    suppressed = np.where(units > 0, 0.0, prior)
    suppressed /= np.maximum(suppressed.sum(axis=1, keepdims=True), 1e-12)
    units += rest * suppressed + _PRIOR_UNITS * prior
    return units / units.sum(axis=1, keepdims=True)


def _draw(
    table: dict[str, Any], step: Step, values: Values, rng: np.random.Generator
) -> pd.Categorical:
    levels, rows = table["levels"], table["rows"]
    codes = np.zeros(len(values["tenth"]), dtype=int)
    shares = marginal = _shares(rows[""], [""], np.full((1, len(levels)), 1e-9))
    for depth in range(1, len(step.parents) + 1):
        finer, keys = combine(values, step.parents[:depth])
        prior = np.empty((len(keys), len(levels)))
        prior[finer] = shares[codes]
        codes, shares = finer, _shares(rows["|".join(step.parents[:depth])], keys, prior)
    factors = [(codes, shares)]
    for parent in step.tilts:
        codes, keys = combine(values, (parent,))
        prior = np.repeat(marginal, len(keys), axis=0)
        factors.append((codes, _shares(rows[parent], keys, prior) / marginal))
    if step.within:
        codes, keys = combine(values, (step.within,))
        inside = np.array([[chapter(level) == key for level in levels] for key in keys])
        factors.append((codes, np.where(inside, 1.0, 1e-9)))
    _, keys = combine(values, ("tenth",))
    target = _shares(rows["tenth"], keys, np.repeat(marginal, len(keys), axis=0))
    return pd.Categorical.from_codes(_pick(factors, values["tenth"].codes, target, rng), levels)


def _pick(
    factors: list[tuple[np.ndarray, np.ndarray]],
    tenth: np.ndarray,
    target: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws a level a row, with chances the product of the factors' shares, raked to `target`."""
    sizes = [len(shares) for _, shares in factors]
    joint = np.ravel_multi_index([tenth, *(c for c, _ in factors)], [TENTHS, *sizes])
    _, first, combination, count = np.unique(
        joint, return_index=True, return_inverse=True, return_counts=True
    )
    weights = np.prod([shares[codes[first]] for codes, shares in factors], axis=0)
    era = np.unique(tenth[first], return_inverse=True)[1]
    for _ in range(_RAKES):
        weights *= (count / weights.sum(axis=1))[:, None]
        expected = np.stack([weights[era == e].sum(axis=0) for e in range(len(target))])
        expected /= expected.sum(axis=1, keepdims=True)
        weights *= (target / expected)[era]
    ends = weights.cumsum(axis=1)
    ends /= ends[:, -1:]
    # All combinations on one line, each one unit long, make one search do for every row.
    line = (ends + np.arange(len(ends))[:, None]).ravel()
    found = np.searchsorted(line, combination + rng.random(len(combination)), side="right")
    return np.minimum(found - combination * ends.shape[1], ends.shape[1] - 1)


def _treatment(insulin: pd.Categorical, regimen: pd.Categorical) -> Values:
    """Returns the oral drugs' columns, and the two columns that follow from all drugs."""
    drugs = [dict(item.split("=") for item in r.split(";") if item) for r in regimen.categories]
    by_regimen = dict(zip(regimen.categories, drugs, strict=True))

    def dose_of(drug: str) -> Callable[[str], str]:
        return lambda oral: by_regimen[oral].get(drug, "No")

    columns = {drug: relabel(regimen, dose_of(drug)) for drug in ORAL}
    codes, keys = combine({"tenth": insulin, "i": insulin, "r": regimen}, ("i", "r"))
    both = pd.Categorical.from_codes(codes, keys)

    def doses(key: str) -> list[str]:
        dose, oral = key.split("|")
        return [d for d in (dose, *by_regimen[oral].values()) if d != "No"]

    def change(key: str) -> str:  # as published: a second drug, or a dose moved
        return "Ch" if len(doses(key)) > 1 or {"Up", "Down"} & set(doses(key)) else "No"

    columns["diabetesMed"] = relabel(both, lambda key: "Yes" if doses(key) else "No")
    columns["change"] = relabel(both, change)
    return columns


def _outcome(models: dict[str, Any], values: Values, rng: np.random.Generator) -> pd.Categorical:
    again, early = (
        rng.random(len(values["tenth"])) < 1 / (1 + np.exp(-_logit(models[name], values)))
        for name in ("any", "early")
    )
    return pd.Categorical.from_codes(np.where(again, 1 + early, 0), list(schema.OUTCOMES))


def _logit(model: dict[str, Any], values: Values) -> np.ndarray:
    logit = np.full(len(values["tenth"]), float(model["intercept"]))
    for name, levels in model["terms"].items():
        codes, keys = combine(values, name.split("*"))
        logit += np.array([levels.get(key, (0.0, 0))[0] for key in keys])[codes]
    return logit


def _patients(values: Values, rng: np.random.Generator) -> np.ndarray:
    """Links rows into patients; returns a patient number a row, in no order.

    A returning row waits until its drawn time is due, then takes a free later row of its
    race, gender and age: first one with exactly one more inpatient stay, then any, at last
    without waiting.
    """
    rows = len(values["tenth"])
    wait = rows / 100 * (_numbers(values["wait"]) + rng.random(rows))
    leaves = strings(values["returns"]) == "yes"
    enters = strings(values["revisit"]) == "yes"
    age = np.array([schema.AGES.index(a) for a in values["age"].categories])[values["age"].codes]
    older = np.minimum(age + (rng.random(rows) < _AGE_STEP), len(schema.AGES) - 1)
    stays = np.minimum(_numbers(values["number_inpatient"]), 98)
    who = combine(values, ("race", "gender"))[0] * 1000
    before = np.full(rows, -1)
    for weight, patience in ((1, 1), (0, 1), (0, 0)):
        old, new = np.flatnonzero(leaves), np.flatnonzero(enters)
        keys = (who + older * 100 + weight * (stays + 1))[old]
        due = old + 1 + patience * wait[old]
        sources, targets = _match(keys, due, (who + age * 100 + weight * stays)[new], new)
        before[new[targets]] = old[sources]
        leaves[old[sources]] = enters[new[targets]] = False
    first = np.where(before < 0, np.arange(rows), before)
    while (first != first[first]).any():  # halves every chain of visits, so a few rounds
        first = first[first]
    return rng.permutation(rows)[first]


def _match(
    out_keys: np.ndarray, out_times: np.ndarray, in_keys: np.ndarray, in_times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs each in with the latest free earlier out of its key; returns indices of both."""
    key, time = np.r_[out_keys, in_keys], np.r_[out_times, in_times]
    step = np.r_[np.ones(len(out_keys), dtype=int), np.full(len(in_keys), -1)]
    order = np.lexsort((step, time, key))
    pairs = [np.empty((0, 2), dtype=int)]
    for group in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        level = step[group].cumsum()
        floor = np.minimum.accumulate(np.minimum(level, 0))
        # An in that finds no out takes the floor down; the others close the bracket last opened.
        free = (step[group] < 0) & (np.diff(floor, prepend=0) < 0)
        depth = (level - floor + (step[group] < 0))[~free]
        nested = group[~free][np.argsort(depth, kind="stable")]
        closes = np.flatnonzero(step[nested] < 0)
        pairs.append(np.column_stack([nested[closes - 1], nested[closes]]))
    sources, targets = np.concatenate(pairs).T
    return sources, targets - len(out_keys)


def _numbers(column: pd.Categorical) -> np.ndarray:
    return np.array([int(v) for v in column.categories])[column.codes]
