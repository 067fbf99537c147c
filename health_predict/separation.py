"""Whether two tables of encounters can be told apart: a classifier two-sample test.

A small boosted model learns to tell batch from reference on one half of the patients and is scored
on the other, both ways round; its AUC is the statistic (Lopez-Paz and Oquab 2017). How far chance
alone takes it is found by drawing batches from the reference. What a separation means is said in
`drift`, how far each column moved in `column_drift`.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from health_predict import features, metrics
from health_predict.schema import PATIENT

if TYPE_CHECKING:
    import pandas as pd

SMALLEST = 100
"""Rows of batch and of reference below which drift cannot be told from chance."""
# Beyond four reference rows a batch row, chance hardly gets smaller.
_REFERENCE_PER_BATCH_ROW = 4
_MOST_ROWS = 20_000
# The deviation is then known to a twentieth: a false alarm rate of 1 % may be .7 or 1.3 %.
_DRAWS = 240
# The inflation is the same from here on (1.42 at 1,000 and at 5,000 rows of the published data):
# larger draws would only take longer.
_MOST_DRAWN = 1_000
_MOST_THREADS = 4


class DriftError(ValueError):
    """The test cannot be made on these rows."""


@dataclass(frozen=True)
class Separation:
    """How well a batch can be told from the reference.

    Attributes:
        statistic: cross-fitted AUC of the model that tells them apart; .5 is alike.
        shares: what they are told apart by: feature -> share of the model's gain.
        batch_rows: rows of the batch that were used.
        reference_rows: rows of the reference that were used.
    """

    statistic: float
    shares: dict[str, float]
    batch_rows: int
    reference_rows: int


@dataclass(frozen=True)
class Chance:
    """How far chance alone takes the statistic, found by drawing batches from the reference.

    Attributes:
        inflation: standard deviation of the statistic in units of that of a Mann-Whitney
            statistic of independent rows. Above 1: the two halves score each other and so agree,
            and visits of one patient resemble each other.
        draws: how many batches were drawn.
        batch_rows: rows of each.
        reference_rows: rows of the reference that each was compared with.
    """

    inflation: float
    draws: int
    batch_rows: int
    reference_rows: int

    def bound(self, false_alarm_rate: float, separation: Separation) -> float:
        """Returns what the statistic exceeds in that share of undrifted batches."""
        z = NormalDist().inv_cdf(1 - false_alarm_rate)
        m, n = separation.reference_rows, separation.batch_rows
        return 0.5 + z * self.inflation * _mann_whitney(m, n)


def separate(
    reference: "pd.DataFrame",
    batch: "pd.DataFrame",
    *,
    ignored: Sequence[str] = (),
    seed: int = 0,
) -> Separation:
    """Returns how well a batch can be told from the reference.

    Args:
        reference: what the champion learned from, newest part (m rows, published columns).
        batch: what arrived (n rows, published columns).
        ignored: modelled features that the test does not see.
        seed: seed of the sample of the reference, the halves and the model.

    Raises:
        DriftError: one of the two holds fewer than `SMALLEST` rows, or too few patients.
    """
    import pandas as pd

    _require_rows(reference, batch)
    batch = batch.sample(min(len(batch), _MOST_ROWS), random_state=seed)
    reference = reference.sample(_reference_rows(len(reference), len(batch)), random_state=seed)
    both = pd.concat([reference, batch], ignore_index=True)
    x, names = _encode(both, ignored)
    arrived = np.repeat([0.0, 1.0], [len(reference), len(batch)])
    split = _split(_numbered(both), arrived, np.random.default_rng(seed))
    statistic, gains = _cross_fitted(x, arrived, split)
    ranked = sorted(zip(names, gains.tolist(), strict=True), key=lambda pair: -pair[1])
    shares = {name: round(share, 4) for name, share in ranked if share > 0.005}
    return Separation(statistic, shares, len(batch), len(reference))


def chance(
    reference: "pd.DataFrame",
    batch_rows: int,
    *,
    ignored: Sequence[str] = (),
    draws: int = _DRAWS,
    seed: int = 0,
) -> Chance:
    """Returns how far chance takes the statistic for batches of this size.

    Patients are drawn from the reference without replacement until they fill a batch, of at most
    1,000 rows and a third of the reference; others are what it is compared with. On each draw the
    test is made as on a real batch, models fitted anew, which takes some ten seconds in all. The
    deviation is carried over to larger batches as that of a Mann-Whitney statistic.

    Args:
        reference: what the champion learned from, newest part.
        batch_rows: rows of the batches to come.
        ignored: modelled features that the test does not see.
        draws: how many batches.
        seed: seed of the draws.

    Raises:
        DriftError: the reference holds too few rows or patients.
    """
    _require_rows(reference, reference)
    n = min(batch_rows, len(reference) // 3, _MOST_DRAWN)
    m = _reference_rows(len(reference) - n, n)
    x, _ = _encode(reference, ignored)
    patients = _numbered(reference)
    arrived = np.repeat([1.0, 0.0], [n, m])
    rng = np.random.default_rng(seed)

    def drawn() -> Iterator[tuple[np.ndarray, _Split]]:
        for _ in range(draws):
            rows = np.argsort(rng.permutation(patients.max() + 1)[patients], kind="stable")
            yield rows[: n + m], _split(patients[rows[: n + m]], arrived, rng)

    def statistic(draw: tuple[np.ndarray, _Split]) -> float:
        rows, split = draw
        return _cross_fitted(x[rows], arrived, split)[0]

    # Threads will do: seven tenths of the time are spent in XGBoost, which lets go of the lock.
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        statistics = np.fromiter(pool.map(statistic, drawn()), float)
    # Around 1/2, which is known, and not around their mean.
    deviation = sqrt(float(np.mean((statistics - 0.5) ** 2)))
    return Chance(deviation / _mann_whitney(m, n), draws, n, m)


def _mann_whitney(m: int, n: int) -> float:
    """Returns the standard deviation of the AUC of scores that know nothing, rows independent."""
    return sqrt((m + n + 1) / (12 * m * n))


def _reference_rows(available: int, batch_rows: int) -> int:
    return min(available, _REFERENCE_PER_BATCH_ROW * batch_rows, _MOST_ROWS)


def _require_rows(reference: "pd.DataFrame", batch: "pd.DataFrame") -> None:
    if min(len(reference), len(batch)) < SMALLEST:
        raise DriftError(
            f"{len(batch)} batch rows against {len(reference)} reference rows: at least "
            f"{SMALLEST} of each are needed to tell drift from chance; use larger batches"
        )


def _numbered(frame: "pd.DataFrame") -> np.ndarray:
    numbers: np.ndarray = np.unique(frame[PATIENT], return_inverse=True)[1]
    return numbers


@dataclass(frozen=True)
class _Split:
    """Which half of the patients each row (n,) belongs to, and the seeds of the two models."""

    half: np.ndarray
    seeds: tuple[int, int]


def _split(patients: np.ndarray, arrived: np.ndarray, rng: np.random.Generator) -> _Split:
    half = rng.integers(0, 2, patients.max() + 1)[patients]
    if len(np.unique(half + 2 * arrived)) < 4:
        raise DriftError(
            f"{len(np.unique(patients))} patients cannot be cut into two halves that both have "
            "rows of the batch and of the reference; use larger batches"
        )
    return _Split(half, (int(rng.integers(2**31)), int(rng.integers(2**31))))


def _cross_fitted(x: np.ndarray, arrived: np.ndarray, split: _Split) -> tuple[float, np.ndarray]:
    """Returns the AUC, mean of both halves of the patients, and each feature's share of gain."""
    from xgboost import XGBClassifier

    aucs, gains = [], np.zeros(x.shape[1])
    for scored, seed in enumerate(split.seeds):
        inside = split.half == scored
        model = XGBClassifier(
            n_estimators=40,
            max_depth=3,
            learning_rate=0.2,
            subsample=0.8,
            scale_pos_weight=float((arrived == 0).sum() / arrived.sum()),
            n_jobs=1,
            random_state=seed,
        ).fit(x[~inside], arrived[~inside])
        scores = model.predict_proba(x[inside])[:, 1]
        aucs.append(float(metrics.auc(arrived[inside], scores, metrics.plain(scores))[0]))
        gains += model.feature_importances_
    return float(np.mean(aucs)), gains / (gains.sum() or 1.0)


def _encode(frame: "pd.DataFrame", ignored: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Returns the modelled features as numbers (n, k), and their names."""
    import pandas as pd

    derived = features.derive(frame).drop(columns=list(ignored))
    for name in features.CATEGORICAL:
        if name not in ignored:
            derived[name] = pd.factorize(derived[name], sort=True)[0]
    return derived.to_numpy(np.float32), list(derived)
