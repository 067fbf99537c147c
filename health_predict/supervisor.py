"""The local twin of a cluster: one stable port, and the Bento wanted behind it kept running.

`wanted.json` says what shall be served, `status.json` what is; both are replaced atomically. A new
Bento is started beside the old one, and connections go to it only once it has answered with the
wanted version; the old one stops after that. A Bento that dies is started again. What is wanted,
and whether an answer is right, is decided in `release`.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

HOST = "127.0.0.1"
# A Bento takes 4 s to be ready on a quiet machine and 20 s beside two busy cores.
READY_SECONDS = 90.0
_POLL_SECONDS = 0.2
# A Bento that dies again and again is not started for ever.
MOST_RESTARTS = 5


@dataclass(frozen=True)
class Wanted:
    """What shall be served: a Bento by tag, and the model version it must answer with."""

    tag: str
    version: str


@dataclass(frozen=True)
class Status:
    """What is served.

    Attributes:
        pid: the supervisor.
        port: the stable port.
        state: `idle` without a Bento, `serving`, or `failed` if the one wanted did not start.
        wanted: what the state is about.
        serving: what answers on the port.
        backend_pid: the process that answers.
        restarts: how often it had to be started again.
        message: why it failed, with the last lines of its log.
    """

    pid: int
    port: int
    state: Literal["idle", "starting", "serving", "failed"]
    wanted: Wanted | None = None
    serving: Wanted | None = None
    backend_pid: int | None = None
    restarts: int = 0
    message: str = ""


def want(folder: Path, wanted: Wanted) -> None:
    """Asks the supervisor of a folder to serve a Bento."""
    _write(folder / "wanted.json", asdict(wanted))


def wanted(folder: Path) -> Wanted | None:
    """Returns what shall be served, None if nothing was ever deployed."""
    value = _read(folder / "wanted.json")
    return Wanted(**value) if value else None


def status(folder: Path) -> Status | None:
    """Returns what the running supervisor says, None if none runs."""
    value = _read(folder / "status.json")
    if value is None or not _alive(value["pid"]):
        return None
    for key in ("wanted", "serving"):
        value[key] = Wanted(**value[key]) if value[key] else None
    return Status(**value)


def run(folder: Path, port: int, bentoml_home: Path) -> None:
    """Supervises until SIGTERM or SIGINT; nothing it started is left behind.

    Args:
        folder: where `wanted.json`, `status.json` and the logs stand.
        port: the stable port, on 127.0.0.1.
        bentoml_home: BentoML's store.

    Raises:
        OSError: the port is taken, or another supervisor runs for this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running = status(folder)
    if running is not None:
        raise OSError(
            f"a supervisor already serves this folder on port {running.port} "
            f"(process {running.pid}): stop it first"
        )
    asyncio.run(_Supervisor(folder, port, bentoml_home).main())


@dataclass
class _Backend:
    process: asyncio.subprocess.Process
    port: int
    what: Wanted


