"""From a training snapshot to the model that may ship: weights, refit, calibration, threshold.

A snapshot is a frame of encounters in order of arrival with the columns `side` and `label`. The
people of the test side are never touched here: the gate needs them. Which candidate is refitted is
found in `search`, whether it ships is decided in `evaluation`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from health_predict import features, thresholds
from health_predict.models import Calibration, Candidate, Estimator, Sample, calibrator, fit
from health_predict.models import pipeline as assemble
from health_predict.schema import LABEL, PATIENT
from health_predict.splits import on_side
from health_predict.thresholds import Thresholds

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

# Hospitals and coding change: an encounter 30,000 later counts twice as much (+.002 AUC on later
# parts of the published data, `make ablation`).
HALF_LIFE = 30_000
# The rate of readmission moves within months, from .37 to .56 in the published data: a model is
# calibrated on the newest people of the validation side only.
CALIBRATION_ROWS = 1_000
_FOLDS = 5
# The strongest honest feature, earlier inpatient stays, comes to .61 alone.
LEAK_AUC = 0.80


@dataclass(frozen=True)
class Fitted:
    """A model that may ship.

    Attributes:
        pipeline: preprocessing, classifier and calibration in one object.
        calibration: the method that was chosen.
        thresholds: where its probability becomes an action.
    """

    pipeline: "Pipeline"
    calibration: Calibration
    thresholds: Thresholds


def fit_preprocessor(snapshot: "pd.DataFrame") -> "Pipeline":
    """Returns the preprocessor, fitted on the train side."""
    return features.preprocessor().fit(on_side(snapshot, "train"))


def recency(snapshot: "pd.DataFrame") -> np.ndarray:
    """Returns how much each row counts (n,): halved every `HALF_LIFE` encounters of age."""
    age = len(snapshot) - 1 - np.arange(len(snapshot))
    weights: np.ndarray = 0.5 ** (age / HALF_LIFE)
    return weights


def sample(snapshot: "pd.DataFrame", preprocessor: "Pipeline", side: str) -> Sample:
    """Returns one side of a snapshot as a matrix, its rows weighted by recency."""
    rows = (snapshot["side"] == side).to_numpy()
    chosen = snapshot[rows]
    return Sample(
        preprocessor.transform(chosen).astype(np.float32),
        chosen[LABEL].to_numpy(),
        recency(snapshot)[rows],
    )


def learn(
    snapshot: "pd.DataFrame",
    preprocessor: "Pipeline",
    candidate: Candidate,
    *,
    seed: int,
    harm: float = 1.0,
) -> Fitted:
    """Returns a candidate refitted on the train side and calibrated on newest validation people.

    Args:
        snapshot: encounters in order of arrival with `side` and `label`.
        preprocessor: as `fit_preprocessor` returns it.
        candidate: family and hyperparameters.
        seed: seed of estimator and resampling.
        harm: what a needless intervention costs, in foreseen readmissions.
    """
    classifier = fit(candidate, sample(snapshot, preprocessor, "train"), seed)
    newest = on_side(snapshot, "validation").tail(CALIBRATION_ROWS)
    x, y = preprocessor.transform(newest).astype(np.float32), newest[LABEL].to_numpy()
    patients = newest[PATIENT].to_numpy()
    method, probabilities = _calibration(classifier, x, y, patients)
    return Fitted(
        assemble(preprocessor, classifier, x, y, method),
        method,
        thresholds.choose(y, probabilities, patients, harm, seed),
    )


def _calibration(
    classifier: Estimator, x: np.ndarray, y: np.ndarray, patients: np.ndarray
) -> tuple[Calibration, np.ndarray]:
    """Returns the method with the smaller log loss on patients it was not fitted on.

    And the probabilities (n,) that each patient gets from the others.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold, cross_val_predict

    methods: tuple[Calibration, ...] = ("sigmoid", "isotonic")
    folds = GroupKFold(_FOLDS)
    foretold = {
        method: cross_val_predict(
            calibrator(classifier, method), x, y, cv=folds, groups=patients, method="predict_proba"
        )[:, 1]
        for method in methods
    }
    best = min(methods, key=lambda method: log_loss(y, foretold[method]))
    return best, foretold[best]


def single_feature_aucs(snapshot: "pd.DataFrame", preprocessor: "Pipeline") -> dict[str, float]:
    """Returns feature -> validation AUC of a shallow tree that sees this feature alone."""
    from sklearn.metrics import roc_auc_score
    from sklearn.tree import DecisionTreeClassifier

    train = sample(snapshot, preprocessor, "train")
    validation = sample(snapshot, preprocessor, "validation")
    aucs = {}
    for name, columns in features.columns(preprocessor).items():
        tree = DecisionTreeClassifier(max_depth=4, min_samples_leaf=20, random_state=0)
        tree.fit(train.x[:, columns], train.y)
        scores = tree.predict_proba(validation.x[:, columns])[:, 1]
        aucs[name] = float(roc_auc_score(validation.y, scores))
    return aucs
