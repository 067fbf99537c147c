"""How far each column of a batch moved from the reference, and whether that is more than chance.

Distances with the meaning an operator knows, two-sample tests with rare levels pooled, and the
Benjamini-Hochberg procedure over all of them. It explains a drift; whether there is one is decided
by the joint test in `separation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from health_predict import features
from health_predict.schema import COUNTS, MISSING, PATIENT

if TYPE_CHECKING:
    import pandas as pd

FALSE_DISCOVERY_RATE = 0.01
"""Share of the columns called moved that did not move."""
# Below these a difference is too small to act on, however certain it is: the usual reading of the
# population stability index (.1 moderate, .25 large), and a twentieth of the rows for the others.
SMALLEST_PSI = 0.10
SMALLEST_SHARE = 0.05
_BINS = 10
# A chi-square test needs about five expected rows a cell.
_SMALLEST_CELL = 5
# An empty bin would make the index infinite.
_SMALLEST_BIN = 1e-4

Kind = Literal["number", "category", "constant"]


@dataclass(frozen=True)
class ColumnDrift:
    """One modelled column of a batch against the reference.

    Attributes:
        column: the published column.
        kind: `number`, `category`, or `constant` where neither side varies and both agree.
        psi: population stability index over deciles of the reference, or over levels.
        distance: Wasserstein distance in standard deviations of the reference for a number,
            Jensen-Shannon distance (base 2, 0 to 1) for a category.
        missing_reference: share of the reference that was not recorded.
        missing_batch: share of the batch that was not recorded.
        unseen: share of the batch at levels that the reference does not have.
        p_value: of the two-sample test, one visit a patient; 1 for a constant.
        moved: beyond chance (Benjamini-Hochberg) and by more than the smallest effect.
        weight: share of the movement of the champion's scores that is due to this column.
    """

    column: str
    kind: Kind
    psi: float
    distance: float
    missing_reference: float
    missing_batch: float
    unseen: float
    p_value: float
    moved: bool
    weight: float

    @property
    def words(self) -> str:
        """How the column moved, in words."""
        told = [f"PSI {self.psi:.2f}"]
        if abs(self.missing_batch - self.missing_reference) >= SMALLEST_SHARE:
            told.append(
                f"not recorded {self.missing_reference:.0%} before, {self.missing_batch:.0%} now"
            )
        if self.unseen >= SMALLEST_SHARE:
            told.append(f"{self.unseen:.0%} at levels never seen")
        return f"{self.column} ({', '.join(told)})"


def by_column(
    reference: "pd.DataFrame", batch: "pd.DataFrame", importance: Mapping[str, float]
) -> list[ColumnDrift]:
    """Returns every modelled column, those that moved and matter most first.

    Args:
        reference: what the champion learned from, newest part (m rows, published columns).
        batch: what arrived (n rows, published columns).
        importance: feature -> share of the movement of the champion's scores.
    """
    from scipy.stats import false_discovery_control

    # Visits of one patient resemble each other, and the tests want independent rows.
    before, now = (frame.drop_duplicates(PATIENT) for frame in (reference, batch))
    weights = column_weights(importance)
    measured = [_measure(name, before[name], now[name]) for name in features.MODELLED]
    adjusted = false_discovery_control([drift.p_value for drift in measured])
    found = [
        ColumnDrift(
            **{
                **vars(drift),
                "moved": bool(q <= FALSE_DISCOVERY_RATE) and _is_large(drift),
                "weight": weights.get(drift.column, 0.0),
            }
        )
        for drift, q in zip(measured, adjusted, strict=True)
    ]
    return sorted(found, key=lambda d: (not d.moved, -d.weight * d.psi, -d.psi))


def column_weights(importance: Mapping[str, float]) -> dict[str, float]:
    """Returns published column -> its share, a derived feature's divided among its columns."""
    weights: dict[str, float] = {}
    for feature, share in importance.items():
        rule = features.DERIVED.get(feature)
        columns = rule.columns if rule else (feature,)
        for column in columns:
            weights[column] = weights.get(column, 0.0) + share / len(columns)
    return weights


def _is_large(drift: ColumnDrift) -> bool:
    missing = abs(drift.missing_batch - drift.missing_reference)
    return drift.psi >= SMALLEST_PSI or max(missing, drift.unseen) >= SMALLEST_SHARE


def _measure(name: str, before: "pd.Series", now: "pd.Series") -> ColumnDrift:
    missing = [float((values.isna() | (values == MISSING)).mean()) for values in (before, now)]
    psi, distance, unseen, p_value = (
        _numbers(before.to_numpy(float), now.to_numpy(float))
        if name in COUNTS
        else _levels(before, now)
    )
    same = psi == 0 and before.nunique(dropna=False) == now.nunique(dropna=False) == 1
    kind: Kind = "constant" if same else "number" if name in COUNTS else "category"
    return ColumnDrift(
        name, kind, psi, distance, missing[0], missing[1], unseen, p_value, False, 0.0
    )


def _numbers(before: np.ndarray, now: np.ndarray) -> tuple[float, float, float, float]:
    """Returns PSI, distance, unseen share and p-value of a column of numbers.

    What is not recorded (NaN) is tested apart; two looks, so the smaller p-value counts double.
    """
    from scipy.stats import ks_2samp, wasserstein_distance

    recorded = [np.isfinite(values) for values in (before, now)]
    absence = _chi_square(np.array([[r.sum(), (~r).sum()] for r in recorded]))
    before, now = before[recorded[0]], now[recorded[1]]
    if not (len(before) and len(now)):
        return (0.0, 0.0, 0.0, absence)
    edges = np.unique(np.quantile(before, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, v, side="right"), minlength=len(edges) + 1)
        for v in (before, now)
    ]
    spread = float(before.std()) or 1.0
    p_value = float(ks_2samp(before, now, method="asymp").pvalue)
    if absence < 1:
        p_value = min(1.0, 2 * min(p_value, absence))
    return _psi(*counts), float(wasserstein_distance(before, now)) / spread, 0.0, p_value


def _levels(before: "pd.Series", now: "pd.Series") -> tuple[float, float, float, float]:
    """Returns PSI, distance, unseen share and p-value of a column of levels."""
    import pandas as pd
    from scipy.spatial.distance import jensenshannon

    codes, levels = pd.factorize(pd.concat([before, now]).fillna(MISSING))
    m, k = len(before), len(levels)
    counts = np.array([np.bincount(c, minlength=k) for c in (codes[:m], codes[m:])])
    unseen = counts[1][counts[0] == 0].sum() / counts[1].sum()
    # What no test can use is one level: else a handful of rare codes would look like a shift.
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / counts.sum()
    rare = expected < _SMALLEST_CELL
    pooled = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    distance = float(np.nan_to_num(jensenshannon(*pooled, base=2)))  # NaN where both are equal
    return _psi(*pooled), distance, float(unseen), _chi_square(pooled)


def _chi_square(counts: np.ndarray) -> float:
    from scipy.stats import chi2_contingency

    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2:
        return 1.0
    return float(chi2_contingency(counts, correction=False).pvalue)


def _psi(before: np.ndarray, now: np.ndarray) -> float:
    p, q = (np.maximum(counts / counts.sum(), _SMALLEST_BIN) for counts in (before, now))
    return float(((q - p) * np.log(q / p)).sum())
