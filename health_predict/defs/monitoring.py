"""Group `monitoring`: how what arrived was scored, and whether it drifted."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import pandas as pd

from health_predict import schema
from health_predict.column_drift import ColumnDrift
from health_predict.defs.data import OWNERS, _table_facts
from health_predict.defs.facts import CHAMPION_SEEN, SENTENCE, first
from health_predict.defs.partitions import batches, is_served
from health_predict.defs.resources import DriftWatch, SearchBudget
from health_predict.drift import DriftSummary, detect
from health_predict.evidently_report import write_report
from health_predict.served import PROBABILITY, VERSION
from health_predict.store import Store
from health_predict.tracking import ModelVersion, Registry


@dg.asset(
    group_name="monitoring",
    owners=OWNERS,
    kinds={"scikitlearn", "parquet"},
    partitions_def=batches,
    deps=["registered_model"],
)
def batch_predictions(
    context: dg.AssetExecutionContext,
    future_batch: pd.DataFrame,
    registry: dg.ResourceParam[Registry],
) -> dg.MaterializeResult[pd.DataFrame]:
    """The scores that the champion of the day gave to a batch, with its version.

    Ingested again later, a batch is scored by the same version. A batch of served traffic has its
    scores already: they are those that clients were given.
    """
    before = first(context.instance, "batch_predictions", context.partition_key)
    if is_served(context.partition_key):
        told = "served_versions"
        scored = future_batch[[*schema.IDENTIFIERS, PROBABILITY, VERSION]]
    else:
        # Whether the alias was moved by hand is seen by who scores a batch for the first time.
        told = "scored_again_by" if before else CHAMPION_SEEN
        champion = (
            registry.version(str(before.metadata[CHAMPION_SEEN])) if before else _champion(registry)
        )
        scored = future_batch[[*schema.IDENTIFIERS]].assign(
            **{
                PROBABILITY: registry.load(champion).predict_proba(future_batch)[:, 1],
                VERSION: champion.version,
            }
        )
    return dg.MaterializeResult(
        value=scored,
        metadata={
            **_table_facts(scored),
            told: ", ".join(sorted(scored[VERSION].astype(str).unique())),
            "mean_probability": float(scored[PROBABILITY].mean()),
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
    batch_predictions: pd.DataFrame,
    registry: dg.ResourceParam[Registry],
    budget: SearchBudget,
    watch: DriftWatch,
    store: dg.ResourceParam[Store],
) -> dg.MaterializeResult[DriftSummary]:
    """Whether a batch still comes from the world the champion learned from.

    Decided by a classifier two-sample test against the newest part of the champion's training
    window, whose false alarm rate is set. Beside it stand the columns that moved, weighted by what
    the champion leans on, and how its scores moved; Evidently's report shows them.
    """
    # Served traffic may have met several versions: it is held against the one in office.
    champion = (
        _champion(registry)
        if is_served(context.partition_key)
        else registry.version(str(batch_predictions[VERSION].iloc[0]))
    )
    reference = registry.reference(champion)
    before = registry.load(champion).predict_proba(reference)[:, 1]
    now = batch_predictions[PROBABILITY].to_numpy()
    summary = detect(
        reference,
        future_batch,
        watch.chance(champion.version, reference, len(future_batch), budget.seed),
        probabilities=(before, now),
        flagged_from=champion.facts["threshold"],
        importance=dict(champion.facts["importance"]),
        false_alarm_rate=watch.false_alarm_rate,
        major=watch.major,
        seed=budget.seed,
    )
    kept = f"drift_reports/{context.partition_key}/report.html"
    with TemporaryDirectory() as folder:
        page = write_report(
            reference,
            future_batch,
            Path(folder, context.partition_key),
            reference_probabilities=before,
            batch_probabilities=now,
            threshold=champion.facts["threshold"],
            with_labels=schema.LABEL in future_batch,
            seed=budget.seed,
        )
        store.write(kept, page.path.read_bytes())
        run_id = registry.log_monitoring(
            context.partition_key,
            "drift",
            metrics=_metrics(summary),
            files=[page.path],
            tags={"champion_version": champion.version, "severity": summary.severity},
        )
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
            "false_alarm_rate": summary.false_alarm_rate,
            "champion_version": champion.version,
            "champion_share": summary.champion_share,
            "prediction_shift": summary.prediction.distance,
            "columns": dg.MetadataValue.table([_row(column) for column in summary.columns]),
            "told_apart_by": dg.MetadataValue.json(summary.shares),
            "evidently_drifted_share": page.drifted_share,
            "evidently_report": dg.MetadataValue.url(store.link(kept)),
            "mlflow_run_id": run_id,
        },
    )


def _metrics(summary: DriftSummary) -> dict[str, float]:
    """Returns what MLflow's monitoring experiment plots over batches."""
    return {
        "statistic": summary.statistic,
        "chance_bound": summary.chance_bound,
        "threshold": summary.threshold,
        "champion_share": summary.champion_share,
        "columns_moved": float(sum(column.moved for column in summary.columns)),
        **{f"prediction_{name}": value for name, value in asdict(summary.prediction).items()},
        **{f"psi_{column.column}": column.psi for column in summary.columns},
    }


def _row(column: ColumnDrift) -> dg.TableRecord:
    values: dict[str, Any] = asdict(column)
    return dg.TableRecord(
        {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
    )


@dg.asset_check(asset=drift_report, partitions_def=batches)
def drift_within_bounds(drift_report: DriftSummary) -> dg.AssetCheckResult:
    """The batch does not differ enough from the champion's world to call for a retraining."""
    return dg.AssetCheckResult(
        passed=not drift_report.drifted,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={SENTENCE: drift_report.sentence},
    )


ASSETS = [batch_predictions, drift_report]
CHECKS = [drift_within_bounds]
