"""How a model fares on each group of people, and which of them would be worse off with it.

Groups that are too small are said to be so, never to be fine. What follows from a harmed group is
decided in `evaluation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from health_predict import metrics

# Below these nothing can be said of a group of people, and nothing is.
SMALLEST_GROUP = 200
SMALLEST_CLASS = 40
# Chance of refusing for a group that is as well off as before, over all groups together.
GROUP_ALPHA = 0.05


@dataclass(frozen=True)
class People:
    """Held-out people that a model is scored on.

    Attributes:
        labels: (n,) outcomes, 0 or 1.
        patients: (n,) patient of each encounter: the unit that is resampled.
        groups: name of a partition (`gender`) -> (n,) group of each encounter.
    """

    labels: np.ndarray
    patients: np.ndarray
    groups: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Contender:
    """What a model says of the held-out people.

    Attributes:
        probabilities: (n,) in [0, 1].
        threshold: from this probability on it asks for an intervention.
    """

    probabilities: np.ndarray
    threshold: float = 0.5


@dataclass(frozen=True)
class GroupScores:
    """How a model fares on one group of people.

    Attributes:
        group: `gender: Female`.
        n: encounters.
        positives: readmissions among them.
        auc: with its 95 % interval; None of groups that are too small.
        expected_observed: likewise.
        words: how it compares with the champion, or `too few to say`.
        harmed: whether the group is worse off, beyond doubt.
    """

    group: str
    n: int
    positives: int
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    expected_observed: float | None
    words: str
    harmed: bool


def by_group(
    people: People,
    challenger: Contender,
    champion: Contender | None,
    weights: np.ndarray,
    floor: float,
) -> list[GroupScores]:
    """Returns how the challenger fares on every group.

    A group is harmed if its AUC or its Brier score is worse than the champion's beyond doubt: by
    more than the normal quantile of the shared chance times the standard error of the paired
    difference. With no champion, if its AUC lies below the floor beyond doubt.

    Args:
        people: held-out people with their groups.
        challenger: what the challenger says of them.
        champion: what the champion says, None if there is none.
        weights: (r, n) bootstrap weights of the people, from `metrics.by_patient`.
        floor: AUC below which a group is ranked too poorly.
    """
    members = [
        (f"{partition}: {level}", values == level)
        for partition, values in people.groups.items()
        for level in sorted(set(values))
    ]
    large = [name for name, rows in members if _enough(people.labels[rows])]
    # One-sided, shared among all groups and both measures.
    z = NormalDist().inv_cdf(1 - GROUP_ALPHA / max(1, 2 * len(large)))
    return [
        _group(name, rows, people, challenger, champion, weights, floor, z)
        if name in large
        else _too_few(name, people.labels[rows])
        for name, rows in members
    ]


def _enough(labels: np.ndarray) -> bool:
    rarer = min(labels.sum(), len(labels) - labels.sum())
    return len(labels) >= SMALLEST_GROUP and bool(rarer >= SMALLEST_CLASS)


def _too_few(name: str, labels: np.ndarray) -> GroupScores:
    n, positives = len(labels), int(labels.sum())
    return GroupScores(name, n, positives, None, None, None, None, "too few to say", False)


def _group(
    name: str,
    rows: np.ndarray,
    people: People,
    challenger: Contender,
    champion: Contender | None,
    weights: np.ndarray,
    floor: float,
    z: float,
) -> GroupScores:
    labels = np.asarray(people.labels[rows], dtype=float)
    weights, everyone = weights[:, rows], metrics.plain(labels)

    def measured(contender: Contender) -> dict[str, tuple[float, np.ndarray]]:
        """Returns measure -> point and resampled, larger being better."""
        p = contender.probabilities[rows]
        briers = -metrics.brier(labels, p, everyone), -metrics.brier(labels, p, weights)
        aucs = metrics.auc(labels, p, everyone), metrics.auc(labels, p, weights)
        return {"AUC": (float(aucs[0][0]), aucs[1]), "Brier": (float(briers[0][0]), briers[1])}

    new = measured(challenger)
    auc, (low, high) = new["AUC"][0], metrics.interval(new["AUC"][1])
    if champion is None:
        harmed = auc + z * float(np.nanstd(new["AUC"][1])) < floor
        words = f"AUC {auc:.3f} [{low:.3f}, {high:.3f}]"
    else:
        old = measured(champion)
        gains = {m: new[m][0] - old[m][0] for m in new}
        errors = {m: float(np.nanstd(new[m][1] - old[m][1])) for m in new}
        harmed = any(gains[m] + z * errors[m] < 0 for m in gains)
        words = (
            f"AUC {gains['AUC']:+.3f} (standard error {errors['AUC']:.3f}), Brier "
            f"{-gains['Brier']:+.4f} ({errors['Brier']:.4f}) on {len(labels):,} encounters"
        )
    ratio = metrics.expected_observed(labels, challenger.probabilities[rows], everyone)
    return GroupScores(
        name, len(labels), int(labels.sum()), auc, low, high, float(ratio[0]), words, harmed
    )
