"""How far each column moved, whether by more than chance, and how much the champion leans on it."""

import numpy as np
import pandas as pd
import pytest

from health_predict import features, schema
from health_predict.column_drift import ColumnDrift, by_column, column_weights
from health_predict_tests.shifts import cut, with_emergencies


def columns(reference, batch, importance=None) -> dict[str, ColumnDrift]:
    return {d.column: d for d in by_column(reference, batch, importance or {})}


def test_every_modelled_column_is_told_and_none_moves_by_chance(cohort):
    batch, rest = cut(cohort, 1_000, 0)
    found = columns(rest, batch)
    assert set(found) == set(features.MODELLED)
    assert not [name for name, drift in found.items() if drift.moved]


def test_what_moved_stands_first_with_its_effect(cohort):
    batch, rest = cut(cohort, 1_000, 0)
    found = by_column(rest, with_emergencies(batch, 1), {"admission_source_id": 0.3})
    assert found[0].column == "admission_source_id"
    assert found[0].moved
    assert found[0].psi > 0.25
    assert 0 < found[0].distance <= 1
    assert found[0].weight == 0.3
    assert found[0].words.startswith("admission_source_id (PSI ")


def test_numbers_are_told_in_standard_deviations_of_the_reference(cohort):
    batch, rest = cut(cohort, 1_000, 0)
    spread = rest.drop_duplicates(schema.PATIENT)["num_medications"].std(ddof=0)
    moved = batch.assign(num_medications=batch["num_medications"] + spread)
    drift = columns(rest, moved)["num_medications"]
    assert drift.kind == "number"
    assert drift.moved
    assert drift.distance == pytest.approx(1, abs=0.1)


def test_values_that_are_no_longer_recorded_are_drift_of_their_own(cohort):
    batch, rest = cut(cohort, 1_000, 0)
    drift = columns(rest, batch.assign(medical_specialty=schema.MISSING))["medical_specialty"]
    assert drift.moved
    assert drift.missing_batch == 1
    assert "100% now" in drift.words


def test_levels_that_were_never_seen_are_drift_of_their_own(cohort):
    batch, rest = cut(cohort, 1_000, 0)
    new = np.random.default_rng(0).random(len(batch)) < 0.1
    drift = columns(rest, batch.assign(payer_code=batch["payer_code"].where(~new, "ZZ")))
    assert drift["payer_code"].moved
    assert drift["payer_code"].unseen == pytest.approx(0.1, abs=0.03)
    assert "levels never seen" in drift["payer_code"].words


def test_rare_codes_that_differ_by_chance_are_not_called_moved(cohort):
    batch, rest = cut(cohort, 1_000, 0)
    rare = batch.assign(diag_3=[f"E{n}" if n % 100 == 0 else d for n, d in enumerate(batch.diag_3)])
    assert not columns(rest, rare)["diag_3"].moved


def test_a_constant_column_is_called_one_and_nan_counts_as_not_recorded(cohort):
    batch, rest = cut(cohort, 500, 0)
    rest, batch = (f.assign(weight="?", num_procedures=0) for f in (rest, batch))
    found = columns(rest, batch.assign(max_glu_serum=np.nan))
    assert found["weight"].kind == found["num_procedures"].kind == "constant"
    assert found["weight"].p_value == 1
    assert found["max_glu_serum"].missing_batch == 1
    numbers = columns(rest, batch.assign(time_in_hospital=np.nan))["time_in_hospital"]
    assert numbers.missing_batch == 1
    assert numbers.moved


def test_false_discoveries_are_rare_over_many_splits(cohort: pd.DataFrame):
    moved = [sum(d.moved for d in by_column(*reversed(cut(cohort, 700, s)), {})) for s in range(20)]
    assert sum(moved) <= 2


def test_a_derived_feature_counts_for_the_columns_it_is_made_from():
    weights = column_weights({"age_years": 0.2, "log_inpatient": 0.3, "number_inpatient": 0.1})
    assert weights == {"age": 0.2, "number_inpatient": pytest.approx(0.4)}
    missing = column_weights({"missing_fields": 0.6})
    assert missing["weight"] == pytest.approx(0.1)
