"""What a probability forecast is worth, measured under many weightings of the encounters at once.

Each measure takes labels (n,), probabilities (n,) and weights (r, n) and returns (r,): one row of
ones is the plain figure, rows drawn by `by_patient` are its bootstrap. What is good enough, and who
wins, is decided in `evaluation`.
"""

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1_000
"""Bootstrap resamples: a 1.25 % tail then rests on a dozen of them."""


def plain(labels: np.ndarray) -> np.ndarray:
    """Returns the weighting (1, n) under which a measure is the plain figure."""
    return np.ones((1, len(labels)))


def by_patient(patients: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Returns how often each encounter is drawn: (resamples, n), whole patients at a time."""
    _, patient = np.unique(patients, return_inverse=True)
    count = patient.max() + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, patient].astype(float)


def auc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the area under the ROC curve: Mann-Whitney, ties count one half.

    NaN where a weighting leaves one class only.
    """
    order = np.argsort(probabilities, kind="stable")
    _, starts = np.unique(probabilities[order], return_index=True)
    positive = np.add.reduceat(weights[:, order] * labels[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * (1 - labels[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    won: np.ndarray = (positive * below).sum(axis=1)
    return _ratio(won, positive.sum(axis=1) * negative.sum(axis=1))


def brier(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean squared error of the probability."""
    return _ratio(weights @ (probabilities - labels) ** 2, weights.sum(axis=1))


def expected_observed(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Returns the sum of probabilities over the outcomes: 1 is calibrated in the large."""
    return _ratio(weights @ probabilities, weights @ labels)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Returns the log-odds of probabilities, those beyond 1e-6 of certainty pulled back to it."""
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    z: np.ndarray = np.log(clipped / (1 - clipped))
    return z


def calibration_intercept(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Returns what has to be added to the log-odds of the forecast to meet the observed rate.

    0 is calibrated in the large; above 0 there was more than was forecast. It is the intercept of
    the regression of `calibration_slope`, the slope held at 1 (Cox 1958; Miller et al. 1991).
    """
    z, intercept = log_odds(probabilities), np.zeros(len(weights))
    for _ in range(8):  # Newton's method
        fitted = 1 / (1 + np.exp(-(intercept[:, None] + z)))
        residual = (weights * (labels - fitted)).sum(axis=1)
        information = (weights * fitted * (1 - fitted)).sum(axis=1)
        intercept = intercept + _ratio(residual, information)
    return intercept


def calibration_slope(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Returns the slope of a logistic regression of the outcome on the log-odds of the forecast.

    1 is calibrated; below 1 the forecasts are too extreme, above 1 too timid (Cox 1958).
    """
    z = log_odds(probabilities)
    rate = _ratio(weights @ labels, weights.sum(axis=1))
    slope, intercept = np.zeros(len(weights)), np.log(rate / (1 - rate))
    for _ in range(8):  # Newton's method, from the forecast that knows the rate alone
        fitted = 1 / (1 + np.exp(-(intercept[:, None] + slope[:, None] * z)))
        residual = weights * (labels - fitted)
        information = weights * fitted * (1 - fitted)
        a, b, c = (information @ power for power in (z**0, z, z**2))
        g, h = residual.sum(axis=1), residual @ z
        determinant = a * c - b * b
        intercept = intercept + _ratio(c * g - b * h, determinant)
        slope = slope + _ratio(a * h - b * g, determinant)
    return slope


def net_benefit(
    labels: np.ndarray,
    flagged: np.ndarray,
    weights: np.ndarray,
    harm: float,
) -> np.ndarray:
    """Returns the net benefit of acting on those who are flagged, in true positives an encounter.

    Vickers and Elkin 2006: what is gained by the readmissions that were foreseen, less what the
    needless interventions cost.

    Args:
        labels: (n,) outcomes.
        flagged: (n,) whether the model asks for an intervention.
        weights: (r, n).
        harm: what a needless intervention costs, in foreseen readmissions.
    """
    worth = flagged * np.where(labels > 0, 1.0, -harm)
    return _ratio(weights @ worth, weights.sum(axis=1))


def interval(resampled: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the central part of a resampled measure; NaN if there is none."""
    tail = (1 - confidence) / 2
    # Of very few rows a resample may hold one class only: it has no AUC and is left out.
    known = resampled[np.isfinite(resampled)]
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
