"""The model families that compete: estimators, their search spaces as data, the shipped pipeline.

A family is fitted in `STAGES` equal stages so that a search can stop a trial early; fitting all
stages gives the model that ships. The search itself is in `tuning`, the verdict in `evaluation`.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STAGES = 8
"""Stages of a full fit: the rungs ASHA can stop at are 1, 2, 4 and 8."""

Params = dict[str, float | int]
Estimator = Any


@dataclass(frozen=True)
class Range:
    """An interval to draw a hyperparameter from, ends included."""

    low: float
    high: float
    scale: Literal["linear", "log", "integer"] = "linear"

    def draw(self, rng: np.random.Generator) -> float | int:
        """Returns one value of the interval."""
        if self.scale == "integer":
            return int(rng.integers(int(self.low), int(self.high), endpoint=True))
        if self.scale == "log":
            return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        space: hyperparameter -> interval it is searched in.
        estimator: hyperparameters and seed -> unfitted sklearn classifier.
        stage: fits an estimator from stage k to stage k + 1, in place.
    """

    space: dict[str, Range]
    estimator: Callable[[Params, int], Estimator]
    stage: Callable[[Estimator, Params, np.ndarray, np.ndarray, int], None]


@dataclass(frozen=True)
class Candidate:
    """A family with hyperparameters: what a trial fits."""

    family: str
    params: Params


def _logistic_regression(params: Params, seed: int) -> Estimator:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(
        C=params["C"], max_iter=12, tol=1e-5, warm_start=True, random_state=seed
    )


def _iterate(
    estimator: Estimator, params: Params, x: np.ndarray, y: np.ndarray, stage: int
) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # a stage is a part of the fit: it is not meant to converge
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(x, y)


def _random_forest(params: Params, seed: int) -> Estimator:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=1,
        min_samples_leaf=int(params["min_samples_leaf"]),
        max_features=params["max_features"],
        max_depth=int(params["max_depth"]),
        max_samples=0.5,
        warm_start=True,
        random_state=seed,
    )


def _add_trees(
    estimator: Estimator, params: Params, x: np.ndarray, y: np.ndarray, stage: int
) -> None:
    estimator.set_params(n_estimators=round(params["trees"] * (stage + 1) / STAGES))
    estimator.fit(x, y)


def _xgboost(params: Params, seed: int) -> Estimator:
    from xgboost import XGBClassifier

    return XGBClassifier(
        learning_rate=params["learning_rate"],
        max_depth=int(params["max_depth"]),
        min_child_weight=params["min_child_weight"],
        subsample=params["subsample"],
        colsample_bytree=params["colsample_bytree"],
        reg_lambda=params["reg_lambda"],
        n_estimators=1,
        tree_method="hist",
        max_bin=64,
        n_jobs=1,
        random_state=seed,
    )


def _boost(estimator: Estimator, params: Params, x: np.ndarray, y: np.ndarray, stage: int) -> None:
    done = round(params["rounds"] * stage / STAGES)
    estimator.set_params(n_estimators=round(params["rounds"] * (stage + 1) / STAGES) - done)
    estimator.fit(x, y, xgb_model=estimator.get_booster() if stage else None)


FAMILIES: dict[str, Family] = {
    "logistic_regression": Family({"C": Range(1e-3, 1.0, "log")}, _logistic_regression, _iterate),
    "random_forest": Family(
        {
            "trees": Range(64, 128, "integer"),
            "min_samples_leaf": Range(10, 60, "integer"),
            "max_features": Range(0.08, 0.3),
            "max_depth": Range(8, 16, "integer"),
        },
        _random_forest,
        _add_trees,
    ),
    "xgboost": Family(
        {
            "rounds": Range(120, 400, "integer"),
            "learning_rate": Range(0.03, 0.12, "log"),
            "max_depth": Range(3, 6, "integer"),
            "min_child_weight": Range(4, 40, "log"),
            "subsample": Range(0.6, 1.0),
            "colsample_bytree": Range(0.3, 0.9),
            "reg_lambda": Range(0.5, 20, "log"),
        },
        _xgboost,
        _boost,
    ),
}


def candidates(count: int, seed: int) -> list[Candidate]:
    """Returns `count` candidates, the families taking turns, hyperparameters drawn by the seed."""
    rng = np.random.default_rng(seed)
    drawn = []
    for i in range(count):
        name = list(FAMILIES)[::-1][i % len(FAMILIES)]
        params = {key: interval.draw(rng) for key, interval in FAMILIES[name].space.items()}
        drawn.append(Candidate(name, params))
    return drawn


def fit_in_stages(
    candidate: Candidate, x: np.ndarray, y: np.ndarray, seed: int
) -> Iterator[Estimator]:
    """Yields the same estimator after each of its `STAGES` stages.

    Args:
        candidate: family and hyperparameters.
        x: features (n, k), float32.
        y: labels (n,), 0 or 1.
        seed: seed of the estimator.
    """
    family = FAMILIES[candidate.family]
    estimator = family.estimator(candidate.params, seed)
    for stage in range(STAGES):
        family.stage(estimator, candidate.params, x, y, stage)
        yield estimator


def fit(candidate: Candidate, x: np.ndarray, y: np.ndarray, seed: int) -> Estimator:
    """Returns the candidate's estimator, fitted in full. Arguments as `fit_in_stages`."""
    *_, estimator = fit_in_stages(candidate, x, y, seed)
    return estimator


def pipeline(
    preprocessor: "Pipeline", classifier: Estimator, x: np.ndarray, y: np.ndarray
) -> "Pipeline":
    """Returns the one object that is judged, logged and served.

    Args:
        preprocessor: the fitted preprocessor.
        classifier: a classifier fitted on preprocessed features.
        x: preprocessed features (n, k) of people the classifier has not seen.
        y: their labels (n,), for the calibration (Platt scaling).
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.pipeline import Pipeline

    calibrated = CalibratedClassifierCV(FrozenEstimator(classifier), method="sigmoid").fit(x, y)
    return Pipeline([("preprocess", preprocessor), ("classifier", calibrated)])
