"""Which batches arrive, which are ingested again, and which are scored now: pure functions.

A batch is announced as a partition before it is ingested, so one whose run failed or was never
started is found and asked for again.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from health_predict.defs.decisions import MOST_ATTEMPTS, Decision, Request
from health_predict.defs.facts import Run
from health_predict.defs.partitions import arriving, batch_key, batch_number

# The schedule announces a batch a moment before its run appears.
GRACE_SECONDS = 60.0


def decide_arrival(
    known: Sequence[str],
    available: int | None,
    served: bool,
    at_a_time: int,
    unrest: str = "",
) -> tuple[Decision, tuple[str, ...]]:
    """Decides which batches arrive at a tick.

    Args:
        known: partitions that have arrived or are arriving.
        available: batches the future holds; None before it was materialised.
        served: whether there is a champion to score them.
        at_a_time: how many arrive at a tick.
        unrest: what they have to wait for, in words, if anything.

    Returns:
        The decision, and the partitions to add.
    """
    if available is None or not served:
        return Decision("No batch arrives before the first champion is there to score it."), ()
    arrived = max(map(batch_number, arriving(known)), default=0)
    if arrived >= available:
        return Decision(f"The future is over: all {arrived} batches have arrived."), ()
    if unrest:
        return Decision(f"The next batches wait: {unrest}"), ()
    newest = min(arrived + at_a_time, available)
    fresh = tuple(batch_key(n) for n in range(arrived + 1, newest + 1))
    decision = Decision(
        f"{', '.join(fresh)} of {available} arrive.",
        tuple(Request("ingest_batch", partition=key) for key in fresh),
    )
    return decision, fresh


def decide_matured(
    arrived: Mapping[str, float],
    scored: Collection[str],
    runs: Sequence[Run],
    delay: float,
    now: float,
) -> Decision:
    """Decides which batches to score now that their outcomes are known.

    Args:
        arrived: partition -> arrival, epoch seconds.
        scored: partitions whose performance is known.
        runs: runs of `ingest_batch`, newest first.
        delay: seconds from arrival to known outcomes.
        now: epoch seconds.
    """
    newest = {key: run.state for key, run in _newest(runs).items()}
    busy = {key for key, state in newest.items() if state == "running"}
    failures = Counter(run.partition for run in runs if run.state == "failed")
    held_back = {
        run.partition: run.held_back
        for run in _newest(runs).values()
        if run.held_back and run.state == "failed"
    }
    stuck = {
        key
        for key, times in failures.items()
        if times >= MOST_ATTEMPTS and newest[key] == "failed" and key not in held_back
    }
    open_ = {key: at for key, at in arrived.items() if key not in {*scored, *busy, *stuck}}
    ripe = sorted(key for key, at in open_.items() if now >= at + delay)
    requests = tuple(
        Request(
            "ingest_batch",
            partition=key,
            assets=("batch_performance",),
            attempt=failures[key] + 1,
        )
        for key in ripe
    )
    if stuck:
        names = ", ".join(sorted(key or "a run without a batch" for key in stuck))
        return Decision(
            f"{names}: ingestion failed {MOST_ATTEMPTS} times and is not tried again by itself. "
            "Read the run's log, mend the cause and materialise the partition by hand.",
            requests,
            alert=True,
        )
    if held_back:
        return Decision(" ".join(sorted(held_back.values())), requests, alert=True)
    if ripe:
        return Decision(f"The outcomes of {', '.join(ripe)} are known now.", requests)
    if open_:
        soonest = min(open_.values()) + delay - now
        return Decision(f"{len(open_)} batches wait for outcomes, the next for {soonest:,.0f} s.")
    return Decision("Every batch that arrived is scored.")


def decide_unfinished(
    known: Collection[str],
    watched: Collection[str],
    runs: Sequence[Run],
    idle_since: Mapping[str, float],
    now: float,
) -> tuple[Decision, dict[str, float]]:
    """Decides which batches are ingested again, or at last.

    Args:
        known: partitions that were announced.
        watched: partitions with a drift report: their ingestion went through.
        runs: runs of `ingest_batch`, newest first.
        idle_since: partition -> when it was first seen without a run, epoch seconds.
        now: epoch seconds.

    Returns:
        The decision, and `idle_since` for the next tick.
    """
    open_ = [key for key in arriving(known) if key not in watched]
    newest = _newest(runs)
    failures = Counter(run.partition for run in runs if run.state == "failed")
    idle = {key: min(now, idle_since.get(key, now)) for key in open_ if key not in newest}
    failed = [
        key
        for key in open_
        if key in newest
        and newest[key].state == "failed"
        and not newest[key].held_back
        and failures[key] < MOST_ATTEMPTS
    ]
    lost = [key for key, since in idle.items() if now - since >= GRACE_SECONDS]
    requests = tuple(
        Request("ingest_batch", partition=key, attempt=failures[key] + 1)
        for key in (*failed, *lost)
    )
    told = []
    if failed:
        told.append(f"{', '.join(failed)}: ingestion failed and is tried again.")
    if lost:
        told.append(f"{', '.join(lost)}: announced and never ingested, which is made up for.")
    if not told:
        count = len(open_)
        told = [f"{count} announced batches are not through yet." if count else "All are through."]
    return Decision(" ".join(told), requests), idle


def _newest(runs: Sequence[Run]) -> dict[str | None, Run]:
    """Returns partition -> its newest run, of runs newest first."""
    return {run.partition: run for run in reversed(runs)}
