"""The processes of a loop on one machine: started together, watched, and stopped together.

What they are is said by their commands; what they do is theirs. No process outlives the one that
started it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from health_predict.settings import ROOT, SILENCED, Settings

# Runs in flight get this long to end in order; what is left then is killed.
_GRACE_SECONDS = 15.0
_STOPPING = (signal.SIGTERM, signal.SIGINT)


class ProcessError(RuntimeError):
    """A process cannot be started or has ended; the message names it and its log."""


@dataclass
class Processes:
    """Processes that belong to one state folder.

    Attributes:
        settings: whose `var` holds the logs.
        environment: what the processes see beside this one's environment.
    """

    settings: Settings
    environment: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Starts a process; its output goes to `var/logs/<name>.log`."""
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.running[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **SILENCED, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches this process, which stops the others
            )
        pids = {name: process.pid for name, process in self.running.items()}
        _pids_file(self.settings).write_text(json.dumps(pids))

    def log(self, name: str) -> Path:
        """Returns the log of a process."""
        return self.settings.var / "logs" / f"{name}.log"

    def check(self) -> None:
        """Raises `ProcessError` if a process has ended."""
        for name, process in self.running.items():
            if process.poll() is not None:
                lines = self.log(name).read_text(errors="replace").splitlines()[-5:]
                raise ProcessError(
                    f"{name} ended with exit code {process.returncode}; last lines of "
                    f"{self.log(name)}:\n" + "\n".join(lines)
                )

    def stop(self) -> None:
        """Stops all, with everything they started."""
        members = [m for process in self.running.values() for m in _family(process.pid)]
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(members, timeout=_GRACE_SECONDS)
        for member in left:
            member.kill()
        psutil.wait_procs(left, timeout=5)
        self.running.clear()
        _pids_file(self.settings).unlink(missing_ok=True)


@contextmanager
def processes(settings: Settings) -> Iterator[Processes]:
    """Yields an empty set of processes for a state folder; whatever is started is stopped.

    Raises:
        ProcessError: processes of another command still run on the same state.
    """
    settings.var.mkdir(parents=True, exist_ok=True)
    refuse_if_running(settings)
    group = Processes(settings, environment(settings))
    # SIGINT too: a command started in the background of a script would ignore it.
    before = {number: signal.signal(number, _interrupt) for number in _STOPPING}
    try:
        yield group
    finally:
        group.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def refuse_if_running(settings: Settings) -> None:
    """Raises `ProcessError` if processes of another command run on the state folder."""
    alive = living(settings)
    if alive:
        words = ", ".join(f"{name} (process {pid})" for name, pid in alive.items())
        raise ProcessError(f"{words} still uses {settings.var}: stop it first")


def started(settings: Settings) -> dict[str, int]:
    """Returns what a command started on the state folder and did not stop: name -> process id."""
    path = _pids_file(settings)
    pids: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    return pids


def living(settings: Settings) -> dict[str, int]:
    """Returns what of `started` lives; the others died, or were killed with their command."""
    return {name: pid for name, pid in started(settings).items() if _is_ours(pid)}


def environment(settings: Settings) -> dict[str, str]:
    """Returns the environment that makes Dagster use the state folder, settings included."""
    set_fields = settings.model_dump(mode="json", exclude_none=True)
    return {
        "DAGSTER_HOME": str(dagster_home(settings)),
        **{f"HEALTH_PREDICT_{name.upper()}": str(value) for name, value in set_fields.items()},
    }


def dagster_home(settings: Settings) -> Path:
    """Returns Dagster's home in the state folder, the instance file written for it.

    Raises:
        ProcessError: its database is not named.
    """
    if settings.deployment != "local" and not settings.postgres:
        raise ProcessError(
            f"HEALTH_PREDICT_DEPLOYMENT={settings.deployment} keeps Dagster's records in Postgres: "
            "set HEALTH_PREDICT_POSTGRES, or HEALTH_PREDICT_DEPLOYMENT=local"
        )
    home = (settings.var / "dagster").absolute()
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(instance_file(settings))
    return home


def instance_file(settings: Settings) -> str:
    """Returns what Dagster's instance file has to say for the deployment and the state folder."""
    local = settings.deployment == "local"
    instance = (ROOT / ("dagster.yaml" if local else "iac/host/dagster.yaml")).read_text()
    # The file at the root names var/ beside it; the state folder may be elsewhere.
    return instance.replace("var/dagster", str((settings.var / "dagster").absolute()))


def daemon_command() -> list[str]:
    """Returns the command of Dagster's daemon: schedules, sensors and the run queue."""
    return [*_tool("dagster-daemon"), "run", "-w", str(ROOT / "workspace.yaml")]


def webserver_command(port: int) -> list[str]:
    """Returns the command of Dagster's web server."""
    workspace = str(ROOT / "workspace.yaml")
    return [*_tool("dagster-webserver"), "-h", "127.0.0.1", "-p", str(port), "-w", workspace]


def mlflow_command(settings: Settings, port: int) -> list[str]:
    """Returns the command of MLflow's UI on the same state, without its job workers."""
    return [
        *("env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"),
        *(*_tool("mlflow"), "server", "--backend-store-uri", settings.tracking_uri),
        *("--artifacts-destination", settings.artifacts),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def supervisor_command(settings: Settings) -> list[str]:
    """Returns the command of the local serving supervisor."""
    return [
        *(sys.executable, "-m", "health_predict.supervisor"),
        *(str(settings.serving), str(settings.port), str(settings.bentoml_home)),
    ]


def _tool(name: str) -> list[str]:
    return [sys.executable, str(Path(sys.executable).with_name(name))]


def wait_until_ended(group: Processes) -> None:
    """Waits until a process ends, which is an error, or the user interrupts."""
    while True:
        group.check()
        time.sleep(1)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_ours(pid: int) -> bool:
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return any(word in command for word in ("dagster", "mlflow", "health_predict"))


def _pids_file(settings: Settings) -> Path:
    return settings.var / "processes.json"
