"""How good a model is on people it never saw, and whether a challenger may take over.

`score` measures, `judge` decides: all of the gate's rule is here and its numbers stand at the top.
The measures themselves are in `metrics`, groups of people in `subgroups`. Nothing is fitted, stored
or moved in this module.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from health_predict import metrics
from health_predict.subgroups import Contender, GroupScores, People, by_group

# A challenger may be better in AUC or in Brier score: two looks at 1.25 % each keep the chance that
# one which is merely different is called better below 2.5 %.
BETTER_CONFIDENCE = 0.975
# A paired difference on 2,000 encounters has a half-width of about .01 in AUC, .003 in Brier score
# and .015 in net benefit: smaller margins would refuse good challengers for want of people,
# larger ones let a real loss pass.
NON_INFERIORITY_AUC = 0.015
NON_INFERIORITY_BRIER = 0.003
NON_INFERIORITY_BENEFIT = 0.02
# Expected over observed readmissions on people of the same months as those the model was calibrated
# on, where a chance of .45 makes 3.5 % of noise on 1,000 encounters; and the slope of the log-odds,
# which both samples together move by .15.
CHALLENGER_CALIBRATION = (0.85, 1.18)
SLOPE_BOUNDS = (0.60, 1.60)
# The same of a batch that arrived later, when the rate itself has moved: beyond these the printed
# risk misleads a ward's planning.
CALIBRATION_BOUNDS = (0.80, 1.25)
# The first champion has nobody to beat; below the floor a model ranks too poorly to be shown at
# all, or one group of people is. Nobody has come above .75 on these columns: .85 is a leak.
FLOOR_AUC = 0.60
GROUP_FLOOR_AUC = 0.55
CEILING_AUC = 0.85


@dataclass(frozen=True)
class Scores:
    """What a model's probabilities are worth on n encounters.

    Attributes:
        n: encounters scored.
        positives: readmissions among them.
        auc: area under the ROC curve, with its 95 % interval resampled by patient.
        brier: mean squared error of the probability.
        expected_observed: sum of probabilities over readmissions; 1 is calibrated in the large.
        slope: of a logistic regression of the outcome on the log-odds; 1 is calibrated.
        net_benefit: of acting from the threshold on, in foreseen readmissions an encounter.
    """

    n: int
    positives: int
    auc: float
    auc_low: float
    auc_high: float
    brier: float
    expected_observed: float
    slope: float
    net_benefit: float


@dataclass(frozen=True)
class Clause:
    """One clause of the gate.

    Attributes:
        name: what is asked, as a fact.
        holds: whether it is one.
        words: the numbers.
        fault: what is wrong where it does not hold.
    """

    name: str
    holds: bool
    words: str
    fault: str


@dataclass(frozen=True)
class Verdict:
    """The gate's answer.

    Attributes:
        promoted: whether the challenger becomes the champion.
        sentence: the reason in words, with numbers.
        clauses: every clause, kept or broken.
        challenger: scores on the held-out people.
        champion: the champion's on the same people; None for the first model.
        groups: the challenger, group by group.
    """

    promoted: bool
    sentence: str
    clauses: list[Clause]
    challenger: Scores
    champion: Scores | None
    groups: list[GroupScores]


def score(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    *,
    threshold: float = 0.5,
    harm: float = 1.0,
    seed: int = 0,
) -> Scores:
    """Returns the scores of one model.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) in [0, 1].
        patients: (n,) patient of each encounter: the unit that is resampled.
        threshold: from this probability on the model asks for an intervention.
        harm: what a needless intervention costs, in foreseen readmissions.
        seed: seed of the resampling.

    Raises:
        ValueError: only one class is present, or there is no row.
    """
    labels = np.asarray(labels, dtype=float)
    if len(labels) == 0 or labels.min() == labels.max():
        raise ValueError(
            f"{len(labels)} encounters with {int(labels.sum())} readmissions cannot be scored: "
            "both outcomes are needed; use a larger window"
        )
    contender = Contender(np.asarray(probabilities), threshold)
    return _scores(labels, contender, metrics.by_patient(patients, seed), harm)


def _scores(labels: np.ndarray, contender: Contender, weights: np.ndarray, harm: float) -> Scores:
    probabilities, everyone = contender.probabilities, metrics.plain(labels)
    low, high = metrics.interval(metrics.auc(labels, probabilities, weights))
    flagged = probabilities >= contender.threshold
    return Scores(
        n=len(labels),
        positives=int(labels.sum()),
        auc=float(metrics.auc(labels, probabilities, everyone)[0]),
        auc_low=low,
        auc_high=high,
        brier=float(metrics.brier(labels, probabilities, everyone)[0]),
        expected_observed=float(metrics.expected_observed(labels, probabilities, everyone)[0]),
        slope=float(metrics.calibration_slope(labels, probabilities, everyone)[0]),
        net_benefit=float(metrics.net_benefit(labels, flagged, everyone, harm)[0]),
    )


def intervals(
    people: People, contender: Contender, *, harm: float = 1.0, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Returns measure -> its 95 % interval, resampled by patient: what `Scores` has beside the AUC.

    Args:
        people: held-out people, both outcomes among them.
        contender: what the model says of them.
        harm: what a needless intervention costs, in foreseen readmissions.
        seed: seed of the resampling.
    """
    labels = np.asarray(people.labels, dtype=float)
    probabilities = contender.probabilities
    flagged = probabilities >= contender.threshold
    weights = metrics.by_patient(people.patients, seed)
    return {
        "brier": metrics.interval(metrics.brier(labels, probabilities, weights)),
        "expected_observed": metrics.interval(
            metrics.expected_observed(labels, probabilities, weights)
        ),
        "slope": metrics.interval(metrics.calibration_slope(labels, probabilities, weights)),
        "net_benefit": metrics.interval(metrics.net_benefit(labels, flagged, weights, harm)),
    }


