"""Whether a batch still comes from the world the champion learned from.

The decision is a classifier two-sample test on the modelled columns; Evidently's report shows
which columns moved. What is done about drift is decided in `defs.automation`, not here. The only
module that imports evidently.
"""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

from health_predict import features
from health_predict.schema import PATIENT

if TYPE_CHECKING:
    import pandas as pd

FALSE_ALARM_RATE = 0.01
"""Share of undrifted batches whose statistic exceeds the chance bound."""

# On large batches chance alone is a weak bar: successive tenths of the published data always
# differ beyond it. A batch of emergency admissions only, against a mixed reference, gives .71.
MAJOR = 0.70
"""Smallest separation (AUC) worth a retraining."""

# Beyond four reference rows a batch row the chance bound hardly falls any more.
_REFERENCE_PER_BATCH_ROW = 4
_MOST_REFERENCE_ROWS = 20_000
_REPORT_ROWS = 2_000


@dataclass(frozen=True)
class DriftSummary:
    """The decision about one batch.

    Attributes:
        statistic: cross-fitted AUC of a small model that tells batch from reference; .5 is alike.
        chance_bound: what the statistic exceeds in 1 % of undrifted batches of this size.
        threshold: what it must exceed to count as drift: the larger of chance bound and `MAJOR`.
        severity: `none` within chance, `minor` beyond it, `major` beyond the threshold.
        columns: what moved, published columns or counts of several, by share of the separation.
        batch_rows: rows of the batch.
        reference_rows: rows of the reference it was compared with.
    """

    statistic: float
    chance_bound: float
    threshold: float
    severity: Literal["none", "minor", "major"]
    columns: dict[str, float]
    batch_rows: int
    reference_rows: int

    @property
    def drifted(self) -> bool:
        """Whether the batch calls for a retraining."""
        return self.severity == "major"

    @property
    def sentence(self) -> str:
        """The decision in words, with numbers."""
        moved = ", ".join(f"{name} ({share:.0%})" for name, share in self._main_columns())
        told = f"batch and reference can be told apart with AUC {self.statistic:.3f}"
        if self.severity == "none":
            return f"No drift: {told}, within chance (up to {self.chance_bound:.3f})."
        if self.severity == "minor":
            return f"Minor drift: {told}, below the {self.threshold:.2f} that matters; {moved}."
        return f"Major drift: {told}, above {self.threshold:.2f}; mostly by {moved}."

    def _main_columns(self) -> list[tuple[str, float]]:
        return list(self.columns.items())[:3]


class DriftError(ValueError):
    """The test cannot be made on these rows."""


def detect(reference: "pd.DataFrame", batch: "pd.DataFrame", *, seed: int = 0) -> DriftSummary:
    """Tests one batch against the reference.

    A small boosted model learns to tell the two apart on one half of the patients and is scored on
    the other, both ways round (Lopez-Paz and Oquab 2017). Under no drift the statistic is a
    Mann-Whitney one around 1/2, its variance that of independent rows times the visits a patient.

    Args:
        reference: what the champion learned from, newest part (m rows, published columns).
        batch: what arrived (n rows, published columns).
        seed: seed of the halves, the sample of the reference and the model.

    Raises:
        DriftError: one of the two holds fewer than 100 rows, or too few patients.
    """
    import pandas as pd

    if min(len(reference), len(batch)) < 100:
        raise DriftError(
            f"{len(batch)} batch rows against {len(reference)} reference rows: at least 100 of "
            "each are needed to tell drift from chance; use larger batches"
        )
    rows = min(len(reference), _REFERENCE_PER_BATCH_ROW * len(batch), _MOST_REFERENCE_ROWS)
    reference = reference.sample(rows, random_state=seed)
    both = pd.concat([reference, batch], ignore_index=True)
    origin = np.repeat([0.0, 1.0], [len(reference), len(batch)])
    statistic, columns = _separate(both, origin, seed)
    deviation = _null_deviation(both[PATIENT].nunique(), len(reference), len(batch))
    chance_bound = 0.5 + NormalDist().inv_cdf(1 - FALSE_ALARM_RATE) * deviation
    threshold = max(chance_bound, MAJOR)
    return DriftSummary(
        statistic=statistic,
        chance_bound=chance_bound,
        threshold=threshold,
        severity=(
            "major" if statistic > threshold else "minor" if statistic > chance_bound else "none"
        ),
        columns=columns,
        batch_rows=len(batch),
        reference_rows=len(reference),
    )


