"""What calls for a person: pure functions from persisted facts to alerts.

No Dagster instance is read here and nothing is sent; `alerting` does both.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from health_predict.alerts import Alert
from health_predict.defs.data import BATCH_FRESH_FOR, RAW_FRESH_FOR
from health_predict.defs.decisions import MOST_ATTEMPTS, Decision, why
from health_predict.defs.facts import PROMOTED, Event, Run
from health_predict.defs.partitions import batch_key
from health_predict.defs.retraining import is_alarming, is_handled

BY_HAND = "__ASSET_JOB"
"""What Dagster calls the job of assets that a person materialises in Dagit."""

_AGAIN = f"It is tried again by itself, {MOST_ATTEMPTS} attempts in all"
_AFTER_FAILURE = {
    "bootstrap": f"{_AGAIN}; nothing is served until then.",
    "retrain": f"{_AGAIN}; the champion stays and goes on serving.",
    "deploy": f"{_AGAIN}; the version before goes on serving.",
    "ingest_batch": f"{_AGAIN}; other batches are not held up.",
}
_STARTED_BY_PERSON = "Nothing: a person started it, and it is not tried again by itself."


@dataclass(frozen=True)
class Dagit:
    """Where Dagit is, for links.

    Attributes:
        url: its address without a path.
    """

    url: str

    def run(self, run_id: str) -> tuple[tuple[str, str], ...]:
        """Returns the link to a run, none for what no run recorded."""
        return ((f"run {run_id[:8]}", f"{self.url}/runs/{run_id}"),) if run_id else ()

    def asset(self, name: str, partition: str | None = None) -> tuple[tuple[str, str], ...]:
        """Returns the link to an asset."""
        query = f"?partition={partition}" if partition else ""
        return ((f"{name} {partition or ''}".strip(), f"{self.url}/assets/{name}{query}"),)

    def of(self, event: Event) -> tuple[tuple[str, str], ...]:
        """Returns the links to an event's asset and run."""
        return (*self.asset(event.asset, event.partition), *self.run(event.run_id))


@dataclass(frozen=True)
class Known:
    """What is known when it is asked what is wrong.

    An event that came and went between two ticks is open for one tick, or nobody would hear of
    it: hence `seen`.

    Attributes:
        now: epoch seconds.
        seen: the newest event id that a tick before this one knew.
        reports: drift reports that may be unanswered or unseen, oldest first.
        verdicts: promotions and refusals or waiting challengers, the newest and the unseen ones.
        deployments: roll-outs, the newest and the unseen ones.
        raw: newest reading of the source, None before the first.
        arrival: newest batch, or the future before its first; None before that.
        batches: how many batches the future holds.
        runs: the newest runs of each job, newest first within a job.
        decisions: job -> what the loop decided about it.
        before: the alerts that were open until now.
        mended: jobs and partitions of `before`, of which `runs` tell nothing, that ended well.
    """

    now: float
    seen: int = 0
    reports: Sequence[Event] = ()
    verdicts: Sequence[Event] = ()
    deployments: Sequence[Event] = ()
    raw: Event | None = None
    arrival: Event | None = None
    batches: int | None = None
    runs: Sequence[Run] = ()
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    before: Mapping[str, Alert] = field(default_factory=dict)
    mended: frozenset[str] = frozenset()

    def of_job(self, job: str) -> list[Run]:
        """Returns the runs of a job, newest first."""
        return [run for run in self.runs if run.job == job]


def open_alerts(known: Known, dagit: Dagit) -> list[Alert]:
    """Returns everything that calls for a person now.

    Args:
        known: persisted facts.
        dagit: where links point.
    """
    found = [
        *_drift(known, dagit),
        *_refused(known, dagit),
        *_rolled_back(known, dagit),
        *_stale(known, dagit),
        *_given_up(known, dagit),
        *run_alerts(known.runs, dagit, known.before),
    ]
    return [*found, *_untold(known, found)]


