"""The local twin of a cluster: one stable port, and the Bento wanted behind it kept running.

`wanted.json` says what shall be served, `status.json` what is; both are replaced atomically. A new
Bento is started beside the old one, and connections go to it only once it has answered with the
wanted version and met its golden rows; the old one stops after that. A Bento that dies is started
again. How a Bento is run is in `backend`, whether an answer is right in `verification`; what is
wanted is decided in `local_platform`.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from health_predict import backend
from health_predict.backend import HOST, Backend
from health_predict.verification import GoldenRow, over_http, verify

TOKEN = "HEALTH_PREDICT_SERVICE_TOKEN"
"""Environment variable: bearer token the Bentos ask for, unset where they ask for none."""

# A Bento that dies again and again is not started for ever, one that dies once a day is.
MOST_RESTARTS = 5
_STEADY_SECONDS = 600.0
_POLL_SECONDS = 0.2
# A connection made just before a switch has not sent its request to the old Bento yet.
_DRAIN_SECONDS = 1.0
_BODY = b'{"detail":[{"field":null,"message":"no model is being served yet"}]}'
_UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Retry-After: 5\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)

State = Literal["idle", "starting", "serving", "failed"]


class SupervisorError(OSError):
    """The supervisor cannot run; the message says why and names the remedy."""


@dataclass(frozen=True)
class Wanted:
    """What shall be served.

    Attributes:
        tag: the Bento's.
        version: the model version it must answer with.
        digest: of the Bento: the same version built anew is another Bento.
        golden: file of rows it must score as the pipeline before it takes over, empty for none.
        request: tells a request from an equal one: a Bento that failed is tried when asked again.
    """

    tag: str
    version: str
    digest: str = ""
    golden: str = field(default="", compare=False)
    request: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)


@dataclass(frozen=True)
class Status:
    """What is served.

    Attributes:
        pid: the supervisor.
        port: the stable port.
        state: `idle` without a Bento, `serving`, or `failed` if the one wanted does not run.
        wanted: what the state is about.
        serving: what answers on the port.
        backend_pid: the process that answers.
        restarts: how often it had to be started again.
        message: why it failed, with the last lines of its log.
    """

    pid: int
    port: int
    state: State
    wanted: Wanted | None = None
    serving: Wanted | None = None
    backend_pid: int | None = None
    restarts: int = 0
    message: str = ""


def want(folder: Path, wanted: Wanted | None) -> None:
    """Asks the supervisor of a folder to serve a Bento, or nothing at all."""
    _write(folder / "wanted.json", asdict(wanted) if wanted else None)


def wanted(folder: Path) -> Wanted | None:
    """Returns what shall be served, None if nothing."""
    value = _read(folder / "wanted.json")
    return Wanted(**value) if value else None


def status(folder: Path) -> Status | None:
    """Returns what the running supervisor says, None if none runs."""
    value = _read(folder / "status.json") if _is_claimed(folder) else None
    if value is None:
        return None
    for key in ("wanted", "serving"):
        value[key] = Wanted(**value[key]) if value[key] else None
    return Status(**value)


def await_version(
    folder: Path,
    target: Wanted | None,
    *,
    seconds: float,
    tell: Callable[[Status], None] = lambda _: None,
) -> Status:
    """Waits until the supervisor serves the target or has failed to.

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
        if now is not None and _same_request(now.wanted, target) and now.state != "starting":
            return now
        time.sleep(_POLL_SECONDS)
    what = "no supervisor runs" if last is None else f"it is still {last.state}"
    name = f"version {target.version}" if target else "nothing"
    raise TimeoutError(f"{name} is not served after {seconds:.0f} s: {what}")


def run(folder: Path, port: int, bentoml_home: Path) -> None:
    """Supervises until SIGTERM or SIGINT; nothing it started is left behind.

    Args:
        folder: where `wanted.json`, `status.json` and the logs stand.
        port: the stable port, on 127.0.0.1.
        bentoml_home: BentoML's store.

    Raises:
        SupervisorError: the port is taken, or another supervisor runs for this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _claim(folder):
        asyncio.run(_Supervisor(folder.resolve(), port, bentoml_home.resolve()).main())


def main() -> None:
    """Runs the supervisor: folder, port and BentoML's home are the three arguments."""
    folder, port, bentoml_home = sys.argv[1:]
    try:
        run(Path(folder), int(port), Path(bentoml_home))
    except SupervisorError as error:
        sys.exit(str(error))


