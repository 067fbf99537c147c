"""Served traffic becomes batches: the second source beside the arriving encounters.

The sensor `served_traffic` cuts slices off the prediction log and requests `ingest_batch` for
them. A slice on disk is the fact everything follows from: a tick that is killed after the cut is
made up for by the next one. How a slice is read and kept is in `served`.
"""

import time
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg

from health_predict import served
from health_predict.defs.automation import RUNNING_SENSOR, _answer, _log
from health_predict.defs.decisions import MOST_ATTEMPTS, Decision, Request
from health_predict.defs.facts import Run, latest, materialised, runs
from health_predict.defs.jobs import ingest_batch
from health_predict.defs.partitions import batches, served_key, served_number
from health_predict.settings import Settings
from health_predict.store import Store, open_store

# A run takes seconds and traffic may bring a batch a second: more would only fill the run queue.
MOST_OPEN = 3
# Batches that stay this far behind are of a day the log may soon have rotated away.
_FAR_BEHIND_SECONDS = 3_600.0


def decide_cut(
    cut: Sequence[str],
    handled: Collection[str],
    past_help: Collection[str],
    waiting: int,
    rows: int,
) -> tuple[str, str | None]:
    """Decides whether the next slice is cut.

    Args:
        cut: keys of the slices there are.
        handled: those that were tested for drift.
        past_help: those that are not tried again by themselves.
        waiting: predictions that no slice holds, counted up to `rows`.
        rows: predictions of a slice.

    Returns:
        The reason in words, and the key of the slice to cut, None if none is.
    """
    open_ = [key for key in cut if key not in {*handled, *past_help}]
    if len(open_) >= MOST_OPEN:
        return f"{', '.join(open_)} come first.", None
    if waiting < rows:
        return f"{waiting:,} of the {rows:,} predictions of a batch are logged.", None
    fresh = served_key(max(map(served_number, cut), default=0) + 1)
    return f"{fresh}: {rows:,} predictions were served.", fresh


def decide_traffic(
    cut: Sequence[str], handled: Collection[str], runs: Sequence[Run], news: str
) -> Decision:
    """Decides which slices to ingest, for the first time or again.

    Args:
        cut: keys of the slices there are, oldest first.
        handled: those that were tested for drift.
        runs: runs of `ingest_batch`, newest first.
        news: what is said of the slice that was cut now or was not.
    """
    newest = {run.partition: run for run in reversed(runs)}
    failures = Counter(run.partition for run in runs if run.state == "failed")
    helpless = past_help(cut, handled, runs)
    wanted = [
        key
        for key in cut
        if key not in {*handled, *helpless} and (key not in newest or newest[key].state == "failed")
    ]
    requests = tuple(
        Request("ingest_batch", partition=key, attempt=failures[key] + 1) for key in wanted
    )
    if helpless:
        return Decision(" ".join(helpless.values()), requests, alert=True)
    again = [
        f"{request.partition} is tried again, attempt {request.attempt} of {MOST_ATTEMPTS}."
        for request in requests
        if request.attempt > 1
    ]
    return Decision(" ".join([news, *again]), requests)


def past_help(cut: Sequence[str], handled: Collection[str], runs: Sequence[Run]) -> dict[str, str]:
    """Returns the slices that are not tried again by themselves, and what a person does."""
    newest = {run.partition: run for run in reversed(runs)}
    failures = Counter(run.partition for run in runs if run.state == "failed")
    told = {}
    for key in cut:
        run = newest.get(key)
        if run is None or run.state != "failed" or key in handled:
            continue
        if run.held_back:
            told[key] = run.held_back
        elif failures[key] >= MOST_ATTEMPTS:
            told[key] = (
                f"{key}: ingestion failed {failures[key]} times (newest run {run.run_id[:8]}) and "
                "is not tried again by itself. Read the run's log, mend the cause and materialise "
                "the partition by hand."
            )
    return told


def cut_traffic(instance: dg.DagsterInstance, settings: Settings) -> Decision:
    """Cuts the next slice if there is one, and returns what is to be ingested."""
    log, store = settings.predictions, open_store(settings.store_uri)
    if log is None:
        return Decision("No prediction log is written: HEALTH_PREDICT_PREDICTION_LOG is empty.")
    if latest(instance, "registered_model") is None:
        return Decision("No traffic is looked at before there is a champion to compare it with.")
    keys = served.slices(store)
    handled = materialised(instance, "drift_report")
    ingests = runs(instance, "ingest_batch")
    news, fresh = _next(settings, log, store, keys, handled, past_help(keys, handled, ingests))
    keys += [fresh] if fresh else []
    # Whatever was cut has its partition, also by a tick that was killed before it could say so.
    instance.add_dynamic_partitions(batches.name or "", keys)
    return decide_traffic(keys, handled, ingests, news)


def _next(
    settings: Settings,
    log: Path,
    store: Store,
    keys: Sequence[str],
    handled: Collection[str],
    helpless: Collection[str],
) -> tuple[str, str | None]:
    """Cuts the next slice; returns what is said of it, and its key if there is one."""
    rows = settings.served_batch_rows
    newest = served.find(store, keys[-1]) if keys else None
    waiting = served.waiting(log, newest, rows)
    news, fresh = decide_cut(keys, handled, helpless, len(waiting.rows), rows)
    if fresh is None:
        return news, None
    made = served.cut(store, fresh, waiting)
    behind = time.time() - datetime.fromisoformat(made.last).timestamp()
    if behind > _FAR_BEHIND_SECONDS:
        news += (
            f" It ends {behind / 3600:.1f} h ago: if batches stay behind the traffic, raise "
            "HEALTH_PREDICT_SERVED_BATCH_ROWS."
        )
    return news, fresh


def traffic(settings: Settings) -> list[Any]:
    """Returns the sensor, its cadence as the settings say."""

    @dg.sensor(
        job=ingest_batch,
        minimum_interval_seconds=settings.sensor_interval,
        default_status=RUNNING_SENSOR,
        description="Makes batches of served traffic from the prediction log.",
    )
    def served_traffic(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        decision = cut_traffic(context.instance, settings)
        _log(context, decision)
        return _answer(decision)

    return [served_traffic]
