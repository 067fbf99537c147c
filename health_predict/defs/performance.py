"""Group `monitoring`: how well a batch is probably foretold, and how well it was."""

from typing import Any

import dagster as dg
import pandas as pd

from health_predict import schema
from health_predict.defs.data import OWNERS
from health_predict.defs.facts import SENTENCE, arrived_at
from health_predict.defs.partitions import batches, is_served
from health_predict.defs.resources import Arrival, Gate, SearchBudget
from health_predict.encounters import untouched
from health_predict.estimation import Estimate, Measured, estimate
from health_predict.fitting import CALIBRATION_ROWS
from health_predict.gate import people
from health_predict.outcomes import Performance, assess
from health_predict.served import PROBABILITY, VERSION
from health_predict.splits import SIDES
from health_predict.tracking import ModelVersion, Registry

ROWS = "dagster/row_count"
MATURED_SHARE = "matured_share"
"""Metadata: share of the scored encounters, of the newest events, whose outcomes are known."""
# A year of daily batches, each scored once more here and there; a page of the event log.
_NEWEST_EVENTS = 500


@dg.asset(
    group_name="monitoring",
    owners=OWNERS,
    kinds={"numpy"},
    partitions_def=batches,
)
def performance_estimate(
    context: dg.AssetExecutionContext,
    batch_predictions: pd.DataFrame,
    budget: SearchBudget,
    gate: Gate,
    registry: dg.ResourceParam[Registry],
) -> dg.MaterializeResult[Estimate]:
    """How well a batch is probably foretold, told by its scores alone before outcomes are known.

    Confidence-based: it takes calibrated probabilities at their word, so it sees who comes and not
    whether the same people now fare otherwise. Its error is told once outcomes are known.
    """
    version = _scored_by(batch_predictions, registry)
    expected = _estimate(batch_predictions, version, gate, budget)
    context.log.info(expected.sentence)
    figures = {
        **_figures("expected_auc", expected.auc),
        **_figures("expected_brier", expected.brier),
        **_figures("expected_rate", expected.rate),
        **_figures("expected_net_benefit", expected.net_benefit),
        "gate_auc": version.facts["test"]["auc"],
        MATURED_SHARE: _matured_share(context.instance),
    }
    return dg.MaterializeResult(
        value=expected,
        metadata={
            SENTENCE: expected.sentence,
            ROWS: expected.n,
            **figures,
            "champion_version": version.version,
            "mlflow_run_id": _log(context, registry, version, figures),
        },
    )


@dg.asset(
    group_name="monitoring",
    owners=OWNERS,
    kinds={"scikitlearn"},
    partitions_def=batches,
    output_required=False,
    dagster_type=dg.PythonObjectDagsterType(Performance),
)
def batch_performance(
    context: dg.AssetExecutionContext,
    future_batch: pd.DataFrame,
    batch_predictions: pd.DataFrame,
    performance_estimate: Estimate,
    arrival: Arrival,
    budget: SearchBudget,
    gate: Gate,
    registry: dg.ResourceParam[Registry],
) -> Any:
    """How well the scores of a batch foretold its outcomes, once those are known.

    Before that there is no output; the sensor `matured_labels` asks again when they are. Beside
    each figure stands what `performance_estimate` expected, and the error of that.
    """
    unknown = _outcomes_unknown(context, future_batch, arrival)
    if unknown:
        context.log.info(unknown)
        return
    version = _scored_by(batch_predictions, registry)
    known, left_out = _known(future_batch, batch_predictions)
    performance = assess(
        people(known),
        known[PROBABILITY].to_numpy(),
        gate_auc=version.facts["test"]["auc"],
        threshold=version.facts["threshold"],
        harm=gate.harm,
        calibrated_on=_calibrated_on(version),
        left_out=left_out,
        seed=budget.seed,
    )
    expected = performance_estimate
    if 0 < len(known) != expected.n:  # of the same people, or the error would be of the others
        expected = _estimate(known, version, gate, budget)
    context.log.info(performance.sentence)
    now = {context.partition_key: performance.n + left_out}
    metadata = {
        **_performance_metadata(performance),
        **_error_metadata(expected, performance),
        "champion_version": version.version,
        MATURED_SHARE: _matured_share(context.instance, now),
    }
    run_id = _log(context, registry, version, metadata)
    yield dg.Output(performance, metadata={**metadata, "mlflow_run_id": run_id})


