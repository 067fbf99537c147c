"""The synthetic cohort keeps the published schema, its marginals, its drift and its difficulty."""

import json
import zipfile
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from health_predict import schema, synthetic, synthetic_profile
from health_predict_tests.conftest import archive_path

ROWS = 30_000
DRIFTING = {
    "payer_code": "?",
    "admission_source_id": "7",
    "medical_specialty": "?",
    "admission_type_id": "1",
    "discharge_disposition_id": "18",
    "insulin": "No",
    "number_diagnoses": "9",
    "number_inpatient": "0",
}


@cache
def drawn(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    return synthetic.cohort(rows, seed)


@cache
def published() -> pd.DataFrame:
    path = archive_path()
    if path.suffix != ".zip":
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    with zipfile.ZipFile(path) as archive, archive.open("diabetic_data.csv") as table:
        return pd.read_csv(table, dtype=str, keep_default_na=False)


def by_tenth(frame: pd.DataFrame, column: str, value: str) -> np.ndarray:
    tenth = np.arange(len(frame)) * 10 // len(frame)
    return (frame[column] == value).groupby(tenth).mean().to_numpy()


def profile_by_tenth(column: str, value: str) -> np.ndarray:
    """Shares of a level by tenth as stored; the first figure of a row is its suppressed rest."""
    table = synthetic.load_profile()["tables"][column]
    place = table["levels"].index(value) + 1
    rows = [table["rows"]["tenth"].get(str(t), [0]) for t in range(10)]
    return np.array([r[place] / sum(r) if place < len(r) else 0.0 for r in rows])


def later_auc(frame: pd.DataFrame) -> float:
    """AUC of a logistic regression trained on the first fifth and tested on what follows."""
    early = np.arange(len(frame)) < len(frame) // 5
    dispositions = frame["discharge_disposition_id"].astype(int)
    alive = ~dispositions.isin(schema.DEATH_OR_HOSPICE).to_numpy()
    label = (frame[schema.OUTCOME] != "NO").to_numpy()
    inputs = frame[list(schema.INPUTS)].copy()
    for column in schema.COUNTS:
        inputs[column] = np.log1p(inputs[column].astype(int))
    for column in schema.DIAGNOSES:
        inputs[column] = inputs[column].str[:3]
    texts = [c for c in schema.INPUTS if c not in schema.COUNTS]
    encode = make_column_transformer(
        (OneHotEncoder(min_frequency=0.005, handle_unknown="infrequent_if_exist"), texts),
        (StandardScaler(), list(schema.COUNTS)),
    )
    model = make_pipeline(encode, LogisticRegression(C=0.05, max_iter=500))
    model.fit(inputs[early & alive], label[early & alive])
    scores = model.predict_proba(inputs[~early & alive])[:, 1]
    return float(roc_auc_score(label[~early & alive], scores))


def test_columns_and_types_are_the_published_ones():
    frame = drawn()
    assert tuple(frame.columns) == schema.COLUMNS
    assert len(frame) == ROWS
    assert {str(dtype) for dtype in frame.dtypes} == {"object"}
    assert frame.map(lambda value: type(value) is str).all(axis=None)


def test_every_value_lies_in_its_vocabulary_or_range():
    frame = drawn()
    for column, levels in schema.CLOSED.items():
        assert set(frame[column]) <= set(levels), column
    for column, (low, high) in schema.COUNTS.items():
        assert frame[column].astype(int).between(low, high).all(), column
    codes = (schema.ADMISSION_TYPES, schema.DISCHARGE_DISPOSITIONS, schema.ADMISSION_SOURCES)
    for column, table in zip(schema.CODES, codes, strict=True):
        assert set(frame[column].astype(int)) <= set(table), column
    assert set(frame[schema.OUTCOME]) == set(schema.OUTCOMES)


def test_encounters_come_in_order_and_every_identifier_is_above_the_published_ones():
    frame = drawn()
    encounters = frame[schema.ENCOUNTER_ID].astype(int)
    assert encounters.is_monotonic_increasing and encounters.is_unique
    assert encounters.min() > 443_867_222
    assert frame[schema.PATIENT].astype(int).min() > 189_502_619


def test_equal_seeds_give_equal_tables():
    pd.testing.assert_frame_equal(synthetic.cohort(2_000, 7), synthetic.cohort(2_000, 7))


def test_different_seeds_give_different_tables():
    one, other = synthetic.cohort(2_000, 7), synthetic.cohort(2_000, 8)
    assert (one["diag_1"] != other["diag_1"]).mean() > 0.5


@pytest.mark.parametrize("rows", [1, 2, 13, 300])
def test_any_number_of_rows_can_be_drawn(rows):
    assert len(synthetic.cohort(rows, 3)) == rows


def test_a_cohort_without_rows_is_refused():
    with pytest.raises(ValueError, match="not 0"):
        synthetic.cohort(0)


def test_a_patient_has_about_1_4_encounters():
    assert 1.33 < ROWS / drawn()[schema.PATIENT].nunique() < 1.5


def test_a_patient_keeps_race_and_gender():
    traits = drawn().groupby(schema.PATIENT)[["race", "gender"]].nunique()
    assert (traits == 1).all(axis=None)


def test_a_patient_never_grows_younger_and_ages_one_band_a_visit_at_most():
    frame = drawn()
    band = frame["age"].map(schema.AGES.index)
    steps = band.groupby(frame[schema.PATIENT]).diff().dropna()
    assert set(steps) == {0, 1}
    assert steps.mean() < 0.1


def test_later_visits_follow_more_inpatient_stays():
    frame = drawn()
    visit = frame.groupby(schema.PATIENT).cumcount().clip(upper=3)
    stays = frame["number_inpatient"].astype(int).groupby(visit).mean()
    assert stays.is_monotonic_increasing
    assert stays[0] < 0.4 < 1.0 < stays[1]


def test_who_comes_back_was_nearly_always_readmitted():
    frame = drawn()
    last = ~frame[schema.PATIENT].duplicated(keep="last")
    readmitted = frame[schema.OUTCOME] != "NO"
    assert readmitted[~last].mean() > 0.95
    assert readmitted[last].mean() < 0.35


def test_change_and_diabetes_med_follow_from_the_drugs():
    frame = drawn()
    drugs = frame[list(schema.MEDICATIONS)]
    given = (drugs != "No").sum(axis=1)
    moved = drugs.isin(["Up", "Down"]).any(axis=1)
    assert ((frame["diabetesMed"] == "Yes") == (given > 0)).all()
    assert ((frame["change"] == "Ch") == ((given > 1) | moved)).all()
    assert 0.3 < (frame["change"] == "Ch").mean() < 0.6


def test_a_longer_stay_means_more_drugs():
    counts = drawn()[["time_in_hospital", "num_medications"]].astype(int)
    assert counts.corr().iloc[0, 1] > 0.3


@pytest.mark.parametrize(("column", "value"), DRIFTING.items())
def test_marginals_drift_by_tenths_as_in_the_profile(column, value):
    expected = profile_by_tenth(column, value)
    assert np.ptp(expected) > 0.05
    assert np.abs(by_tenth(drawn(), column, value) - expected).max() < 0.05


@pytest.mark.parametrize("rows", [10_000, ROWS])
def test_the_drift_is_over_relative_position(rows):
    shares = by_tenth(drawn(rows), "payer_code", "?")
    assert shares[:2].min() > 0.99
    assert shares[6:].max() < 0.2


def test_the_label_rate_by_tenth_is_the_published_one():
    rates = 1 - by_tenth(drawn(), schema.OUTCOME, "NO")
    known = np.array([0.49, 0.45, 0.39, 0.44, 0.54, 0.51, 0.50, 0.49, 0.42, 0.37])
    assert np.abs(rates - known).max() < 0.04
    assert 0.09 < (drawn()[schema.OUTCOME] == "<30").mean() < 0.13


def test_a_logistic_regression_ranks_later_rows_as_well_as_on_published_data():
    assert 0.62 < later_auc(drawn()) < 0.72


def test_the_unit_of_the_profile_is_eleven_encounters():
    assert synthetic.load_profile()["unit"] == synthetic_profile.UNIT >= 11


def test_every_stored_count_is_a_whole_number_of_units():
    for table in synthetic.load_profile()["tables"].values():
        for rows in table["rows"].values():
            for units in rows.values():
                assert all(type(u) is int and u >= 0 for u in units)
                assert len(units) <= len(table["levels"]) + 1


def test_every_level_of_the_profile_rests_on_a_unit_at_least():
    for column, table in synthetic.load_profile()["tables"].items():
        assert len(table["rows"][""][""]) == len(table["levels"]) + 1, column
        assert min(table["rows"][""][""][1:]) >= 1, column


def test_every_coefficient_rests_on_twenty_units_at_least():
    for model in synthetic.load_profile()["models"].values():
        units = [n for levels in model["terms"].values() for _, n in levels.values()]
        assert len(units) > 100
        assert min(units) >= 20


def test_the_profile_holds_no_identifier():
    text = files("health_predict").joinpath("synthetic_profile.json").read_text("utf-8")
    profile = json.loads(text)
    assert not set(profile["tables"]) & set(schema.IDENTIFIERS)
    largest = max(
        u
        for table in profile["tables"].values()
        for rows in table["rows"].values()
        for units in rows.values()
        for u in units
    )
    assert largest * synthetic_profile.UNIT <= 110_000
    assert not any(name in text for name in schema.IDENTIFIERS)


def test_a_level_of_ten_encounters_is_suppressed_and_one_of_eleven_is_kept():
    frame = drawn(10_000).copy()
    frame.loc[frame["race"].isin(["Few", "Enough"]), "race"] = "?"
    frame.loc[frame.index[:10], "race"] = "Few"
    frame.loc[frame.index[10:21], "race"] = "Enough"
    race = synthetic_profile.profile_of(frame)["tables"]["race"]
    assert "Few" not in race["levels"]
    assert "Enough" in race["levels"]


def test_a_profile_is_written_as_it_is_computed_and_does_not_depend_on_row_order(tmp_path):
    frame = drawn(10_000)
    path = tmp_path / "profile.json"
    synthetic_profile.write_profile(frame.sample(frac=1, random_state=0), path)
    stored = json.loads(path.read_text("utf-8"))
    assert stored == synthetic_profile.profile_of(frame)
    assert max(map(len, path.read_text("utf-8").splitlines())) < 10_000


def test_a_profile_without_a_published_column_is_refused():
    with pytest.raises(KeyError, match="insulin"):
        synthetic_profile.profile_of(drawn(10_000).drop(columns="insulin"))


def test_the_outcome_model_alone_ranks_better_than_any_model_fitted_early():
    values = synthetic_profile._observed(drawn())
    chance = expit(synthetic._logit(synthetic.load_profile()["models"]["any"], values))
    label = synthetic.strings(values[schema.OUTCOME]) != "NO"
    assert roc_auc_score(label, chance) > later_auc(drawn())
    assert abs(chance.mean() - label.mean()) < 0.02


def test_the_published_file_has_the_same_marginals_and_the_same_difficulty():
    real = published()
    order = real[schema.ENCOUNTER_ID].astype(int).argsort(kind="stable")
    real = real.iloc[order].reset_index(drop=True)
    made = drawn(len(real))
    for column in (c for c in schema.INPUTS if c not in schema.DIAGNOSES):
        shares = [f[column].value_counts(normalize=True) for f in (real, made)]
        assert shares[0].sub(shares[1], fill_value=0).abs().sum() / 2 < 0.03, column
    for column, value in (*DRIFTING.items(), (schema.OUTCOME, "NO")):
        distance = np.abs(by_tenth(real, column, value) - by_tenth(made, column, value))
        assert distance.max() < 0.03, column
    assert abs(later_auc(real) - later_auc(made)) < 0.03
