"""What runs the loop: one schedule and four sensors, thin wrappers around pure decisions.

Each reads persisted facts, asks a pure function, and passes on its requests and its sentence. All
run by default. Requests are built from event ids and attempts found on earlier runs, so a tick
that is killed anywhere is repeated without loss or doubling.
"""

import json
import time
from typing import Any

import dagster as dg

from health_predict.defs.decisions import Decision, Request, decide_bootstrap, decide_deploy
from health_predict.defs.facts import (
    ATTEMPT,
    REASON,
    SENTENCE,
    TRIGGER,
    WAITING,
    Run,
    arrived_at,
    before_newest,
    events,
    in_progress,
    latest,
    materialised,
    newest_scores,
    newest_verdict,
    observations,
    runs,
)
from health_predict.defs.ingestion import decide_arrival, decide_matured, decide_unfinished
from health_predict.defs.jobs import bootstrap, deploy, ingest_batch, retrain
from health_predict.defs.partitions import batches, is_served
from health_predict.defs.retraining import Patience, decide_retrain
from health_predict.settings import Settings

RUNNING_SENSOR = dg.DefaultSensorStatus.RUNNING
# A backfill may run hundreds of batches at a time, and attempts are counted over them.
_RUNS = 500
# How far back a sensor looks that has lost its cursor: years of daily batches, read in a second.
_RECALLED = 2_000


def _run_request(request: Request, sentence: str) -> dg.RunRequest:
    tags = {REASON: sentence, ATTEMPT: str(request.attempt)}
    if request.trigger:
        tags[TRIGGER] = str(request.trigger)
    return dg.RunRequest(
        run_key=request.run_key,
        job_name=request.job,
        partition_key=request.partition,
        asset_selection=[dg.AssetKey(name) for name in request.assets] or None,
        tags=tags,
    )


def _answer(decision: Decision, cursor: str | None = None) -> dg.SensorResult:
    if decision.requests:
        return dg.SensorResult(
            run_requests=[_run_request(r, decision.sentence) for r in decision.requests],
            cursor=cursor,
        )
    return dg.SensorResult(skip_reason=decision.sentence, cursor=cursor)


def _log(context: Any, decision: Decision) -> None:
    (context.log.error if decision.alert else context.log.info)(decision.sentence)


def retrain_decision(
    instance: dg.DagsterInstance, settled: int, waits: Patience | None = None
) -> Decision:
    """Returns what the facts newer than event id `settled` call for: a training, or none."""
    promoted = latest(instance, "registered_model")
    if promoted is None:
        return decide_bootstrap(runs(instance, "bootstrap"), _waiting(instance))
    settled = settled or before_newest(instance, "drift_report", _RECALLED)
    reports = [
        *events(instance, "drift_report", settled),
        *events(instance, "batch_performance", settled),
        *observations(instance, "training_set", settled),
    ]
    return decide_retrain(
        sorted(reports, key=lambda event: event.id),
        runs(instance, "retrain"),
        list(in_progress(runs(instance, "ingest_batch"))),
        time.time(),
        champion=promoted.metadata["version"],
        verdict=newest_verdict(instance),
        patience=waits,
    )


def _waiting(instance: dg.DagsterInstance) -> str:
    verdict = newest_verdict(instance)
    return str(verdict.metadata[SENTENCE]) if verdict and WAITING in verdict.metadata else ""


def deploy_decision(instance: dg.DagsterInstance) -> Decision:
    """Returns what the newest promotion calls for: a roll-out, or none."""
    return decide_deploy(
        latest(instance, "registered_model"),
        latest(instance, "readmission_deployment"),
        newest_scores(instance),
        runs(instance, "deploy"),
    )


def unrest(instance: dg.DagsterInstance, waits: Patience) -> str:
    """Returns what has to end before the next champion is known, in words; empty if nothing."""
    busy = list(in_progress(runs(instance, "ingest_batch", "retrain")))
    if busy:
        return f"{', '.join(sorted({run.job for run in busy}))} under way."
    decision = retrain_decision(instance, 0, waits)
    return decision.sentence if decision.requests else ""


def matured_decision(instance: dg.DagsterInstance, label_delay: float) -> Decision:
    """Returns which batches can be scored, outcomes being known `label_delay` seconds late."""
    scored = materialised(instance, "batch_performance")
    open_ = {key for key in materialised(instance, "future_batch") - scored if not is_served(key)}
    return decide_matured(
        arrived_at(instance, open_), scored, _ingestions(instance), label_delay, time.time()
    )


