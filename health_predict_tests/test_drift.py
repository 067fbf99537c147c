"""Drift is called where it is, seldom where it is not, and shown without identifiers."""

import numpy as np
import pandas as pd
import pytest

from health_predict import drift, features, schema
from health_predict.drift import MAJOR, DriftError, detect


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
    return batch.assign(admission_source_id=source, admission_type_id=1)


def test_a_random_split_raises_no_alarm_more_often_than_said(cohort):
    found = [detect(*cut(cohort, 3_400, seed), seed=seed) for seed in range(20)]
    alarms = [summary for summary in found if summary.severity != "none"]
    assert len(alarms) <= 2  # 1 % each: three of twenty would come once in a thousand
    assert not any(summary.drifted for summary in found)
    assert 0.48 < np.mean([summary.statistic for summary in found]) < 0.52


def test_half_of_a_batch_turned_into_emergencies_is_major_drift(cohort):
    reference = cohort[cohort["admission_source_id"] != schema.EMERGENCY_ROOM]
    batch, rest = cut(reference, 500, 0)
    summary = detect(rest, with_emergencies(batch, 0.5))
    assert summary.severity == "major"
    assert summary.drifted
    assert summary.statistic > summary.threshold >= MAJOR
    assert {"admission_source_id", "admission_type_id"} & set(list(summary.columns)[:2])
    assert summary.sentence.startswith("Major drift: ")
    assert f"AUC {summary.statistic:.3f}" in summary.sentence


def test_a_small_shift_is_minor_and_calls_for_no_retraining(cohort):
    batch, rest = cut(cohort, 1_200, 0)
    moved = np.random.default_rng(0).random(len(batch)) < 0.25
    summary = detect(rest, batch.assign(insulin=batch["insulin"].where(~moved, "Up")))
    assert summary.severity == "minor"
    assert not summary.drifted
    assert next(iter(summary.columns)) in ("change", "medications_changed")
    assert "Minor drift: " in summary.sentence


def test_equal_seeds_decide_alike(cohort):
    batch, rest = cut(cohort, 500, 0)
    assert detect(rest, batch, seed=3) == detect(rest, batch, seed=3)


def test_a_smaller_batch_must_differ_more(cohort):
    bounds = [
        detect(rest, batch).chance_bound
        for batch, rest in (cut(cohort, patients, 0) for patients in (200, 1_000))
    ]
    assert bounds[0] > bounds[1] > 0.5


def test_the_shares_of_the_columns_name_published_columns_or_counts_and_add_up(cohort):
    batch, rest = cut(cohort, 500, 0)
    columns = detect(rest, with_emergencies(batch, 1)).columns
    assert set(columns) <= {
        *features.MODELLED,
        "medications_changed",
        "medications_taken",
        "missing_fields",
    }
    assert 0.8 < sum(columns.values()) <= 1.001


def test_columns_that_never_vary_are_fine(cohort):
    batch, rest = cut(cohort.assign(race="?", time_in_hospital=3, A1Cresult="None"), 500, 0)
    summary = detect(rest, batch)
    assert 0.4 < summary.statistic < 0.6
    assert not {"race", "time_in_hospital", "A1Cresult"} & set(summary.columns)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_table_of_equal_rows_is_no_drift(cohort):
    same = cohort.iloc[[0] * 600].assign(**{schema.PATIENT: range(600)})
    summary = detect(same.iloc[:300], same.iloc[300:])
    assert (summary.statistic, summary.severity, summary.columns) == (0.5, "none", {})


@pytest.mark.parametrize(("reference", "batch"), [(99, 500), (500, 99), (500, 0)])
def test_too_few_rows_are_an_error_that_says_how_many(cohort, reference, batch):
    with pytest.raises(DriftError, match=f"{batch} batch rows against {reference} reference rows"):
        detect(cohort.iloc[:reference], cohort.iloc[1_000 : 1_000 + batch])


def test_a_batch_of_one_patient_is_an_error_and_not_the_absence_of_drift(cohort):
    batch = cohort.iloc[:300].assign(**{schema.PATIENT: 1})
    with pytest.raises(DriftError, match="patients cannot be cut into two halves"):
        detect(cohort.iloc[300:], batch)


def test_visits_of_the_same_patients_widen_the_bound(cohort):
    rows = cohort.iloc[:2_000]
    once, often = (rows.assign(**{schema.PATIENT: np.arange(2_000) // k}) for k in (1, 10))
    bounds = [detect(f.iloc[:1_000], f.iloc[1_000:]).chance_bound - 0.5 for f in (once, often)]
    assert bounds[1] == pytest.approx(bounds[0] * np.sqrt(10), rel=0.02)


def test_the_report_shows_what_moved_and_no_identifier(cohort, tmp_path):
    batch, rest = cut(cohort, 300, 0)
    batch = with_emergencies(batch, 1)
    path = tmp_path / "new" / "report.html"
    share = drift.write_report(rest, batch, path)
    page = path.read_text()
    assert 1 / len(features.MODELLED) <= share < 0.5
    assert "admission_source_id" in page
    assert not any(name in page for name in schema.IDENTIFIERS)
    assert not any(str(patient) in page for patient in batch[schema.PATIENT])
    assert not any(str(number) in page for number in batch[schema.ENCOUNTER_ID])
