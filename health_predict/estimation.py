"""How good a model probably is on encounters whose outcomes nobody knows yet.

Confidence-based performance estimation: where probabilities are calibrated, they themselves say how
often they are wrong. Each encounter is taken for readmitted with its probability and for not
readmitted with the rest, and the measures of `metrics` are asked of that. After NannyML's CBPE
(nannyml.readthedocs.io, Bialek et al. 2024) and the average confidence of Garg et al. 2022
(Leveraging unlabeled data to predict out-of-distribution performance).

What it sees is a change of who comes: more people near the threshold, fewer who can be told apart.
What it cannot see is a change of what leads to readmission (concept drift) and a calibration that
no longer holds: it takes the probabilities at their word. Only outcomes tell; see `outcomes`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from health_predict import metrics

# A thousand draws of 16,000 encounters at once would take gigabytes.
_DRAWS_AT_ONCE = 50


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def words(self, digits: int = 3) -> str:
        """Returns `0.671 [0.650, 0.692]`."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True)
class Estimate:
    """What a model's probabilities are probably worth on n encounters, outcomes unknown.

    Attributes:
        n: encounters.
        auc: expected area under the ROC curve.
        brier: expected mean squared error of the probability.
        rate: expected share of readmissions.
        net_benefit: expected, of acting from the threshold on, in foreseen readmissions an
            encounter.
    """

    n: int
    auc: Measured
    brier: Measured
    rate: Measured
    net_benefit: Measured

    @property
    def sentence(self) -> str:
        """The estimate in words, with numbers."""
        low, expected, high = (
            round(self.n * share) for share in (self.rate.low, self.rate.value, self.rate.high)
        )
        return (
            f"Before any outcome is known: {expected:,} readmissions [{low:,}, {high:,}] are to be "
            f"expected among {self.n:,} encounters, an AUC of {self.auc.words()} and a Brier score "
            f"of {self.brier.words()}, if outcomes still follow the scores as they did."
        )


def estimate(
    probabilities: np.ndarray,
    *,
    threshold: float = 0.5,
    harm: float = 1.0,
    calibrated_on: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Returns what calibrated probabilities are probably worth.

    The interval is that of the figures these very encounters will show once their outcomes are
    known: outcomes are drawn from the probabilities, one encounter independent of the other, and
    the probabilities are moved as far as the sample they were calibrated on leaves open. Patients
    are not resampled; that would be asking about other people.

    Args:
        probabilities: (n,) in [0, 1].
        threshold: from this probability on the model asks for an intervention.
        harm: what a needless intervention costs, in foreseen readmissions.
        calibrated_on: encounters the probabilities were calibrated on; None: they are exact.
        seed: seed of the draws.

    Raises:
        ValueError: there is no probability, or one is not a number from 0 to 1.
    """
    told = np.asarray(probabilities, dtype=float)
    wrong = int((~((told >= 0) & (told <= 1))).sum())
    if len(told) == 0 or wrong:
        raise ValueError(
            f"{wrong} of {len(told)} scores are not probabilities: nothing can be expected of "
            "them; score the batch again"
        )
    point = _measures(told, told[None], threshold, harm)
    drawn = [_measures(told, y, threshold, harm) for y in _outcomes(told, calibrated_on, seed)]
    figures = {
        name: Measured(
            float(value[0]), *metrics.interval(np.concatenate([draw[name] for draw in drawn]))
        )
        for name, value in point.items()
    }
    return Estimate(n=len(told), **figures)


def calibration_error(
    probabilities: np.ndarray, calibrated_on: int | None
) -> tuple[float, float, float]:
    """Returns how well a calibration on so many encounters is known.

    Args:
        probabilities: (n,) calibrated, of people like those it was made on.
        calibrated_on: how many those were; None: the probabilities are exact.

    Returns:
        The standard errors of intercept and slope of a logistic calibration, and the log-odds about
        which it turns: there the two are independent, both from the Fisher information.
    """
    z, spread = metrics.log_odds(probabilities), probabilities * (1 - probabilities)
    centre = float(np.average(z, weights=spread)) if spread.any() else 0.0
    known = np.array([spread.mean(), (spread * (z - centre) ** 2).mean()])
    if calibrated_on is None:
        return 0.0, 0.0, centre
    # Where all are told the same, no slope is known and none is needed.
    errors = np.divide(1.0, calibrated_on * known, out=np.zeros(2), where=known > 0)
    return float(np.sqrt(errors[0])), float(np.sqrt(errors[1])), centre


def _outcomes(
    probabilities: np.ndarray, calibrated_on: int | None, seed: int
) -> Iterator[np.ndarray]:
    """Yields outcomes (draws, n) as they may come."""
    rng = np.random.default_rng(seed)
    intercept_error, slope_error, centre = calibration_error(probabilities, calibrated_on)
    z = metrics.log_odds(probabilities)
    for _ in range(0, metrics.RESAMPLES, _DRAWS_AT_ONCE):
        moved = rng.normal(0, intercept_error, (_DRAWS_AT_ONCE, 1))
        turned = rng.normal(0, slope_error, (_DRAWS_AT_ONCE, 1)) * (z - centre)
        risks = 1 / (1 + np.exp(-(z + moved + turned)))
        yield (rng.random(risks.shape) < risks).astype(float)


def _measures(
    told: np.ndarray, outcomes: np.ndarray, threshold: float, harm: float
) -> dict[str, np.ndarray]:
    """Returns measure -> (r,), of r times n outcomes (r, n), which may be probabilities.

    Each encounter is there twice: readmitted with the weight of its outcome, and not readmitted
    with the rest.
    """
    labels, twice = np.repeat([1.0, 0.0], len(told)), np.tile(told, 2)
    weights = np.hstack([outcomes, 1 - outcomes])
    return {
        "auc": metrics.auc(labels, twice, weights),
        "brier": metrics.brier(labels, twice, weights),
        "rate": outcomes.mean(axis=1),
        "net_benefit": metrics.net_benefit(labels, twice >= threshold, weights, harm),
    }
