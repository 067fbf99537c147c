"""What runs the loop: one schedule and three sensors, thin wrappers around `decisions`.

Each reads persisted facts, asks a pure function, and passes on its requests and its sentence. All
run by default. Requests are built from event ids and attempts found on earlier runs, so a tick
that is killed anywhere is repeated without loss or doubling.
"""

import time
from typing import Any

import dagster as dg

from health_predict.defs.decisions import (
    Decision,
    Request,
    decide_arrival,
    decide_bootstrap,
    decide_deploy,
    decide_matured,
    decide_retrain,
)
from health_predict.defs.facts import (
    ATTEMPT,
    REASON,
    SENTENCE,
    TRIGGER,
    WAITING,
    arrivals,
    events,
    in_progress,
    latest,
    observations,
    runs,
)
from health_predict.defs.jobs import bootstrap, deploy, ingest_batch, retrain
from health_predict.defs.partitions import batches
from health_predict.settings import Settings

RUNNING_SENSOR = dg.DefaultSensorStatus.RUNNING


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


def retrain_decision(instance: dg.DagsterInstance, settled: int) -> Decision:
    """Returns what the facts newer than event id `settled` call for: a training, or none."""
    if latest(instance, "registered_model") is None:
        return decide_bootstrap(runs(instance, "bootstrap"), _waiting(instance))
    alarms = [
        *events(instance, "drift_report", settled),
        *events(instance, "batch_performance", settled),
    ]
    return decide_retrain(
        sorted(alarms, key=lambda event: event.id),
        runs(instance, "retrain"),
        list(in_progress(runs(instance, "ingest_batch"))),
        time.time(),
    )


def _waiting(instance: dg.DagsterInstance) -> str:
    newest = observations(instance, "registered_model")[-1:]
    return "".join(str(e.metadata[SENTENCE]) for e in newest if WAITING in e.metadata)


def deploy_decision(instance: dg.DagsterInstance) -> Decision:
    """Returns what the newest promotion calls for: a roll-out, or none."""
    return decide_deploy(
        latest(instance, "registered_model"),
        latest(instance, "readmission_deployment"),
        runs(instance, "deploy"),
    )


def unrest(instance: dg.DagsterInstance) -> str:
    """Returns what has to end before the next champion is known, in words; empty if nothing."""
    busy = list(in_progress(runs(instance, "ingest_batch", "retrain")))
    if busy:
        return f"{', '.join(sorted({run.job for run in busy}))} under way."
    decision = retrain_decision(instance, 0)
    return decision.sentence if decision.requests else ""


def matured_decision(instance: dg.DagsterInstance, label_delay: float) -> Decision:
    """Returns which batches can be scored, outcomes being known `label_delay` seconds late."""
    return decide_matured(
        arrivals(instance),
        {event.partition for event in events(instance, "batch_performance") if event.partition},
        runs(instance, "ingest_batch"),
        label_delay,
        time.time(),
    )


def automation(settings: Settings) -> tuple[list[Any], list[Any]]:
    """Returns the schedules and the sensors, their cadence as the settings say."""

    @dg.schedule(
        job=ingest_batch,
        cron_schedule=settings.cadence,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Batches of encounters arrive.",
    )
    def arriving_batches(context: dg.ScheduleEvaluationContext) -> Any:
        instance = context.instance
        future = latest(instance, "future")
        decision, fresh = decide_arrival(
            instance.get_dynamic_partitions(batches.name or ""),
            int(future.metadata["batches"]) if future else None,
            latest(instance, "registered_model") is not None,
            settings.batches_per_tick,
            unrest(instance) if settings.arrive_at_rest else "",
        )
        _log(context, decision)
        if not fresh:
            return dg.SkipReason(decision.sentence)
        instance.add_dynamic_partitions(batches.name or "", list(fresh))
        return [_run_request(request, decision.sentence) for request in decision.requests]

    @dg.sensor(
        jobs=[bootstrap, retrain],
        minimum_interval_seconds=settings.sensor_interval,
        default_status=RUNNING_SENSOR,
        description="Trains the first champion, and again on drift or broken calibration.",
    )
    def retrain_on_drift(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        settled = int(context.cursor or 0)
        decision = retrain_decision(context.instance, settled)
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

    return [arriving_batches], [retrain_on_drift, deploy_on_promotion, matured_labels]
