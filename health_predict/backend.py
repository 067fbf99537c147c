"""One Bento as processes of this machine: started, watched, connected to, ended for good.

`bentoml serve` is an arbiter with workers in sessions of their own, which outlive it when it is
killed: all are found by what they inherit. Which Bento shall run, and when, is in `supervisor`.
"""

import asyncio
import contextlib
import http.client
import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from health_predict import prediction_log
from health_predict.serving import options

HOST = "127.0.0.1"
# A Bento takes 4 s to be ready on a quiet machine and 20 s beside two busy cores.
READY_SECONDS = 90.0
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_MARK = "HEALTH_PREDICT_SUPERVISED"


@dataclass
class Backend:
    """A running Bento.

    Attributes:
        process: `bentoml serve`.
        port: where it answers, on 127.0.0.1.
        version: the model version it must answer with.
        log: its output, appended to.
        mark: what its processes are found by.
        began: when it was started, monotonic seconds.
    """

    process: asyncio.subprocess.Process
    port: int
    version: str
    log: Path
    mark: str
    began: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> bool:
        """Whether `bentoml serve` has ended; its workers may still run."""
        return self.process.returncode is not None

    async def until_ready(self, stopped: Callable[[], bool]) -> str:
        """Returns why it cannot take over, an empty string if it answers as it should."""
        deadline = time.monotonic() + READY_SECONDS
        seen: set[int] = set()
        answer: asyncio.Task[str | None] | None = None
        while time.monotonic() < deadline:
            if stopped():
                return "the supervisor was stopped"
            if self.ended:
                return f"it ended with exit code {self.process.returncode}; {self.last_lines()}"
            # A worker that cannot load its model is started again every ten seconds, for ever.
            running = _workers(self.process.pid)
            if seen - running:
                return f"its worker ended before it was ready; {self.last_lines()}"
            seen |= running
            # The arbiter listens before a worker does: waiting for an answer alone would miss one
            # that came and went.
            answer = answer or asyncio.create_task(asyncio.to_thread(_version, self.port))
            await asyncio.wait([answer], timeout=_POLL_SECONDS)
            if not answer.done():
                continue
            answered, answer = answer.result(), None
            if answered == self.version:
                return ""
            if answered is not None:
                return f"it answers as version {answered}, not {self.version}"
            await asyncio.sleep(_POLL_SECONDS)
        return f"it was not ready after {READY_SECONDS:.0f} s; {self.last_lines()}"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Carries one connection until the Bento closes it; False if it takes none."""
        try:
            answers, upstream = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        requests = asyncio.create_task(_carry(reader, upstream))
        try:
            await _carry(answers, writer)
        finally:  # a client that keeps its connection learns by this that its Bento is gone
            requests.cancel()
            upstream.close()
            writer.close()
        return True

    async def end(self) -> None:
        """Stops it with its workers: asked first, forced after ten seconds."""
        if not self.ended:
            self.process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), _GRACE_SECONDS)
        _kill(self.mark)
        await self.process.wait()

    def last_lines(self) -> str:
        """Returns the end of its log, on one line."""
        lines = [x for x in self.log.read_text(errors="replace").splitlines() if x.strip()]
        return f"last lines of {self.log}: " + " | ".join(lines[-5:])


async def start(tag: str, version: str, folder: Path, bentoml_home: Path) -> Backend:
    """Starts a Bento on a free port.

    Args:
        tag: the Bento's.
        version: the model version it must answer with.
        folder: where its log goes, and who it belongs to.
        bentoml_home: BentoML's store.
    """
    port, path = free_port(), folder / f"{version}.log"
    mark = f"{_owner(folder)}{port}|"
    with path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bentoml", "serve", tag, "--host", HOST, "--port", str(port)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "BENTOML_HOME": str(bentoml_home),
                "BENTOML_DO_NOT_TRACK": "True",
                prediction_log.FOLDER: os.environ.get(
                    prediction_log.FOLDER, str(folder / "predictions")
                ),
                **_access(),
                _MARK: mark,
            },
            start_new_session=True,
        )
    return Backend(process, port, version, path, mark)


def _access() -> dict[str, str]:
    """Returns who may ask: whoever is on this machine, where no tokens are given."""
    return {} if os.environ.get(options.TOKENS) else {options.AUTH: "off"}


def kill_all(folder: Path) -> None:
    """Kills whatever was started for a folder, by whomever."""
    _kill(_owner(folder))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:  # one side is gone: the other one shall not wait for it
        writer.close()


def _owner(folder: Path) -> str:
    return f"{folder.resolve()}|"


def _kill(mark: str) -> None:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK, "").startswith(mark):
                process.kill()


def _workers(pid: int) -> set[int]:
    found = set()
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):
                if any("bentoml_impl.worker" in word for word in child.cmdline()):
                    found.add(child.pid)
    return found


def _version(port: int) -> str | None:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/model-info", timeout=2) as response:
            return str(json.load(response)["version"])
    except (OSError, ValueError, LookupError, http.client.HTTPException):
        return None


def free_port() -> int:
    """Returns a port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