def _log(
    context: dg.AssetExecutionContext,
    registry: Registry,
    version: ModelVersion,
    metadata: dict[str, Any],
) -> str:
    """Logs the numbers of the metadata to the batch's run in MLflow; returns the run's id.

    What was expected and what came are of one run, side by side.
    """
    numbers = {name: value for name, value in metadata.items() if isinstance(value, int | float)}
    return registry.log_monitoring(
        context.partition_key,
        "performance",
        # A name with a slash would be a folder of charts; `n` says the same.
        metrics={name: float(value) for name, value in numbers.items() if name != ROWS},
        files=[],
        tags={"champion_version": version.version},
    )


def _outcomes_unknown(
    context: dg.AssetExecutionContext, batch: pd.DataFrame, arrival: Arrival
) -> str:
    """Returns why a batch is not scored yet, in words; empty if its outcomes are known."""
    key = context.partition_key
    if is_served(key) or schema.LABEL not in batch:
        return f"{key} is of served traffic, whose outcomes nobody reports: it is not scored."
    if not arrival.matured(arrived_at(context.instance, [key])[key]):
        wait = arrival.label_delay_seconds
        return f"Outcomes are known {wait:,.0f} s after arrival; not scored yet."
    return ""


def _known(batch: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Returns the encounters that count, with their score, and how many were left out.

    Whom somebody acted on because of the score may have been spared what it foretold.
    """
    scores = predictions[[schema.ENCOUNTER_ID, PROBABILITY]]
    joined = batch.merge(scores, on=schema.ENCOUNTER_ID, validate="one_to_one")
    told = joined[joined[schema.LABEL].notna()]
    counted = untouched(told)
    return counted, len(told) - len(counted)


def _scored_by(predictions: pd.DataFrame, registry: Registry) -> ModelVersion:
    """Returns the version that gave the scores; most of them, if served across a roll-out."""
    return registry.version(str(predictions[VERSION].mode().iloc[0]))


def _estimate(
    scored: pd.DataFrame, version: ModelVersion, gate: Gate, budget: SearchBudget
) -> Estimate:
    return estimate(
        scored[PROBABILITY].to_numpy(),
        threshold=version.facts["threshold"],
        harm=gate.harm,
        calibrated_on=_calibrated_on(version),
        seed=budget.seed,
    )


def _calibrated_on(version: ModelVersion) -> int:
    """Returns how many encounters a version was calibrated on: the newest of its validation side.

    The sides are shares of patients, and the size of one tells that of the other.
    """
    validation = version.facts["train_rows"] * SIDES["validation"] / SIDES["train"]
    return max(1, min(CALIBRATION_ROWS, round(validation)))


def _matured_share(instance: dg.DagsterInstance, now: dict[str, int] | None = None) -> float:
    """Returns the share of scored encounters with known outcomes.

    Args:
        instance: holds the events of both assets.
        now: partition -> encounters of an event that is about to be written.
    """
    scored = _rows(instance, "batch_predictions")
    matured = {**_rows(instance, "batch_performance"), **(now or {})}
    known = sum(rows for key, rows in matured.items() if key in scored)
    return known / max(1, sum(scored.values()))


def _rows(instance: dg.DagsterInstance, asset: str) -> dict[str, int]:
    """Returns partition -> rows, of the newest events."""
    newest = instance.fetch_materializations(dg.AssetKey(asset), limit=_NEWEST_EVENTS)
    found: dict[str, int] = {}
    for record in newest.records:
        event = record.asset_materialization
        if event is not None and event.partition is not None and ROWS in event.metadata:
            found.setdefault(event.partition, int(str(event.metadata[ROWS].value)))
    return found


def _figures(name: str, measured: Measured | None) -> dict[str, float]:
    """Returns a figure and its interval as metadata; none where it is not known."""
    if measured is None:
        return {}
    return {name: measured.value, f"{name}_low": measured.low, f"{name}_high": measured.high}


def _performance_metadata(performance: Performance) -> dict[str, Any]:
    measures = ("auc", "brier", "expected_observed", "slope", "net_benefit")
    figures = [_figures(name, getattr(performance, name)) for name in measures]
    within = performance.within_bounds
    return {
        SENTENCE: performance.sentence,
        ROWS: performance.n + performance.left_out,
        "n": performance.n,
        "positives": performance.positives,
        "left_out": performance.left_out,
        **{name: value for figure in figures for name, value in figure.items()},
        # Of a batch that nothing can be said of, nothing is.
        **({} if within is None else {"within_bounds": within}),
        "gate_auc": performance.gate_auc,
        **_concept_metadata(performance),
        **_table("groups", _groups(performance)),
    }


def _concept_metadata(performance: Performance) -> dict[str, Any]:
    concept = performance.concept
    if concept is None:
        return {}
    return {
        "concept": concept.sentence,
        "concept_drifted": concept.drifted,
        "concept_p_value": concept.p_value,
        **_figures("concept_intercept", concept.intercept),
        **_figures("concept_slope", concept.slope),
    }


def _table(name: str, rows: list[dict[str, str | int | bool]]) -> dict[str, Any]:
    """Returns rows as metadata; none of a batch that was not scored: Dagster has no empty table."""
    return {name: dg.MetadataValue.table([dg.TableRecord(row) for row in rows])} if rows else {}


def _groups(performance: Performance) -> list[dict[str, str | int | bool]]:
    return [
        {
            "group": group.group,
            "encounters": group.n,
            "readmissions": group.positives,
            "numbers": group.words,
            "expected_observed": (
                "" if group.expected_observed is None else f"{group.expected_observed:.2f}"
            ),
            "harmed": group.harmed,
        }
        for group in performance.groups
    ]


def _error_metadata(expected: Estimate, performance: Performance) -> dict[str, Any]:
    """Returns what was expected beside what came, and the errors: expected less observed."""
    observed = {
        name: measured.value
        for name in ("auc", "brier", "net_benefit")
        if (measured := getattr(performance, name)) is not None
    }
    if performance.rate is not None:
        observed["rate"] = performance.rate
    rows: list[dict[str, str | int | bool]] = []
    errors = {}
    for name, value in observed.items():
        foretold: Measured = getattr(expected, name)
        errors[f"estimate_error_{name}"] = foretold.value - value
        rows.append(
            {
                "measure": name,
                "expected": foretold.words(),
                "observed": f"{value:.3f}",
                "error": f"{foretold.value - value:+.3f}",
                "inside_interval": foretold.low <= value <= foretold.high,
            }
        )
    return {**errors, **_table("estimate", rows)}


@dg.asset_check(asset=batch_performance, partitions_def=batches)
def calibration_holds(batch_performance: Performance) -> dg.AssetCheckResult:
    """The champion foretold about as many readmissions as there were."""
    return dg.AssetCheckResult(
        passed=batch_performance.calibrated is True,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            SENTENCE: batch_performance.sentence,
            **_figures("expected_observed", batch_performance.expected_observed),
        },
    )


@dg.asset_check(asset=batch_performance, partitions_def=batches)
def no_concept_drift(batch_performance: Performance) -> dg.AssetCheckResult:
    """Outcomes still follow the score as the score says, as far as chance allows."""
    concept = batch_performance.concept
    return dg.AssetCheckResult(
        passed=concept is not None and not concept.drifted,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={SENTENCE: concept.sentence if concept else batch_performance.sentence}
        | _concept_metadata(batch_performance),
    )


ASSETS = [performance_estimate, batch_performance]
CHECKS = [calibration_holds, no_concept_drift]