@dataclass
class _Supervisor:
    """Attributes beside the arguments of `run`.

    `running` is the Bento `kept`, which is started again when it dies. It goes on where what was
    asked for after it was `given_up`.
    """

    folder: Path
    port: int
    bentoml_home: Path
    running: Backend | None = None
    kept: Wanted | None = None
    given_up: bool = False
    restarts: int = 0
    told: Status | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def main(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        try:
            server = await asyncio.start_server(self.forward, HOST, self.port)
        except OSError as error:
            raise SupervisorError(
                f"port {self.port} cannot be used ({os.strerror(error.errno or 0)}): "
                "stop what listens there or set HEALTH_PREDICT_PORT"
            ) from error
        try:
            backend.kill_all(self.folder)  # left by a supervisor that was killed
            self.tell("idle", None)
            while not self.stop.is_set():
                await self.reconcile()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), _POLL_SECONDS)
        finally:
            server.close()
            if self.running:
                await self.running.end()
            backend.kill_all(self.folder)
            (self.folder / "status.json").unlink(missing_ok=True)

    async def reconcile(self) -> None:
        if self.running and self.running.ended:
            await self.bury(self.running)
        asked = wanted(self.folder)
        new = self.told is None or not _same_request(asked, self.told.wanted)
        if new:
            self.given_up, self.restarts = False, 0
        target = self.kept if self.given_up else asked
        if asked is None:
            if new:
                await self.withdraw()
        elif target and (self.running is None or self.kept != target):
            await self.switch(asked, target)
        elif new:
            self.tell("serving", asked)

    async def switch(self, asked: Wanted, target: Wanted) -> None:
        """Puts the target, what is asked for or else what is kept, in the place of what runs."""
        self.tell("starting", asked)
        fresh = await backend.start(target.tag, target.version, self.folder, self.bentoml_home)
        problem = await fresh.until_ready(self.stop.is_set)
        problem = problem or await asyncio.to_thread(_tried, fresh.port, target)
        if problem:
            await fresh.end()
            if not self.stop.is_set():
                self.restarts += self.running is None
                self.tell("failed", asked, problem)
                if self.running or self.restarts > MOST_RESTARTS:
                    self.give_up(target)
            return
        old, self.running, self.kept = self.running, fresh, target
        self.tell("serving", asked)
        if old:
            await asyncio.sleep(_DRAIN_SECONDS)
            await old.end()

    async def bury(self, dead: Backend) -> None:
        self.running = None
        await dead.end()
        steady = time.monotonic() - dead.began > _STEADY_SECONDS
        self.restarts = 1 if steady else self.restarts + 1
        if self.restarts > MOST_RESTARTS and self.told and self.kept:
            problem = f"it ended again and again; {dead.last_lines()}"
            self.tell("failed", self.told.wanted, problem)
            self.give_up(self.kept)

    def give_up(self, target: Wanted) -> None:
        self.given_up = True
        if self.kept == target:
            self.kept = None

    async def withdraw(self) -> None:
        old, self.running, self.kept = self.running, None, None
        if old:
            await old.end()
        self.tell("idle", None)

    def tell(self, state: State, about: Wanted | None, message: str = "") -> None:
        if self.given_up and self.told:  # a failure stays told, whatever becomes of what is kept
            state, message = self.told.state, self.told.message
        self.told = Status(
            pid=os.getpid(),
            port=self.port,
            state=state,
            wanted=about,
            serving=self.kept if self.running else None,
            backend_pid=self.running.process.pid if self.running else None,
            restarts=self.restarts,
            message=message,
        )
        _write(self.folder / "status.json", asdict(self.told))

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one connection to whatever serves at the moment it is made."""
        if self.running is None or not await self.running.carry(reader, writer):
            await _refuse(reader, writer)


def _tried(port: int, target: Wanted) -> str:
    """Returns what is wrong with the scores of a Bento that nobody asks yet."""
    if not target.golden:
        return ""
    golden = [GoldenRow(**row) for row in _read(Path(target.golden)) or ()]
    ask = over_http(f"http://{HOST}:{port}", os.environ.get(TOKEN, ""))
    problem = verify(ask, target.version, golden)
    return f"tried before it took over, it {problem}" if problem else ""


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.write(_UNAVAILABLE)
        writer.write_eof()
        # Closed with a request unread, the connection would be reset and the answer lost.
        async with asyncio.timeout(2):
            while await reader.read(65536):
                pass
    writer.close()


@contextlib.contextmanager
def _claim(folder: Path) -> Iterator[None]:
    """Holds the folder until the process ends, however it ends."""
    with (folder / "lock").open("ab") as lock:
        deadline = time.monotonic() + 1  # who asks for the status holds the lock for a moment
        while not _lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                other = status(folder)
                where = f"process {other.pid}, port {other.port}" if other else "just started"
                raise SupervisorError(
                    f"a supervisor already serves {folder} ({where}): stop it first"
                )
            time.sleep(0.05)
        (folder / "status.json").unlink(missing_ok=True)  # of a supervisor that was killed
        yield


def _is_claimed(folder: Path) -> bool:
    path = folder / "lock"
    if not path.exists():
        return False
    with path.open("rb") as lock:
        return not _lock(lock, fcntl.LOCK_SH)


def _lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_request(one: Wanted | None, other: Wanted | None) -> bool:
    return (one and one.request) == (other and other.request)


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


if __name__ == "__main__":
    main()
