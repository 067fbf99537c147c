"""One turn of the whole loop, watched: real daemon, real schedule and sensors, real service.

Starts the processes, says what happens and why while it happens, and stops when every batch is
handled. Nothing is scheduled here: Dagster's daemon does it all.
"""

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import dagster as dg

from health_predict import processes, supervisor
from health_predict.defs.automation import (
    deploy_decision,
    matured_decision,
    patience,
    retrain_decision,
)
from health_predict.defs.facts import Event, Run, events, in_progress, observations, runs
from health_predict.local_platform import LocalPlatform
from health_predict.loop_report import LoopReport
from health_predict.settings import Settings
from health_predict.store import open_store
from health_predict.story import LoopStory

_POLL_SECONDS = 1.0
# The daemon asks for the first training within seconds, unless it cannot load the definitions.
_LONGEST_SILENCE = 90.0
_LONGEST_OUTAGE = 120.0
BENCH = "bench"
"""Folder of `var` that keeps what benchmarks measured: a new loop leaves it alone."""

Found = TypeVar("Found")

_WATCHED = (
    "raw_encounters",
    "registered_model",
    "readmission_deployment",
    "future_batch",
    "drift_report",
    "batch_performance",
)

Say = Callable[[str, str], None]
"""Told a subject and a sentence."""


class LoopError(RuntimeError):
    """The loop did not turn; the message says where it stood still and what to do."""


def begin_afresh(settings: Settings) -> bool:
    """Removes the state of an earlier loop, measurements kept; returns whether there was any.

    Raises:
        ProcessError: something still runs on that state.
    """
    if not settings.var.exists():
        return False
    processes.refuse_if_running(settings)
    state = [path for path in settings.var.iterdir() if path.name != BENCH]
    for path in state:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return bool(state)


def turn(settings: Settings, say: Say, *, timeout: float) -> LoopReport:
    """Runs the loop until every batch is handled and the champion serves.

    Args:
        settings: `batches` says how many batches there are.
        say: told what happens as it happens.
        timeout: seconds after which a loop that has not finished is given up.

    Returns:
        The report, whose page is written; its story is also in `var/loop.json`.

    Raises:
        LoopError: an alert was raised, or time ran out.
        ProcessError: a process ended that should not have.
    """
    began = time.monotonic()
    settings.keep()
    with processes.processes(settings) as group, instance_of(settings) as instance:
        _require_nothing(instance, settings)
        group.start("supervisor", processes.supervisor_command(settings))
        group.start("daemon", processes.daemon_command())
        first = _watch(instance, settings, group, say, began + timeout)
        say("drill", "A bad release is rolled out on purpose.")
        drill(instance, settings)
        say("report", "What the loop did is put on one page.")
        made = report(instance, settings)
        told = _ask_the_service(made.story, settings)
    seconds = {
        "first_champion": round(first - began, 1),
        "total": round(time.monotonic() - began, 1),
        **told.seconds,
    }
    told = replace(told, seconds=seconds)
    write(told, settings)
    return replace(made, story=told)


def _require_nothing(instance: dg.DagsterInstance, settings: Settings) -> None:
    """Raises `LoopError` if another loop's state stands in the database or the store.

    What is under `var` was removed; nobody removes what others may still need.
    """
    kept = open_store(settings.store_uri).keys()
    if kept:
        raise LoopError(
            f"the store {settings.store_uri} holds {len(kept):,} values already, and a loop begins "
            "with none: name an empty one in HEALTH_PREDICT_STORE, or `make dev` to go on"
        )
    if instance.get_runs_count():
        raise LoopError(
            "Dagster's database holds runs already, and a loop begins with none: name an empty one "
            "in HEALTH_PREDICT_POSTGRES, or `make dev` to go on"
        )


def instance_of(settings: Settings) -> dg.DagsterInstance:
    """Returns the instance in the state folder, its tables made.

    To be opened before processes are started on it: of two that make the tables at a time, one
    fails.
    """
    return dg.DagsterInstance.from_config(str(processes.dagster_home(settings)))


def write(told: LoopStory, settings: Settings) -> None:
    """Writes the story to `var/loop.json`."""
    path = settings.var / "loop.json"
    path.write_text(json.dumps(told.as_json(), indent=2))


