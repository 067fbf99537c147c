"""What is expected before outcomes are known comes about as often as said, or its error shows."""

import numpy as np
import pytest

from health_predict import metrics
from health_predict.estimation import Estimate, Measured, calibration_error, estimate

MEASURES = ("auc", "brier", "rate", "net_benefit")
ROWS, DRAWS = 300, 120


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def world(seed: int, rows: int = ROWS, spread: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Returns outcomes (n,) and the log-odds of their true risk (n,)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-0.2, spread, rows)
    return (rng.random(rows) < sigmoid(z)).astype(float), z


def observed(labels: np.ndarray, told: np.ndarray) -> dict[str, float]:
    everyone = metrics.plain(labels)
    return {
        "auc": metrics.auc(labels, told, everyone)[0],
        "brier": metrics.brier(labels, told, everyone)[0],
        "rate": labels.mean(),
        "net_benefit": metrics.net_benefit(labels, told >= 0.5, everyone, 1.0)[0],
    }


def held(labels: np.ndarray, told: np.ndarray, expected: Estimate) -> dict[str, bool]:
    """Returns measure -> whether what came lies in the interval of what was expected."""
    figures = {name: getattr(expected, name) for name in MEASURES}
    came = observed(labels, told)
    return {name: f.low <= came[name] <= f.high for name, f in figures.items()}


def recalibrated(z: np.ndarray, on: int, seed: int) -> np.ndarray:
    """Returns probabilities from a logistic calibration that saw so many other encounters."""
    from sklearn.linear_model import LogisticRegression

    labels, seen = world(10_000 + seed, on)
    fitted = LogisticRegression(C=np.inf).fit(seen[:, None], labels)
    told: np.ndarray = fitted.predict_proba(z[:, None])[:, 1]
    return told


def test_of_calibrated_scores_the_interval_holds_what_comes_about_as_often_as_it_says():
    kept = dict.fromkeys(MEASURES, 0)
    for seed in range(DRAWS):
        labels, z = world(seed)
        for name, inside in held(labels, sigmoid(z), estimate(sigmoid(z), seed=seed)).items():
            kept[name] += inside
    # 95 % of 120 is 114; fewer than 105 come once in 3,000, no miss at all never in four measures.
    assert min(kept.values()) >= 105
    assert sum(kept.values()) <= len(MEASURES) * DRAWS - 8


def test_the_sample_that_calibrated_the_scores_is_part_of_the_interval():
    kept = {None: 0, 100: 0}
    for seed in range(60):
        labels, z = world(seed)
        told = recalibrated(z, 100, seed)
        for calibrated_on in kept:
            expected = estimate(told, calibrated_on=calibrated_on, seed=seed)
            kept[calibrated_on] += held(labels, told, expected)["rate"]
    assert kept[100] >= 50  # 95 % of 60 is 57; fewer than 50 come once in 1,000
    assert kept[None] < 45


@pytest.mark.parametrize("shift", [-0.6, 0.6])
def test_scores_that_are_not_calibrated_show_an_error_once_outcomes_are_known(shift):
    labels, z = world(1, 3_000)
    told = sigmoid(z + shift)
    expected, came = estimate(told), observed(labels, told)
    assert np.sign(expected.rate.value - came["rate"]) == np.sign(shift)
    assert not held(labels, told, expected)["rate"]


def test_outcomes_that_follow_the_scores_less_than_they_say_show_an_error_of_the_auc():
    labels, z = world(1, 3_000)
    told = sigmoid(2.5 * z)
    assert estimate(told).auc.low > observed(labels, told)["auc"] + 0.05


def test_people_who_are_harder_to_tell_apart_are_expected_to_be_ranked_worse():
    (_, wide), (labels, narrow) = world(2, 8_000, spread=1.0), world(3, 8_000, spread=0.4)
    expected = estimate(sigmoid(narrow)).auc.value
    assert expected < estimate(sigmoid(wide)).auc.value - 0.08
    assert expected == pytest.approx(observed(labels, sigmoid(narrow))["auc"], abs=0.02)


def test_the_expected_figures_are_those_of_the_probabilities_themselves():
    told = np.array([0.1, 0.5, 0.7, 0.9])
    expected = estimate(told, threshold=0.5, harm=2.0)
    assert expected.n == 4
    assert expected.rate.value == pytest.approx(told.mean())
    assert expected.brier.value == pytest.approx((told * (1 - told)).mean())
    benefit = sum(p - 2.0 * (1 - p) for p in (0.5, 0.7, 0.9)) / 4
    assert expected.net_benefit.value == pytest.approx(benefit)


def test_the_sentence_tells_the_readmissions_to_expect_and_its_condition():
    told = np.full(2_000, 0.25)
    sentence = estimate(told).sentence
    assert "500 readmissions [" in sentence
    assert "among 2,000 encounters" in sentence
    assert "AUC of 0.500" in sentence
    assert "if outcomes still follow the scores" in sentence


def test_equal_seeds_give_equal_estimates_and_a_larger_batch_a_narrower_interval():
    _, z = world(4, 2_000)
    told = sigmoid(z)
    assert estimate(told, seed=3) == estimate(told, seed=3)
    assert estimate(told, seed=3) != estimate(told, seed=4)

    def width(figure: Measured) -> float:
        return figure.high - figure.low

    assert width(estimate(told).auc) < width(estimate(told[:200]).auc) / 2


def test_the_error_of_a_calibration_is_that_of_calibrations_made_again_and_again():
    _, z = world(5, 4_000)
    intercept, slope, centre = calibration_error(sigmoid(z), 400)
    found = []
    for seed in range(150):
        labels, seen = world(seed, 400)
        everyone = metrics.plain(labels)
        slopes = metrics.calibration_slope(labels, sigmoid(seen), everyone)
        found.append([metrics.calibration_intercept(labels, sigmoid(seen), everyone)[0], slopes[0]])
    assert np.std(found, axis=0) == pytest.approx([intercept, slope], rel=0.2)
    assert abs(np.corrcoef(np.transpose(found))[0, 1]) < 0.25
    assert -0.4 < centre < 0.2
    assert calibration_error(sigmoid(z), None)[:2] == (0.0, 0.0)


@pytest.mark.parametrize("told", [[], [0.2, np.nan], [0.2, 1.3], [-0.1, 0.4]])
def test_of_what_is_no_probability_nothing_is_expected(told):
    with pytest.raises(ValueError, match="are not probabilities"):
        estimate(np.array(told))


def test_a_forecast_that_is_the_same_for_everybody_or_certain_is_estimated_as_well():
    assert estimate(np.full(300, 0.4), calibrated_on=500).auc.value == pytest.approx(0.5)
    certain = estimate(np.repeat([0.0, 1.0], 150), calibrated_on=500)
    assert certain.auc.value == pytest.approx(1.0)
    assert certain.rate.value == pytest.approx(0.5)
