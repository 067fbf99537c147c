"""Each measure is what its name says, under one weighting and under many at once."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from health_predict import metrics

ROWS, WEIGHTINGS = 500, 7


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return (np.random.default_rng(1).random(ROWS) < 0.4).astype(float)


@pytest.fixture(scope="module")
def probabilities(labels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(2).normal(size=ROWS)
    return 1 / (1 + np.exp(-(1.6 * labels - 1.2 + noise)))


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 5, size=(WEIGHTINGS, ROWS)).astype(float)


def rounded(probabilities: np.ndarray, levels: int | None) -> np.ndarray:
    return probabilities if levels is None else np.round(probabilities * levels) / levels


@pytest.mark.parametrize("levels", [1, 2, 10, None])
def test_the_auc_is_sklearns_under_every_weighting_with_and_without_ties(
    labels, probabilities, weights, levels
):
    told = rounded(probabilities, levels)
    expected = [roc_auc_score(labels, told, sample_weight=w) for w in weights]
    assert metrics.auc(labels, told, weights) == pytest.approx(expected, abs=1e-12)


def test_a_weighting_of_one_class_only_has_no_auc(labels, probabilities, weights):
    alone = np.vstack([labels, 1 - labels, weights[0]])
    assert np.isnan(metrics.auc(labels, probabilities, alone)).tolist() == [True, True, False]


def test_the_brier_score_is_sklearns_under_every_weighting(labels, probabilities, weights):
    expected = [brier_score_loss(labels, probabilities, sample_weight=w) for w in weights]
    assert metrics.brier(labels, probabilities, weights) == pytest.approx(expected, abs=1e-12)


def test_expected_over_observed_is_the_ratio_of_two_sums():
    labels, weights = np.array([1.0, 0, 1, 0]), np.array([[1.0, 1, 1, 1], [2, 0, 0, 1]])
    told = np.array([0.5, 0.5, 0.6, 0.2])
    found = metrics.expected_observed(labels, told, weights)
    assert found == pytest.approx([1.8 / 2, (2 * 0.5 + 0.2) / 2])


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_calibration_slope_is_that_of_a_logistic_regression_on_the_log_odds(
    labels, probabilities, weights, power
):
    z = power * np.log(probabilities / (1 - probabilities))
    told = 1 / (1 + np.exp(-z))
    expected = [
        LogisticRegression(C=np.inf, tol=1e-10, max_iter=1_000)
        .fit(z[:, None], labels, sample_weight=w)
        .coef_[0, 0]
        for w in weights
    ]
    assert metrics.calibration_slope(labels, told, weights) == pytest.approx(expected, rel=1e-4)


def test_forecasts_that_are_too_extreme_have_a_slope_below_one():
    rng = np.random.default_rng(0)
    z = rng.normal(size=20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-z))).astype(float)
    slopes = [
        metrics.calibration_slope(labels, 1 / (1 + np.exp(-k * z)), metrics.plain(labels))[0]
        for k in (0.5, 1, 2)
    ]
    assert slopes == pytest.approx([2, 1, 0.5], rel=0.06)


@pytest.mark.parametrize("shift", [-3, 0, 1.5])
@pytest.mark.parametrize("power", [0.1, 0.5, 2, 4])
def test_the_slope_of_a_forecast_that_is_far_off_is_found_as_well(
    labels, probabilities, weights, power, shift
):
    z = np.log(probabilities / (1 - probabilities))
    at_one = metrics.calibration_slope(labels, probabilities, weights)
    far_off = 1 / (1 + np.exp(-(power * z + shift)))
    found = metrics.calibration_slope(labels, far_off, weights)
    # Beyond 1e-6 forecasts are clipped, which bends the line a little.
    assert found * power == pytest.approx(at_one, rel=0.02)


def test_net_benefit_is_what_is_foreseen_less_what_is_needless():
    labels = np.array([1.0, 1, 0, 0, 0])
    flagged = np.array([True, False, True, True, False])
    assert metrics.net_benefit(labels, flagged, metrics.plain(labels), 1.0) == [(1 - 2) / 5]
    assert metrics.net_benefit(labels, flagged, metrics.plain(labels), 0.25) == [(1 - 0.5) / 5]
    twice = np.array([[2.0, 1, 1, 0, 0]])
    assert metrics.net_benefit(labels, flagged, twice, 1.0) == [(2 - 1) / 4]


def test_nobody_who_is_flagged_gives_no_benefit_and_no_harm(labels):
    nobody = np.zeros(ROWS, dtype=bool)
    assert metrics.net_benefit(labels, nobody, metrics.plain(labels), 1.0) == [0]


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    patients = np.repeat([30, 10, 20, 40], [1, 4, 2, 3])
    drawn = metrics.by_patient(patients, seed=0, resamples=200)
    assert drawn.shape == (200, 10)
    each = {patient: drawn[:, patients == patient] for patient in (10, 20, 30, 40)}
    for columns in each.values():
        assert (columns == columns[:, :1]).all()
    assert (sum(columns[:, 0] for columns in each.values()) == 4).all()
    assert len(np.unique(drawn, axis=0)) > 10


def test_equal_seeds_draw_equal_patients():
    one, same, other = (metrics.by_patient(np.arange(50), seed, 20) for seed in (4, 4, 5))
    assert (one == same).all()
    assert (one != other).any()


def test_an_interval_is_the_central_part_and_leaves_out_what_has_no_value():
    values = np.append(np.arange(1_001.0), [np.nan, np.nan])
    assert metrics.interval(values) == pytest.approx((25, 975))
    assert metrics.interval(values, 0.5) == pytest.approx((250, 750))
    assert np.isnan(metrics.interval(np.full(3, np.nan))).all()


@pytest.mark.parametrize("shift", [-1.5, 0, 0.4])
def test_the_calibration_intercept_is_what_makes_the_forecast_meet_the_rate(
    labels, probabilities, weights, shift
):
    z = metrics.log_odds(probabilities) + shift
    found = metrics.calibration_intercept(labels, 1 / (1 + np.exp(-z)), weights)
    moved = 1 / (1 + np.exp(-(z + found[:, None])))
    expected = [
        metrics.expected_observed(labels, p, w[None])[0]
        for p, w in zip(moved, weights, strict=True)
    ]
    assert expected == pytest.approx(np.ones(WEIGHTINGS))
