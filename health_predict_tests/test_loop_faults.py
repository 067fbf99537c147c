"""What happens when processes are killed: the real daemon, the real training, and SIGKILL.

How a dead worker is recognised comes first. Then one daemon and one state serve all tests in turn;
each reports a drift of its own, so that a retraining answers it.
"""

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import dagster as dg
import pandas as pd
import psutil
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from health_predict import processes
from health_predict.defs.facts import Run, events, runs
from health_predict.defs.launcher import HOST, WatchedRunLauncher, is_alive
from health_predict.processes import Processes
from health_predict.settings import ROOT, Settings
from health_predict.tracking import Registry

Found = TypeVar("Found")

# How long anything may take before a test gives up: far longer than it does.
PATIENCE_SECONDS = 90.0
LAUNCHER = {"module": "health_predict.defs.launcher", "class": "WatchedRunLauncher"}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(overrides={"run_launcher": LAUNCHER}) as real:
        yield real


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def started(instance: dg.DagsterInstance, *pids: int, **tags: str) -> dg.DagsterRun:
    """Returns a run that is started, after each process has announced itself as its worker."""
    run = dg.DagsterRun(
        job_name="retrain",
        run_id=str(uuid4()),
        tags={HOST: platform.node(), **tags},
        status=dg.DagsterRunStatus.STARTED,
    )
    instance.add_run(run)
    for pid in pids:
        instance.report_engine_event(
            f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid)
        )
    return run


