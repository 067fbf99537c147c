"""The services of the comparison as processes: started, found ready, measured, ended.

Workers may live in sessions of their own and outlive who started them, so the processes of a
service are found by a mark that they inherit. What is asked of them, and when, is in `serving`.
"""

import contextlib
import http.client
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import HOST
from benchmarks.peers.bare import MODEL
from benchmarks.peers.prepared import Prepared
from health_predict import prediction_log
from health_predict.backend import free_port
from health_predict.settings import ROOT, SILENCED

_READY_SECONDS = 120.0
_ATTEMPT_SECONDS = 5.0
_GRACE_SECONDS = 10.0
_MARK = "BENCHMARK_SERVICE"


class ServiceError(RuntimeError):
    """A service did not start or does not answer as it should; the message names its log."""


@dataclass(frozen=True)
class Service:
    """A way to serve the model.

    Attributes:
        name: what it is called in the results.
        command: program and arguments; `{port}` stands for the port.
        path: where an encounter is posted to.
        body: encounter -> JSON value that is posted.
        score: JSON answer -> probability of readmission.
        environment: what its processes see beside this one's environment.
    """

    name: str
    command: tuple[str, ...]
    path: str = "/predict"
    body: Callable[[Mapping[str, Any]], Any] = dict
    score: Callable[[Any], float] = lambda answer: float(answer["probability_score"])
    environment: Mapping[str, str] = field(default_factory=dict)


TRIVIAL = Service("trivial", ("-m", "benchmarks.peers.trivial", "{port}"))
"""What the load generator is measured against."""


def services(prepared: Prepared, folder: Path) -> list[Service]:
    """Returns the services that are compared, ours first; one worker each.

    Args:
        prepared: the model.
        folder: where it was prepared; takes the prediction log.
    """
    listening = ("--host", HOST, "--port", "{port}")
    return [
        Service(
            "health_predict",
            ("-m", "bentoml", "serve", prepared.tag, *listening),
            environment={
                "BENTOML_HOME": str(folder / "bentoml"),
                "HEALTH_PREDICT_AUTH": "off",
                prediction_log.FOLDER: str(folder / "predictions"),
            },
        ),
        Service(
            "bare",
            (
                *("-m", "uvicorn", "benchmarks.peers.bare:app", *listening),
                *("--no-access-log", "--log-level", "warning"),
            ),
            environment={MODEL: prepared.scorer},
        ),
        Service(
            "fastapi_pandas",
            ("-m", "uvicorn", "benchmarks.peers.fastapi_pandas:app", *listening),
            environment={MODEL: str(Path(prepared.logged, "model.skops"))},
        ),
        Service(
            "mlflow",
            (
                *("-m", "mlflow", "models", "serve", "--model-uri", prepared.logged, *listening),
                *("--env-manager", "local", "--workers", "1"),
            ),
            path="/invocations",
            body=lambda encounter: {"dataframe_records": [encounter]},
            score=lambda answer: float(answer["predictions"][0][1]),
        ),
    ]


@dataclass(frozen=True)
class Running:
    """A service that answers.

    Attributes:
        service: which.
        port: where, on 127.0.0.1.
        log: its output.
        ready_s: seconds from the start of its process to the first score.
        processes: all that it consists of.
    """

    service: Service
    port: int
    log: Path
    ready_s: float
    processes: tuple[psutil.Process, ...]

    def cpu_seconds(self) -> float:
        """Returns the processor time that its processes have used so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)

    def memory_mib(self) -> float:
        """Returns the memory of its processes, what they share counted once, where it is told."""
        infos = [process.memory_full_info() for process in self.processes]
        return float(sum(getattr(info, "pss", info.uss) for info in infos)) / 2**20


@contextmanager
def running(service: Service, folder: Path, body: bytes) -> Iterator[Running]:
    """Starts a service and yields it once it has answered; leaves nothing of it behind.

    Args:
        service: what to start.
        folder: takes its log.
        body: JSON of a request that it will answer with 200.

    Raises:
        ServiceError: it ended or does not answer.
    """
    port, mark, log = free_port(), str(uuid.uuid4()), folder / f"{service.name}.log"
    with log.open("ab") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *(word.format(port=port) for word in service.command)],
            cwd=ROOT,
            env={**os.environ, **SILENCED, **_on_path(), **service.environment, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _await(process, service, port, body, log)
        ready_s = time.monotonic() - began
        yield Running(service, port, log, ready_s, tuple(_marked(mark)))
    finally:
        process.terminate()
        _, left = psutil.wait_procs(_marked(mark), timeout=_GRACE_SECONDS)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def post(port: int, path: str, body: bytes, media_type: str, seconds: float) -> tuple[int, bytes]:
    """Returns status and content of the answer, awaited at most so long between two pieces."""
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    with contextlib.closing(connection):
        headers = {"content-type": media_type, "connection": "close"}
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def _await(
    process: subprocess.Popen[bytes], service: Service, port: int, body: bytes, log: Path
) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    last = "refuses connections"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceError(f"{service.name} ended with {process.returncode}: see {log}")
        try:
            status, content = post(port, service.path, body, "application/json", _ATTEMPT_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            last = f"does not answer ({error!r})"
        else:
            if status == 200:
                return
            last = f"answers {status}: {content[:300].decode(errors='replace')}"
        time.sleep(0.01)
    raise ServiceError(f"{service.name} {last} after {_READY_SECONDS:.0f} s: see {log}")


def _on_path() -> dict[str, str]:
    """Returns a PATH on which MLflow finds the uvicorn of this environment."""
    return {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == mark:
                found.append(process)
    return found
