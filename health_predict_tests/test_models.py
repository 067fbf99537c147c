"""Candidates are data, drawn by a seed; stages add up to one fit; what ships is calibrated."""

import numpy as np
import pytest

from health_predict import models, schema
from health_predict.models import FAMILIES, STAGES, Candidate, Range
from health_predict_tests.conftest import SMALL


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 5)).astype(np.float32)
    y = (rng.random(800) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(int)
    return x, y


def test_equal_seeds_draw_equal_candidates_and_others_do_not():
    assert models.candidates(9, 7) == models.candidates(9, 7)
    assert models.candidates(9, 7) != models.candidates(9, 8)


def test_a_larger_search_begins_with_the_candidates_of_a_smaller_one():
    assert models.candidates(9, 7)[:4] == models.candidates(4, 7)


def test_families_take_turns():
    drawn = [candidate.family for candidate in models.candidates(7, 0)]
    assert set(drawn[:3]) == set(drawn[3:6]) == set(FAMILIES)
    assert drawn[6] == drawn[0]


def test_every_drawn_value_lies_in_its_range():
    for candidate in models.candidates(120, 3):
        space = FAMILIES[candidate.family].space
        assert candidate.params.keys() == space.keys()
        for name, value in candidate.params.items():
            assert space[name].low <= value <= space[name].high, name


def test_integers_are_drawn_to_both_ends():
    rng = np.random.default_rng(0)
    drawn = [Range(3, 6, "integer").draw(rng) for _ in range(200)]
    assert set(drawn) == {3, 4, 5, 6}
    assert {type(value) for value in drawn} == {int}


def test_a_log_range_gives_each_decade_its_share():
    rng = np.random.default_rng(0)
    drawn = np.array([Range(1e-3, 1.0, "log").draw(rng) for _ in range(3_000)])
    assert np.histogram(drawn, [1e-3, 1e-2, 1e-1, 1])[0] / 3_000 == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fit_takes_its_stages_on_one_estimator(family, data):
    fitted = list(models.fit_in_stages(Candidate(family, SMALL[family]), *data, 0))
    assert len(fitted) == STAGES
    assert all(estimator is fitted[0] for estimator in fitted)


def test_all_stages_together_grow_what_the_hyperparameters_ask_for(data):
    forest = models.fit(Candidate("random_forest", SMALL["random_forest"]), *data, 0)
    assert len(forest.estimators_) == SMALL["random_forest"]["trees"]
    boosted = models.fit(Candidate("xgboost", {**SMALL["xgboost"], "rounds": 45}), *data, 0)
    assert boosted.get_booster().num_boosted_rounds() == 45


def test_the_stages_of_a_logistic_regression_end_where_one_fit_does(data):
    from sklearn.linear_model import LogisticRegression

    staged = models.fit(Candidate("logistic_regression", {"C": 0.05}), *data, 0)
    once = LogisticRegression(C=0.05, max_iter=1_000, tol=1e-8).fit(*data)
    assert staged.coef_ == pytest.approx(once.coef_, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_seeds_fit_equal_models(family, data):
    candidate = Candidate(family, SMALL[family])
    one, same, other = (
        models.fit(candidate, *data, seed).predict_proba(data[0])[:, 1] for seed in (1, 1, 2)
    )
    assert (one == same).all()
    if family != "logistic_regression":  # which has nothing to draw
        assert (one != other).any()


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

    x, y = data
    rare = np.flatnonzero((y == 0) | (np.arange(len(y)) % 4 == 0))
    classifier = models.fit(Candidate("logistic_regression", {"C": 1.0}), x[rare], y[rare], 0)
    identity = make_pipeline(FunctionTransformer()).fit(x)
    shipped = models.pipeline(identity, classifier, x, y)
    before, after = (m.predict_proba(x)[:, 1] for m in (classifier, shipped))
    assert before.sum() / y.sum() < 0.8
    assert after.sum() / y.sum() == pytest.approx(1, abs=0.02)
    assert (np.argsort(before) == np.argsort(after)).all()
