"""Group `monitoring`: what arrived, how it was scored, whether it drifted, how well it went."""

from dataclasses import asdict
from typing import Any

import dagster as dg
import pandas as pd

from health_predict import schema
from health_predict.defs.data import OWNERS, _table_facts
from health_predict.defs.facts import SENTENCE, arrivals
from health_predict.defs.partitions import batches
from health_predict.defs.resources import Arrival, Gate, ReportFolder, SearchBudget
from health_predict.drift import DriftSummary, detect, write_report
from health_predict.evaluation import CALIBRATION_BOUNDS, Scores, score
from health_predict.tracking import ModelVersion, Registry

PROBABILITY = "probability"
VERSION = "model_version"


@dg.asset(
    group_name="monitoring",
    owners=OWNERS,
    kinds={"scikitlearn", "parquet"},
    partitions_def=batches,
    deps=["registered_model"],
)
def batch_predictions(
    future_batch: pd.DataFrame, registry: dg.ResourceParam[Registry]
) -> dg.MaterializeResult[pd.DataFrame]:
    """The scores that the champion of the day gave to a batch, with its version."""
    champion = _champion(registry)
    probabilities = registry.load(champion).predict_proba(future_batch)[:, 1]
    scored = future_batch[list(schema.IDENTIFIERS)].assign(
        **{PROBABILITY: probabilities, VERSION: champion.version}
    )
    return dg.MaterializeResult(
        value=scored,
        metadata={
            **_table_facts(scored),
            "champion_version": champion.version,
            "mean_probability": float(probabilities.mean()),
        },
    )


def _champion(registry: Registry) -> ModelVersion:
    champion = registry.champion()
    if champion is None:
        raise dg.Failure("there is no champion yet: run the job bootstrap first")
    return champion


@dg.asset(
    group_name="monitoring",
    owners=OWNERS,
    kinds={"evidently", "xgboost"},
    partitions_def=batches,
    deps=["registered_model"],
)
def drift_report(
    context: dg.AssetExecutionContext,
    future_batch: pd.DataFrame,
    registry: dg.ResourceParam[Registry],
    budget: SearchBudget,
    reports: ReportFolder,
) -> dg.MaterializeResult[DriftSummary]:
    """Whether a batch still comes from the world the champion learned from.

    Decided by a classifier two-sample test against the newest part of the champion's training
    window; Evidently's report shows the columns and decides nothing.
    """
    champion = _champion(registry)
    reference = registry.reference(champion)
    summary = detect(reference, future_batch, seed=budget.seed)
    report = reports.path(context.partition_key)
    share = write_report(reference, future_batch, report, seed=budget.seed)
    context.log.info(summary.sentence)
    return dg.MaterializeResult(
        value=summary,
        metadata={
            SENTENCE: summary.sentence,
            "severity": summary.severity,
            "drifted": summary.drifted,
            "statistic": summary.statistic,
            "threshold": summary.threshold,
            "chance_bound": summary.chance_bound,
            "champion_version": champion.version,
            "columns": dg.MetadataValue.json(summary.columns),
            "evidently_drifted_share": share,
            "evidently_report": dg.MetadataValue.url(report.as_uri()),
        },
    )


@dg.asset_check(asset=drift_report, partitions_def=batches)
def drift_within_bounds(drift_report: DriftSummary) -> dg.AssetCheckResult:
    """The batch does not differ enough from the champion's world to call for a retraining."""
    return dg.AssetCheckResult(
        passed=not drift_report.drifted,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={SENTENCE: drift_report.sentence},
    )


@dg.asset(
    group_name="monitoring",
    owners=OWNERS,
    kinds={"scikitlearn"},
    partitions_def=batches,
    output_required=False,
    dagster_type=dg.PythonObjectDagsterType(Scores),
)
def batch_performance(
    context: dg.AssetExecutionContext,
    future_batch: pd.DataFrame,
    batch_predictions: pd.DataFrame,
    arrival: Arrival,
    budget: SearchBudget,
    gate: Gate,
    registry: dg.ResourceParam[Registry],
) -> Any:
    """How well the scores of a batch foretold its outcomes, once those are known.

    Before that there is no output; the sensor `matured_labels` asks again when they are.
    """
    arrived = arrivals(context.instance)[context.partition_key]
    if not arrival.matured(arrived):
        wait = arrival.label_delay_seconds
        context.log.info(f"Outcomes are known {wait:,.0f} s after arrival; not scored yet.")
        return
    scored_by = registry.version(str(batch_predictions[VERSION].iloc[0]))
    scores = score(
        future_batch[schema.LABEL].to_numpy(),
        batch_predictions[PROBABILITY].to_numpy(),
        future_batch[schema.PATIENT].to_numpy(),
        threshold=scored_by.facts["threshold"],
        harm=gate.harm,
        seed=budget.seed,
    )
    yield dg.Output(
        scores,
        metadata={
            **asdict(scores),
            SENTENCE: performance_sentence(scores),
            "within_bounds": calibrated(scores),
            "champion_version": scored_by.version,
        },
    )


def calibrated(scores: Scores) -> bool:
    """Returns whether expected over observed lies within the gate's bounds."""
    low, high = CALIBRATION_BOUNDS
    return low <= scores.expected_observed <= high


def performance_sentence(scores: Scores) -> str:
    """Returns the outcome of a batch in words, with numbers."""
    low, high = CALIBRATION_BOUNDS
    inside = "within" if calibrated(scores) else "outside"
    return (
        f"AUC {scores.auc:.3f} [{scores.auc_low:.3f}, {scores.auc_high:.3f}] on {scores.n:,} "
        f"encounters; expected/observed {scores.expected_observed:.2f}, {inside} "
        f"{low:.2f} to {high:.2f}."
    )


@dg.asset_check(asset=batch_performance, partitions_def=batches)
def calibration_holds(batch_performance: Scores) -> dg.AssetCheckResult:
    """The champion foretold about as many readmissions as there were."""
    return dg.AssetCheckResult(
        passed=calibrated(batch_performance),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={SENTENCE: performance_sentence(batch_performance)},
    )


ASSETS = [batch_predictions, drift_report, batch_performance]
CHECKS = [drift_within_bounds, calibration_holds]