@dataclass
class _Supervisor:
    folder: Path
    port: int
    bentoml_home: Path
    backend: _Backend | None = None
    given_up: Wanted | None = None
    restarts: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def main(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        try:
            server = await asyncio.start_server(self.forward, HOST, self.port)
        except OSError as error:
            raise OSError(
                f"port {self.port} is taken: stop what listens there or set HEALTH_PREDICT_PORT"
            ) from error
        _end_orphan(self.folder)
        self.tell("idle")
        async with server:
            while not self.stop.is_set():
                await self.reconcile()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), _POLL_SECONDS)
        if self.backend:
            await _end(self.backend.process)
        (self.folder / "status.json").unlink(missing_ok=True)

    async def reconcile(self) -> None:
        target = wanted(self.folder)
        if self.backend and self.backend.process.returncode is not None:
            self.backend = None
            self.restarts += 1
        if target is None or target == self.given_up:
            return
        if self.backend is None or self.backend.what != target:
            await self.switch(target)

    async def switch(self, target: Wanted) -> None:
        self.tell("starting", target)
        fresh = await self.start(target)
        problem = await self.until_ready(fresh)
        if problem:
            await _end(fresh.process)
            if self.restarts >= MOST_RESTARTS or self.backend is not None:
                self.given_up = target
            self.restarts += self.backend is None
            self.tell("failed", target, problem)
            return
        old, self.backend, self.given_up = self.backend, fresh, None
        self.tell("serving", target)
        if old:
            await _end(old.process)

    async def start(self, target: Wanted) -> _Backend:
        port = _free_port()
        log = (self.folder / f"{target.version}.log").open("ab")
        with log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "bentoml", "serve", target.tag),
                *("--host", HOST, "--port", str(port)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "BENTOML_HOME": str(self.bentoml_home),
                    "BENTOML_DO_NOT_TRACK": "True",
                },
                start_new_session=True,
            )
        return _Backend(process, port, target)

    async def until_ready(self, backend: _Backend) -> str:
        """Returns why the backend cannot take over, an empty string if it can."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and not self.stop.is_set():
            if backend.process.returncode is not None:
                return f"it ended with exit code {backend.process.returncode}; {self.log(backend)}"
            facts = await asyncio.to_thread(_model_info, backend.port)
            if facts is not None:
                answered = str(facts.get("version"))
                if answered != backend.what.version:
                    return f"it answers as version {answered}, not {backend.what.version}"
                return ""
            await asyncio.sleep(_POLL_SECONDS)
        return f"it was not ready after {READY_SECONDS:.0f} s; {self.log(backend)}"

    def log(self, backend: _Backend) -> str:
        path = self.folder / f"{backend.what.version}.log"
        lines = path.read_text(errors="replace").splitlines()[-5:]
        return f"last lines of {path}: " + " | ".join(lines)

    def tell(
        self,
        state: Literal["idle", "starting", "serving", "failed"],
        target: Wanted | None = None,
        message: str = "",
    ) -> None:
        now = Status(
            pid=os.getpid(),
            port=self.port,
            state=state,
            wanted=target,
            serving=self.backend.what if self.backend else None,
            backend_pid=self.backend.process.pid if self.backend else None,
            restarts=self.restarts,
            message=message,
        )
        _write(self.folder / "status.json", asdict(now))

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one connection to whatever serves at the moment it is made."""
        try:
            if self.backend is None:
                writer.write(_UNAVAILABLE)
                return
            upstream = await asyncio.open_connection(HOST, self.backend.port)
            await asyncio.gather(_pump(reader, upstream[1]), _pump(upstream[0], writer))
        except OSError:
            writer.write(_UNAVAILABLE)
        finally:
            writer.close()


_BODY = b'{"detail":[{"field":null,"message":"no model is being served yet"}]}'
_UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Retry-After: 5\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except ConnectionError:
        writer.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stops a Bento with its workers: asked first, forced after ten seconds."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _end_orphan(folder: Path) -> None:
    """Ends the Bento of a supervisor that was killed: it would hold the model for ever."""
    import psutil

    left = _read(folder / "status.json")
    pid = left and left.get("backend_pid")
    if not pid:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if "bentoml" in " ".join(process.cmdline()):
            for member in (*process.children(recursive=True), process):
                member.kill()


def _model_info(port: int) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/model-info", timeout=2) as response:
            value: dict[str, Any] = json.load(response)
            return value
    except (OSError, ValueError):
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _alive(pid: int) -> bool:
    import psutil

    try:
        return "health_predict" in " ".join(psutil.Process(pid).cmdline()) or pid == os.getpid()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


_Listener = Callable[[Status], None]


def await_version(
    folder: Path, target: Wanted, *, seconds: float, tell: _Listener = lambda _: None
) -> Status:
    """Waits until the supervisor serves the target or has given it up.

    Args:
        folder: the supervisor's.
        target: what was asked for with `want`.
        seconds: how long to wait.
        tell: called with each status that differs from the one before.

    Raises:
        TimeoutError: no decision came in time, or no supervisor runs.
    """
    deadline = time.monotonic() + seconds
    last: Status | None = None
    while time.monotonic() < deadline:
        now = status(folder)
        if now is not None and now != last:
            tell(now)
            last = now
        if now is not None and now.wanted == target and now.state in ("serving", "failed"):
            return now
        time.sleep(_POLL_SECONDS)
    what = "no supervisor runs" if last is None else f"it is still {last.state}"
    raise TimeoutError(f"version {target.version} is not served after {seconds:.0f} s: {what}")


def main() -> None:
    """Runs the supervisor: folder, port and BentoML's home are the three arguments."""
    folder, port, bentoml_home = sys.argv[1:]
    run(Path(folder), int(port), Path(bentoml_home))


if __name__ == "__main__":
    main()
