"""The threshold follows from what a needless intervention costs, unless people say otherwise."""

import numpy as np
import pytest

from health_predict import thresholds

ROWS = 4_000
PATIENTS = np.arange(ROWS)


def calibrated(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns outcomes and the risks they were drawn with."""
    rng = np.random.default_rng(seed)
    risks = 1 / (1 + np.exp(-rng.normal(size=ROWS)))
    return (rng.random(ROWS) < risks).astype(float), risks


@pytest.mark.parametrize(("harm", "expected"), [(1.0, 0.5), (0.25, 0.2), (3.0, 0.75)])
def test_the_nominal_threshold_is_where_the_odds_of_a_readmission_are_the_harm(harm, expected):
    assert thresholds.nominal(harm) == pytest.approx(expected)
    assert expected / (1 - expected) == pytest.approx(harm)


@pytest.mark.parametrize("harm", [0.25, 0.6, 1.0, 2.5])
def test_a_calibrated_model_keeps_the_nominal_threshold(harm):
    labels, risks = calibrated()
    chosen = thresholds.choose(labels, risks, PATIENTS, harm, seed=0)
    assert chosen.value == thresholds.nominal(harm)
    assert "no better for certain" in chosen.reason
    assert f"{chosen.value:.2f} is used" in chosen.reason


def test_noise_seldom_moves_the_threshold():
    moved = 0
    for seed in range(40):
        labels, risks = calibrated(seed)
        few = slice(0, 1_000)
        chosen = thresholds.choose(labels[few], risks[few], PATIENTS[few], 1.0, seed)
        moved += chosen.value != 0.5
    assert moved <= 4


def test_another_threshold_is_taken_where_it_is_better_beyond_doubt():
    labels, risks = calibrated()
    halved = risks / 2  # acting from .5 on now asks for a certain readmission
    chosen = thresholds.choose(labels, halved, PATIENTS, 1.0, seed=0)
    assert chosen.value == pytest.approx(0.25, abs=0.051)
    assert "is better than that (net benefit +" in chosen.reason


def test_what_is_better_on_a_handful_of_people_is_not_better_beyond_doubt():
    labels, risks = calibrated()
    few = slice(0, 25)
    chosen = thresholds.choose(labels[few], risks[few] * 0.9, PATIENTS[few], 1.0, seed=0)
    assert chosen.value == 0.5


@pytest.mark.parametrize("harm", [0.1, 1.0, 4.0])
def test_the_bands_ascend_around_the_nominal_threshold(harm):
    labels, risks = calibrated()
    bands = thresholds.choose(labels, risks, PATIENTS, harm, seed=0).bands
    assert list(bands) == ["low", "medium", "high"]
    assert 0 == bands["low"] < bands["medium"] < thresholds.nominal(harm) < bands["high"] < 1
    assert bands["medium"] == pytest.approx(thresholds.nominal(harm / 2), abs=1e-4)
    assert bands["high"] == pytest.approx(thresholds.nominal(harm * 2), abs=1e-4)


def test_equal_seeds_choose_equally():
    labels, risks = calibrated()
    one, same = (thresholds.choose(labels, risks / 2, PATIENTS, 1.0, seed=3) for _ in range(2))
    assert one == same
