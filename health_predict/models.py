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

STAGES = 9
"""Stages of a full fit: a trial can be stopped after any but the last."""

Params = dict[str, float | int]
Estimator = Any
Calibration = Literal["sigmoid", "isotonic"]


@dataclass(frozen=True)
class Range:
    """An interval that a hyperparameter is searched in, ends included."""

    low: float
    high: float
    scale: Literal["linear", "log", "integer"] = "linear"


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        space: hyperparameter -> interval it is searched in.
        default: hyperparameters that do well, tried before any are drawn.
        estimator: hyperparameters and seed -> unfitted sklearn classifier.
        stage: fits an estimator from stage k to stage k + 1, in place.
    """

    space: dict[str, Range]
    default: Params
    estimator: Callable[[Params, int], Estimator]
    stage: Callable[[Estimator, Params, "Sample", int], None]


@dataclass(frozen=True)
class Sample:
    """What an estimator is fitted on.

    Attributes:
        x: features (n, k), float32.
        y: labels (n,), 0 or 1.
        weight: (n,) how much each row counts; None if all count alike.
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None = None


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


def _iterate(estimator: Estimator, params: Params, sample: Sample, stage: int) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # a stage is a part of the fit: it is not meant to converge
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(sample.x, sample.y, sample_weight=sample.weight)


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


def _add_trees(estimator: Estimator, params: Params, sample: Sample, stage: int) -> None:
    estimator.set_params(n_estimators=round(params["trees"] * (stage + 1) / STAGES))
    estimator.fit(sample.x, sample.y, sample_weight=sample.weight)


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


def _boost(estimator: Estimator, params: Params, sample: Sample, stage: int) -> None:
    done = round(params["rounds"] * stage / STAGES)
    estimator.set_params(n_estimators=round(params["rounds"] * (stage + 1) / STAGES) - done)
    grown = estimator.get_booster() if stage else None
    estimator.fit(sample.x, sample.y, sample_weight=sample.weight, xgb_model=grown)


FAMILIES: dict[str, Family] = {
    "logistic_regression": Family(
        space={"C": Range(1e-3, 1.0, "log")},
        default={"C": 0.02},
        estimator=_logistic_regression,
        stage=_iterate,
    ),
    "random_forest": Family(
        space={
            "trees": Range(64, 128, "integer"),
            "min_samples_leaf": Range(10, 60, "integer"),
            "max_features": Range(0.08, 0.3),
            "max_depth": Range(8, 16, "integer"),
        },
        default={"trees": 100, "min_samples_leaf": 20, "max_features": 0.15, "max_depth": 16},
        estimator=_random_forest,
        stage=_add_trees,
    ),
    "xgboost": Family(
        space={
            "rounds": Range(120, 500, "integer"),
            "learning_rate": Range(0.02, 0.12, "log"),
            "max_depth": Range(3, 6, "integer"),
            "min_child_weight": Range(4, 40, "log"),
            "subsample": Range(0.6, 1.0),
            "colsample_bytree": Range(0.15, 0.8),
            "reg_lambda": Range(0.5, 20, "log"),
        },
        default={
            "rounds": 400,
            "learning_rate": 0.04,
            "max_depth": 5,
            "min_child_weight": 20.0,
            "subsample": 0.65,
            "colsample_bytree": 0.35,
            "reg_lambda": 5.0,
        },
        estimator=_xgboost,
        stage=_boost,
    ),
}


def fit_in_stages(candidate: Candidate, sample: Sample, seed: int) -> Iterator[Estimator]:
    """Yields the same estimator after each of its `STAGES` stages.

    Args:
        candidate: family and hyperparameters.
        sample: what to learn from.
        seed: seed of the estimator.
    """
    family = FAMILIES[candidate.family]
    estimator = family.estimator(candidate.params, seed)
    for stage in range(STAGES):
        family.stage(estimator, candidate.params, sample, stage)
        yield estimator


def fit(candidate: Candidate, sample: Sample, seed: int) -> Estimator:
    """Returns the candidate's estimator, fitted in full. Arguments as `fit_in_stages`."""
    from threadpoolctl import threadpool_limits

    # As in the search: sums made by several threads differ in their last digits, and small
    # matrices are multiplied faster by one.
    with threadpool_limits(1):
        *_, estimator = fit_in_stages(candidate, sample, seed)
    return estimator


def pipeline(
    preprocessor: "Pipeline",
    classifier: Estimator,
    x: np.ndarray,
    y: np.ndarray,
    calibration: Calibration = "sigmoid",
) -> "Pipeline":
    """Returns the one object that is judged, logged and served.

    Args:
        preprocessor: the fitted preprocessor.
        classifier: a classifier fitted on preprocessed features.
        x: preprocessed features (n, k) of people the classifier has not seen.
        y: their labels (n,), for the calibration.
        calibration: Platt scaling (`sigmoid`) or isotonic regression.
    """
    from sklearn.pipeline import Pipeline

    calibrated = calibrator(classifier, calibration).fit(x, y)
    return Pipeline([("preprocess", preprocessor), ("classifier", calibrated)])


def calibrator(classifier: Estimator, calibration: Calibration) -> Estimator:
    """Returns a fitted classifier inside an unfitted calibration."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    return CalibratedClassifierCV(FrozenEstimator(classifier), method=calibration)
