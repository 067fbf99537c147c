"""Whether a batch still comes from the world the champion learned from, and what that means for it.

Three views of one batch: can it be told from the reference at all (`separation`, which decides),
which columns moved and how much the champion leans on them (`column_drift`), and did its scores
move. What is done about drift is decided in `defs.decisions`, not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from health_predict.column_drift import ColumnDrift, by_column
from health_predict.separation import Chance, separate

if TYPE_CHECKING:
    import pandas as pd

# On large batches chance alone is a weak bar: successive tenths of the published data always
# differ beyond it. A batch of emergency admissions only, against a mixed reference, gives .71.
MAJOR = 0.70
"""Smallest separation (AUC) worth a retraining."""


@dataclass(frozen=True)
class PredictionDrift:
    """How the champion's scores of a batch differ from those of the reference.

    Attributes:
        mean_reference: mean probability on the reference.
        mean_batch: mean probability on the batch.
        distance: Wasserstein distance between both, in probability.
        flagged_reference: share at or above the threshold on the reference.
        flagged_batch: share at or above the threshold on the batch.
    """

    mean_reference: float
    mean_batch: float
    distance: float
    flagged_reference: float
    flagged_batch: float

    @property
    def words(self) -> str:
        """The movement in words."""
        return (
            f"mean risk {self.mean_reference:.2f} before, {self.mean_batch:.2f} now; flagged "
            f"{self.flagged_reference:.0%} before, {self.flagged_batch:.0%} now"
        )


@dataclass(frozen=True)
class DriftSummary:
    """The decision about one batch.

    Attributes:
        statistic: cross-fitted AUC of a small model that tells batch from reference; .5 is alike.
        chance_bound: what the statistic exceeds in undrifted batches at the false alarm rate.
        false_alarm_rate: share of undrifted batches that are beyond the chance bound.
        threshold: what it must exceed to call for a retraining.
        severity: `none` within chance, `minor` beyond it, `major` beyond the threshold too.
        shares: what batch and reference are told apart by: feature -> share of the separation.
        columns: every modelled column, those that moved and matter most first.
        champion_share: share of the movement of the champion's scores due to columns that moved.
        prediction: how the champion's scores moved.
        batch_rows: rows of the batch.
        reference_rows: rows of the reference it was compared with.
    """

    statistic: float
    chance_bound: float
    false_alarm_rate: float
    threshold: float
    severity: Literal["none", "minor", "major"]
    shares: dict[str, float]
    columns: list[ColumnDrift]
    champion_share: float
    prediction: PredictionDrift
    batch_rows: int
    reference_rows: int

    @property
    def drifted(self) -> bool:
        """Whether the batch calls for a retraining."""
        return self.severity == "major"

    @property
    def sentence(self) -> str:
        """The decision in words, with numbers."""
        told = f"batch and reference can be told apart with AUC {self.statistic:.3f}"
        if self.severity == "none":
            return f"No drift: {told}, within chance (up to {self.chance_bound:.3f})."
        by = ", ".join(f"{name} ({share:.0%})" for name, share in list(self.shares.items())[:3])
        harm = (
            f"The columns that moved carry {self.champion_share:.0%} of what moves the "
            f"champion's scores; {self.prediction.words}."
        )
        if self.severity == "minor":
            return f"Minor drift: {told}, below the {self.threshold:.2f} that matters; {by}. {harm}"
        return f"Major drift: {told}, above {self.threshold:.2f}; mostly by {by}. {harm}"


def detect(
    reference: "pd.DataFrame",
    batch: "pd.DataFrame",
    chance: Chance,
    *,
    probabilities: tuple[np.ndarray, np.ndarray],
    flagged_from: float,
    importance: Mapping[str, float],
    false_alarm_rate: float = 0.01,
    major: float = MAJOR,
    seed: int = 0,
) -> DriftSummary:
    """Judges one batch.

    Args:
        reference: what the champion learned from, newest part (m rows, published columns).
        batch: what arrived (n rows, published columns).
        chance: how far chance takes the statistic on this reference.
        probabilities: the champion's, of the reference (m,) and of the batch (n,).
        flagged_from: the champion's threshold.
        importance: feature -> share of the movement of the champion's scores.
        false_alarm_rate: share of undrifted batches that may be called drifted.
        major: separation (AUC) that is worth a retraining.
        seed: seed of the test.

    Raises:
        DriftError: too few rows or patients.
    """
    separation = separate(reference, batch, seed=seed)
    bound = chance.bound(false_alarm_rate, separation)
    threshold = max(bound, major)
    columns = by_column(reference, batch, importance)
    return DriftSummary(
        statistic=separation.statistic,
        chance_bound=bound,
        false_alarm_rate=false_alarm_rate,
        threshold=threshold,
        severity=_severity(separation.statistic, bound, threshold),
        shares=separation.shares,
        columns=columns,
        champion_share=float(sum(column.weight for column in columns if column.moved)),
        prediction=_prediction(*probabilities, flagged_from),
        batch_rows=separation.batch_rows,
        reference_rows=separation.reference_rows,
    )


def _severity(
    statistic: float, bound: float, threshold: float
) -> Literal["none", "minor", "major"]:
    if statistic > threshold:
        return "major"
    return "minor" if statistic > bound else "none"


def _prediction(before: np.ndarray, now: np.ndarray, threshold: float) -> PredictionDrift:
    from scipy.stats import wasserstein_distance

    return PredictionDrift(
        mean_reference=float(np.mean(before)),
        mean_batch=float(np.mean(now)),
        distance=float(wasserstein_distance(before, now)),
        flagged_reference=float(np.mean(before >= threshold)),
        flagged_batch=float(np.mean(now >= threshold)),
    )
