"""What the models see: derived columns and the preprocessor.

A derived column is one function of published columns that works on a scalar and on an array alike,
so the training frame and the compiled scorer share it. No row is dropped here (`encounters` does
that) and nothing is fitted at import.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from health_predict.schema import AGES, CODES, DIAGNOSES, MEDICATIONS

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

RARE = 0.005
"""Levels below this share are pooled: 100 rows of 20,000, enough to hold an effect."""

UNNUMBERED = -1.0


def icd9_number(code: str) -> float:
    """Returns an ICD-9 code as a number below 1000; E codes, V codes, `?` and others give -1."""
    try:
        number = float(code)
    except ValueError:
        return UNNUMBERED
    return number if 0 <= number < 1000 else UNNUMBERED  # "nan" and "1e99" are numbers to float()


def icd9_chapter(code: str) -> str:
    """Returns the diagnosis group of an ICD-9 code: the nine of Strack et al. 2014, table 2."""
    number = icd9_number(code)
    if number < 0:
        return "external" if code[:1] in "EV" else "missing"
    block = int(number)
    if block == 250:
        return "diabetes"
    for chapter, spans in _CHAPTERS.items():
        if any(low <= block <= high for low, high in spans):
            return chapter
    return "other"


_CHAPTERS = {
    "circulatory": ((390, 459), (785, 785)),
    "respiratory": ((460, 519), (786, 786)),
    "digestive": ((520, 579), (787, 787)),
    "injury": ((800, 999),),
    "musculoskeletal": ((710, 739),),
    "genitourinary": ((580, 629), (788, 788)),
    "neoplasms": ((140, 239),),
}


def age_midpoint(band: str) -> float:
    """Returns the middle of a ten-year age band, years."""
    return AGES.index(band) * 10.0 + 5.0


def changed_medications(*dosages: Any) -> Any:
    """Returns how many of the drugs were raised or lowered during the stay."""
    return sum(((d == "Up") | (d == "Down")) * 1.0 for d in dosages)


def taken_medications(*dosages: Any) -> Any:
    """Returns how many of the diabetes drugs the patient was given."""
    return sum((d != "No") * 1.0 for d in dosages)


@dataclass(frozen=True)
class Derived:
    """One derived column.

    Attributes:
        columns: the published columns it is made from, in argument order.
        function: scalars in, scalar out; where `elementwise`, arrays in, array out as well.
        elementwise: False for functions of one text value, which frames apply per distinct value.
    """

    columns: tuple[str, ...]
    function: Callable[..., Any]
    elementwise: bool = True


DERIVED: dict[str, Derived] = {
    "age_years": Derived(("age",), age_midpoint, elementwise=False),
    **{f"{d}_chapter": Derived((d,), icd9_chapter, elementwise=False) for d in DIAGNOSES},
    **{f"{d}_number": Derived((d,), icd9_number, elementwise=False) for d in DIAGNOSES},
    "medications_changed": Derived(MEDICATIONS, changed_medications),
    "medications_taken": Derived(MEDICATIONS, taken_medications),
    "log_inpatient": Derived(("number_inpatient",), np.log1p),
    "log_emergency": Derived(("number_emergency",), np.log1p),
    "log_outpatient": Derived(("number_outpatient",), np.log1p),
}

NUMERIC = (
    "time_in_hospital",
    "num_lab_procedures",
    "num_procedures",
    "num_medications",
    "number_diagnoses",
    "number_inpatient",
    "age_years",
    "diag_1_number",
    "diag_2_number",
    "diag_3_number",
    "medications_changed",
    "medications_taken",
    "log_inpatient",
    "log_emergency",
    "log_outpatient",
)
CATEGORICAL = (
    "race",
    "gender",
    *CODES,
    "medical_specialty",
    "diag_1_chapter",
    "diag_2_chapter",
    "diag_3_chapter",
    "max_glu_serum",
    "A1Cresult",
    "metformin",
    "repaglinide",
    "glimepiride",
    "glipizide",
    "glyburide",
    "pioglitazone",
    "rosiglitazone",
    "insulin",
    "change",
    "diabetesMed",
)
"""Drugs that fewer than about 1 % of patients take are counted above, not levelled here."""

MODELLED = tuple(
    dict.fromkeys(
        column
        for feature in (*NUMERIC, *CATEGORICAL)
        for column in (DERIVED[feature].columns if feature in DERIVED else (feature,))
    )
)
"""The published columns that reach a model: what drift is watched on."""


def derive_one(encounter: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one encounter with its derived columns added.

    Args:
        encounter: published column name -> value, all of `MODELLED` present.
    """
    derived = {
        name: rule.function(*[encounter[column] for column in rule.columns])
        for name, rule in DERIVED.items()
    }
    return {**encounter, **derived}


def derive(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the frame (n rows) reduced to the modelled features, derived ones added."""
    columns = {}
    for name in (*NUMERIC, *CATEGORICAL):
        rule = DERIVED.get(name)
        if rule is None:
            columns[name] = frame[name]
        elif rule.elementwise:
            columns[name] = rule.function(*[frame[column] for column in rule.columns])
        else:
            values = frame[rule.columns[0]]
            columns[name] = values.map({v: rule.function(v) for v in values.unique()})
    return type(frame)(columns, index=frame.index)


def preprocessor() -> "Pipeline":
    """Returns the unfitted transformer: encounters (n, published columns) -> float64 (n, features).

    Numbers are standardised, categories become one column a level. A level seen in less than
    `RARE` of the rows, or never, falls into the column of pooled rare levels where one was
    learned, and into none otherwise.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    levels = OneHotEncoder(
        min_frequency=RARE,
        handle_unknown="infrequent_if_exist",
        sparse_output=False,
        dtype=np.float32,
    )
    encode = ColumnTransformer(
        [("numeric", StandardScaler(), list(NUMERIC)), ("levels", levels, list(CATEGORICAL))],
        verbose_feature_names_out=False,
    )
    return Pipeline([("derive", FunctionTransformer(derive)), ("encode", encode)])
