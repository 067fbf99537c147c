"""Encounters as they came: cut into parts, each foretold from all that was before it.

What the benchmarks of the models share: the parts, a model learned from the past, the figures of a
forecast and the paired difference of two. Which models forecast is in `policies` and `ablation`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from health_predict import encounters, fitting, metrics, splits
from health_predict.encounters import Source
from health_predict.fitting import Fitted
from health_predict.models import FAMILIES, Candidate
from health_predict.schema import LABEL, PATIENT, LabelName
from health_predict.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

Forecast = list[np.ndarray]
"""Probabilities of each part, (n,) each."""

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Labels (n,), probabilities (n,), weights (r, n) -> (r,), as in `metrics`."""

CANDIDATE = Candidate("xgboost", FAMILIES["xgboost"].default)
"""What is learned where no search is: the family that wins most, with its defaults."""


@dataclass(frozen=True)
class Part:
    """One of the parts that the later encounters are cut into.

    Attributes:
        number: its place, from 1.
        past: every encounter before it, with `side` and `label`.
        rows: its own encounters, with `side` and `label`.
    """

    number: int
    past: "pd.DataFrame"
    rows: "pd.DataFrame"

    @property
    def labels(self) -> np.ndarray:
        """Outcomes (n,), 0.0 or 1.0."""
        return self.rows[LABEL].to_numpy(dtype=float)

    @property
    def patients(self) -> np.ndarray:
        """Patient of each encounter (n,)."""
        patients: np.ndarray = self.rows[PATIENT].to_numpy()
        return patients


def cohort(data: str, label: LabelName, rows: int | None = None) -> "tuple[pd.DataFrame, Source]":
    """Returns the cohort in order of arrival with `side` and `label`, and where it came from.

    Args:
        data: as `encounters.read` takes it; the synthetic cohort has the default seed.
        label: which outcomes count as a readmission.
        rows: rows of the synthetic cohort; None for the default.
    """
    settings = Settings()
    raw, source = encounters.read(data, rows=rows or settings.rows, seed=settings.seed)
    accepted, _ = encounters.apply_contract(raw)
    return splits.with_side(encounters.cohort(accepted, label)), source


def cut(people: "pd.DataFrame", count: int) -> list[Part]:
    """Returns the later 80 % of the cohort in equal parts, each with what was before it."""
    return _parts(people, splits.Calendar(len(people), batches=count, batch_rows=0))


def arriving(people: "pd.DataFrame", batch_rows: int) -> list[Part]:
    """Returns the later 80 % of the cohort in batches of so many rows, as the loop gets them."""
    return _parts(people, splits.Calendar(len(people), batches=0, batch_rows=batch_rows))


def _parts(people: "pd.DataFrame", calendar: splits.Calendar) -> list[Part]:
    spans = map(calendar.span, range(1, calendar.count + 1))
    return [
        Part(number, people.iloc[: span.start], people.iloc[span.start : span.stop])
        for number, span in enumerate(spans, start=1)
    ]


def learn(past: "pd.DataFrame", seed: int) -> Fitted:
    """Returns what ships if this is the past: learned, calibrated, with its threshold."""
    return fitting.learn(past, fitting.fit_preprocessor(past), CANDIDATE, seed=seed)


def probabilities(fitted: Fitted, rows: "pd.DataFrame") -> np.ndarray:
    """Returns the probability of readmission of each row (n,)."""
    foretold: np.ndarray = fitted.pipeline.predict_proba(rows)[:, 1]
    return foretold


def figures(
    labels: np.ndarray, foretold: np.ndarray, patients: np.ndarray, *, resamples: int
) -> dict[str, float]:
    """Returns what a forecast is worth, each figure with its 95 % interval resampled by patient.

    Figure `auc` has its interval in `auc_low` and `auc_high`, and so on.
    """
    everyone = metrics.plain(labels)
    weights = metrics.by_patient(patients, seed=0, resamples=resamples)
    found = {"n": float(len(labels)), "rate": float(labels.mean())}
    for name, measure in MEASURES.items():
        low, high = metrics.interval(measure(labels, foretold, weights))
        value = float(measure(labels, foretold, everyone)[0])
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return found


MEASURES: dict[str, Measure] = {
    "auc": metrics.auc,
    "brier": metrics.brier,
    "expected_observed": metrics.expected_observed,
}


def miscalibration(labels: np.ndarray, foretold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns how far expected over observed is from 1, either way."""
    off: np.ndarray = np.abs(metrics.expected_observed(labels, foretold, weights) - 1)
    return off


class Resampled:
    """Means over parts, plain and under weightings that draw patients over all parts.

    A patient who comes back in a later part is drawn with all of his encounters.

    Args:
        parts: what is foretold.
        resamples: how many weightings.
    """

    def __init__(self, parts: Sequence[Part], resamples: int) -> None:
        self._labels = [part.labels for part in parts]
        weights = metrics.by_patient(
            np.concatenate([part.patients for part in parts]), seed=0, resamples=resamples
        )
        ends = np.cumsum([len(labels) for labels in self._labels])[:-1]
        # The first weighting counts everyone once.
        self._weights = np.split(np.vstack([np.ones(weights.shape[1]), weights]), ends, axis=1)

    def mean(self, measure: Measure, forecast: Forecast) -> np.ndarray:
        """Returns a measure's mean over the parts (1 + resamples,), the plain one first."""
        parts = zip(self._labels, forecast, self._weights, strict=True)
        mean: np.ndarray = np.mean([measure(*part) for part in parts], axis=0)
        return mean

    def mean_auc(self, forecast: Forecast) -> np.ndarray:
        """Returns the mean AUC over the parts (1 + resamples,), the plain one first."""
        return self.mean(metrics.auc, forecast)
