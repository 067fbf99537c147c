"""The aggregate profile behind the synthetic cohort, made from the published file.

Here is what counts, suppresses, fits and writes `synthetic_profile.json`; it runs when the profile
is made anew, never when a cohort is drawn. The network the profile has tables for, and drawing
from them, are not here: they are `synthetic`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from health_predict import schema
from health_predict.synthetic import (
    LINKS,
    NETWORK,
    ORAL,
    Step,
    Values,
    add,
    chapter,
    combine,
    relabel,
    strings,
    tenth_of,
)

UNIT = 11
"""Encounters in one unit of a stored count. Counts are stored as whole units, rounded, and below
one unit as nothing: no stored figure rests on fewer than 11 encounters, and rounding blurs the
differences from which a suppressed one could be worked out."""

_TERM_UNITS = 20  # a coefficient resting on fewer than 220 encounters would be noise
_REGULARISATION = 0.3

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
    outcome = strings(values[schema.OUTCOME])
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


def _observed(raw: pd.DataFrame) -> Values:
    order = raw[schema.ENCOUNTER_ID].astype("int64").to_numpy().argsort(kind="stable")
    raw = raw[list(schema.COLUMNS)].iloc[order].reset_index(drop=True)
    rows = len(raw)
    values: Values = {"tenth": pd.Categorical(tenth_of(rows).astype(str))}
    for column in schema.COLUMNS[len(schema.IDENTIFIERS) :]:
        add(values, column, pd.Categorical(raw[column]))
    for column in schema.DIAGNOSES:
        values[f"{column}_group"] = relabel(values[column], chapter)
    regimen = np.full(rows, "", dtype=object)
    for drug in ORAL:
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
        codes, keys = combine(values, parents)
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
        codes, keys = combine(values, term)
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
