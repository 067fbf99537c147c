"""What the loop does next and why: pure functions from persisted facts to a request.

No Dagster instance is read here and nothing is launched; `automation` does both. Each decision
carries its sentence, whether something is requested or not.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from health_predict.defs.facts import Event, Run
from health_predict.defs.partitions import batch_key, batch_number

MOST_ATTEMPTS = 3
# Batches that arrive together are answered by one retraining; a batch that hangs must not hold
# the loop up for longer than this.
LONGEST_WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Request:
    """A run to start.

    Attributes:
        job: which job.
        trigger: id of the event it answers; 0 where there is none.
        attempt: 1 for the first.
        partition: of which batch, if any.
        assets: which assets of the job, all if empty.
    """

    job: str
    trigger: int = 0
    attempt: int = 1
    partition: str | None = None
    assets: tuple[str, ...] = ()

    @property
    def run_key(self) -> str:
        """The same for the same event and attempt, whenever it is asked for."""
        parts = (self.job, self.partition, str(self.trigger or ""), str(self.attempt))
        return ":".join(part for part in parts if part)


@dataclass(frozen=True)
class Decision:
    """What to start, if anything, and why.

    Attributes:
        sentence: the reason in words.
        requests: runs to start.
        settled: newest event id that needs no further thought, None to keep the one before.
        alert: whether a person has to act.
    """

    sentence: str
    requests: tuple[Request, ...] = ()
    settled: int | None = None
    alert: bool = False


def decide_bootstrap(runs: Sequence[Run], waiting: str = "") -> Decision:
    """Decides whether to train the first champion, given that there is none.

    Args:
        runs: runs of `bootstrap`, newest first.
        waiting: what is said of a challenger that waits for approval; empty if none does.
    """
    if waiting:
        return Decision(waiting)
    if any(run.state == "running" for run in runs):
        return Decision("The first champion is being trained.")
    failures = [run for run in runs if run.state == "failed"]
    if len(failures) >= MOST_ATTEMPTS:
        return _given_up("bootstrap", failures)
    if any(run.state == "succeeded" for run in runs):
        return Decision(
            "The first challenger was refused and there is no champion: read why in the check "
            "challenger_beats_champion, mend the data and run bootstrap again.",
            alert=True,
        )
    again = f", attempt {len(failures) + 1}" if failures else ""
    return Decision(
        f"There is no champion yet: training the first one{again}.",
        (Request("bootstrap", attempt=len(failures) + 1),),
    )


def decide_retrain(
    alarms: Sequence[Event], runs: Sequence[Run], ingesting: Sequence[Run], now: float
) -> Decision:
    """Decides whether to train again.

    Args:
        alarms: drift reports and performances since the settled one, oldest first.
        runs: runs of `retrain`, newest first.
        ingesting: runs of `ingest_batch` that have not ended.
        now: epoch seconds.
    """
    pending = [alarm for alarm in alarms if is_alarming(alarm) and not is_handled(alarm, runs)]
    running = [run for run in runs if run.state == "running"]
    if not pending:
        newest = max((alarm.id for alarm in alarms), default=None)
        return Decision(_calm(alarms), settled=newest)
    names = _batches(pending)
    if running:
        return Decision(f"{names}: a retraining is under way; what it does not cover comes next.")
    waited = now - pending[0].timestamp
    if ingesting and waited < LONGEST_WAIT_SECONDS:
        coming = ", ".join(sorted(run.partition or run.run_id for run in ingesting))
        return Decision(f"{names}: waiting for {coming}, one retraining answers all.")
    trigger = pending[-1].id
    failures = [run for run in runs if run.trigger == trigger and run.state == "failed"]
    if len(failures) >= MOST_ATTEMPTS:
        return _given_up("retrain", failures)
    attempt = len(failures) + 1
    again = f" Attempt {attempt} of {MOST_ATTEMPTS}." if failures else ""
    return Decision(
        f"Retraining for {names}: {_why(pending[-1])}{again}",
        (Request("retrain", trigger=trigger, attempt=attempt),),
    )


def is_alarming(event: Event) -> bool:
    """Returns whether a drift report or a performance calls for a retraining."""
    if event.asset == "drift_report":
        return bool(event.metadata.get("drifted"))
    return event.metadata.get("within_bounds") is False


def is_handled(alarm: Event, runs: Sequence[Run]) -> bool:
    """Returns whether one of the retrainings answers an alarm.

    One that ended well answers its trigger, all alarms before it, and all batches it learned from.
    """
    return any(
        run.state == "succeeded"
        and (
            (run.trigger is not None and run.trigger >= alarm.id)
            or (
                alarm.partition is not None
                and run.newest_batch is not None
                and run.newest_batch >= batch_number(alarm.partition)
            )
        )
        for run in runs
    )


def _batches(events: Sequence[Event]) -> str:
    return ", ".join(dict.fromkeys(event.partition or event.asset for event in events))


def _why(event: Event) -> str:
    return str(event.metadata.get("sentence", "no reason was recorded"))


def _calm(alarms: Sequence[Event]) -> str:
    if not alarms:
        return "Nothing new was reported."
    if any(is_alarming(alarm) for alarm in alarms):
        return f"{_batches(alarms)}: answered by a retraining."
    return f"{_batches(alarms)}: nothing that calls for a retraining. {_why(alarms[-1])}"


def _given_up(job: str, failures: Sequence[Run]) -> Decision:
    return Decision(
        f"{job} failed {len(failures)} times (newest run {failures[0].run_id[:8]}): not tried "
        f"again by itself. Read the run's log, mend the cause and launch {job} by hand.",
        alert=True,
    )


def decide_deploy(promoted: Event | None, deployed: Event | None, runs: Sequence[Run]) -> Decision:
    """Decides whether to roll the champion out.

    Args:
        promoted: the newest promotion, None if there was none.
        deployed: the newest roll-out that ended, rolled back or not.
        runs: runs of `deploy`, newest first.
    """
    if promoted is None:
        return Decision("There is no champion to roll out yet.")
    version = promoted.metadata["version"]
    if deployed is not None and deployed.metadata["wanted"] == version:
        return Decision(f"Version {version} was rolled out. {_why_deployed(deployed)}")
    if any(run.state == "running" for run in runs):
        return Decision(f"Version {version} waits: a roll-out is under way.")
    failures = [run for run in runs if run.trigger == promoted.id and run.state == "failed"]
    if len(failures) >= MOST_ATTEMPTS:
        return _given_up("deploy", failures)
    attempt = len(failures) + 1
    again = f" Attempt {attempt} of {MOST_ATTEMPTS}." if failures else ""
    return Decision(
        f"Rolling out version {version}: {_why(promoted)}{again}",
        (Request("deploy", trigger=promoted.id, attempt=attempt),),
    )


def _why_deployed(deployed: Event) -> str:
    return str(deployed.metadata.get("sentence", ""))


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
    arrived = max(map(batch_number, known), default=0)
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


def _newest(runs: Sequence[Run]) -> dict[str | None, Run]:
    """Returns partition -> its newest run, of runs newest first."""
    return {run.partition: run for run in reversed(runs)}