def unfinished_decision(
    instance: dg.DagsterInstance, idle_since: dict[str, float]
) -> tuple[Decision, dict[str, float]]:
    """Returns which batches are ingested again, and since when those without a run wait."""
    return decide_unfinished(
        instance.get_dynamic_partitions(batches.name or ""),
        materialised(instance, "drift_report"),
        _ingestions(instance),
        idle_since,
        time.time(),
    )


def _ingestions(instance: dg.DagsterInstance) -> list[Run]:
    """Returns the runs of arriving batches that decisions rest on, newest first."""
    return [
        run
        for run in runs(instance, "ingest_batch", limit=_RUNS)
        if not (run.partition and is_served(run.partition))
    ]


_ARRIVAL = "Batches of encounters arrive."


def patience(settings: Settings) -> Patience:
    """Returns what the loop waits for, as the settings say."""
    return Patience(settings.rest_batches, settings.oldest_champion * 86_400)


def automation(settings: Settings) -> tuple[list[Any], list[Any]]:
    """Returns the schedules and the sensors, their cadence as the settings say."""

    @dg.sensor(
        jobs=[bootstrap, retrain],
        minimum_interval_seconds=settings.sensor_interval,
        default_status=RUNNING_SENSOR,
        description="Trains the first champion, and again on drift, poor calibration or age.",
    )
    def retrain_on_drift(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        settled = int(context.cursor or 0)
        decision = retrain_decision(context.instance, settled, patience(settings))
        _log(context, decision)
        return _answer(decision, str(decision.settled or settled))

    @dg.sensor(
        job=deploy,
        minimum_interval_seconds=settings.sensor_interval,
        default_status=RUNNING_SENSOR,
        description="Rolls a promoted model out.",
    )
    def deploy_on_promotion(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        decision = deploy_decision(context.instance)
        _log(context, decision)
        return _answer(decision)

    @dg.sensor(
        job=ingest_batch,
        minimum_interval_seconds=settings.sensor_interval,
        default_status=RUNNING_SENSOR,
        description="Scores a batch once its outcomes are known.",
    )
    def matured_labels(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        decision = matured_decision(context.instance, settings.label_delay)
        _log(context, decision)
        return _answer(decision)

    @dg.sensor(
        job=ingest_batch,
        minimum_interval_seconds=settings.sensor_interval,
        default_status=RUNNING_SENSOR,
        description="Ingests a batch again whose run failed or was never started.",
    )
    def unfinished_batches(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        idle_since = json.loads(context.cursor or "{}")
        decision, idle_since = unfinished_decision(context.instance, idle_since)
        _log(context, decision)
        return _answer(decision, json.dumps(idle_since))

    sensors = [retrain_on_drift, deploy_on_promotion, matured_labels, unfinished_batches]
    if settings.cadence.isdigit():
        return [], [_arrival_by_seconds(settings), *sensors]
    return [_arrival_by_cron(settings)], sensors


def _arrival_by_cron(settings: Settings) -> dg.ScheduleDefinition:
    @dg.schedule(
        job=ingest_batch,
        cron_schedule=settings.cadence,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=_ARRIVAL,
    )
    def arriving_batches(context: dg.ScheduleEvaluationContext) -> Any:
        decision = _arrive(context, settings)
        if not decision.requests:
            return dg.SkipReason(decision.sentence)
        return [_run_request(request, decision.sentence) for request in decision.requests]

    return arriving_batches


def _arrival_by_seconds(settings: Settings) -> dg.SensorDefinition:
    """Returns the same as a sensor: a schedule knows nothing shorter than a minute."""

    @dg.sensor(
        job=ingest_batch,
        minimum_interval_seconds=int(settings.cadence),
        default_status=RUNNING_SENSOR,
        description=_ARRIVAL,
    )
    def arriving_batches(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _answer(_arrive(context, settings))

    return arriving_batches


def _arrive(context: Any, settings: Settings) -> Decision:
    """Returns which batches arrive now, their partitions made."""
    instance = context.instance
    future = latest(instance, "future")
    decision, fresh = decide_arrival(
        instance.get_dynamic_partitions(batches.name or ""),
        int(future.metadata["batches"]) if future else None,
        latest(instance, "registered_model") is not None,
        settings.batches_per_tick,
        unrest(instance, patience(settings)) if settings.arrive_at_rest else "",
    )
    _log(context, decision)
    if fresh:
        instance.add_dynamic_partitions(batches.name or "", list(fresh))
    return decision
