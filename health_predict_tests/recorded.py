"""Events and runs as the event log gives them, for the tests of decisions."""

from dataclasses import replace
from typing import Any

from health_predict.defs.facts import Event, Run

NOW = 10_000.0


def report(event_id: int, batch: int, *, drifted: bool, **facts: Any) -> Event:
    return Event(
        id=event_id,
        asset="drift_report",
        partition=f"batch-{batch:04d}",
        run_id=f"ingest-{batch}",
        timestamp=NOW - 10,
        metadata={"drifted": drifted, "sentence": f"sentence of batch {batch}.", **facts},
    )


def performance(event_id: int, batch: int, *, within_bounds: bool) -> Event:
    metadata = {"within_bounds": within_bounds, "sentence": f"performance of batch {batch}."}
    return replace(
        report(event_id, batch, drifted=False), asset="batch_performance", metadata=metadata
    )


def run(
    state: Any,
    *,
    job: str = "retrain",
    trigger: int | None = None,
    newest_batch: int | None = None,
    partition: str | None = None,
    held_back: str = "",
) -> Run:
    return Run(
        *("0123456789", job, state, trigger, 1, newest_batch, NOW),
        partition=partition,
        held_back=held_back,
    )