def health(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[WorkerStatus, str]:
    result = instance.run_launcher.check_run_worker_health(run)
    return result.status, str(result.msg)


def test_a_worker_is_well_while_its_process_lives_and_failed_once_it_is_killed(
    instance: dg.DagsterInstance, sleeper: subprocess.Popen[bytes]
) -> None:
    run = started(instance, sleeper.pid)
    assert health(instance, run)[0] is WorkerStatus.RUNNING
    sleeper.kill()
    sleeper.wait()
    status, words = health(instance, run)
    assert status is WorkerStatus.FAILED
    assert f"process {sleeper.pid}" in words


def test_a_killed_process_whose_parent_does_not_collect_it_is_gone(
    instance: dg.DagsterInstance, sleeper: subprocess.Popen[bytes]
) -> None:
    run = started(instance, sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, but not collected
    assert psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE
    assert health(instance, run)[0] is WorkerStatus.FAILED


def test_a_process_id_that_went_to_another_process_is_not_the_worker() -> None:
    began = psutil.Process().create_time()
    assert is_alive(os.getpid(), began + 1)
    assert not is_alive(os.getpid(), began - 60)


def test_a_run_that_was_launched_twice_is_well_while_one_of_its_workers_lives(
    instance: dg.DagsterInstance, sleeper: subprocess.Popen[bytes]
) -> None:
    run = started(instance, sleeper.pid, os.getpid())
    sleeper.kill()
    sleeper.wait()
    assert health(instance, run)[0] is WorkerStatus.RUNNING


@pytest.mark.parametrize(
    "tags",
    [{HOST: "elsewhere"}, {GRPC_INFO_TAG: '{"host": "elsewhere", "port": 4000}'}],
    ids=["launched elsewhere", "code server elsewhere"],
)
def test_a_run_on_another_machine_is_left_alone(
    instance: dg.DagsterInstance, sleeper: subprocess.Popen[bytes], tags: dict[str, str]
) -> None:
    run = started(instance, sleeper.pid, **tags)
    sleeper.kill()
    sleeper.wait()
    status, words = health(instance, run)
    assert status is WorkerStatus.RUNNING
    assert "elsewhere" in words


def test_a_run_whose_worker_never_announced_itself_is_left_alone(
    instance: dg.DagsterInstance,
) -> None:
    assert health(instance, started(instance))[0] is WorkerStatus.RUNNING


def test_the_instance_asks_the_launcher_often_enough_to_see_any_crash_within_a_minute(
    tmp_path: Path,
) -> None:
    home = processes.dagster_home(Settings(var=tmp_path / "var"))
    with dg.DagsterInstance.from_config(str(home)) as real:
        assert isinstance(real.run_launcher, WatchedRunLauncher)
        assert real.run_monitoring_enabled
        longest = real.run_monitoring_start_timeout_seconds
        assert longest + real.run_monitoring_poll_interval_seconds <= 60


@dataclass
class Loop:
    """A daemon on a state of its own, and what is known of it."""

    settings: Settings
    instance: dg.DagsterInstance
    group: Processes
    registry: Registry

    def start(self) -> None:
        self.group.start("daemon", processes.daemon_command())

    @property
    def daemon(self) -> psutil.Process:
        return psutil.Process(self.group.running["daemon"].pid)

    def drift(self) -> int:
        """Reports that a batch drifted; returns the event's id."""
        champion = self.registry.champion()
        assert champion is not None
        number = len(events(self.instance, "drift_report")) + 1
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                "drift_report",
                partition=f"batch-{number:04d}",
                metadata={
                    "drifted": True,
                    "sentence": "It drifted.",
                    "statistic": 0.9,
                    "champion_version": champion.version,
                },
            )
        )
        return events(self.instance, "drift_report")[-1].id

    def retrains(self, trigger: int) -> list[Run]:
        """Returns the retrainings that were asked for by an event, oldest first."""
        found = [run for run in runs(self.instance, "retrain") if run.trigger == trigger]
        return sorted(found, key=lambda run: run.created)

    def until(
        self, found: Callable[[], Found | None], what: str, seconds: float = PATIENCE_SECONDS
    ) -> Found:
        """Waits for something, and sees that there is a champion as long as it waits."""
        had_champion = self.registry.champion() is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := found():
                return answer
            assert not had_champion or self.registry.champion(), "the champion is gone"
            time.sleep(0.05)
        log = self.group.log("daemon").read_text(errors="replace")[-4000:]
        raise AssertionError(f"not within {seconds:.0f} s: {what}\n{log}")

    def until_asked(self, trigger: int) -> Run:
        return self.until(lambda: self.retrains(trigger), "a retraining is asked for")[0]

    def until_training(self, trigger: int) -> Run:
        """Waits until a retraining has taken its snapshot; seconds of it are left then."""

        def training() -> list[Run]:
            return [run for run in self.retrains(trigger) if run.newest_batch is not None]

        return self.until(training, "a retraining is in its middle")[0]

    def until_ended(self, run: Run) -> Run:
        def ended() -> list[Run]:
            return [
                now
                for now in runs(self.instance, run.job)
                if now.run_id == run.run_id and now.state != "running"
            ]

        return self.until(ended, f"run {run.run_id} of {run.job} ends")[0]

    def until_answered(self, trigger: int) -> list[tuple[int, str]]:
        """Waits until a retraining ended well; returns attempt and state of each, oldest first."""

        def answered() -> bool:
            return any(run.state == "succeeded" for run in self.retrains(trigger))

        self.until(answered, "a retraining ends well", 2 * PATIENCE_SECONDS)
        return [(run.attempt, run.state) for run in self.retrains(trigger)]

    def until_sensor_has_looked(self) -> None:
        """Waits for a whole tick of the retrain sensor that has not begun yet."""
        for _ in range(2):  # when the second begins, the first has ended
            before = time.time()
            self.until(partial(self._ticked_after, before), "a tick of retrain_on_drift")

    def _ticked_after(self, seconds: float) -> bool:
        return self._last_tick() > seconds

    def _last_tick(self) -> float:
        (state,) = (
            state
            for state in self.instance.all_instigator_state()
            if state.instigator_name == "retrain_on_drift"
        )
        return getattr(state.instigator_data, "last_tick_start_timestamp", None) or 0.0

    def worker(self, run: Run) -> psutil.Process:
        """Returns the process of a run, by what it said of itself."""
        said = self.instance.all_logs(run.run_id, dg.DagsterEventType.ENGINE_EVENT)
        found = [entry.get_dagster_event().engine_event_data.metadata for entry in said]
        return psutil.Process(next(int(str(m["pid"].value)) for m in found if "pid" in m))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(
        var=tmp_path_factory.mktemp("faults") / "var",
        rows=8_000,  # of fewer no challenger is good enough
        batches=2,
        trials=3,
        families="logistic_regression",
        search_backend="serial",
        sensor_interval=1,
        rest_batches=0,  # each drift is answered, though no challenger takes over
        major_drift=1.0,  # and a batch that is ingested raises none of its own
        label_delay=1e9,
        cadence="0 0 1 1 *",  # no batch arrives
        port=port,
    )
    home = str(processes.dagster_home(settings))
    with processes.processes(settings) as group, dg.DagsterInstance.from_config(home) as instance:
        # That the first version was rolled out is told beforehand: nothing is to be served.
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                "readmission_deployment",
                metadata={
                    "wanted": "1",
                    "version": "1",
                    "rolled_back": False,
                    "sentence": "It answers.",
                },
            )
        )
        registry = Registry(settings.tracking_uri, settings.artifacts)
        loop = Loop(settings, instance, group, registry)
        loop.start()
        (first,) = loop.until(lambda: runs(instance, "bootstrap"), "the first training begins")
        assert loop.until_ended(first).state == "succeeded"
        assert registry.champion() is not None
        yield loop


