"""The published encounters as they came: cut into parts, each foretold from all that was before.

What the two benchmarks of the models share: the parts, the figures of a forecast and the paired
difference of two. Which models forecast is in `results` and `ablation`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loop import BENCH
from health_predict import encounters, metrics, splits
from health_predict.encounters import Source
from health_predict.schema import LABEL, PATIENT, LabelName
from health_predict.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

Forecast = list[np.ndarray]
"""Probabilities of each part, (n,) each."""


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


def cohort(data: str, label: LabelName) -> "tuple[pd.DataFrame, Source]":
    """Returns the cohort in order of arrival with `side` and `label`, and where it came from.

    Args:
        data: as `encounters.read` takes it; the synthetic cohort has the default size and seed.
        label: which outcomes count as a readmission.
    """
    settings = Settings()
    raw, source = encounters.read(data, rows=settings.rows, seed=settings.seed)
    accepted, _ = encounters.apply_contract(raw)
    return splits.with_side(encounters.cohort(accepted, label)), source


def cut(people: "pd.DataFrame", count: int) -> list[Part]:
    """Returns the later 80 % of the cohort in equal parts, each with what was before it."""
    calendar = splits.Calendar(len(people), batches=count, batch_rows=0)
    spans = map(calendar.span, range(1, count + 1))
    return [
        Part(number, people.iloc[: span.start], people.iloc[span.start : span.stop])
        for number, span in enumerate(spans, start=1)
    ]


def figures(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, resamples: int
) -> dict[str, float]:
    """Returns what a forecast is worth; the AUC with its 95 % interval resampled by patient."""
    everyone = metrics.plain(labels)
    weights = metrics.by_patient(patients, seed=0, resamples=resamples)
    low, high = metrics.interval(metrics.auc(labels, probabilities, weights))
    return {
        "n": len(labels),
        "rate": float(labels.mean()),
        "auc": float(metrics.auc(labels, probabilities, everyone)[0]),
        "auc_low": low,
        "auc_high": high,
        "brier": float(metrics.brier(labels, probabilities, everyone)[0]),
        "expected_observed": float(metrics.expected_observed(labels, probabilities, everyone)[0]),
        "slope": float(metrics.calibration_slope(labels, probabilities, everyone)[0]),
    }


class Resampled:
    """The mean AUC over parts, plain and under weightings that draw patients over all parts.

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

    def mean_auc(self, forecast: Forecast) -> np.ndarray:
        """Returns the mean AUC over the parts (1 + resamples,), the plain one first."""
        parts = zip(self._labels, forecast, self._weights, strict=True)
        mean: np.ndarray = np.mean([metrics.auc(*part) for part in parts], axis=0)
        return mean


def keep(result: dict[str, Any], name: str) -> Path:
    """Writes a result to `var/bench` and returns its path."""
    BENCH.mkdir(parents=True, exist_ok=True)
    path = BENCH / f"{name}.json"
    path.write_text(json.dumps(result, indent=2))
    return path