def failure_of(done: dg.ExecuteInProcessResult) -> str:
    """Returns why a run in this process failed, as its step said it."""
    failed = next(e for e in done.all_events if e.is_step_failure)
    said = failed.step_failure_data.user_failure_data
    error = failed.step_failure_data.error
    return str((said and said.description) or (error and error.message) or failed.message)


def drill(instance: dg.DagsterInstance, settings: Settings) -> None:
    """Runs the job `drill`: a bad release on purpose, to see it rolled back.

    Raises:
        LoopError: it could not be begun, or the champion does not answer after it.
    """
    done = _run_here(instance, settings, "drill")
    if not done.success:
        raise LoopError(
            "the drill did not end with the champion answering: its reason is in Dagit, run "
            f"{done.run_id[:8]} of the job drill"
        )


def report(instance: dg.DagsterInstance, settings: Settings) -> LoopReport:
    """Runs the job `report`, which writes the page, and returns what stands on it.

    Raises:
        LoopError: it failed, or the report and the ledger disagree.
    """
    done = _run_here(instance, settings, "report")
    if not done.success:
        raise LoopError(f"the loop report could not be made: {failure_of(done)}")
    for check in done.get_asset_check_evaluations():
        if not check.passed:
            raise LoopError(f"{check.check_name} does not hold: {check.metadata['sentence'].value}")
    made: LoopReport = done.asset_value("loop_report")
    return made


def _run_here(
    instance: dg.DagsterInstance, settings: Settings, job: str
) -> dg.ExecuteInProcessResult:
    """Runs a job in this process, which has its imports already; Dagster's own log is kept out."""
    from health_predict.definitions import assemble

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    return (
        assemble(settings)
        .resolve_job_def(job)
        .execute_in_process(instance=instance, run_config=quiet, raise_on_error=False)
    )


def _watch(
    instance: dg.DagsterInstance,
    settings: Settings,
    group: processes.Processes,
    say: Say,
    deadline: float,
) -> float:
    """Returns when the first champion was there, once all batches are handled."""
    news = _News(instance)
    first: float | None = None
    began = time.monotonic()
    standing = ""
    while True:
        group.check()
        for subject, sentence in _patiently(news.read):
            say(subject, sentence)
        state = _patiently(partial(_state, instance, settings))
        if state.champions and first is None:
            first = time.monotonic()
        if state.alert:
            raise LoopError(state.sentence)
        if state.finished and first is not None:
            return first
        if state.sentence != standing:
            standing = state.sentence
            say("", standing)
        idle = time.monotonic() - began > _LONGEST_SILENCE and first is None
        if idle and not runs(instance, "bootstrap"):
            raise LoopError(
                f"Dagster started nothing within {_LONGEST_SILENCE:.0f} s: its reason is at the "
                f"end of {settings.var / 'logs' / 'daemon.log'}"
            )
        if time.monotonic() > deadline:
            raise LoopError(
                f"not finished in time; it stood at: {state.sentence} "
                f"Logs are in {settings.var / 'logs'}; a longer time is given by --timeout."
            )
        time.sleep(_POLL_SECONDS)


