"""A seeded synthetic cohort with the published schema: what the project runs on by default.

Here live the generator (`cohort`) and the aggregate profile it draws from (`profile_of`,
`load_profile`, `write_profile`). Reading the published archive, the contract and the label are
not here: they belong to `encounters`, which takes a synthetic table as it takes the real one.

Rows are drawn first, each by a small Bayesian network whose tables move with the tenth of the
file; the outcome follows from two logistic models; readmitted rows are then linked to later rows
of the same race, gender and age, which makes patients. What is therefore not kept: a patient's
diagnoses and drugs do not resemble those of the same patient's next visit, and levels seen in
fewer than `UNIT` published encounters (rare codes, drugs and drug combinations) never appear.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from health_predict import schema

UNIT = 11
"""Encounters in one unit of a stored count. Counts are stored as whole units, rounded, and below
one unit as nothing: no stored figure rests on fewer than 11 encounters, and rounding blurs the
differences from which a suppressed one could be worked out."""

TENTHS = 10
_PRIOR_UNITS = 0.5  # weight of the coarser table, beside rows of tens of units and more
_TERM_UNITS = 20  # a coefficient resting on fewer than 220 encounters would be noise
_REGULARISATION = 0.3
_RAKES = 3  # rounds after which every share by tenth is expected within .01 of the observed
_FIRST_ENCOUNTER, _FIRST_PATIENT = 500_000_000, 200_000_000  # above every published identifier
_AGE_STEP = 0.05  # share of return visits that fall in the next age band; published: .052
_ORAL = tuple(m for m in schema.MEDICATIONS if m != "insulin")

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

TERMS = (
    *((c,) for c in ("tenth", "race", "gender", "age", "payer_code", "medical_specialty")),
    *((c,) for c in ("admission_type_id", "admission_source_id", "discharge_disposition_id")),
    *((c,) for c in ("diag_1_group", "diag_2_group", "diag_3_group", "diag_1_root")),
    *((c,) for c in ("stay", "labs", "drugs", "num_procedures", "number_diagnoses")),
    *((c,) for c in ("inpatient", "emergency", "outpatient", "max_glu_serum", "A1Cresult")),
    *((c,) for c in ("insulin", "metformin", "change", "diabetesMed")),
    ("generation", "inpatient"),
    *(("tenth", c) for c in ("inpatient", "discharge_disposition_id", "admission_source_id")),
    *(("tenth", c) for c in ("number_diagnoses", "generation")),
)
"""Terms of the outcome models. Those with the tenth are what makes a frozen model age."""

_CHAPTERS = (  # first ICD-9 root of each group; circulatory disease is split where risk differs
    (1, "infection"), (140, "neoplasm"), (240, "endocrine"), (250, "diabetes"),
    (251, "endocrine"), (280, "blood"), (290, "mental"), (320, "nervous"), (390, "heart"),
    (401, "hypertension"), (410, "ischaemia"), (415, "heart"), (427, "rhythm"),
    (428, "heart failure"), (429, "heart"), (430, "cerebral"), (440, "vessel"),
    (460, "respiratory"), (490, "chronic lung"), (500, "respiratory"), (520, "digestive"),
    (580, "urinary"), (630, "pregnancy"), (680, "skin"), (710, "musculoskeletal"),
    (740, "congenital"), (780, "symptom"), (800, "injury"),
)  # fmt: skip


def _chapter(code: str) -> str:
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
    values: Values = {"tenth": pd.Categorical.from_codes(_tenth(rows), tenths)}
    for step in NETWORK:
        _add(values, step.column, _draw(profile["tables"][step.column], step, values, rng))
        if step.column == "regimen":
            values.update(_treatment(values["insulin"], values["regimen"]))
    values[schema.OUTCOME] = _outcome(profile["models"], values, rng)
    for step in LINKS:
        _add(values, step.column, _draw(profile["tables"][step.column], step, values, rng))
    identifiers = {
        schema.ENCOUNTER_ID: _FIRST_ENCOUNTER + rng.integers(1, 50, rows).cumsum(),
        schema.PATIENT: _FIRST_PATIENT + _patients(values, rng),
    }
    columns = {c: identifiers[c].astype(str) for c in schema.IDENTIFIERS}
    columns |= {c: _strings(values[c]) for c in schema.COLUMNS if c in values}
    return pd.DataFrame(columns, columns=list(schema.COLUMNS), dtype=object)


@cache
def load_profile() -> dict[str, Any]:
    """Returns the committed profile, as `profile_of` made it; read once per process."""
    text = files("health_predict").joinpath("synthetic_profile.json").read_text("utf-8")
    return json.loads(text)


def profile_of(raw: pd.DataFrame) -> dict[str, Any]:
    """Computes the aggregate profile that `cohort` draws from.

    Small cells are suppressed: a count is stored in whole units of `UNIT` = 11 encounters, rounded
    to the nearest, and as nothing below one unit; levels below one unit are left out. A coefficient
    is stored with the units it rests on and only from 20 units up, rounded to .01. Identifiers
    serve to order rows and to tell visits of one patient apart, and are not stored.

    Args:
        raw: The published table, n x 50 strings as in the CSV, in any order.

    Returns:
        `{"unit", "tables", "models"}`. A table has its `levels`, most frequent first, and per
        parent set the `rows`: parent levels -> units of all suppressed levels together, then units
        per level, trailing zeros cut. A model has an `intercept` and per term: levels ->
        [coefficient, units].

    Raises:
        KeyError: If a published column is missing.
    """
    values = _observed(raw)
    tables = {step.column: _table(step, values) for step in (*NETWORK, *LINKS)}
    outcome = _strings(values[schema.OUTCOME])
    again, every = outcome != "NO", np.ones(len(outcome), dtype=bool)
    steady = tuple(term for term in TERMS if len(term) == 1)
    models = {
        "any": _fit(values, again, every, TERMS),
        "early": _fit(values, outcome == "<30", again, steady),
    }
    return {"unit": UNIT, "tables": tables, "models": models}


def write_profile(raw: pd.DataFrame, path: Path) -> None:
    """Writes `profile_of(raw)` to `path` as JSON, a table row a line: a diff can be read."""
    path.write_text(_json(profile_of(raw)) + "\n", encoding="utf-8")


def _json(value: Any) -> str:
    if not isinstance(value, dict) or not any(isinstance(v, (dict, list)) for v in value.values()):
        return json.dumps(value, separators=(",", ":"))
    return "{\n" + ",\n".join(f"{json.dumps(k)}:{_json(v)}" for k, v in value.items()) + "\n}"


def _tenth(rows: int) -> np.ndarray:
    return np.arange(rows) * TENTHS // rows


def _strings(column: pd.Categorical) -> np.ndarray:
    return np.asarray(column.categories, dtype=object)[column.codes]


def _relabel(column: pd.Categorical, rename: Callable[[str], str]) -> pd.Categorical:
    codes, levels = pd.factorize(np.array([rename(v) for v in column.categories], dtype=object))
    return pd.Categorical.from_codes(codes[column.codes], levels)


def _add(values: Values, name: str, column: pd.Categorical) -> None:
    values[name] = column
    for band, (source, rename) in BANDS.items():
        if source == name:
            values[band] = _relabel(column, rename)


def _keys(values: Values, names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
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


# --- drawing -------------------------------------------------------------------------------------


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
        finer, keys = _keys(values, step.parents[:depth])
        prior = np.empty((len(keys), len(levels)))
        prior[finer] = shares[codes]
        codes, shares = finer, _shares(rows["|".join(step.parents[:depth])], keys, prior)
    factors = [(codes, shares)]
    for parent in step.tilts:
        codes, keys = _keys(values, (parent,))
        prior = np.repeat(marginal, len(keys), axis=0)
        factors.append((codes, _shares(rows[parent], keys, prior) / marginal))
    if step.within:
        codes, keys = _keys(values, (step.within,))
        inside = np.array([[_chapter(level) == key for level in levels] for key in keys])
        factors.append((codes, np.where(inside, 1.0, 1e-9)))
    _, keys = _keys(values, ("tenth",))
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

    columns = {drug: _relabel(regimen, dose_of(drug)) for drug in _ORAL}
    codes, keys = _keys({"tenth": insulin, "i": insulin, "r": regimen}, ("i", "r"))
    both = pd.Categorical.from_codes(codes, keys)

    def doses(key: str) -> list[str]:
        dose, oral = key.split("|")
        return [d for d in (dose, *by_regimen[oral].values()) if d != "No"]

    def change(key: str) -> str:  # as published: a second drug, or a dose moved
        return "Ch" if len(doses(key)) > 1 or {"Up", "Down"} & set(doses(key)) else "No"

    columns["diabetesMed"] = _relabel(both, lambda key: "Yes" if doses(key) else "No")
    columns["change"] = _relabel(both, change)
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
        codes, keys = _keys(values, name.split("*"))
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
    leaves = _strings(values["returns"]) == "yes"
    enters = _strings(values["revisit"]) == "yes"
    age = np.array([schema.AGES.index(a) for a in values["age"].categories])[values["age"].codes]
    older = np.minimum(age + (rng.random(rows) < _AGE_STEP), len(schema.AGES) - 1)
    stays = np.minimum(_numbers(values["number_inpatient"]), 98)
    who = _keys(values, ("race", "gender"))[0] * 1000
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


# --- profiling -----------------------------------------------------------------------------------


def _observed(raw: pd.DataFrame) -> Values:
    order = raw[schema.ENCOUNTER_ID].astype("int64").to_numpy().argsort(kind="stable")
    raw = raw[list(schema.COLUMNS)].iloc[order].reset_index(drop=True)
    rows = len(raw)
    values: Values = {"tenth": pd.Categorical(_tenth(rows).astype(str))}
    for column in schema.COLUMNS[len(schema.IDENTIFIERS) :]:
        _add(values, column, pd.Categorical(raw[column]))
    for column in schema.DIAGNOSES:
        values[f"{column}_group"] = _relabel(values[column], _chapter)
    regimen = np.full(rows, "", dtype=object)
    for drug in _ORAL:
        regimen += np.where(raw[drug] == "No", "", f"{drug}=" + raw[drug] + ";")
    values["regimen"] = pd.Categorical(regimen)
    visits = pd.Series(np.arange(rows)).groupby(raw[schema.PATIENT].to_numpy())
    gap = -visits.diff(-1)
    values["revisit"] = pd.Categorical(np.where(visits.cumcount() > 0, "yes", "no"))
    values["returns"] = pd.Categorical(np.where(gap.notna(), "yes", "no"))
    values["wait"] = pd.Categorical((gap.fillna(0) * 100 // rows).astype(int).astype(str))
    return values


def _table(step: Step, values: Values) -> dict[str, Any]:
    column = values[step.column]
    sizes = np.bincount(column.codes, minlength=len(column.categories))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= UNIT]
    joints = [step.parents[:depth] for depth in range(len(step.parents) + 1)]
    rows = {}
    for parents in dict.fromkeys((*joints, ("tenth",), *((tilt,) for tilt in step.tilts))):
        codes, keys = _keys(values, parents)
        joint = codes * len(sizes) + column.codes
        counts = np.bincount(joint, minlength=len(keys) * len(sizes)).reshape(len(keys), -1)
        kept = counts[:, order] * (counts[:, order] >= UNIT)
        stored = np.column_stack([counts.sum(axis=1) - kept.sum(axis=1), kept])
        units = [np.trim_zeros(row, "b").tolist() for row in _units(stored)]
        rows["|".join(parents)] = {k: u for k, u in zip(keys, units, strict=True) if len(u) > 1}
    return {"levels": [str(column.categories[i]) for i in order], "rows": rows}


def _units(counts: np.ndarray) -> np.ndarray:
    return np.where(counts < UNIT, 0, np.rint(counts / UNIT)).astype(int)


def _fit(
    values: Values, positive: np.ndarray, among: np.ndarray, chosen: tuple[tuple[str, ...], ...]
) -> dict[str, Any]:
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    blocks, names = [], []
    for term in chosen:
        codes, keys = _keys(values, term)
        units = _units(np.bincount(codes[among], minlength=len(keys)))
        kept = np.flatnonzero(units >= _TERM_UNITS)
        blocks.append(sparse.csr_array(codes[among, None] == kept, dtype=float))
        names += [("*".join(term), keys[i], int(units[i])) for i in kept]
    model = LogisticRegression(C=_REGULARISATION, max_iter=300)
    model.fit(sparse.hstack(blocks, format="csr"), positive[among])
    terms: dict[str, dict[str, list[float]]] = {}
    for (name, level, size), coefficient in zip(names, model.coef_[0], strict=True):
        terms.setdefault(name, {})[level] = [round(float(coefficient), 2), size]
    return {"intercept": round(float(model.intercept_[0]), 2), "terms": terms}
