"""How well a batch was foretold, once its outcomes are known, and whether the world has changed.

`assess` measures with intervals resampled by patient and holds the champion against what the gate
saw of it. What was to be expected before is in `estimation`; what follows from a batch outside of
the bounds is not decided here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from health_predict import metrics
from health_predict.estimation import Measured, calibration_error
from health_predict.evaluation import CALIBRATION_BOUNDS, GROUP_FLOOR_AUC
from health_predict.subgroups import (
    SMALLEST_CLASS,
    SMALLEST_GROUP,
    Contender,
    GroupScores,
    People,
    by_group,
)

# What a champion's AUC may lose beyond doubt. The gate knows it to within .025 on its 2,000 people,
# and a retraining wins .015 back on average: less would be chance, or not worth a retraining.
LARGEST_AUC_LOSS = 0.03
# Every batch is asked: at 1 % a hundred of them make one false alarm.
CONCEPT_ALPHA = 0.01
_NORMAL_95 = 1.96
# A thousand weightings of 16,000 encounters at once would take gigabytes.
_RESAMPLES_AT_ONCE = 50
# A covariance rests on all of its resamples, where an interval rests on those in the tails.
_RESAMPLES_OF_CONCEPT = 250

_Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Concept:
    """Whether outcomes still follow the score as the score says.

    Attributes:
        intercept: what has to be added to the log-odds of the score to meet the rate; 0 is as
            foretold, above it there were more readmissions.
        slope: of the outcome on the log-odds of the score; 1 is as foretold, below it the score
            tells people apart less well than it says.
        p_value: chance of both being this far off where nothing has changed.
        rate_moved: whether the rate is what changed.
        ranking_changed: whether how far people differ is what changed.
    """

    intercept: Measured
    slope: Measured
    p_value: float
    rate_moved: bool
    ranking_changed: bool

    @property
    def drifted(self) -> bool:
        """Whether the difference is beyond chance."""
        return self.p_value < CONCEPT_ALPHA

    @property
    def sentence(self) -> str:
        """The answer in words, with numbers."""
        chance = f"p {self.p_value:.3f}" if self.p_value >= 0.001 else "p below 0.001"
        moved = f"intercept {self.intercept.words(2)}"
        turned = f"slope {self.slope.words(2)}"
        if not self.drifted:
            return (
                f"Outcomes follow the score as far as chance allows ({chance}): {moved}, {turned}."
            )
        more = "more" if self.intercept.value > 0 else "fewer"
        less = "less" if self.slope.value < 1 else "more"
        rate = (
            f"the rate moved, {more} readmissions than the score says ({moved})"
            if self.rate_moved
            else f"the rate did not move for certain ({moved})"
        )
        ranking = (
            f"the ranking changed, people differ {less} than the score says ({turned})"
            if self.ranking_changed
            else f"the ranking did not change for certain ({turned})"
        )
        return f"Outcomes no longer follow the score ({chance}): {rate}; {ranking}."


@dataclass(frozen=True)
class Performance:
    """How well a batch was foretold.

    Attributes:
        n: encounters with a known outcome that count.
        positives: readmissions among them.
        left_out: encounters that do not count, because something was done after the score.
        gate_auc: the champion's AUC on the people of the gate.
        doubt: why nothing follows from the figures, in words; empty if something does.
        auc: with its 95 % interval resampled by patient, as all that follow; None if not known.
        brier: mean squared error of the probability.
        expected_observed: sum of probabilities over readmissions.
        slope: of the outcome on the log-odds of the score.
        net_benefit: of acting from the threshold on, in foreseen readmissions an encounter.
        groups: the same, group by group.
        concept: whether outcomes still follow the score; None where nothing can be said.
    """

    n: int
    positives: int
    left_out: int
    gate_auc: float
    doubt: str
    auc: Measured | None = None
    brier: Measured | None = None
    expected_observed: Measured | None = None
    slope: Measured | None = None
    net_benefit: Measured | None = None
    groups: tuple[GroupScores, ...] = ()
    concept: Concept | None = None

    @property
    def rate(self) -> float | None:
        """Share of readmissions."""
        return self.positives / self.n if self.n else None

    @property
    def calibrated(self) -> bool | None:
        """Whether expected over observed lies within the bounds; None if nothing can be said."""
        if self.doubt or self.expected_observed is None:
            return None
        low, high = CALIBRATION_BOUNDS
        return low <= self.expected_observed.value <= high

    @property
    def ranks_as_before(self) -> bool | None:
        """Whether the AUC may still be what the gate saw; None if nothing can be said."""
        if self.doubt or self.auc is None:
            return None
        return self.auc.high >= self.gate_auc - LARGEST_AUC_LOSS

    @property
    def within_bounds(self) -> bool | None:
        """Whether calibration and ranking are as they should; None if nothing can be said."""
        if self.calibrated is None or self.ranks_as_before is None:
            return None
        return self.calibrated and self.ranks_as_before

    @property
    def sentence(self) -> str:
        """The outcome of a batch in words, with numbers; calibration first, it breaks first."""
        if self.expected_observed is None or self.auc is None:
            return f"Not scored: {self.doubt}.{self._left_out}"
        ratio = f"Expected/observed {self.expected_observed.words(2)}"
        auc = f"AUC {self.auc.words()}, the gate's was {self.gate_auc:.3f}"
        if self.doubt:
            return f"{ratio}; {auc}; nothing follows from it: {self.doubt}.{self._left_out}"
        low, high = CALIBRATION_BOUNDS
        inside = "within" if self.calibrated else "outside"
        lost = "no more" if self.ranks_as_before else "more"
        return (
            f"{ratio}, {inside} {low:.2f} to {high:.2f}; {auc}, {lost} than {LARGEST_AUC_LOSS:.2f} "
            f"is lost for certain; on {self.n:,} encounters."
            f"{self._left_out}{self._harmed}{self._changed}"
        )

    @property
    def _left_out(self) -> str:
        if not self.left_out:
            return ""
        return f" {self.left_out:,} on whom somebody acted after the score are left out."

    @property
    def _harmed(self) -> str:
        harmed = "; ".join(f"{g.group} {g.words}" for g in self.groups if g.harmed)
        return f" Ranked below {GROUP_FLOOR_AUC:.2f} beyond doubt: {harmed}." if harmed else ""

    @property
    def _changed(self) -> str:
        return f" {self.concept.sentence}" if self.concept and self.concept.drifted else ""


def assess(
    people: People,
    probabilities: np.ndarray,
    *,
    gate_auc: float,
    threshold: float = 0.5,
    harm: float = 1.0,
    calibrated_on: int | None = None,
    left_out: int = 0,
    seed: int = 0,
    resamples: int = metrics.RESAMPLES,
) -> Performance:
    """Returns how well a batch was foretold.

    A batch without both outcomes, or with a score that is not a number, is not scored; of one with
    too few people the figures are told and nothing follows from them. Neither is an error: the
    batch is what it is, and says so.

    Args:
        people: encounters with known outcomes, their patients and groups.
        probabilities: (n,) what the champion of the day said of them.
        gate_auc: that champion's AUC on the people of the gate.
        threshold: from this probability on it asks for an intervention.
        harm: what a needless intervention costs, in foreseen readmissions.
        calibrated_on: encounters it was calibrated on; see `concept_drift`.
        left_out: encounters that the caller left out, because somebody acted after the score.
        seed: seed of the resampling.
        resamples: bootstrap resamples.
    """
    labels = np.asarray(people.labels, dtype=float)
    told = np.asarray(probabilities, dtype=float)
    n, positives = len(labels), int(labels.sum())
    unscored = _not_scorable(labels, told)
    if unscored:
        return Performance(n, positives, left_out, gate_auc, unscored)
    weights = metrics.by_patient(people.patients, seed, resamples)
    flagged = told >= threshold

    def benefit(y: np.ndarray, _: np.ndarray, w: np.ndarray) -> np.ndarray:
        return metrics.net_benefit(y, flagged, w, harm)

    measures: dict[str, _Measure] = {
        "auc": metrics.auc,
        "brier": metrics.brier,
        "expected_observed": metrics.expected_observed,
        "slope": metrics.calibration_slope,
        "net_benefit": benefit,
    }
    doubt = _too_few(labels)
    return Performance(
        n,
        positives,
        left_out,
        gate_auc,
        doubt,
        **{name: _measured(measure, labels, told, weights) for name, measure in measures.items()},
        groups=tuple(by_group(people, Contender(told, threshold), None, weights, GROUP_FLOOR_AUC)),
        concept=None
        if doubt
        else concept_drift(labels, told, weights[:_RESAMPLES_OF_CONCEPT], calibrated_on),
    )


def _not_scorable(labels: np.ndarray, told: np.ndarray) -> str:
    n, positives, unknown = len(labels), int(labels.sum()), int(np.isnan(told).sum())
    if unknown:
        return f"{unknown:,} of {n:,} scores are not numbers; score the batch again"
    if positives in (0, n):
        return f"{n:,} encounters with {positives:,} readmissions, both outcomes are needed"
    return ""


def _too_few(labels: np.ndarray) -> str:
    n, positives = len(labels), int(labels.sum())
    if n >= SMALLEST_GROUP and min(positives, n - positives) >= SMALLEST_CLASS:
        return ""
    return (
        f"{n:,} encounters with {positives:,} readmissions are too few, {SMALLEST_GROUP} with "
        f"{SMALLEST_CLASS} of the rarer outcome are needed"
    )


def _measured(
    measure: _Measure, labels: np.ndarray, told: np.ndarray, weights: np.ndarray
) -> Measured | None:
    value = float(measure(labels, told, metrics.plain(labels))[0])
    low, high = metrics.interval(_resampled(measure, labels, told, weights))
    known = all(map(math.isfinite, (value, low, high)))
    # A constant forecast has no slope.
    return Measured(value, low, high) if known else None


def _resampled(
    measure: _Measure, labels: np.ndarray, told: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    parts = range(0, len(weights), _RESAMPLES_AT_ONCE)
    return np.concatenate(
        [measure(labels, told, weights[at : at + _RESAMPLES_AT_ONCE]) for at in parts]
    )


def concept_drift(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray,
    calibrated_on: int | None = None,
) -> Concept | None:
    """Returns whether outcomes follow the score as the score says; None if nothing can be said.

    Wald's test of logistic recalibration (Cox 1958; Miller et al. 1991): intercept 0 and slope 1
    together, their covariance from patients resampled. A score that was calibrated on some people
    is itself only known to within their number, and that chance is added: without it, of batches of
    2,000 drawn from the same published people, 21 % were found wanting at 1 %, with it none of 150.
    A change that leaves both as they are, such as one group's rise by another's fall, is not seen
    here but in the groups.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) in [0, 1].
        weights: (r, n) from `metrics.by_patient`.
        calibrated_on: encounters the probabilities were calibrated on; None: they are exact.
    """
    if np.ptp(probabilities) == 0:
        return None
    measures = (metrics.calibration_intercept, metrics.calibration_slope)
    everyone = metrics.plain(labels)
    found = np.array([measure(labels, probabilities, everyone)[0] for measure in measures])
    drawn = np.array([_resampled(m, labels, probabilities, weights) for m in measures])
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    if not np.isfinite(found).all() or drawn.shape[1] < weights.shape[0] / 2:
        return None
    known = calibration_error(probabilities, calibrated_on)[:2]
    covariance = np.cov(drawn) + np.diag(np.square(known))
    away = found - np.array([0.0, 1.0])
    errors = np.sqrt(np.diag(covariance))
    distance = float(away @ np.linalg.solve(covariance, away))
    p_value = math.exp(-distance / 2)  # chi-square with two degrees of freedom
    beyond = np.abs(away) / errors
    # Together they may be beyond chance and each alone not: the further one is then named.
    changed = (p_value < CONCEPT_ALPHA) & (beyond >= min(_NORMAL_95, beyond.max()))
    intercept, slope = (
        Measured(float(v), float(v - _NORMAL_95 * e), float(v + _NORMAL_95 * e))
        for v, e in zip(found, errors, strict=True)
    )
    return Concept(intercept, slope, p_value, bool(changed[0]), bool(changed[1]))