def _patiently(look: Callable[[], Found]) -> Found:
    """Returns what is seen, once a database that went away is back."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

    patience = Retrying(
        retry=retry_if_exception(_is_outage),
        stop=stop_after_delay(_LONGEST_OUTAGE),
        wait=wait_fixed(_POLL_SECONDS),
        reraise=True,
    )
    return patience(look)


def _is_outage(error: BaseException) -> bool:
    """Whether a database does not answer: as it says itself, or as Dagster says who gave up."""
    from sqlalchemy.exc import DBAPIError

    return isinstance(error, DBAPIError) or isinstance(error.__cause__, DBAPIError)


@dataclass(frozen=True)
class _State:
    champions: int
    finished: bool
    alert: bool
    sentence: str


def _state(instance: dg.DagsterInstance, settings: Settings) -> _State:
    champions = len(events(instance, "registered_model"))
    handled = {e.partition for e in events(instance, "batch_performance")}
    handled &= {e.partition for e in events(instance, "drift_report")}
    jobs = ("bootstrap", "ingest_batch", "retrain", "deploy")
    if busy := list(in_progress(runs(instance, *jobs))):
        # What is decided of it is asked when it is over: asked each time, it would cost the runs
        # a tenth of their time on two cores.
        return _State(champions, False, False, _standing(busy, len(handled), settings.batches))
    retrain = retrain_decision(instance, 0, patience(settings))
    deploy = deploy_decision(instance)
    decisions = (retrain, deploy, matured_decision(instance, settings.label_delay))
    alert = next((decision for decision in decisions if decision.alert), None)
    # Again: what a sensor started meanwhile is no request of theirs any more.
    busy = list(in_progress(runs(instance, *jobs)))
    calm = not busy and not retrain.requests and not deploy.requests
    sentence = alert.sentence if alert else _standing(busy, len(handled), settings.batches)
    return _State(champions, calm and len(handled) >= settings.batches, alert is not None, sentence)


def _standing(busy: list[Run], handled: int, batches: int) -> str:
    count = f"{handled} of {batches} batches handled"
    if busy:
        working = ", ".join(sorted({f"{run.job} {run.partition or ''}".strip() for run in busy}))
        return f"{count}; running: {working}"
    if 0 < handled < batches:
        return f"{count}; waiting for the next to arrive"
    return f"{count}; waiting for the daemon's next tick"


class _News:
    """What has been recorded since the last look, as subject and sentence."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._seen = dict.fromkeys(_WATCHED, 0)
        self._refusals = 0
        self._asked: set[str] = set()
        self._waiting: list[tuple[float, str, str]] = []

    def read(self) -> list[tuple[str, str]]:
        """Returns what is new; what was seen when the database went away is told next time."""
        for news in (self._requests(), self._events(), self._refused()):
            for one in news:
                self._waiting.append(one)
        told, self._waiting = sorted(self._waiting), []
        return [(subject, sentence) for _, subject, sentence in told]

    def _events(self) -> Iterator[tuple[float, str, str]]:
        for asset in _WATCHED:
            for event in events(self._instance, asset, self._seen[asset]):
                self._seen[asset] = event.id
                yield event.timestamp, event.partition or asset, _words(event)

    def _refused(self) -> Iterator[tuple[float, str, str]]:
        found = observations(self._instance, "registered_model")
        for event in found[self._refusals :]:
            yield event.timestamp, "gate", event.metadata["sentence"]
        self._refusals = len(found)

    def _requests(self) -> Iterator[tuple[float, str, str]]:
        for run in runs(self._instance, "bootstrap", "retrain", "deploy"):
            if run.run_id not in self._asked:
                self._asked.add(run.run_id)
                yield run.created, run.job, run.reason or "Started by hand."


def _words(event: Event) -> str:
    facts = event.metadata
    if event.asset == "raw_encounters":
        return f"{facts['dagster/row_count']:,} encounters read ({facts['caption']})."
    if event.asset == "future_batch":
        return f"{facts['dagster/row_count']:,} encounters arrived."
    return str(facts["sentence"])


def _ask_the_service(told: LoopStory, settings: Settings) -> LoopStory:
    from health_predict.verification import over_http, served_version

    secret = settings.service_token
    platform = LocalPlatform(settings.serving, settings.port, settings.bentoml_home)
    ask = over_http(platform.url, secret.get_secret_value() if secret else "", "demo")
    served = served_version(ask)
    if served is None:
        return told
    status, answer = ask("/predict", example(settings))
    if status != 200:
        raise LoopError(f"the service answers {status}: {answer}")
    return replace(told, served_version=served, predict_response=answer)


def example(settings: Settings) -> dict[str, Any]:
    """Returns one encounter of the initial data, as a client would send it."""
    import pandas as pd

    from health_predict.schema import INPUTS

    content = open_store(settings.store_uri).read("initial.parquet")
    frame = pd.read_parquet(io.BytesIO(content), columns=list(INPUTS))
    record: dict[str, Any] = json.loads(frame.head(1).to_json(orient="records"))[0]
    return record


def serve(settings: Settings) -> None:
    """Serves the deployed champion in the foreground until interrupted.

    Raises:
        LoopError: nothing was ever deployed.
    """
    if supervisor.wanted(settings.serving) is None:
        raise LoopError(
            "there is no champion to serve yet: `make demo` makes one, or `make dev` and wait "
            "for the job deploy"
        )
    supervisor.run(settings.serving, settings.port, settings.bentoml_home)
