"""Batches that drifted, or did not, for the tests of the watch."""

import numpy as np
import pandas as pd

from health_predict import schema


def cut(cohort: pd.DataFrame, patients: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the rows of some random patients, and those of the others."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(cohort[schema.PATIENT].unique(), patients, replace=False)
    inside = cohort[schema.PATIENT].isin(drawn)
    return cohort[inside], cohort[~inside]


def with_emergencies(batch: pd.DataFrame, share: float, seed: int = 0) -> pd.DataFrame:
    """Returns the batch with a share of its rows admitted through the emergency room."""
    moved = np.random.default_rng(seed).random(len(batch)) < share
    source = batch["admission_source_id"].where(~moved, schema.EMERGENCY_ROOM)
    kind = batch["admission_type_id"].where(~moved, 1)
    return batch.assign(admission_source_id=source, admission_type_id=kind)