def _drift(known: Known, dagit: Dagit) -> Iterator[Alert]:
    retrains = known.of_job("retrain")
    alarming = [report for report in known.reports if is_alarming(report)]
    unanswered = [report for report in alarming if not is_handled(report, retrains)]
    found = unanswered or _unseen(alarming, known)
    if not found:
        return
    answer = next((r for r in retrains if (r.trigger or 0) >= found[0].id), None)
    decided = known.decisions.get("retrain")
    did = decided.sentence if decided else "No retraining was requested yet."
    if answer:
        did = f"Retraining was requested: attempt {answer.attempt}, run {answer.run_id[:8]}."
    names = ", ".join(dict.fromkeys(report.partition or "" for report in found))
    yield Alert(
        key="major drift",
        title="Major drift",
        since=found[0].timestamp,
        what=f"{names}: {why(found[-1])}",
        did=did,
        todo="Look at the columns that moved: a change of practice is answered by the "
        "retraining, a fault of the source is to be mended there.",
        links=(*dagit.of(found[-1]), *(dagit.run(answer.run_id) if answer else ())),
    )


def _refused(known: Known, dagit: Dagit) -> Iterator[Alert]:
    verdict = _newest(known.verdicts, known, lambda event: not event.metadata.get(PROMOTED, True))
    if verdict:
        yield Alert(
            key="refused challenger",
            title="Challenger refused",
            since=verdict.timestamp,
            what=why(verdict),
            did="The champion stays and goes on serving; the challenger is kept in MLflow with "
            "the verdict.",
            todo="Read which clause failed (check challenger_beats_champion). If the champion "
            "does its work, nothing: the next drift trains again. Otherwise mend the data and "
            "launch retrain by hand.",
            links=dagit.of(verdict),
        )


def _rolled_back(known: Known, dagit: Dagit) -> Iterator[Alert]:
    failed = _newest(known.deployments, known, lambda e: bool(e.metadata.get("rolled_back")))
    if failed:
        yield Alert(
            key="failed release",
            title=f"Release of version {failed.metadata.get('wanted', 'unknown')} failed",
            since=failed.timestamp,
            what=why(failed),
            did="The release was taken back; where there was a version before, it serves and is "
            "the champion again.",
            todo="Read the run's log for what the new version did not answer, mend it, and "
            "launch retrain by hand to make a version that can be released.",
            links=dagit.of(failed),
        )


def _stale(known: Known, dagit: Dagit) -> Iterator[Alert]:
    source, arrival = known.raw, known.arrival
    if source and known.now - source.timestamp > (window := RAW_FRESH_FOR.total_seconds()):
        yield Alert(
            key="stale data/raw_encounters",
            title="The source was not read for long",
            since=source.timestamp + window,
            what=f"raw_encounters is older than {RAW_FRESH_FOR.days} days.",
            did="Nothing: models go on learning from what was read then.",
            todo="Launch the job refresh_data, and bootstrap if the source is another one.",
            links=dagit.of(source),
        )
    if arrival and known.now - arrival.timestamp > (window := BATCH_FRESH_FOR.total_seconds()):
        is_over = known.batches is not None and arrival.partition == batch_key(known.batches)
        yield Alert(
            key="stale data/future_batch",
            title="No batch arrived for long",
            since=arrival.timestamp + window,
            what=f"The newest batch is older than {BATCH_FRESH_FOR.days} days: "
            f"{arrival.partition or 'none arrived yet'}.",
            did="Nothing: the champion goes on serving, and nobody watches for drift.",
            todo="Every batch of the source has arrived: point HEALTH_PREDICT_DATA to newer "
            "encounters and launch refresh_data."
            if is_over
            else "See in Dagit why the schedule arriving_batches does not bring the next one: is "
            "it on, does the daemon run, what does its newest tick say?",
            links=dagit.of(arrival),
        )


def _given_up(known: Known, dagit: Dagit) -> Iterator[Alert]:
    for job, decision in known.decisions.items():
        tried = known.of_job(job)
        newest = next((run for run in tried if run.state != "running"), None)
        if decision.alert:
            yield Alert(
                key=f"given up/{job}",
                title=f"{job} was given up",
                since=newest.created if newest else known.now,
                what=decision.sentence,
                did="It is not tried again by itself; what is served stays as it is.",
                todo=f"Read the run's log, mend the cause and launch {job} by hand.",
                links=dagit.run(newest.run_id) if newest else (),
            )
        elif newest and newest.state == "failed" and tried[0].state == "running":
            yield from _still(known, f"given up/{job}")  # its remedy is under way


