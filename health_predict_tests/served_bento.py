"""A real Bento served over HTTP, for the tests that hold the running service to something.

Started as in production (`bentoml serve`), with folders of its own for everything that it writes.
How small Bentos are built is in `bentos`; what a Bento under the supervisor does, in its tests.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from health_predict import prediction_log
from health_predict.backend import READY_SECONDS
from health_predict.serving.options import AUTH, TOKENS
from health_predict_tests import bentos

_WORKER = "bentoml_impl.worker"
_FOREIGN = ("HEALTH_PREDICT_", "OTEL_", "BENTOML_", "PROMETHEUS_")


@dataclass(frozen=True)
class Reply:
    """What came back over HTTP; header names are looked up in any case."""

    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass(frozen=True)
class Served:
    """A running Bento.

    Attributes:
        process: `bentoml serve`.
        port: where it answers, on 127.0.0.1.
        log: standard output and error of all its processes.
        predictions: folder of the prediction log.
        temporary: its folder for temporary files.
        home: BentoML's.
        worker: the process that answers.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    predictions: Path
    temporary: Path
    home: Path
    worker: psutil.Process

    @property
    def url(self) -> str:
        return f"http://{bentos.HOST}:{self.port}"

    @property
    def memory(self) -> int:
        """Bytes that only the worker holds (USS): what would be free if it ended."""
        return int(self.worker.memory_full_info().uss)

    def ask(
        self,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
        seconds: float = 30.0,
    ) -> Reply:
        """Asks over a connection of its own.

        Args:
            path: with the query.
            body: sent as it is if it is bytes, else as JSON; None: nothing is sent.
            headers: further ones; a content-type given replaces `application/json`.
            method: by default GET without a body, else POST.
            seconds: how long to wait for bytes.
        """
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {} if content is None else {"content-type": "application/json"}
        sent |= {name.lower(): value for name, value in (headers or {}).items()}
        connection = http.client.HTTPConnection(bentos.HOST, self.port, timeout=seconds)
        with contextlib.closing(connection):
            chosen = method or ("GET" if content is None else "POST")
            connection.request(chosen, path, content, sent)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())


@contextlib.contextmanager
def serve(home: Path, tag: str, folder: Path, **environment: str) -> Iterator[Served]:
    """Serves a Bento until the block ends, and leaves no process of it behind.

    Args:
        home: BentoML's, such as `bentos.store` returns.
        tag: the Bento's, such as `readmission:1`.
        folder: where it writes: `server.log`, `predictions/`, `tmp/`.
        environment: what it is told beside; without `HEALTH_PREDICT_TOKENS` everybody may ask.
    """
    port, log = bentos.free_port(), folder / "server.log"
    predictions, temporary = folder / "predictions", folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    access = {} if TOKENS in environment or AUTH in environment else {AUTH: "off"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bentoml", "serve", tag),
                *("--host", bentos.HOST, "--port", str(port)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={
                **inherited,
                "BENTOML_HOME": str(home),
                "BENTOML_DO_NOT_TRACK": "True",
                "TMPDIR": str(temporary),
                prediction_log.FOLDER: str(predictions),
                **access,
                **environment,
            },
            start_new_session=True,
        )
    started = {process.pid: psutil.Process(process.pid)}
    try:
        _await_ready(process, port, log, started)
        (worker,) = [one for one in started.values() if _is_worker(one)]
        yield Served(process, port, log, predictions, temporary, home, worker)
    finally:
        started.update((one.pid, one) for one in bentos.family(process.pid))
        bentos.end(list(started.values()))  # workers outlive a parent that was killed
        process.wait()


def _await_ready(
    process: subprocess.Popen[bytes], port: int, log: Path, started: dict[int, psutil.Process]
) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        started.update((one.pid, one) for one in bentos.family(process.pid))
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(bentos.HOST, port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    started.update((one.pid, one) for one in bentos.family(process.pid))
                    return
        time.sleep(0.1)
    raise AssertionError(f"the Bento was not ready: {log.read_text(errors='replace')[-3000:]}")


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(_WORKER in word for word in process.cmdline())
    return False
