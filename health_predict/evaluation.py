"""How good a model is on people it never saw, and whether a challenger may take over.

`score` measures, `judge` decides: all of the gate's rule is here and its numbers stand at the top.
Nothing is fitted, stored or moved in this module.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 400
"""Bootstrap resamples: the 2.5 % quantile then rests on ten of them."""

CONFIDENCE = 0.95
# A paired difference on 2,000 encounters has a half-width of about .01 in AUC and .002 in Brier
# score: smaller margins would refuse good challengers for want of people, larger ones let a real
# loss pass. A single AUC of one batch moves by .015 and more by chance.
NON_INFERIORITY_AUC = 0.015
NON_INFERIORITY_BRIER = 0.003
# Expected over observed readmissions: beyond these the printed risk misleads a ward's planning.
CALIBRATION_BOUNDS = (0.80, 1.25)
# The first champion has nobody to beat; a model below this ranks too poorly to be shown at all.
FLOOR_AUC = 0.60


@dataclass(frozen=True)
class Scores:
    """What a model's probabilities are worth on n encounters.

    Attributes:
        n: encounters scored.
        positives: readmissions among them.
        auc: area under the ROC curve, with its 95 % interval resampled by patient.
        brier: mean squared error of the probability.
        expected_observed: sum of probabilities over readmissions; 1 is calibrated in the large.
    """

    n: int
    positives: int
    auc: float
    auc_low: float
    auc_high: float
    brier: float
    expected_observed: float


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
    """

    promoted: bool
    sentence: str
    clauses: list[Clause]
    challenger: Scores
    champion: Scores | None


def score(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, seed: int = 0
) -> Scores:
    """Returns the scores of one model.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) in [0, 1].
        patients: (n,) patient of each encounter: the unit that is resampled.
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
    weights = _resample(patients, seed)
    aucs = _auc(labels, probabilities, weights)
    low, high = _interval(aucs)
    return Scores(
        n=len(labels),
        positives=int(labels.sum()),
        auc=float(_auc(labels, probabilities, np.ones((1, len(labels))))[0]),
        auc_low=low,
        auc_high=high,
        brier=float(np.mean((probabilities - labels) ** 2)),
        expected_observed=float(probabilities.sum() / labels.sum()),
    )


def judge(
    labels: np.ndarray,
    patients: np.ndarray,
    challenger: np.ndarray,
    champion: np.ndarray | None,
    *,
    seed: int = 0,
) -> Verdict:
    """Decides whether the challenger takes over.

    A challenger is promoted if it is better in AUC or in Brier score (the 95 % interval of the
    paired difference, resampled by patient, excludes 0), worse in neither by more than the named
    margin, and calibrated within bounds. The first model must clear absolute floors instead.

    Args:
        labels: (n,) outcomes of held-out people.
        patients: (n,) their patients.
        challenger: (n,) probabilities of the challenger.
        champion: (n,) probabilities of the champion, None if there is none.
        seed: seed of the resampling.
    """
    scores = score(labels, challenger, patients, seed=seed)
    calibration = _calibration_clause(scores)
    if champion is None:
        floor = Clause(
            "auc_above_floor",
            scores.auc >= FLOOR_AUC,
            f"AUC {scores.auc:.3f} against a floor of {FLOOR_AUC:.2f}",
            "ranks too poorly to be shown",
        )
        return _verdict([floor, calibration], scores, None)
    current = score(labels, champion, patients, seed=seed)
    weights = _resample(patients, seed)
    auc = _interval(_auc(labels, challenger, weights) - _auc(labels, champion, weights))
    squares = (challenger - labels) ** 2 - (champion - labels) ** 2
    brier = _interval(weights @ squares / weights.sum(axis=1))
    auc_words = f"AUC {_difference(scores.auc - current.auc, auc, 3)}"
    brier_words = f"Brier {_difference(scores.brier - current.brier, brier, 4)}"
    clauses = [
        Clause(
            "better_in_auc_or_brier",
            auc[0] > 0 or brier[1] < 0,
            f"{auc_words}, {brier_words}",
            "no better than the champion",
        ),
        Clause(
            "auc_not_worse",
            auc[0] > -NON_INFERIORITY_AUC,
            auc_words,
            f"may rank worse by more than {NON_INFERIORITY_AUC}",
        ),
        Clause(
            "brier_not_worse",
            brier[1] < NON_INFERIORITY_BRIER,
            brier_words,
            f"may be less accurate by more than {NON_INFERIORITY_BRIER}",
        ),
        calibration,
    ]
    return _verdict(clauses, scores, current)


def _verdict(clauses: list[Clause], challenger: Scores, champion: Scores | None) -> Verdict:
    people = f"on {challenger.n:,} held-out encounters"
    broken = [clause for clause in clauses if not clause.holds]
    if broken:
        reasons = "; ".join(f"{clause.fault} ({clause.words})" for clause in broken)
        return Verdict(False, f"Refused {people}: {reasons}.", clauses, challenger, champion)
    what = "Promoted as the first champion" if champion is None else "Promoted"
    words = "; ".join(dict.fromkeys(clause.words for clause in clauses[:1] + clauses[-1:]))
    return Verdict(True, f"{what} {people}: {words}.", clauses, challenger, champion)


def _calibration_clause(scores: Scores) -> Clause:
    low, high = CALIBRATION_BOUNDS
    return Clause(
        "calibrated_within_bounds",
        low <= scores.expected_observed <= high,
        f"expected/observed {scores.expected_observed:.2f} (bounds {low:.2f} to {high:.2f})",
        "not calibrated",
    )


def _difference(point: float, interval: tuple[float, float], digits: int) -> str:
    low, high = interval
    return f"{point:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _interval(resampled: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    # Of very few rows a resample may hold one class only: it has no AUC and is left out.
    known = resampled[~np.isnan(resampled)]
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _resample(patients: np.ndarray, seed: int) -> np.ndarray:
    """Returns how often each encounter is drawn: (RESAMPLES, n), whole patients at a time."""
    _, patient = np.unique(patients, return_inverse=True)
    count = patient.max() + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn[:, patient].astype(float)


def _auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the AUC under each row of weights (r, n): Mann-Whitney, ties count one half."""
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    positive = np.add.reduceat(weights[:, order] * labels[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - labels[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    won: np.ndarray = (positive * below).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)
