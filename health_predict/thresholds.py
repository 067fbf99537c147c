"""From a probability to an action: the threshold and the risk bands that a cost ratio calls for.

A needless intervention costs `harm` foreseen readmissions. Acting pays where the odds of a
readmission exceed it, so the threshold of a calibrated model is harm / (1 + harm); people it was
not fitted on may call for another. How good the model is otherwise is not asked here.
"""

from dataclasses import dataclass

import numpy as np

from health_predict import metrics

# An intervention at half the cost, and one at twice: beyond these even a cheap one does not pay,
# or even a dear one does.
CHEAP, DEAR = 0.5, 2.0
_GRID = np.round(np.arange(0.05, 0.951, 0.05), 2)
# The best of nineteen noisy figures looks better than it is.
_CONFIDENCE = 0.995


@dataclass(frozen=True)
class Thresholds:
    """Where a probability becomes an action.

    Attributes:
        value: from this probability on `prediction` is 1.
        bands: risk band -> its lower end, ascending from 0.
        reason: why, in words with numbers.
    """

    value: float
    bands: dict[str, float]
    reason: str


def nominal(harm: float) -> float:
    """Returns the threshold of a calibrated model."""
    return harm / (1 + harm)


def choose(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, harm: float, seed: int
) -> Thresholds:
    """Returns the threshold with the largest net benefit, the nominal one unless another is better.

    Better means that the interval of the difference, resampled by patient, excludes 0: the largest
    of nineteen noisy figures alone would wander with every training.

    Args:
        labels: (n,) outcomes.
        probabilities: (n,) calibrated probabilities of people the model was not fitted on.
        patients: (n,) their patients.
        harm: what a needless intervention costs, in foreseen readmissions.
        seed: seed of the resampling.
    """
    everyone = metrics.plain(labels)

    def benefit(threshold: float, weights: np.ndarray) -> np.ndarray:
        return metrics.net_benefit(labels, probabilities >= threshold, weights, harm)

    expected = nominal(harm)
    best = max(_GRID, key=lambda t: benefit(float(t), everyone)[0])
    weights = metrics.by_patient(patients, seed)
    low, high = metrics.interval(benefit(best, weights) - benefit(expected, weights), _CONFIDENCE)
    value = float(best) if low > 0 else expected
    gain = f"{benefit(best, everyone)[0] - benefit(expected, everyone)[0]:+.4f} [{low:+.4f}, "
    words = "better than" if low > 0 else "no better for certain than"
    bands = {"low": 0.0, "medium": nominal(harm * CHEAP), "high": nominal(harm * DEAR)}
    return Thresholds(
        value,
        {name: round(lower, 4) for name, lower in bands.items()},
        f"A needless intervention costs {harm:g} foreseen readmissions, which makes "
        f"{expected:.2f} the threshold of a calibrated model. On {len(labels):,} validation "
        f"encounters {best:.2f} is {words} that (net benefit {gain}{high:+.4f}]): {value:.2f} is "
        f"used. From {bands['medium']:.2f} on an intervention at half the cost pays (medium), from "
        f"{bands['high']:.2f} on one at twice the cost (high).",
    )