def run_alerts(
    all_runs: Iterable[Run], dagit: Dagit, before: Mapping[str, Alert] | None = None
) -> list[Alert]:
    """Returns what the newest ended run of each batch, or of each job without batches, calls for.

    A batch is watched over jobs: one whose ingestion failed may be mended by hand in Dagit.

    Args:
        all_runs: of any jobs.
        dagit: where links point.
        before: the alerts that were open until now.
    """
    ended = sorted((r for r in all_runs if r.state != "running"), key=lambda r: -r.created)
    found = []
    for subject, run in newest_ended(ended).items():
        if run.state != "failed":
            continue
        if run.held_back:
            found.append(_held_back(subject, run, dagit))
            continue
        found.append(_failed(subject, run, dagit))
        failures = sum(subject_of(r) == subject and r.state == "failed" for r in ended)
        # Failures that are no longer among the runs at hand were counted when it was opened.
        stuck = failures >= MOST_ATTEMPTS or f"given up/{subject}" in (before or {})
        if run.partition and stuck:
            found.append(_stuck(subject, run, dagit))
    return found


def _held_back(subject: str, run: Run, dagit: Dagit) -> Alert:
    return Alert(
        key=f"quarantine/{subject}",
        title=f"{subject} is held back",
        since=run.created,
        what=run.held_back,
        did="Nothing of the batch was scored or learned from; its broken rows are in quarantine.",
        todo="Do what stands above; a run of the batch that ends well ends this alert.",
        links=(*dagit.run(run.run_id), *dagit.asset("quarantine")),
    )


def _failed(subject: str, run: Run, dagit: Dagit) -> Alert:
    job = "A materialisation by hand" if run.job == BY_HAND else run.job
    of = f" of {run.partition}" if run.partition else ""
    return Alert(
        key=f"run failed/{subject}",
        title=f"{job}{of} failed",
        since=run.created,
        what=f"Run {run.run_id[:8]} of {job}{of} failed or was cancelled. {run.reason}".strip(),
        did=_AFTER_FAILURE.get(run.job, _STARTED_BY_PERSON),
        todo="Read the run's log; if it is not tried again by itself, mend the cause and launch "
        "it by hand.",
        links=dagit.run(run.run_id),
    )


def _stuck(subject: str, run: Run, dagit: Dagit) -> Alert:
    return Alert(
        key=f"given up/{subject}",
        title=f"{subject} was given up",
        since=run.created,
        what=f"The runs of {subject} failed {MOST_ATTEMPTS} times or more.",
        did="It is not tried again by itself; other batches are not held up.",
        todo="Read the run's log, mend the cause and materialise the batch by hand.",
        links=dagit.run(run.run_id),
    )


def _untold(known: Known, found: Sequence[Alert]) -> Iterator[Alert]:
    """Yields alerts about runs that have ended too long ago to be among the runs at hand."""
    told = {*newest_ended(known.runs), *known.mended, *known.decisions}
    open_already = {alert.key for alert in found}
    for subject, key in run_subjects(known.before):
        if subject not in told and key not in open_already:
            yield from _still(known, key)


def run_subjects(before: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields job or partition, and key, of the alerts that a run is to resolve."""
    for key in before:
        kind, _, subject = key.partition("/")
        if kind in ("run failed", "quarantine", "given up"):
            yield subject, key


def _still(known: Known, key: str) -> Iterator[Alert]:
    if key in known.before:
        yield known.before[key]


def newest_ended(all_runs: Iterable[Run]) -> dict[str, Run]:
    """Returns subject -> its newest run that has ended."""
    newest: dict[str, Run] = {}
    for run in sorted(all_runs, key=lambda r: -r.created):
        if run.state != "running":
            newest.setdefault(subject_of(run), run)
    return newest


def subject_of(run: Run) -> str:
    """Returns what a run is of: its batch, or its job."""
    return run.partition or run.job


def _newest(found: Sequence[Event], known: Known, is_wrong: Any) -> Event | None:
    """Returns the newest event if it is wrong, or one that is wrong and that no tick has seen."""
    ordered = sorted(found, key=lambda event: event.id)
    wrong = [e for e in ordered if is_wrong(e) and (e.id > known.seen or e is ordered[-1])]
    return wrong[-1] if wrong else None


def _unseen(found: Sequence[Event], known: Known) -> list[Event]:
    return [event for event in found if event.id > known.seen]
