"""What the service says of an encounter: score, band, warnings, model, and why.

The shapes are those of `messages`; numbers come from `scorer`, words from the published tables.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from health_predict.features import DERIVED
from health_predict.prediction_log import without_number
from health_predict.schema import (
    ADMISSION_SOURCES,
    ADMISSION_TYPES,
    DISCHARGE_DISPOSITIONS,
    MEDICATIONS,
    MISSING,
    Encounter,
    field_name,
)
from health_predict.scorer import Scorer

UNSEEN = "a level that was rare or unknown where the model learned: scored by the rule for those"
MEDICATION = "medications"
MISSING_FIELDS = "missing_fields"

_LABELS = {
    **{
        name: str(field.description).split(";")[0].rstrip(".")
        for name, field in Encounter.model_fields.items()
    },
    MEDICATION: "The 23 diabetes drugs together",
    MISSING_FIELDS: "How much was not recorded",
}
_CODE_TABLES = {
    "admission_type_id": ADMISSION_TYPES,
    "discharge_disposition_id": DISCHARGE_DISPOSITIONS,
    "admission_source_id": ADMISSION_SOURCES,
}
# Log-odds below which no one would act: the odds move by half a percent.
_NEGLIGIBLE = 0.005
# A calibration by steps can answer 0 or 1, whose log-odds no page could show.
_LEAST = 1e-6


def model_of(facts: Mapping[str, Any], image_digest: str | None) -> dict[str, Any]:
    """Returns which model answers, None for what its facts do not hold."""
    return {
        **{key: facts[key] for key in ("name", "version", "run_id", "data")},
        "data_fingerprint": facts.get("fingerprint"),
        "git_revision": facts.get("git_revision"),
        "bento_tag": facts.get("bento_tag"),
        "image_digest": image_digest,
    }


def judged(probability: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a probability with what the model's thresholds make of it."""
    return {
        "prediction": int(probability >= facts["threshold"]),
        "probability_score": probability,
        "risk_band": risk_band(probability, facts["risk_bands"]),
    }


def risk_band(probability: float, bands: Mapping[str, float]) -> str:
    """Returns the band of a probability; `bands` maps each name to its lower end, ascending."""
    return [name for name, low in bands.items() if probability >= low][-1]


def warnings(unseen: Sequence[str]) -> list[dict[str, str]]:
    """Returns a warning for each field whose level the model does not know.

    Args:
        unseen: features, as `Scorer.scored` returns them.
    """
    return [{"field": name, "message": UNSEEN} for name in dict.fromkeys(map(_field, unseen))]


def explanation(scorer: Scorer, columns: Mapping[str, Any], probability: float) -> dict[str, Any]:
    """Returns what each field adds to the score, in log-odds that add up to it.

    Boosted trees and logistic regression add up log-odds. A forest adds up probabilities: its
    exact contributions are told as log-odds by one factor, the mean slope of the log-odds between
    baseline and score, so that they keep their proportions and add up. What the calibration does
    to the sum is a step of its own.

    Args:
        scorer: the model.
        columns: the encounter by published column name.
        probability: its score.
    """
    found = scorer.contributions([columns])
    added = found.values[0]
    baseline, score = found.base, found.base + float(added.sum())
    if found.unit == "probability":
        low, high = _log_odds(baseline), _log_odds(score)
        slope = (high - low) / (score - baseline) if score != baseline else 0.0
        added, baseline, score = added * slope, low, high
    fields: dict[str, float] = {}
    for name, value in zip(found.names, added.tolist(), strict=True):
        fields[_field(name)] = fields.get(_field(name), 0.0) + value
    ordered = sorted(fields.items(), key=lambda item: -abs(item[1]))
    total = _log_odds(probability)
    return {
        "contributions": [
            {
                "field": field,
                "label": _LABELS[field_name(field)],
                "value": _value(field, columns),
                "log_odds": value,
                "effect": _effect(value),
            }
            for field, value in ordered
        ],
        "log_odds": {
            "baseline": baseline,
            "contributions": sum(fields.values()),
            "calibration": total - score,
            "total": total,
        },
    }


def _log_odds(probability: float) -> float:
    kept = min(max(probability, _LEAST), 1 - _LEAST)
    return math.log(kept / (1 - kept))


def _field(feature: str) -> str:
    """Returns the input field a feature is made of; those of many fields have a name together."""
    if feature not in DERIVED:
        return feature
    columns = DERIVED[feature].columns
    if len(columns) == 1:
        return columns[0]
    return MEDICATION if columns == MEDICATIONS else MISSING_FIELDS


def _value(field: str, columns: Mapping[str, Any]) -> str:
    if field == MEDICATION:
        given = [f"{drug} {columns[drug]}" for drug in MEDICATIONS if columns[drug] != "No"]
        return ", ".join(given) or "none given"
    if field == MISSING_FIELDS:
        fields = DERIVED[MISSING_FIELDS].columns
        return ", ".join(f for f in fields if columns[f] == MISSING) or "nothing missing"
    value = columns[field]
    if field in _CODE_TABLES:
        return f"{value}: {_CODE_TABLES[field].get(value, 'not in the published table')}"
    return "not recorded" if value == MISSING else without_number(str(value))


def _effect(log_odds: float) -> str:
    if abs(log_odds) < _NEGLIGIBLE:
        return "hardly matters"
    direction = "raises" if log_odds > 0 else "lowers"
    return f"{direction} the risk: odds x {math.exp(log_odds):.2f}"
