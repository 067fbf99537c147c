"""What is said of a batch: severity, sentence, what the champion leans on, how its scores moved."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from health_predict import schema
from health_predict.drift import MAJOR, DriftSummary, detect
from health_predict.separation import Chance
from health_predict_tests.shifts import cut, with_emergencies

CHANCE = Chance(inflation=1.5, draws=100, batch_rows=800, reference_rows=3_200)
IMPORTANCE = {"admission_source_id": 0.25, "insulin": 0.05, "age_years": 0.7}


def watched(reference: pd.DataFrame, batch: pd.DataFrame, **given: Any) -> DriftSummary:
    rng = np.random.default_rng(0)
    risks = {"probabilities": (rng.random(len(reference)) * 0.8, rng.random(len(batch)))}
    return detect(
        reference, batch, CHANCE, **{**risks, "importance": IMPORTANCE, **given}, flagged_from=0.5
    )


def test_a_batch_of_the_same_world_is_no_drift(cohort):
    batch, rest = cut(cohort, 700, 0)
    summary = watched(rest, batch)
    assert summary.severity == "none"
    assert not summary.drifted
    assert summary.champion_share == 0
    assert summary.sentence.startswith("No drift: ")
    assert f"within chance (up to {summary.chance_bound:.3f})" in summary.sentence


def test_half_of_a_batch_turned_into_emergencies_is_major_drift_and_says_what_it_touches(cohort):
    reference = cohort[cohort["admission_source_id"] != schema.EMERGENCY_ROOM]
    batch, rest = cut(reference, 500, 0)
    summary = watched(rest, with_emergencies(batch, 0.5))
    assert summary.severity == "major"
    assert summary.statistic > summary.threshold >= MAJOR
    assert summary.champion_share == pytest.approx(0.25)
    assert f"AUC {summary.statistic:.3f}" in summary.sentence
    assert "carry 25% of what moves the champion's scores" in summary.sentence


def test_a_small_shift_is_minor_and_calls_for_no_retraining(cohort):
    batch, rest = cut(cohort, 1_200, 0)
    moved = np.random.default_rng(0).random(len(batch)) < 0.25
    summary = watched(rest, batch.assign(insulin=batch["insulin"].where(~moved, "Up")))
    assert summary.severity == "minor"
    assert not summary.drifted
    assert summary.sentence.startswith("Minor drift: ")


def test_what_is_major_and_what_is_chance_are_settings(cohort):
    batch, rest = cut(cohort, 1_200, 0)
    moved = np.random.default_rng(0).random(len(batch)) < 0.25
    shifted = batch.assign(insulin=batch["insulin"].where(~moved, "Up"))
    assert watched(rest, shifted, major=0.5).severity == "major"
    assert watched(rest, shifted, false_alarm_rate=0.05).chance_bound < (
        watched(rest, shifted, false_alarm_rate=0.01).chance_bound
    )


def test_how_the_scores_moved_is_told_in_risk_and_in_people_flagged(cohort):
    batch, rest = cut(cohort, 500, 0)
    risks = (np.full(len(rest), 0.4), np.full(len(batch), 0.6))
    prediction = watched(rest, batch, probabilities=risks).prediction
    assert prediction.distance == pytest.approx(0.2)
    assert prediction.words == "mean risk 0.40 before, 0.60 now; flagged 0% before, 100% now"