def kill(*victims: psutil.Process) -> None:
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    psutil.wait_procs(victims, timeout=10)


def kill_the_worker(loop: Loop, worker: psutil.Process) -> None:
    kill(worker)


def kill_the_worker_and_its_code_server(loop: Loop, worker: psutil.Process) -> None:
    code_server = worker.parent()
    assert code_server is not None
    kill(code_server, worker)


def kill_everything_and_start_again(loop: Loop, worker: psutil.Process | None = None) -> None:
    kill(loop.daemon, *loop.daemon.children(recursive=True))
    loop.start()


@pytest.mark.loop
@pytest.mark.parametrize(
    "crash",
    [kill_the_worker, kill_the_worker_and_its_code_server, kill_everything_and_start_again],
)
def test_a_training_that_is_killed_is_seen_as_failed_and_made_again(
    loop: Loop, crash: Callable[[Loop, psutil.Process], None]
) -> None:
    trigger = loop.drift()
    run = loop.until_training(trigger)
    worker = loop.worker(run)
    crash(loop, worker)
    assert not worker.is_running()
    assert loop.until_ended(run).state == "failed"
    assert loop.until_answered(trigger) == [(1, "failed"), (2, "succeeded")]


@pytest.mark.loop
def test_a_crash_between_request_and_launch_neither_loses_nor_doubles_a_training(
    loop: Loop,
) -> None:
    trigger = loop.drift()
    run = loop.until_asked(trigger)
    kill_everything_and_start_again(loop)
    loop.until_ended(run)
    assert loop.until_answered(trigger)[-1][1] == "succeeded"
    loop.until_sensor_has_looked()
    retrains = runs(loop.instance, "retrain")
    assert all(run.state != "running" for run in retrains), "more was asked for"
    well = Counter(run.trigger for run in retrains if run.state == "succeeded")
    assert well == {alarm.id: 1 for alarm in events(loop.instance, "drift_report")}
    attempts = Counter((run.trigger, run.attempt) for run in retrains)
    assert set(attempts.values()) == {1}, "an attempt was made twice"


def backfill(loop: Loop, *keys: str) -> None:
    """Launches a backfill of these batches as Dagit does, and waits until it has ended."""
    before = len(runs(loop.instance, "ingest_batch"))
    subprocess.run(
        [
            *(sys.executable, str(Path(sys.executable).with_name("dagster"))),
            *("job", "backfill", "-w", str(ROOT / "workspace.yaml"), "-j", "ingest_batch"),
            *("--partitions", ",".join(keys), "--noprompt"),
        ],
        cwd=ROOT,
        env={**os.environ, **loop.group.environment},
        check=True,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
    )

    def ended() -> bool:
        found = runs(loop.instance, "ingest_batch")
        return len(found) == before + len(keys) and all(r.state != "running" for r in found)

    loop.until(ended, "the backfill ends", 2 * PATIENCE_SECONDS)


@pytest.mark.loop
def test_a_backfill_of_a_range_ingests_it_and_again_changes_nothing(loop: Loop) -> None:
    keys = ("batch-0001", "batch-0002")
    loop.instance.add_dynamic_partitions("batches", list(keys))
    backfill(loop, *keys)
    folder = Path(loop.settings.store_uri) / "batch_predictions"
    kept = {key: pd.read_parquet(folder / f"{key}.parquet") for key in keys}
    backfill(loop, *keys)
    for key, frame in kept.items():
        pd.testing.assert_frame_equal(pd.read_parquet(folder / f"{key}.parquet"), frame)
    assert {run.state for run in runs(loop.instance, "ingest_batch")} == {"succeeded"}
