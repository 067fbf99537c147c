"""What outcomes prove: the champion of the day beside the first model, had it never been retrained.

Both are held against the same encounters, scored before their outcomes were known. Measures are
those of `metrics`, a batch is assessed by `outcomes`; nothing is decided here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from health_predict import metrics
from health_predict.estimation import Measured
from health_predict.outcomes import Performance

# Enough to tell an interval, where the gate decides on 1,000.
_RESAMPLES = 200
_RESAMPLES_AT_ONCE = 25  # of every encounter that ever arrived
_DECILES = 10


@dataclass(frozen=True)
class Foretold:
    """How well a version foretold a batch.

    Attributes:
        version: the version.
        n: encounters with a known outcome.
        positives: readmissions among them.
        auc: with its 95 % interval; None where one outcome is missing.
        expected_observed: sum of probabilities over readmissions, likewise.
    """

    version: str
    n: int
    positives: int
    auc: Measured | None
    expected_observed: Measured | None


@dataclass(frozen=True)
class Followed:
    """Encounters of one batch with known outcomes, and what two models said of them.

    Attributes:
        labels: (n,) outcomes, 0 or 1.
        patients: (n,) patient of each encounter: the unit that is resampled.
        champion: (n,) probabilities of the champion of the day.
        first: (n,) probabilities of the first model.
        by_champion: how well the champion of the day foretold them.
        by_first: how well the first model did.
    """

    labels: np.ndarray
    patients: np.ndarray
    champion: np.ndarray
    first: np.ndarray
    by_champion: Foretold
    by_first: Foretold

    @property
    def retrained(self) -> bool:
        """Whether a later version than the first scored them."""
        return self.by_champion.version != self.by_first.version


@dataclass(frozen=True)
class Gain:
    """What retraining was worth, on the batches that a later version scored.

    Attributes:
        batches: how many.
        encounters: in all of them.
        auc: mean AUC of the versions that scored them.
        first_auc: mean AUC of the first model.
        difference: the former less the latter, its interval resampled by patient.
        expected_observed: over all of them, of the versions that scored them.
        first_expected_observed: of the first model.
    """

    batches: int
    encounters: int
    auc: float
    first_auc: float
    difference: Measured
    expected_observed: float
    first_expected_observed: float


@dataclass(frozen=True)
class Bin:
    """Encounters of similar risk: how often what was foretold came.

    Attributes:
        n: encounters.
        predicted: mean probability.
        observed: share of readmissions, with Wilson's 95 % interval.
    """

    n: int
    predicted: float
    observed: Measured


@dataclass(frozen=True)
class NetBenefit:
    """What acting from a threshold on is worth, in foreseen readmissions per 100 encounters.

    Attributes:
        threshold: probability.
        champion: acting where the champion of the day reached it.
        first: acting where the first model did.
        everyone: acting always; never acting is worth 0.
    """

    threshold: float
    champion: float
    first: float
    everyone: float


def foretold(version: str, performance: Performance) -> Foretold:
    """Returns what is told of a batch that was assessed."""
    p = performance
    return Foretold(version, p.n, p.positives, p.auc, p.expected_observed)


def gain(followed: Sequence[Followed]) -> Gain | None:
    """Returns what retraining was worth; None if no later version scored a batch that can tell.

    Args:
        followed: the batches whose outcomes are known.
    """
    later = [batch for batch in followed if batch.retrained]
    told = [batch for batch in later if len(np.unique(batch.labels)) == 2]
    if not told:
        return None
    labels, champion, first = (
        np.concatenate([getattr(batch, name) for batch in told])
        for name in ("labels", "champion", "first")
    )
    everyone = metrics.plain(labels)
    means = [float(_mean_auc(told, name, everyone)[0]) for name in ("champion", "first")]
    low, high = metrics.interval(_resampled_difference(told))
    return Gain(
        batches=len(told),
        encounters=len(labels),
        auc=means[0],
        first_auc=means[1],
        difference=Measured(means[0] - means[1], low, high),
        expected_observed=float(metrics.expected_observed(labels, champion, everyone)[0]),
        first_expected_observed=float(metrics.expected_observed(labels, first, everyone)[0]),
    )


def _resampled_difference(batches: Sequence[Followed]) -> np.ndarray:
    patients = np.concatenate([batch.patients for batch in batches])
    drawn = []
    for seed in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        weights = metrics.by_patient(patients, seed, _RESAMPLES_AT_ONCE)
        drawn.append(_mean_auc(batches, "champion", weights) - _mean_auc(batches, "first", weights))
    return np.concatenate(drawn)


def _mean_auc(batches: Sequence[Followed], model: str, weights: np.ndarray) -> np.ndarray:
    """Returns the mean over batches of a model's AUC (r,), weights (r, n) over all of them."""
    ends = np.cumsum([len(batch.labels) for batch in batches])
    parts = np.split(weights, ends[:-1], axis=1)
    aucs = [
        metrics.auc(batch.labels.astype(float), getattr(batch, model), part)
        for batch, part in zip(batches, parts, strict=True)
    ]
    mean: np.ndarray = np.mean(aucs, axis=0)
    return mean


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[Bin]:
    """Returns the tenths of the encounters by risk, the lowest first.

    A calibrated model may give many people the same probability: they stay together, and there
    are fewer bins.
    """
    if not len(labels):
        return []
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, _DECILES + 1)[1:-1]))
    place = np.searchsorted(edges, probabilities, side="right")
    return [_bin(labels[place == at], probabilities[place == at]) for at in np.unique(place)]


def _bin(labels: np.ndarray, probabilities: np.ndarray) -> Bin:
    from scipy.stats import binomtest

    n, positives = len(labels), int(labels.sum())
    interval = binomtest(positives, n).proportion_ci(method="wilson")
    observed = Measured(positives / n, float(interval.low), float(interval.high))
    return Bin(n, float(probabilities.mean()), observed)


def decision_curve(labels: np.ndarray, champion: np.ndarray, first: np.ndarray) -> list[NetBenefit]:
    """Returns the net benefit over thresholds (Vickers and Elkin 2006).

    A threshold t says what a needless intervention costs, t / (1 - t) foreseen readmissions: the
    gate's measure, over all costs instead of the one that is set. Thresholds go from where acting
    always is best to where hardly anybody is acted on.
    """
    if not len(labels):
        return []
    labels, everyone = np.asarray(labels, dtype=float), metrics.plain(labels)
    lowest = max(0.01, round(float(labels.mean()) / 2, 2))
    highest = min(0.99, max(lowest + 0.05, float(np.quantile(champion, 0.99))))

    def benefit(flagged: np.ndarray, threshold: float) -> float:
        harm = threshold / (1 - threshold)
        return 100 * float(metrics.net_benefit(labels, flagged, everyone, harm)[0])

    return [
        NetBenefit(
            threshold,
            benefit(champion >= threshold, threshold),
            benefit(first >= threshold, threshold),
            benefit(np.ones_like(labels), threshold),
        )
        for threshold in np.round(np.arange(lowest, highest, 0.01), 2).tolist()
    ]
