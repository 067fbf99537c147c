"""The doctor on what works by itself: storage, daemon, ticks, champion, ledger, service."""

import fcntl
import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import psutil
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo

from health_predict import processes, supervisor
from health_predict.defs.automation import automation as assemble_automation
from health_predict.doctoring import models, orchestrator, rounds, service, ticking
from health_predict.doctoring.finding import Finding
from health_predict.ledger import Ledger
from health_predict.settings import ROOT, Settings
from health_predict.store import open_store
from health_predict_tests import ticks
from health_predict_tests.receivers import serving
from health_predict_tests.test_retrain_loop import environment, turn

LATE = 4 * 3600.0


def found(*findings: Finding) -> Finding:
    """Returns the one finding there is."""
    (finding,) = findings
    return finding


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(var=tmp_path / "var")


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of the state folder, its tables made."""
    with dg.DagsterInstance.from_config(str(processes.dagster_home(settings))) as made:
        yield made


def contents(var: Path) -> dict[str, str]:
    """Returns the digest of every file, journals of SQLite left out."""
    return {
        str(path.relative_to(var)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(var.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


# --- storage and code ----------------------------------------------------------------------------


def test_a_state_that_is_not_there_is_not_made(settings: Settings) -> None:
    known = orchestrator.storage(settings)
    assert (known.finding.state, known.instance) == ("off", None)
    assert "make demo" in known.finding.remedy
    findings = {finding.part: finding for finding in findings_of(settings)}
    assert findings["state folder"].state == "off"
    assert findings["store"].state == "off"
    assert findings["MLflow"].state == "off"
    assert findings["service"].state == "off"
    assert not settings.var.exists()


def findings_of(settings: Settings) -> list[Finding]:
    """Returns the findings of a round in this process."""
    from health_predict.doctoring.finding import examine

    return examine(rounds.due(settings))


def test_a_round_changes_nothing(settings: Settings, instance: dg.DagsterInstance) -> None:
    ticks.record(instance, "raw_encounters", source="synthetic", caption="c")
    Ledger(open_store(settings.store_uri)).append("verdict", who="a test", why="to be read")
    before = contents(settings.var)
    findings = {finding.part: finding for finding in findings_of(settings)}
    assert contents(settings.var) == before
    assert not (settings.var / "store" / "doctor").exists()
    assert findings["Dagster storage"].state == "ok"
    assert findings["Dagster daemon"].state == "off"
    assert findings["code location"].state == "ok"
    assert findings["sensor retrain_on_drift"].seen == "waits for the daemon; has not ticked yet"
    assert findings["schedule arriving_batches"].state == "off"
    assert findings["ledger"].state == "ok"


def test_a_damaged_database_of_dagster_is_wrong_and_nothing_else(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    (runs,) = (settings.var / "dagster" / "storage").rglob("runs.db")
    runs.write_bytes(b"no database" * 1000)
    findings = {finding.part: finding for finding in findings_of(settings)}
    assert "file is not a database" in findings["Dagster storage"].seen
    assert "backup" in findings["Dagster storage"].remedy
    assert findings["code location"].state == "ok"


def test_a_schema_of_another_version_is_named(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    (runs,) = (settings.var / "dagster" / "storage").rglob("runs.db")
    with closing(sqlite3.connect(runs)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '16e3115a602a'")
    finding = orchestrator.storage(settings).finding
    assert "its schema is 16e3115a602a instead of" in finding.seen
    assert "dagster instance migrate" in finding.remedy


# --- the daemon ----------------------------------------------------------------------------------


def beat(
    instance: dg.DagsterInstance, age: float = 0.0, errors: Sequence[str] = (), but: str = ""
) -> None:
    for kind in instance.get_required_daemon_types():
        if kind != but:
            shown = [SerializableErrorInfo(error, [], None) for error in errors]
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - age, kind, "d", shown))


@contextmanager
def daemon(settings: Settings) -> Iterator[int]:
    """Yields a process that is taken for the daemon of the state folder."""
    home = str((settings.var / "dagster").absolute())
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "dagster-daemon"],
        env={**os.environ, "DAGSTER_HOME": home},
    )
    try:
        deadline = time.monotonic() + 30
        while ticking.daemon_of(settings) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_daemon_that_was_stopped_in_order_is_off_with_the_way_to_start_it(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert "never was a heartbeat" in ticking.daemon(settings, instance).finding.seen
    beat(instance)
    working = ticking.daemon(settings, instance)
    assert (working.finding.state, working.since) == ("off", None)
    assert working.finding.remedy == "make dev"


def test_a_daemon_that_nobody_stopped_and_that_is_gone_is_wrong(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    (settings.var / "processes.json").write_text(json.dumps({"daemon": ended.pid}))
    beat(instance, LATE)
    working = ticking.daemon(settings, instance)
    assert working.finding.state == "wrong"
    assert working.finding.seen == (
        "daemon not running, though nobody stopped it; last heartbeat 4 h ago"
    )
    assert "daemon.log" in working.finding.remedy
    assert working.since is None


def test_a_daemon_is_judged_by_its_heartbeats(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon(settings) as pid:
        just = ticking.daemon(settings, instance)
        assert just.finding.seen == f"process {pid}, just started"
        assert just.since is not None
        monkeypatch.setattr(ticking, "_START_SECONDS", 0.0)
        beat(instance, LATE)
        assert "daemon not running" in ticking.daemon(settings, instance).finding.seen
        beat(instance, but="SCHEDULER")
        one = ticking.daemon(settings, instance)
        assert one.finding.seen == "no heartbeat of SCHEDULER (4 h ago)"
        assert one.since is not None
        beat(instance, errors=["cannot load the workspace"])
        assert ticking.daemon(settings, instance).finding.seen == "cannot load the workspace"
        beat(instance)
        assert ticking.daemon(settings, instance).finding.state == "ok"


def test_on_a_host_a_daemon_that_is_silent_is_wrong(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    host = settings.model_copy(update={"deployment": "host"})
    assert ticking.daemon(host, instance).finding.state == "wrong"
    beat(instance)
    assert ticking.daemon(host, instance).finding.state == "ok"


# --- sensors and schedules -----------------------------------------------------------------------


def origin(name: str) -> RemoteInstigatorOrigin:
    location = RegisteredCodeLocationOrigin("health_predict")
    return RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)


def add(
    instance: dg.DagsterInstance,
    name: str,
    status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE,
) -> InstigatorState:
    """Has an instance know a sensor, as the daemon does."""
    state = InstigatorState(origin(name), InstigatorType.SENSOR, status, SensorInstigatorData())
    instance.add_instigator_state(state)
    return state


def tick(
    instance: dg.DagsterInstance,
    state: InstigatorState,
    status: TickStatus,
    age: float = 0.0,
    **facts: Any,
) -> None:
    instance.create_tick(
        TickData(
            instigator_origin_id=state.instigator_origin_id,
            instigator_name=state.name,
            instigator_type=state.instigator_type,
            status=status,
            timestamp=time.time() - age,
            selector_id=state.selector_id,
            **facts,
        )
    )


def automation(
    settings: Settings, instance: dg.DagsterInstance, since: float | None
) -> dict[str, Finding]:
    return {each.part: each for each in ticking.automation(settings, instance, since)}


def test_the_newest_tick_is_told_with_the_reason_why_it_skipped(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    sensor = add(instance, "retrain_on_drift")
    tick(instance, sensor, TickStatus.SKIPPED, 30, skip_reason="Nothing new was reported.")
    tick(instance, sensor, TickStatus.STARTED, 1)
    asked = add(instance, "deploy_on_promotion")
    tick(instance, asked, TickStatus.SUCCESS, 400, run_ids=["a"])
    by_part = automation(settings, instance, time.time() - LATE)
    skipped = by_part["sensor retrain_on_drift"]
    assert skipped.state == "ok"
    assert re.fullmatch(r"ticked \d+ s ago, skipped: Nothing new was reported\.", skipped.seen)
    late = by_part["sensor deploy_on_promotion"]
    assert late.state == "wrong"
    assert late.seen.endswith("did not tick; ticked 7 min ago: 1 run requested")
    assert "restart the daemon" in late.remedy
    resting = automation(settings, instance, None)
    assert {finding.state for finding in resting.values()} == {"off"}
    assert resting["sensor deploy_on_promotion"].seen.startswith("waits for the daemon; ticked")


def test_a_sensor_that_failed_or_was_switched_off_is_wrong(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    failing = add(instance, "matured_labels")
    error = SerializableErrorInfo("KeyError: 'sentence'\n\nmore", [], None)
    tick(instance, failing, TickStatus.FAILURE, 5, error=error)
    add(instance, "retrain_on_drift", InstigatorStatus.STOPPED)
    by_part = automation(settings, instance, time.time())
    failed = by_part["sensor matured_labels"]
    assert failed.state == "wrong"
    assert re.fullmatch(r"ticked \d+ s ago and failed: KeyError: 'sentence' more", failed.seen)
    off = by_part["sensor retrain_on_drift"]
    assert (off.state, off.seen) == ("wrong", "switched off; has not ticked yet")
    assert off.remedy == "switch it on: Dagit > Automation > retrain_on_drift"
    # Nothing is ticked while the daemon rests, and it may have ended in the middle of a tick.
    resting = automation(settings, instance, None)
    assert resting["sensor matured_labels"].state == "off"
    assert resting["sensor retrain_on_drift"].state == "wrong"


def test_a_schedule_is_due_by_its_cron_and_not_before_it_was_first_seen(
    settings: Settings,
) -> None:
    hourly = settings.model_copy(update={"cadence": "0 * * * *"})
    made, _ = assemble_automation(hourly)
    (schedule,) = [each for each in made if each.name == "arriving_batches"]

    def owed(begun: float, last: float) -> float | None:
        data = ScheduleInstigatorData("0 * * * *", begun)
        known = InstigatorState(
            origin(schedule.name), InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, data
        )
        return ticking._owed(schedule, known, last)

    now = time.time()
    due = owed(0.0, now - LATE)
    assert due is not None
    assert now - 3_600 <= due <= time.time()
    assert due % 3_600 == 0
    assert owed(0.0, due) is None
    assert owed(due + 1, 0.0) is None


# --- champion, ledger, service -------------------------------------------------------------------


@pytest.fixture
def registered(settings: Settings) -> Settings:
    """A state whose registry holds version 1, the champion, as the ledger says."""
    import mlflow

    from health_predict.tracking import MODEL, Registry

    settings.var.mkdir(parents=True)
    registry = Registry(settings.tracking_uri, settings.artifacts)
    client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
    client.create_registered_model(MODEL)
    for _ in range(2):
        tags = {"family": "xgboost", "facts": "{}"}
        client.create_model_version(MODEL, source="x", run_id=None, tags=tags)
    registry.promote("1")
    entry = Ledger(open_store(settings.store_uri)).append(
        "alias_move", who="a test", why="first", version="1", before=None, after="1"
    )
    registry.remember_ledger_head(entry.digest)
    return settings


def look(settings: Settings) -> tuple[Finding, Finding]:
    """Returns what is found of champion and ledger."""
    mlflow = models.tracking(settings)
    known = models.models(settings, mlflow)
    return found(*models.champion(mlflow, known)), found(*models.ledger(settings, mlflow, known))


def test_the_alias_has_to_be_where_the_ledger_says(registered: Settings) -> None:
    from health_predict.tracking import Registry

    champion, ledger = look(registered)
    assert (champion.state, champion.seen) == ("ok", "version 1, xgboost")
    assert ledger.seen == "1 entries, chain verified, alias as recorded"
    Registry(registered.tracking_uri, registered.artifacts).promote("2")
    _, moved = look(registered)
    assert moved.state == "wrong"
    assert moved.seen == "the alias champion is at version 2, by the ledger at 1"
    assert "who moved it" in moved.remedy


def test_a_ledger_that_was_changed_or_cut_is_wrong(registered: Settings) -> None:
    book = registered.var / "store" / "ledger.jsonl"
    whole = book.read_text()
    book.write_text(whole.replace("first", "other"))
    _, changed = look(registered)
    assert "was changed" in changed.seen
    assert "restore the ledger from a backup" in changed.remedy
    book.unlink()
    _, cut = look(registered)
    assert "is missing" in cut.seen


@contextmanager
def supervised(settings: Settings, state: supervisor.State, version: str) -> Iterator[list[Any]]:
    """Stands in for a supervisor and the service behind it; yields what the service answers."""
    answers: list[Any] = [200, 200, {"version": version}]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = answers[0] if self.path == "/readyz" else answers[1]
            body = b"" if self.path == "/readyz" else json.dumps(answers[2]).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    wanted = supervisor.Wanted("readmission:1", version)
    supervisor.want(settings.serving, wanted)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, serving(server):
        status = supervisor.Status(
            os.getpid(), server.server_port, state, wanted, wanted, message="its worker ended"
        )
        (settings.serving / "status.json").write_text(json.dumps(asdict(status)))
        with (settings.serving / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield answers


def test_the_service_has_to_answer_as_the_champion(settings: Settings) -> None:
    def ask(champion: str | None, coming: str = "") -> Finding:
        return found(*service.local(settings, False, champion, lambda: coming))

    with supervised(settings, "serving", "1") as answers:
        assert ask("1").seen.endswith(": the champion")
        assert ask(None).state == "ok"
        stale = ask("2")
        assert stale.state == "wrong"
        assert "version 1 answers" in stale.seen
        assert "the champion is version 2" in stale.seen
        assert ask("2", "Rolling out version 2.").state == "ok"
        answers[1] = 401
        closed = ask("1")
        assert "tells no version" in closed.seen
        assert "HEALTH_PREDICT_SERVICE_TOKEN" in closed.remedy
        answers[0] = 503
        assert "/readyz answers 503" in ask("1").seen
    with supervised(settings, "failed", "1"):
        failed = ask("1")
        assert failed.seen == "version 1 does not run: its worker ended"
        assert "launch the job deploy" in failed.remedy


def test_a_service_that_was_stopped_in_order_is_told_from_one_that_died(settings: Settings) -> None:
    supervisor.want(settings.serving, supervisor.Wanted("readmission:1", "1"))
    assert found(*service.local(settings, False, "1", str)).state == "off"
    died = found(*service.local(settings, True, "1", str))
    assert died.state == "wrong"
    assert "supervisor.log" in died.remedy
    host = settings.model_copy(update={"deployment": "host"})
    assert found(*service.local(host, False, "1", str)).state == "wrong"


def test_a_roll_out_that_is_due_is_told(instance: dg.DagsterInstance) -> None:
    assert orchestrator.rolling_out(instance) == ""
    ticks.champion(instance, "2")
    assert "version 2" in orchestrator.rolling_out(instance).lower()
    run = dg.DagsterRun("deploy", run_id=str(uuid4()), status=dg.DagsterRunStatus.STARTED)
    instance.add_run(run)
    assert orchestrator.rolling_out(instance) == "a roll-out is under way"


# --- the whole, for real -------------------------------------------------------------------------


def doctor(environment: dict[str, str]) -> tuple[int, dict[str, Finding]]:
    """Runs the command; returns its exit code and its findings by part."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("health-predict")), "doctor", "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.startswith("{"), done.stderr
    findings = [Finding(**each) for each in json.loads(done.stdout)["findings"]]
    return done.returncode, {finding.part: finding for finding in findings}