def judge(
    people: People,
    challenger: Contender,
    champion: Contender | None,
    *,
    breaches: Sequence[str] = (),
    newest: int | None = None,
    harm: float = 1.0,
    seed: int = 0,
) -> Verdict:
    """Decides whether the challenger takes over.

    A challenger is promoted if it is better in AUC or in Brier score (the interval of the paired
    difference, resampled by patient, excludes 0), worse in AUC, Brier score or net benefit by no
    more than the named margins, calibrated within bounds, harmful to no group, plausible, and
    within what the loop may change by itself. The first model must clear absolute floors instead
    of beating anyone.

    Args:
        people: held-out people neither model learned from.
        challenger: what the challenger says of them.
        champion: what the champion says, None if there is none.
        breaches: what about the challenger only a person may change; see `change_control`.
        newest: how many of the people, the last ones, expected over observed is asked of: those of
            the months that the challenger was calibrated on. None: all.
        harm: what a needless intervention costs, in foreseen readmissions.
        seed: seed of the resampling.
    """
    labels = np.asarray(people.labels, dtype=float)
    weights = metrics.by_patient(people.patients, seed)
    scores = _scores(labels, challenger, weights, harm)
    groups = by_group(people, challenger, champion, weights, GROUP_FLOOR_AUC)
    recent = slice(-newest if newest else None, None)
    absolute = [
        *_calibration_clauses(labels[recent], challenger.probabilities[recent], scores.slope),
        _plausible(scores),
        _no_group_harmed(groups),
        _inside_change_control(breaches),
    ]
    if champion is None:
        return _verdict([_floor(scores), *absolute], scores, None, groups)
    current = _scores(labels, champion, weights, harm)
    paired = _paired_clauses(people, challenger, champion, weights, harm)
    return _verdict([*paired, *absolute], scores, current, groups)


