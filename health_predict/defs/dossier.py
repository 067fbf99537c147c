"""What is told of a challenger: facts beside the model, tags, metrics, and what Dagit shows."""

import base64
import math
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd

from health_predict import explanations, gate
from health_predict.defs.facts import PROMOTED, SENTENCE
from health_predict.defs.recording import latest_metadata, trigger
from health_predict.defs.resources import EncounterSource
from health_predict.evaluation import Scores, Verdict
from health_predict.fitting import Fitted
from health_predict.scorer import Contributions
from health_predict.settings import ROOT
from health_predict.tracking import ModelVersion


def shown(picture: bytes) -> dg.MarkdownMetadataValue:
    """Returns a PNG as Dagit shows it."""
    encoded = base64.b64encode(picture).decode()
    return dg.MetadataValue.md(f"![What moves the scores](data:image/png;base64,{encoded})")


def run_facts(
    context: dg.AssetExecutionContext, snapshot: pd.DataFrame, source: EncounterSource
) -> dict[str, Any]:
    """Returns what is known of a training before its model: data, window, trigger, revision."""
    raw = latest_metadata(context.instance, "raw_encounters")
    trained_on = latest_metadata(context.instance, "training_set")
    return {
        "data": raw["caption"],
        "data_sha256": raw["sha256"],
        "label": source.label_name,
        "window": trained_on["window"],
        "newest_batch": trained_on["newest_batch"],
        "fingerprint": trained_on["fingerprint"],
        "feedback": {
            "marked": raw.get("intervened_marked", False),
            "rows": trained_on["known_rows"],
            "left_out": trained_on["intervened_left_out"],
        },
        "trigger": trigger(context),
        "git_revision": _git_revision(),
        "dagster_run_id": context.run_id,
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "intended_use": "decision support for care after discharge; not a diagnosis",
    }


def model_facts(
    examination: gate.Examination, fitted: Fitted, explained: Contributions
) -> dict[str, Any]:
    """Returns what is known of a challenger: design, threshold, scores, groups, importance.

    Of a constant forecast some measures have no interval: it is None.
    """
    verdict = examination.verdict
    return {
        **asdict(examination.design),
        "threshold_reason": fitted.thresholds.reason,
        "risk_bands": fitted.thresholds.bands,
        "test": _finite(verdict.challenger),
        "intervals": {
            name: list(ends) if all(map(math.isfinite, ends)) else None
            for name, ends in examination.intervals.items()
        },
        "population": {"n": verdict.challenger.n, "quantiles": examination.quantiles},
        "groups": [asdict(group) for group in verdict.groups],
        "importance": explanations.global_importance(explained),
        "verdict": verdict.sentence,
    }


def _git_revision() -> str:
    """Returns the revision of the checkout; `unknown` outside of one."""
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"


def tags(facts: dict[str, Any]) -> dict[str, str]:
    """Returns what its MLflow run is tagged with."""
    kept = (
        *("data", "data_sha256", "label", "window", "fingerprint", "git_revision", "verdict"),
        *("trigger", "dagster_run_id", "family", "calibration"),
    )
    return {key: str(facts[key]) for key in kept}


def recorded(facts: dict[str, Any], run_id: str, verdict: Verdict) -> dict[str, Any]:
    """Returns what the ledger keeps of a challenger."""
    kept = ("family", "window", "fingerprint", "data_sha256", "git_revision", "threshold")
    return {
        **{key: facts[key] for key in kept},
        "mlflow_run_id": run_id,
        "promoted": verdict.promoted,
        "challenger": _finite(verdict.challenger),
        "champion": verdict.champion and _finite(verdict.champion),
    }


def _finite(scores: Scores) -> dict[str, float | None]:
    """Returns scores as JSON can hold them: a constant forecast has no calibration slope."""
    return {k: v if math.isfinite(v) else None for k, v in asdict(scores).items()}


def metrics(verdict: Verdict) -> dict[str, float]:
    """Returns what its MLflow run is measured by: scores of challenger and champion."""
    return {
        f"{who}_{name}": float(value)
        for who, scores in (("challenger", verdict.challenger), ("champion", verdict.champion))
        if scores is not None
        for name, value in asdict(scores).items()
    }


def verdict_metadata(verdict: Verdict) -> dict[str, Any]:
    """Returns what Dagit shows of a verdict."""
    groups: list[dict[str, str | int | bool]] = [
        {
            "group": group.group,
            "encounters": group.n,
            "auc": "" if group.auc is None else f"{group.auc:.3f}",
            "numbers": group.words,
            "harmed": group.harmed,
        }
        for group in verdict.groups
    ]
    return {
        SENTENCE: verdict.sentence,
        PROMOTED: verdict.promoted,
        "auc": verdict.challenger.auc,
        "expected_observed": verdict.challenger.expected_observed,
        "held_out_encounters": verdict.challenger.n,
        "clauses": dg.MetadataValue.table([dg.TableRecord(row) for row in gate.clauses(verdict)]),
        "groups": dg.MetadataValue.table([dg.TableRecord(row) for row in groups]),
    }


def version_metadata(version: ModelVersion) -> dict[str, Any]:
    """Returns what Dagit shows of a registered version."""
    kept = ("window", "data", "calibration", "threshold", "bytes", "latency_ms")
    return {
        "version": version.version,
        "family": version.family,
        "mlflow_run_id": version.run_id,
        **{key: version.facts[key] for key in kept},
    }
