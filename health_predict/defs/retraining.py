"""When the loop trains again, and why or why not: pure functions, no Dagster instance.

It trains on major drift, on a batch foretold out of bounds, on the age of the champion, and when a
person forces it. One shift does not train again and again: after a training whose challenger did
not take over, alarms of the same shift rest for some batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from health_predict.defs.decisions import (
    MOST_ATTEMPTS,
    Decision,
    Request,
    given_up,
    why,
)
from health_predict.defs.facts import FORCED, Event, Run
from health_predict.defs.partitions import batch_number, is_served
from health_predict.evaluation import CHALLENGER_CALIBRATION

# Batches that arrive together are answered by one retraining; a batch that hangs must not hold
# the loop up for longer than this.
LONGEST_WAIT_SECONDS = 600.0
# Hysteresis: a shift is over once its statistic is this far below the threshold, and a new one
# once it is this far above the batch that was answered.
_CALM_BY = 0.05
_GROWN_BY = 0.05
# A sentence is read by people.
_MOST_NAMES = 6


@dataclass(frozen=True)
class Patience:
    """What the loop waits for.

    Attributes:
        rest_batches: batches of one shift that rest after a training whose challenger did not
            take over.
        oldest_seconds: age of the newest verdict after which the loop trains without a cause.
    """

    rest_batches: int = 2
    oldest_seconds: float = 60 * 86_400.0


@dataclass(frozen=True)
class Standing:
    """How alarms stand.

    Attributes:
        pending: those that call for a training, oldest first.
        resting: those of a shift that was answered not long ago.
        answered: the alarms whose answer they rest on.
    """

    pending: list[Event]
    resting: list[Event]
    answered: list[Event]


def decide_retrain(
    reports: Sequence[Event],
    runs: Sequence[Run],
    ingesting: Sequence[Run],
    now: float,
    *,
    champion: str | None = None,
    verdict: Event | None = None,
    patience: Patience | None = None,
) -> Decision:
    """Decides whether to train again.

    Args:
        reports: drift reports, performances and what was forced since the settled event, oldest
            first.
        runs: runs of `retrain`, newest first.
        ingesting: runs of `ingest_batch` that have not ended.
        now: epoch seconds.
        champion: the version in office; alarms about another one do not rest.
        verdict: the gate's newest, None if the age of the champion is not asked.
        patience: what the loop waits for; None: the default.
    """
    patience = patience or Patience()
    standing = sort_out(reports, runs, patience.rest_batches, champion)
    if not standing.pending:
        return _rest(standing, reports, runs, verdict, now, patience)
    pending = standing.pending
    if any(run.state == "running" for run in runs):
        names = _batches(pending)
        return Decision(f"{names}: a retraining is under way; what it does not cover comes next.")
    # A clock that runs ahead elsewhere must not make the wait longer.
    waited = max(0.0, now - pending[0].timestamp)
    patient = not any(is_forced(alarm) for alarm in pending)
    if patient and ingesting and waited < LONGEST_WAIT_SECONDS:
        coming = ", ".join(sorted(run.partition or run.run_id for run in ingesting))
        return Decision(f"{_batches(pending)}: waiting for {coming}, one retraining answers all.")
    return _request(pending[-1].id, f"Retraining for {_batches(pending)}: {_causes(pending)}", runs)


def _request(trigger: int, sentence: str, runs: Sequence[Run]) -> Decision:
    failures = [run for run in runs if run.trigger == trigger and run.state == "failed"]
    if len(failures) >= MOST_ATTEMPTS:
        return given_up("retrain", failures)
    attempt = len(failures) + 1
    again = f" Attempt {attempt} of {MOST_ATTEMPTS}." if failures else ""
    return Decision(f"{sentence}{again}", (Request("retrain", trigger=trigger, attempt=attempt),))


def _rest(
    standing: Standing,
    reports: Sequence[Event],
    runs: Sequence[Run],
    verdict: Event | None,
    now: float,
    patience: Patience,
) -> Decision:
    """Decides where no alarm is pending."""
    busy = any(run.state == "running" for run in runs)
    if verdict and not busy and now - verdict.timestamp > patience.oldest_seconds:
        days = (now - verdict.timestamp) / 86_400
        words = f"Retraining: the newest verdict is {days:.0f} days old, at most "
        return _request(
            verdict.id, f"{words}{patience.oldest_seconds / 86_400:.0f} are allowed.", runs
        )
    # What an answer still rests on is read again next time.
    newest = max((report.id for report in reports), default=None)
    recalled = min((alarm.id for alarm in standing.answered), default=None)
    settled = newest if recalled is None else recalled - 1
    if standing.resting:
        return Decision(_resting(standing, patience), settled=settled)
    return Decision(_calm(reports), settled=settled)


def sort_out(
    reports: Sequence[Event], runs: Sequence[Run], rest_batches: int, champion: str | None = None
) -> Standing:
    """Returns which alarms call for a training and which rest.

    An alarm rests if a training for the same shift did not bring a new champion, at most
    `rest_batches` alarms ago, and the shift has neither ended since nor grown.

    Args:
        reports: as `decide_retrain` takes them.
        runs: runs of `retrain`, newest first.
        rest_batches: how many alarms rest.
        champion: the version in office.
    """
    pending, resting, answered = [], [], []
    for kind in dict.fromkeys(report.asset for report in reports):
        answer: Event | None = None
        rested = 0
        for report in (r for r in reports if r.asset == kind):
            if _has_calmed(report):
                answer = None
            if not is_alarming(report):
                continue
            if is_handled(report, runs):
                in_office = report.metadata.get("champion_version") == champion
                larger = answer is not None and _size(answer) > _size(report)
                answer, rested = (answer if larger else report) if in_office else None, 0
            elif answer is not None and rested < rest_batches and not _has_grown(report, answer):
                resting.append(report)
                rested += 1
            else:
                pending.append(report)
        if answer is not None:
            answered.append(answer)
    return Standing(sorted(pending, key=_id), sorted(resting, key=_id), answered)


def _id(event: Event) -> int:
    return event.id


def is_forced(event: Event) -> bool:
    """Returns whether a person asked for a training."""
    return FORCED in event.metadata


def is_alarming(event: Event) -> bool:
    """Returns whether an event calls for a retraining: drift, performance, or a person."""
    if event.asset == "drift_report":
        return bool(event.metadata.get("drifted"))
    return is_forced(event) or event.metadata.get("within_bounds") is False


def is_handled(alarm: Event, runs: Sequence[Run]) -> bool:
    """Returns whether one of the retrainings answers an alarm.

    One that ended well answers its trigger, all alarms before it, and all batches it learned from.
    Served traffic has no outcomes: no training learns from it.
    """
    batch = alarm.partition
    learnable = batch is not None and not is_served(batch)
    return any(
        run.state == "succeeded"
        and (
            (run.trigger is not None and run.trigger >= alarm.id)
            or (
                learnable
                and run.newest_batch is not None
                and run.newest_batch >= batch_number(batch or "")
            )
        )
        for run in runs
    )


def _has_calmed(report: Event) -> bool:
    facts = report.metadata
    if report.asset == "drift_report":
        return bool(facts.get("statistic", 0.0) < facts.get("threshold", 0.0) - _CALM_BY)
    low, high = CHALLENGER_CALIBRATION
    return bool(low <= facts.get("expected_observed", 0.0) <= high) and not is_alarming(report)


def _has_grown(report: Event, answer: Event) -> bool:
    return _size(report) > _size(answer) + _GROWN_BY


def _size(alarm: Event) -> float:
    facts = alarm.metadata
    if alarm.asset == "drift_report":
        return float(facts.get("statistic", 0.0))
    return abs(log(facts.get("expected_observed") or 1.0))


def _batches(events: Sequence[Event]) -> str:
    names = list(dict.fromkeys(event.partition or "a person" for event in events))
    if len(names) > _MOST_NAMES:
        return f"{names[0]}, ... {names[-1]} ({len(names):,} batches)"
    return ", ".join(names)


def _causes(pending: Sequence[Event]) -> str:
    """Returns why, in words: calibration first, then the newest of the others."""
    foretold = [alarm for alarm in pending if alarm.asset == "batch_performance"]
    return " ".join(dict.fromkeys(map(why, [*foretold[-1:], pending[-1]])))


def _resting(standing: Standing, patience: Patience) -> str:
    answers = _batches(standing.answered)
    return (
        f"{_batches(standing.resting)}: the shift of {answers} goes on, whose challenger did not "
        f"take over. Trained again once it has lasted {patience.rest_batches} more batches or has "
        f"grown. {why(standing.resting[-1])}"
    )


def _calm(reports: Sequence[Event]) -> str:
    if not reports:
        return "Nothing new was reported."
    alarming = [report for report in reports if is_alarming(report)]
    answered = f"{_batches(alarming)}: answered by a retraining." if alarming else ""
    newest = reports[-1]
    if is_alarming(newest):
        return answered
    calm = f"{_batches([newest])}: nothing that calls for a retraining. {why(newest)}"
    return f"{answered} {calm}".strip()