def _paired_clauses(
    people: People, challenger: Contender, champion: Contender, weights: np.ndarray, harm: float
) -> list[Clause]:
    labels = np.asarray(people.labels, dtype=float)

    def difference(measure: str) -> _Difference:
        def of(contender: Contender, w: np.ndarray) -> np.ndarray:
            p = contender.probabilities
            if measure == "net benefit":
                return metrics.net_benefit(labels, p >= contender.threshold, w, harm)
            return (metrics.auc if measure == "AUC" else metrics.brier)(labels, p, w)

        everyone = metrics.plain(labels)
        point = of(challenger, everyone)[0] - of(champion, everyone)[0]
        return _Difference(measure, point, of(challenger, weights) - of(champion, weights))

    auc, brier, benefit = map(difference, ("AUC", "Brier", "net benefit"))
    better = metrics.interval(auc.resampled, BETTER_CONFIDENCE)[0] > 0 or (
        metrics.interval(brier.resampled, BETTER_CONFIDENCE)[1] < 0
    )
    return [
        Clause(
            "better_in_auc_or_brier",
            better,
            f"{auc.words}, {brier.words}",
            "no better than the champion",
        ),
        Clause(
            "auc_not_worse",
            auc.low > -NON_INFERIORITY_AUC,
            auc.words,
            f"may rank worse by more than {NON_INFERIORITY_AUC}",
        ),
        Clause(
            "brier_not_worse",
            brier.high < NON_INFERIORITY_BRIER,
            brier.words,
            f"may be less accurate by more than {NON_INFERIORITY_BRIER}",
        ),
        Clause(
            "net_benefit_not_worse",
            benefit.low > -NON_INFERIORITY_BENEFIT,
            benefit.words,
            f"may help fewer people by more than {NON_INFERIORITY_BENEFIT}",
        ),
    ]


class _Difference:
    """Challenger less champion in one measure, with its 95 % interval resampled by patient."""

    def __init__(self, name: str, point: float, resampled: np.ndarray) -> None:
        self.resampled = resampled
        self.low, self.high = metrics.interval(resampled)
        digits = 3 if name == "AUC" else 4
        spread = f"[{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        self.words = f"{name} {point:+.{digits}f} {spread}"


def _floor(scores: Scores) -> Clause:
    return Clause(
        "auc_above_floor",
        scores.auc >= FLOOR_AUC,
        f"AUC {scores.auc:.3f} against a floor of {FLOOR_AUC:.2f}",
        "ranks too poorly to be shown",
    )


def _plausible(scores: Scores) -> Clause:
    return Clause(
        "auc_is_plausible",
        scores.auc <= CEILING_AUC,
        f"AUC {scores.auc:.3f}, plausible up to {CEILING_AUC:.2f}",
        "too good to be true, look for a leak of the outcome",
    )


def _calibration_clauses(
    labels: np.ndarray, probabilities: np.ndarray, slope: float
) -> list[Clause]:
    ratio = float(metrics.expected_observed(labels, probabilities, metrics.plain(labels))[0])
    return [
        Clause(
            name,
            low <= value <= high,
            f"{words} {value:.2f} (bounds {low:.2f} to {high:.2f})",
            "not calibrated",
        )
        for name, words, value, (low, high) in (
            ("calibrated_within_bounds", "expected/observed", ratio, CHALLENGER_CALIBRATION),
            ("slope_within_bounds", "calibration slope", slope, SLOPE_BOUNDS),
        )
    ]


def _inside_change_control(breaches: Sequence[str]) -> Clause:
    return Clause(
        "inside_change_control",
        not breaches,
        "; ".join(breaches) or "within change_control.yaml",
        "outside of what the loop may change by itself",
    )


def _no_group_harmed(groups: Sequence[GroupScores]) -> Clause:
    harmed = [group for group in groups if group.harmed]
    told = [group for group in groups if group.auc is not None]
    few = len(groups) - len(told)
    return Clause(
        "no_group_harmed",
        not harmed,
        "; ".join(f"{group.group} {group.words}" for group in harmed)
        or f"none of {len(told)} groups is worse off, {few} have too few people to say",
        "a group of people would be worse off",
    )


def _verdict(
    clauses: list[Clause],
    challenger: Scores,
    champion: Scores | None,
    groups: list[GroupScores],
) -> Verdict:
    people = f"on {challenger.n:,} held-out encounters"
    broken = [clause for clause in clauses if not clause.holds]
    if broken:
        reasons = "; ".join(f"{clause.fault} ({clause.words})" for clause in broken)
        sentence = f"Refused {people}: {reasons}."
        return Verdict(False, sentence, clauses, challenger, champion, groups)
    what = "Promoted as the first champion" if champion is None else "Promoted"
    told = ("better_in_auc_or_brier", "auc_above_floor", "calibrated_within_bounds")
    words = "; ".join(clause.words for clause in clauses if clause.name in told)
    return Verdict(True, f"{what} {people}: {words}.", clauses, challenger, champion, groups)
