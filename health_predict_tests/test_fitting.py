"""Newer rows count more, the test side is never touched, a planted leak is found."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from health_predict import fitting, schema, splits, thresholds
from health_predict.models import FAMILIES, Candidate, calibrator
from health_predict_tests.conftest import SMALL


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A small matrix is multiplied faster by one thread than by more."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def snapshot(cohort) -> pd.DataFrame:
    return splits.with_side(cohort)


@pytest.fixture(scope="module")
def preprocessor(snapshot):
    return fitting.fit_preprocessor(snapshot)


def learned(snapshot: pd.DataFrame, family: str = "logistic_regression") -> fitting.Fitted:
    preprocessor = fitting.fit_preprocessor(snapshot)
    return fitting.learn(snapshot, preprocessor, Candidate(family, SMALL[family]), seed=3)


def test_a_row_counts_half_as_much_as_one_that_came_a_half_life_later():
    rows = 2 * fitting.HALF_LIFE + 1
    weights = fitting.recency(pd.DataFrame(index=range(rows)))
    assert weights[[-1, -1 - fitting.HALF_LIFE, 0]] == pytest.approx([1, 0.5, 0.25])
    assert (np.diff(weights) > 0).all()


def test_a_sample_is_one_side_in_order_with_the_weights_of_the_whole_snapshot(
    snapshot, preprocessor
):
    sample = fitting.sample(snapshot, preprocessor, "validation")
    rows = np.flatnonzero(snapshot[schema.SIDE] == "validation")
    assert (sample.y == snapshot[schema.LABEL].to_numpy()[rows]).all()
    assert (sample.weight == fitting.recency(snapshot)[rows]).all()
    assert sample.x.dtype == np.float32
    chosen = snapshot.iloc[rows]
    assert np.allclose(sample.x, preprocessor.transform(chosen), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_test_side_reaches_a_model(snapshot, family):
    changed = snapshot.copy()
    test = changed[schema.SIDE] == "test"
    changed.loc[test, schema.LABEL] = 1 - changed.loc[test, schema.LABEL]
    shuffled = changed[test].sample(frac=1, random_state=0)
    for column in (*schema.INPUTS, schema.PATIENT):
        changed.loc[test, column] = shuffled[column].to_numpy()
    changed.loc[test, ["payer_code", "number_inpatient", "num_medications"]] = ["New", 21, 81]
    one, other = learned(snapshot, family), learned(changed, family)
    asked = snapshot.head(500)
    scores = [fitted.pipeline.predict_proba(asked)[:, 1] for fitted in (one, other)]
    assert (scores[0] == scores[1]).all()
    assert one.thresholds == other.thresholds
    assert one.calibration == other.calibration


def test_what_is_learned_from_does_change_the_model(snapshot):
    changed = snapshot.copy()
    train = changed[schema.SIDE] == "train"
    changed.loc[train, "number_inpatient"] = 0
    asked = snapshot.head(500)
    scores = [learned(frame).pipeline.predict_proba(asked)[:, 1] for frame in (snapshot, changed)]
    assert (scores[0] != scores[1]).any()


@pytest.fixture
def aged(snapshot) -> pd.DataFrame:
    """A snapshot with more validation people than are calibrated on; the old all readmitted."""
    validation = snapshot[snapshot[schema.SIDE] == "validation"]
    old = pd.concat([validation.assign(**{schema.LABEL: 1})] * 2)
    return pd.concat([old, snapshot], ignore_index=True)


def test_a_model_is_calibrated_on_the_newest_people_only(snapshot, aged):
    newest = splits.on_side(aged, "validation").tail(fitting.CALIBRATION_ROWS)
    rest = splits.on_side(aged, "validation").iloc[: -fitting.CALIBRATION_ROWS]
    assert len(newest) == fitting.CALIBRATION_ROWS
    assert rest[schema.LABEL].mean() > newest[schema.LABEL].mean() + 0.2
    pipeline = learned(aged).pipeline
    told = pipeline.predict_proba(newest)[:, 1].mean()
    assert told == pytest.approx(newest[schema.LABEL].mean(), abs=0.02)


def test_the_people_a_model_is_calibrated_on_choose_the_threshold(snapshot, preprocessor):
    fitted = learned(snapshot)
    assert f"{fitting.CALIBRATION_ROWS:,}" not in fitted.thresholds.reason
    people = len(splits.on_side(snapshot, "validation"))
    assert f"On {people:,} validation encounters" in fitted.thresholds.reason
    dear = fitting.learn(
        snapshot,
        preprocessor,
        Candidate("logistic_regression", {"C": 0.05}),
        seed=3,
        harm=3.0,
    )
    assert dear.thresholds.bands["medium"] == pytest.approx(thresholds.nominal(1.5), abs=1e-4)


def test_the_calibration_is_the_one_that_foretells_unseen_patients_better(snapshot, preprocessor):
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold, cross_val_predict

    from health_predict import models

    fitted = learned(snapshot)
    sample = fitting.sample(snapshot, preprocessor, "train")
    classifier = models.fit(Candidate("logistic_regression", {"C": 0.05}), sample, 3)
    newest = splits.on_side(snapshot, "validation").tail(fitting.CALIBRATION_ROWS)
    x, y = preprocessor.transform(newest).astype(np.float32), newest[schema.LABEL]
    losses = {
        method: log_loss(
            y,
            cross_val_predict(
                calibrator(classifier, method),
                *(x, y),
                cv=GroupKFold(5),
                groups=newest[schema.PATIENT],
                method="predict_proba",
            )[:, 1],
        )
        for method in ("sigmoid", "isotonic")
    }
    assert fitted.calibration == min(losses, key=losses.__getitem__)


def test_no_honest_feature_is_taken_for_a_leak(snapshot, preprocessor):
    aucs = fitting.single_feature_aucs(snapshot, preprocessor)
    assert max(aucs.values()) < fitting.LEAK_AUC
    assert aucs["log_inpatient"] > 0.53


@pytest.mark.parametrize(
    ("column", "values"),
    [("number_diagnoses", (4, 9)), ("payer_code", ("MC", "HM")), ("weight", ("?", "[50-75)"))],
)
def test_a_feature_that_knows_the_outcome_is_found_and_no_other(snapshot, column, values):
    leaking = snapshot.copy()
    told = leaking[schema.LABEL].to_numpy().copy()
    wrong = np.random.default_rng(0).random(len(told)) < 0.1
    told[wrong] = 1 - told[wrong]
    leaking[column] = np.array(values, dtype=object if isinstance(values[0], str) else int)[told]
    aucs = fitting.single_feature_aucs(leaking, fitting.fit_preprocessor(leaking))
    found = {name for name, auc in aucs.items() if auc > fitting.LEAK_AUC}
    # Whether a weight was recorded is told by the count of missing fields as well.
    assert {column} <= found <= {column, "missing_fields"}