def _null_deviation(patients: int, m: int, n: int) -> float:
    # Two visits of one patient resemble each other: rows say less than their number, at worst by
    # the visits a patient. Each half scores the other and the two are averaged: all rows count.
    visits_a_patient = (m + n) / patients
    return sqrt(visits_a_patient * (m + n + 1) / (12 * m * n))


def _separate(
    both: "pd.DataFrame", origin: np.ndarray, seed: int
) -> tuple[float, dict[str, float]]:
    from sklearn.metrics import roc_auc_score
    from xgboost import XGBClassifier

    x, owners = _encode(both)
    rng = np.random.default_rng(seed)
    _, patient = np.unique(both[PATIENT], return_inverse=True)
    half = rng.integers(0, 2, patient.max() + 1)[patient]
    if len(np.unique(half + 2 * origin)) < 4:
        raise DriftError(
            f"{both[PATIENT].nunique()} patients cannot be cut into two halves that both have rows "
            "of the batch and of the reference; use larger batches"
        )
    aucs, gains = [], np.zeros(x.shape[1])
    for held_out in (0, 1):
        fitted = half != held_out
        model = XGBClassifier(
            n_estimators=40,
            max_depth=3,
            learning_rate=0.2,
            subsample=0.8,
            scale_pos_weight=float((origin == 0).sum() / origin.sum()),
            n_jobs=1,
            random_state=seed,
        ).fit(x[fitted], origin[fitted])
        aucs.append(roc_auc_score(origin[~fitted], model.predict_proba(x[~fitted])[:, 1]))
        gains += model.feature_importances_
    shares: dict[str, float] = {}
    for owner, gain in zip(owners, gains / (gains.sum() or 1.0), strict=True):
        shares[owner] = shares.get(owner, 0.0) + float(gain)
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return float(np.mean(aucs)), {name: round(share, 4) for name, share in ranked if share > 0.005}


def _encode(frame: "pd.DataFrame") -> tuple[np.ndarray, list[str]]:
    """Returns the derived features as numbers (n, k) and what each is reported as."""
    import pandas as pd

    derived = features.derive(frame)
    for name in features.CATEGORICAL:
        derived[name] = pd.factorize(derived[name], sort=True)[0]
    return derived.to_numpy(np.float32), [_owner(name) for name in derived]


def _owner(feature: str) -> str:
    rule = features.DERIVED.get(feature)
    return rule.columns[0] if rule and len(rule.columns) == 1 else feature


def write_report(
    reference: "pd.DataFrame", batch: "pd.DataFrame", path: Path, *, seed: int = 0
) -> float:
    """Writes Evidently's data drift report of the modelled columns as HTML.

    Args:
        reference: rows the champion learned from.
        batch: rows that arrived; of both at most 2,000 sampled rows are shown.
        path: the HTML file, its folder is made.
        seed: seed of the sample.

    Returns:
        The share of columns that Evidently's defaults call drifted; shown, never decided on.
    """
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    texts = [c for c in features.MODELLED if batch[c].dtype == object]
    codes = [c for c in features.MODELLED if c.endswith("_id")]
    numbers = [c for c in features.MODELLED if c not in (*texts, *codes)]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=[*texts, *codes])
    current, earlier = (
        Dataset.from_pandas(
            frame.sample(min(len(frame), _REPORT_ROWS), random_state=seed)[
                list(features.MODELLED)
            ].astype(dict.fromkeys(codes, str)),
            data_definition=definition,
        )
        for frame in (batch, reference)
    )
    snapshot = Report([DataDriftPreset()]).run(current_data=current, reference_data=earlier)
    path.parent.mkdir(parents=True, exist_ok=True)
    snapshot.save_html(str(path))
    drifted = next(
        metric["value"]["share"]
        for metric in snapshot.dict()["metrics"]
        if metric["metric_name"].startswith("DriftedColumnsCount")
    )
    return float(drifted)
