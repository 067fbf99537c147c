"""What the models see: derived columns and the preprocessor.

A derived column is one function of published columns that works on a scalar and on an array alike,
so the training frame and the compiled scorer share it. No row is dropped here (`encounters` does
that) and nothing is fitted at import.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from health_predict.schema import AGES, CODES, DIAGNOSES, MEDICATIONS, MISSING

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

RARE = 0.002
"""Levels below this share are pooled: 30 of the 14,000 rows that the first champion learns from."""

UNNUMBERED = -1.0


def icd9_number(code: str) -> float:
    """Returns an ICD-9 code as a number below 1000; E codes, V codes, `?` and others give -1."""
    try:
        number = float(code)
    except ValueError:
        return UNNUMBERED
    return number if 0 <= number < 1000 else UNNUMBERED  # "nan" and "1e99" are numbers to float()


def icd9_block(code: str) -> str:
    """Returns the category of an ICD-9 code: what stands before the point, `250` of `250.83`."""
    return code.split(".")[0]


def age_midpoint(band: str) -> float:
    """Returns the middle of a ten-year age band, years."""
    return AGES.index(band) * 10.0 + 5.0


def changed_medications(*dosages: Any) -> Any:
    """Returns how many of the drugs were raised or lowered during the stay."""
    return sum(((d == "Up") | (d == "Down")) * 1.0 for d in dosages)


def missing_fields(*values: Any) -> Any:
    """Returns how many of the values were not recorded."""
    return sum((v == MISSING) * 1.0 for v in values)


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
    "diag_1_block": Derived(("diag_1",), icd9_block, elementwise=False),
    **{f"{d}_number": Derived((d,), icd9_number, elementwise=False) for d in DIAGNOSES},
    "medications_changed": Derived(MEDICATIONS, changed_medications),
    "medications_taken": Derived(MEDICATIONS, taken_medications),
    "missing_fields": Derived(
        ("weight", "payer_code", "medical_specialty", *DIAGNOSES), missing_fields
    ),
    "log_inpatient": Derived(("number_inpatient",), np.log1p),
    "log_emergency": Derived(("number_emergency",), np.log1p),
    "log_outpatient": Derived(("number_outpatient",), np.log1p),
}

# What stands here was measured on later parts of the published data, what does not was left out
# for want of gain; `make ablation` shows by how much. Laboratory tests do harm (-.002 AUC: how many
# are taken shifts with the hospital), race changes nothing and is watched instead as a subgroup.
NUMERIC = (
    "time_in_hospital",
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
    "missing_fields",
    "log_inpatient",
    "log_emergency",
    "log_outpatient",
)
CATEGORICAL = (
    "gender",
    *CODES,
    "medical_specialty",
    "payer_code",
    "weight",
    "diag_1_block",
    "max_glu_serum",
    "A1Cresult",
    "change",
    "diabetesMed",
)

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


def columns(preprocessor: "Pipeline") -> dict[str, list[int]]:
    """Returns feature -> its columns in the matrix of a fitted preprocessor, in their order."""
    encode = preprocessor.named_steps["encode"]
    found: dict[str, list[int]] = {}
    for name, transformer, names in encode.transformers_:
        start = encode.output_indices_[name].start
        widths = [1] * len(names)
        if name == "levels":
            widths = [len(levels) for levels in _kept(transformer)]
        for feature, width in zip(names, widths, strict=True):
            found[feature] = list(range(start, start + width))
            start += width
    return found


def _kept(encoder: Any) -> list[list[Any]]:
    """Returns the levels of each categorical feature that have a column, pooled ones as one."""
    return [
        [level for level in levels if level not in set(() if rare is None else rare)]
        + ([] if rare is None else ["rare"])
        for levels, rare in zip(encoder.categories_, encoder.infrequent_categories_, strict=True)
    ]