@pytest.mark.loop
def test_all_is_green_after_a_loop_and_a_daemon_that_is_killed_is_named(tmp_path: Path) -> None:
    var = tmp_path / "var"
    given = {
        "search_backend": "serial",
        "families": "logistic_regression",
        "rows": 8000,
    }
    turn(var, "--rows", "8000", "--batches", "2", **given)
    before = contents(var)
    here = environment(var)
    code, findings = doctor(here)
    assert [each for each in findings.values() if each.state == "wrong"] == []
    assert code == 0
    assert contents(var) == before
    assert findings["Dagster daemon"].state == "off"
    assert findings["service"].remedy == "make serve, or make dev"
    assert findings["ledger"].seen.endswith("alias as recorded")
    assert "ticked" in findings["sensor retrain_on_drift"].seen

    with served(here, var) as pids:
        code, findings = doctor(here)
        assert [each for each in findings.values() if each.state == "wrong"] == []
        assert findings["Dagster daemon"].state == "ok"
        assert findings["service"].seen.endswith(": the champion")
        assert f"process {pids['supervisor']}" in findings[f"port {port_of(here)} (service)"].seen
        os.kill(pids["daemon"], signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pids["daemon"])], timeout=10)
        code, findings = doctor(here)
        assert code == 1
        assert findings["Dagster daemon"].seen.startswith("daemon not running, though nobody")


