"""Batch and reference are told apart where they differ, and seldom where they do not."""

import numpy as np
import pandas as pd
import pytest

from health_predict import features, schema
from health_predict.separation import Chance, DriftError, chance, separate
from health_predict_tests.shifts import cut, with_emergencies


@pytest.fixture(scope="module")
def drawn(cohort: pd.DataFrame) -> Chance:
    return chance(cohort, 800, draws=30)


def test_a_random_split_is_seldom_beyond_chance(cohort, drawn):
    found = [separate(*reversed(cut(cohort, 700, seed)), seed=seed) for seed in range(20)]
    alarms = [s for s in found if s.statistic > drawn.bound(0.01, s)]
    assert len(alarms) <= 2  # 1 % each: three of twenty would come once in a thousand
    assert 0.48 < np.mean([s.statistic for s in found]) < 0.52


def test_a_higher_false_alarm_rate_lowers_the_bound(cohort, drawn):
    batch, rest = cut(cohort, 500, 0)
    found = separate(rest, batch)
    assert 0.5 < drawn.bound(0.05, found) < drawn.bound(0.01, found)


def test_the_bound_is_wider_for_smaller_batches(cohort, drawn):
    bounds = [
        drawn.bound(0.01, separate(rest, batch))
        for batch, rest in (cut(cohort, patients, 0) for patients in (200, 1_000))
    ]
    assert bounds[0] > bounds[1] > 0.5


def test_the_two_halves_agree_and_visits_of_one_patient_do_so_chance_is_inflated(cohort):
    rows = cohort.iloc[:3_000]
    once, often = (rows.assign(**{schema.PATIENT: np.arange(3_000) // k}) for k in (1, 10))
    # Ten rows a patient, alike in one column: what a frequent visitor does to a batch.
    often = often.assign(num_procedures=np.random.default_rng(0).integers(0, 6, 300).repeat(10))
    assert 1.0 < chance(once, 800, draws=40).inflation < chance(often, 800, draws=40).inflation


def test_half_of_a_batch_turned_into_emergencies_is_told_apart_by_what_changed(cohort, drawn):
    reference = cohort[cohort["admission_source_id"] != schema.EMERGENCY_ROOM]
    batch, rest = cut(reference, 500, 0)
    found = separate(rest, with_emergencies(batch, 0.5))
    assert found.statistic > drawn.bound(0.01, found)
    assert {"admission_source_id", "admission_type_id"} & set(list(found.shares)[:2])


def test_what_is_ignored_is_not_seen(cohort):
    batch, rest = cut(cohort, 500, 0)
    shifted = with_emergencies(batch, 1)
    codes = ("admission_source_id", "admission_type_id")
    found = separate(rest, shifted, ignored=codes)
    assert not set(codes) & set(found.shares)
    assert found.statistic < separate(rest, shifted).statistic


def test_equal_seeds_find_alike(cohort):
    batch, rest = cut(cohort, 500, 0)
    assert separate(rest, batch, seed=3) == separate(rest, batch, seed=3)
    assert chance(rest, 300, draws=5, seed=3) == chance(rest, 300, draws=5, seed=3)


def test_the_shares_name_features_and_add_up(cohort):
    batch, rest = cut(cohort, 500, 0)
    shares = separate(rest, with_emergencies(batch, 1)).shares
    assert set(shares) <= {*features.NUMERIC, *features.CATEGORICAL}
    assert 0.8 < sum(shares.values()) <= 1.001


def test_columns_that_never_vary_are_fine(cohort):
    batch, rest = cut(cohort.assign(weight="?", time_in_hospital=3, A1Cresult="None"), 500, 0)
    found = separate(rest, batch)
    assert 0.4 < found.statistic < 0.6
    assert not {"weight", "time_in_hospital", "A1Cresult"} & set(found.shares)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_table_of_equal_rows_is_no_drift(cohort):
    same = cohort.iloc[[0] * 600].assign(**{schema.PATIENT: range(600)})
    found = separate(same.iloc[:300], same.iloc[300:])
    assert (found.statistic, found.shares) == (0.5, {})


@pytest.mark.parametrize(("reference", "batch"), [(99, 500), (500, 99), (500, 0)])
def test_too_few_rows_are_an_error_that_says_how_many(cohort, reference, batch):
    with pytest.raises(DriftError, match=f"{batch} batch rows against {reference} reference rows"):
        separate(cohort.iloc[:reference], cohort.iloc[1_000 : 1_000 + batch])


def test_a_batch_of_one_patient_is_an_error_and_not_the_absence_of_drift(cohort):
    batch = cohort.iloc[:300].assign(**{schema.PATIENT: 1})
    with pytest.raises(DriftError, match="patients cannot be cut into two halves"):
        separate(cohort.iloc[300:], batch)
