"""What the event log knows, as plain values: the only reader of Dagster's records for decisions.

Decisions are made in `automation` from what is returned here; nothing is decided in this module.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

RunState = Literal["running", "succeeded", "failed"]
_PAGE = 500
_ARRIVAL = dg.AssetKey("future_batch")

_STATES: dict[dg.DagsterRunStatus, RunState] = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "failed",
}

TRIGGER = "health_predict/trigger"
ATTEMPT = "health_predict/attempt"
REASON = "health_predict/reason"
HELD_BACK = "health_predict/held_back"
"""Run tag: why a batch was held back as a whole."""
NEWEST_BATCH = "health_predict/newest_batch"
"""Run tag: the newest batch a training run learned from; 0 for the initial encounters alone."""

SENTENCE = "sentence"
"""Metadata of every event a decision is made from or told by: what happened, in words."""
CHAMPION_SEEN = "champion_version"
"""Metadata of scores: the version that was the champion when a batch was first scored."""
PROMOTED = "promoted"
FORCED = "forced_by"
"""Metadata of an observation of `training_set`: who asked for a retraining."""
WAITING = "waiting_version"
"""Metadata of an observation: the version that passed the gate and waits for the job `approve`."""


@dataclass(frozen=True)
class Event:
    """One materialisation.

    Attributes:
        id: its place in the event log; later events have larger ones.
        asset: what was materialised.
        partition: of which batch, if any.
        run_id: by which run.
        timestamp: when, epoch seconds.
        metadata: its metadata as plain values.
    """

    id: int
    asset: str
    partition: str | None
    run_id: str
    timestamp: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of a job.

    Attributes:
        run_id: Dagster's.
        job: its job.
        state: queued and starting runs count as running, cancelled ones as failed.
        trigger: event id the run was requested for; None for a run started by hand.
        attempt: 1 for the first.
        newest_batch: newest batch it learned from; None before it took its snapshot.
        created: when it was requested, epoch seconds.
        reason: why it was requested, in words.
        partition: of which batch, if any.
        held_back: why its batch was held back, in words; empty if it was not.
    """

    run_id: str
    job: str
    state: RunState
    trigger: int | None
    attempt: int
    newest_batch: int | None
    created: float
    reason: str = ""
    partition: str | None = None
    held_back: str = ""


def events(instance: dg.DagsterInstance, asset: str, after: int = 0) -> list[Event]:
    """Returns the materialisations of an asset newer than event id `after`, oldest first."""
    return _pages(instance, dg.AssetRecordsFilter(dg.AssetKey(asset), after_storage_id=after))


def _pages(instance: dg.DagsterInstance, wanted: dg.AssetRecordsFilter) -> list[Event]:
    found = []
    cursor = None
    while True:
        page = instance.fetch_materializations(wanted, limit=_PAGE, cursor=cursor, ascending=True)
        found += [_event(record) for record in page.records]
        if not page.has_more:
            return found
        cursor = page.cursor


def observations(instance: dg.DagsterInstance, asset: str, after: int = 0) -> list[Event]:
    """Returns the observations of an asset newer than event id `after`, oldest first."""
    found = []
    cursor = None
    while True:
        page = instance.fetch_observations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), after_storage_id=after),
            limit=_PAGE,
            cursor=cursor,
            ascending=True,
        )
        found += [_event(record) for record in page.records]
        if not page.has_more:
            return found
        cursor = page.cursor


def latest(instance: dg.DagsterInstance, asset: str) -> Event | None:
    """Returns the newest materialisation of an asset, None if there is none."""
    page = instance.fetch_materializations(dg.AssetKey(asset), limit=1)
    return _event(page.records[0]) if page.records else None


def _event(record: dg.EventLogRecord) -> Event:
    recorded = record.asset_event
    assert recorded is not None  # both callers ask for events of assets only
    return Event(
        id=record.storage_id,
        asset=recorded.asset_key.to_user_string(),
        partition=recorded.partition,
        run_id=record.run_id,
        timestamp=record.timestamp,
        metadata={
            key: value.value
            for key, value in recorded.metadata.items()
            if isinstance(value.value, str | int | float | bool)
        },
    )


def first(instance: dg.DagsterInstance, asset: str, partition: str) -> Event | None:
    """Returns the oldest materialisation of a partition, None if there is none."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition])
    page = instance.fetch_materializations(wanted, limit=1, ascending=True)
    return _event(page.records[0]) if page.records else None


def newest_scores(instance: dg.DagsterInstance) -> Event | None:
    """Returns the newest scores that the champion of the moment gave to a batch."""
    page = instance.fetch_materializations(dg.AssetKey("batch_predictions"), limit=50)
    found = map(_event, page.records)
    return next((event for event in found if CHAMPION_SEEN in event.metadata), None)


def newest_verdict(instance: dg.DagsterInstance) -> Event | None:
    """Returns the newest promotion or refusal, None if the gate never judged."""
    page = instance.fetch_observations(dg.AssetKey("registered_model"), limit=1)
    found = [latest(instance, "registered_model"), *map(_event, page.records)]
    return max((event for event in found if event), key=lambda event: event.id, default=None)


def before_newest(instance: dg.DagsterInstance, asset: str, partitions: int) -> int:
    """Returns the event id before the newest events of so many partitions; 0 if there are fewer."""
    ids = instance.get_latest_storage_id_by_partition(
        dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION
    )
    return sorted(ids.values())[-partitions] - 1 if len(ids) > partitions else 0


def materialised(instance: dg.DagsterInstance, asset: str) -> set[str]:
    """Returns the partitions of an asset that were ever materialised."""
    return instance.get_materialized_partitions(dg.AssetKey(asset))


def arrivals(instance: dg.DagsterInstance) -> dict[str, float]:
    """Returns when each batch first arrived: partition key -> epoch seconds."""
    return _first(events(instance, "future_batch"))


def arrived_at(instance: dg.DagsterInstance, keys: Collection[str]) -> dict[str, float]:
    """Returns when these batches first arrived, without reading the others."""
    found: list[Event] = []
    ordered = sorted(keys)
    for start in range(0, len(ordered), _PAGE):
        wanted = ordered[start : start + _PAGE]
        found += _pages(instance, dg.AssetRecordsFilter(_ARRIVAL, asset_partitions=wanted))
    return _first(found)


def _first(arrived: Iterable[Event]) -> dict[str, float]:
    first: dict[str, float] = {}
    for event in arrived:
        if event.partition is not None:
            first.setdefault(event.partition, event.timestamp)
    return first


def runs(instance: dg.DagsterInstance, *jobs: str, limit: int = 50) -> list[Run]:
    """Returns the newest runs of each of the jobs, newest first."""
    return [
        run
        for job in jobs
        for run in (
            _run(record)
            for record in instance.get_run_records(dg.RunsFilter(job_name=job), limit=limit)
        )
    ]


def _run(record: dg.RunRecord) -> Run:
    tags = record.dagster_run.tags
    return Run(
        run_id=record.dagster_run.run_id,
        job=record.dagster_run.job_name,
        state=_STATES.get(record.dagster_run.status, "running"),
        trigger=_number(tags.get(TRIGGER)),
        attempt=_number(tags.get(ATTEMPT)) or 1,
        newest_batch=_number(tags.get(NEWEST_BATCH)),
        created=record.create_timestamp.timestamp(),
        reason=tags.get(REASON, ""),
        partition=tags.get("dagster/partition"),
        held_back=tags.get(HELD_BACK, ""),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None else None


def in_progress(all_runs: list[Run]) -> Iterator[Run]:
    """Yields the runs that have not ended."""
    return (run for run in all_runs if run.state == "running")