def port_of(environment: dict[str, str]) -> str:
    return environment["HEALTH_PREDICT_PORT"]


@contextmanager
def served(environment: dict[str, str], var: Path) -> Iterator[dict[str, int]]:
    """Starts supervisor and daemon as `dev` does, whose command was killed since."""
    code = (
        "import time\n"
        "from health_predict import processes\n"
        "from health_predict.settings import Settings\n"
        "s = Settings.of_state()\n"
        "with processes.processes(s) as group:\n"
        "    group.start('supervisor', processes.supervisor_command(s))\n"
        "    group.start('daemon', processes.daemon_command())\n"
        "    print('started', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert command.stdout
    assert command.stdout.readline() == "started\n"
    pids: dict[str, int] = json.loads((var / "processes.json").read_text())
    family = [psutil.Process(pid) for pid in pids.values()]
    try:
        own = Settings(var=var)
        deadline = time.monotonic() + 240
        while (now := supervisor.status(own.serving)) is None or now.state != "serving":
            assert time.monotonic() < deadline, now
            time.sleep(0.5)
        command.kill()
        command.wait()
        yield pids
    finally:
        command.kill()
        command.wait()
        members = [m for p in family if p.is_running() for m in (p, *p.children(recursive=True))]
        for member in members:
            member.terminate()
        _, left = psutil.wait_procs(members, timeout=30)
        for member in left:
            member.kill()
