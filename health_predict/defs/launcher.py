"""Where runs are launched: Dagster's default, which besides is asked whether a worker still lives.

Dagster's default launcher leaves the watch to the code server, the worker's parent; a crash that
takes both leaves the run started for ever, and its job blocked. What to do about a run that died
is decided by the sensors and by Dagster's retries, not here. Named in `dagster.yaml`.
"""

import json
import platform

import dagster as dg
import psutil
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

HOST = "health_predict/host"
"""Run tag: the machine that launched the run."""

_ANNOUNCED = "Started process for run"
# How Dagster names the machine of a code server that the daemon itself has started.
_HERE = "localhost"
# A process starts before it announces itself, but the kernel counts its start from a boot time in
# whole seconds, which moves when the clock is set.
_CLOCK_SECONDS = 5.0


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """Dagster's default run launcher, whose workers run monitoring can ask about."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Launches a run and notes on which machine."""
        self._instance.add_run_tags(context.dagster_run.run_id, {HOST: platform.node()})
        super().launch_run(context)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Tells whether the worker of a started run is gone.

        Run monitoring fails a run for every other answer than RUNNING, hence that one is given too
        for a worker that cannot be looked at from here.
        """
        announced = self._announced(run)
        if not announced:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "no process has announced itself")
        names = " and ".join(f"process {pid}" for pid, _ in announced)
        host = _host(run)
        if host != platform.node():
            words = f"{names} on {host}, which cannot be looked at from {platform.node()}"
            return CheckRunHealthResult(WorkerStatus.RUNNING, words)
        if any(is_alive(pid, since) for pid, since in announced):
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"{names} on {host}, alive")
        return CheckRunHealthResult(
            WorkerStatus.FAILED,
            f"{names} on {host} ended without a word: it was killed, memory ran out, or the "
            "machine stopped",
        )

    def get_run_worker_debug_info(
        self, run: dg.DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """Returns what is known of the worker of a run that did not start in time."""
        if run.status is dg.DagsterRunStatus.STARTED:
            return None  # already said by the check of its health
        return f"Its worker: {self.check_run_worker_health(run).msg}."

    def _announced(self, run: dg.DagsterRun) -> list[tuple[int, float]]:
        """Returns each worker's process id and when it was told, epoch seconds.

        There are two where the code server died while it launched the run, which is then launched
        again: one of them works, the other sees that and ends.
        """
        return [
            (int(str(event.engine_event_data.metadata["pid"].value)), entry.timestamp)
            for entry in self._instance.all_logs(run.run_id, dg.DagsterEventType.ENGINE_EVENT)
            if (event := entry.get_dagster_event()).message is not None
            and event.message.startswith(_ANNOUNCED)
        ]


def is_alive(pid: int, since: float) -> bool:
    """Returns whether the process that had an id at a time still runs.

    Args:
        pid: its id, which may have gone to another process.
        since: a time at which it ran, epoch seconds.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(process.create_time() <= since + _CLOCK_SECONDS)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # not to be looked at, which is no reason to fail its run


def _host(run: dg.DagsterRun) -> str:
    """Returns the machine that a run's worker is on: the code server's."""
    server: str = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("host", _HERE)
    return run.tags.get(HOST, "an unknown machine") if server == _HERE else server
