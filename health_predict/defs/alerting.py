"""The sensors that tell a person what calls for one, and what they read to find it out.

What is wrong is found out anew at each tick from persisted facts, by `conditions`; what was already
told is remembered by the outbox of `alerts`. Nothing is mended here.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from health_predict.alerts import Alert, Outbox
from health_predict.channels import channels
from health_predict.defs.automation import deploy_decision, patience, retrain_decision
from health_predict.defs.conditions import (
    BY_HAND,
    Dagit,
    Known,
    newest_ended,
    open_alerts,
    run_alerts,
    run_subjects,
    subject_of,
)
from health_predict.defs.facts import (
    Event,
    before_newest,
    events,
    latest,
    newest_verdict,
    observations,
    runs,
)
from health_predict.defs.jobs import JOBS
from health_predict.defs.partitions import is_served
from health_predict.defs.retraining import Patience
from health_predict.settings import Settings
from health_predict.store import open_store

# Whatever is older was decided upon long ago; a tick must not read ten thousand batches.
_NEWEST = 100
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class Cursor:
    """What the sensor remembers between two ticks.

    Attributes:
        seen: the newest event id that was known; None before the first tick.
        settled: the newest event id that needs no retraining any more.
    """

    seen: int | None = None
    settled: int = 0

    @classmethod
    def read(cls, text: str | None) -> "Cursor":
        """Returns the cursor as a tick left it."""
        return cls(**json.loads(text)) if text else cls()

    def write(self) -> str:
        """Returns the cursor as text."""
        return json.dumps(vars(self))


def look(
    instance: dg.DagsterInstance,
    before: Mapping[str, Alert],
    cursor: Cursor,
    waits: Patience | None = None,
) -> tuple[Known, Cursor]:
    """Returns what is known now, and the cursor for the next tick.

    However many batches there were, no more than the newest of them are read.
    """
    settled = max(cursor.settled, before_newest(instance, "drift_report", _NEWEST))
    # First: a report that comes after it is then among those read here, or in the next tick.
    retrain = retrain_decision(instance, settled, waits)
    deploy = deploy_decision(instance)
    promoted, future = latest(instance, "registered_model"), latest(instance, "future")
    reports = events(instance, "drift_report", settled)
    verdicts = _some(newest_verdict(instance))
    deployments = _some(latest(instance, "readmission_deployment"))
    if cursor.seen is not None:
        verdicts += events(instance, "registered_model", cursor.seen)
        verdicts += observations(instance, "registered_model", cursor.seen)
        deployments += events(instance, "readmission_deployment", cursor.seen)
    newest = max((e.id for e in (*reports, *verdicts, *deployments)), default=0)
    seen = newest if cursor.seen is None else cursor.seen
    all_runs = runs(instance, *(job.name for job in JOBS), BY_HAND)
    known = Known(
        now=time.time(),
        seen=seen,
        reports=reports,
        verdicts=verdicts,
        deployments=deployments,
        raw=latest(instance, "raw_encounters"),
        arrival=_arrival(instance) or future,
        batches=int(future.metadata["batches"]) if future else None,
        runs=all_runs,
        decisions={"retrain" if promoted else "bootstrap": retrain, "deploy": deploy},
        before=before,
        mended=frozenset(
            subject
            for subject, _ in run_subjects(before)
            if subject not in newest_ended(all_runs) and _ended_well(instance, subject)
        ),
    )
    return known, Cursor(max(newest, seen), retrain.settled or cursor.settled)


def _arrival(instance: dg.DagsterInstance) -> Event | None:
    """Returns the newest batch that arrived by schedule: served traffic does not stand for it."""
    recent = events(instance, "future_batch", before_newest(instance, "future_batch", _NEWEST))
    arrived = [event for event in recent if event.partition and not is_served(event.partition)]
    return arrived[-1] if arrived else None


def _some(event: Event | None) -> list[Event]:
    return [event] if event else []


def _ended_well(instance: dg.DagsterInstance, subject: str) -> bool:
    """Returns whether the newest run of a job or a batch that has ended ended well, or is gone."""
    is_job = subject in {BY_HAND, *(job.name for job in JOBS)}
    chosen = {"job_name": subject} if is_job else {"tags": {"dagster/partition": subject}}
    records = instance.get_run_records(dg.RunsFilter(statuses=_ENDED, **chosen), limit=1)
    return not records or records[0].dagster_run.is_success


def alerting(settings: Settings) -> list[Any]:
    """Returns the sensors that tell a person, their cadence as the settings say."""
    outbox = Outbox(open_store(settings.store_uri), channels(settings))
    dagit = Dagit(settings.dagit_url.rstrip("/"))
    silent = dg.SkipReason(
        "No channel is configured: nothing is told. Set HEALTH_PREDICT_ALERT_WEBHOOK or "
        "HEALTH_PREDICT_ALERT_SMTP."
    )

    @dg.sensor(
        minimum_interval_seconds=settings.sensor_interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells a person what calls for one, once, and once more when it is over.",
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if not outbox.channels:
            return silent
        before = outbox.open()
        known, cursor = look(
            context.instance, before, Cursor.read(context.cursor), patience(settings)
        )
        found = open_alerts(known, dagit)
        delivery = outbox.settle(found, before)
        titles = ", ".join(alert.title for alert in found) or "nothing"
        words = f"{delivery.sentence or 'Nothing new to tell.'} Open: {titles}."
        return dg.SensorResult(skip_reason=words, cursor=cursor.write())

    @dg.run_failure_sensor(
        minimum_interval_seconds=settings.sensor_interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells a person at once that a run failed; the sensor alerts says when it "
        "is over.",
    )
    def run_failures(context: dg.RunFailureSensorContext) -> dg.SkipReason:
        if not outbox.channels:
            return silent
        failed = context.dagster_run
        recent = runs(context.instance, failed.job_name, BY_HAND)
        of_it = {run.run_id: subject_of(run) for run in recent}.get(failed.run_id)
        found = [a for a in run_alerts(recent, dagit) if a.key.endswith(f"/{of_it}")]
        told = [outbox.add(alert).sentence for alert in found]
        return dg.SkipReason(" ".join(filter(None, told)) or "It was told or is over already.")

    return [alerts, run_failures]
