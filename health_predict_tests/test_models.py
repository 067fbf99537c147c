"""Search spaces are data; stages add up to one fit; what ships is calibrated."""

import numpy as np
import pytest

from health_predict import models, schema
from health_predict.models import FAMILIES, STAGES, Candidate, Sample
from health_predict_tests.conftest import SMALL


@pytest.fixture(scope="module")
def data() -> Sample:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 5)).astype(np.float32)
    y = (rng.random(800) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(int)
    return Sample(x, y)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_lies_in_the_space(family):
    space, default = FAMILIES[family].space, FAMILIES[family].default
    assert default.keys() == space.keys()
    for name, value in default.items():
        assert space[name].low <= value <= space[name].high, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fit_takes_its_stages_on_one_estimator(family, data):
    fitted = list(models.fit_in_stages(Candidate(family, SMALL[family]), data, 0))
    assert len(fitted) == STAGES
    assert all(estimator is fitted[0] for estimator in fitted)


def test_all_stages_together_grow_what_the_hyperparameters_ask_for(data):
    forest = models.fit(Candidate("random_forest", SMALL["random_forest"]), data, 0)
    assert len(forest.estimators_) == SMALL["random_forest"]["trees"]
    boosted = models.fit(Candidate("xgboost", {**SMALL["xgboost"], "rounds": 45}), data, 0)
    assert boosted.get_booster().num_boosted_rounds() == 45


def test_the_stages_of_a_logistic_regression_end_where_one_fit_does(data):
    from sklearn.linear_model import LogisticRegression

    staged = models.fit(Candidate("logistic_regression", {"C": 0.05}), data, 0)
    once = LogisticRegression(C=0.05, max_iter=1_000, tol=1e-8).fit(data.x, data.y)
    assert staged.coef_ == pytest.approx(once.coef_, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_seeds_fit_equal_models(family, data):
    candidate = Candidate(family, SMALL[family])
    one, same, other = (
        models.fit(candidate, data, seed).predict_proba(data.x)[:, 1] for seed in (1, 1, 2)
    )
    assert (one == same).all()
    if family != "logistic_regression":  # which has nothing to draw
        assert (one != other).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_without_weight_is_not_learned_from(family, data):
    rng = np.random.default_rng(1)
    noise = Sample(
        np.concatenate([data.x, rng.normal(size=(800, 5)).astype(np.float32)]),
        np.concatenate([data.y, 1 - data.y]),
        np.repeat([1.0, 1e-9], 800),
    )
    candidate = Candidate(family, SMALL[family])
    ranked = models.fit(candidate, noise, 0).predict_proba(data.x)[:, 1]
    assert np.corrcoef(ranked, data.x[:, 0])[0, 1] > 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shipped_pipeline_scores_encounters_and_ranks_better_than_chance(
    family, pipelines, cohort
):
    from sklearn.metrics import roc_auc_score

    later = cohort.iloc[int(len(cohort) * 0.4) :]
    scores = pipelines[family].predict_proba(later)[:, 1]
    assert ((scores > 0) & (scores < 1)).all()
    assert roc_auc_score(later[schema.LABEL], scores) > 0.57


def test_calibration_mends_the_level_and_keeps_the_order(data):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    x, y = data.x, data.y
    rare = np.flatnonzero((y == 0) | (np.arange(len(y)) % 4 == 0))
    classifier = models.fit(
        Candidate("logistic_regression", {"C": 1.0}), Sample(x[rare], y[rare]), 0
    )
    identity = make_pipeline(FunctionTransformer()).fit(x)
    shipped = models.pipeline(identity, classifier, x, y)
    before, after = (m.predict_proba(x)[:, 1] for m in (classifier, shipped))
    assert before.sum() / y.sum() < 0.8
    assert after.sum() / y.sum() == pytest.approx(1, abs=0.02)
    assert (np.argsort(before) == np.argsort(after)).all()
