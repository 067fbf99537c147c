"""Load on one HTTP service: so many clients, each of which asks again as soon as it is answered.

Requests are encoded before; of an answer only status and length are read, so that one core asks
several times as often as any service here answers. What is asked, and of whom, is in `serving`. A
service that stalls is asked less meanwhile: latencies are those of callers who wait for it.
"""

import asyncio
import gc
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

HOST = "127.0.0.1"
# What is on its way when the window ends is waited for, so that the next one begins undisturbed.
_PATIENCE_SECONDS = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


class LoadError(RuntimeError):
    """Nothing was measured; the message says why."""


@dataclass(frozen=True)
class Load:
    """What a window of load showed.

    Attributes:
        rps: answers with status 200 a second.
        p50_ms: median latency, milliseconds.
        p99_ms: 99th percentile.
        cpu_ms: processor time of the service for an answer, milliseconds.
        errors: other answers, broken and refused connections; warm-up and end included.
        client_share: share of a core that asking took.
    """

    rps: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    errors: int
    client_share: float


def encode(path: str, value: Any) -> bytes:
    """Returns the whole request that posts a JSON value."""
    body = json.dumps(value).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def run(
    port: int,
    requests: Sequence[bytes],
    clients: int,
    *,
    seconds: float,
    warm_up: float,
    cpu_seconds: Callable[[], float],
) -> Load:
    """Returns what a service did under load.

    Args:
        port: where it listens, on 127.0.0.1.
        requests: as `encode` returns them; sent in turn, over again.
        clients: how many ask at a time, each over a connection that is kept.
        seconds: length of the window.
        warm_up: seconds of the same load before it, at least.
        cpu_seconds: tells the processor time that the service has used so far.

    Raises:
        LoadError: no answer came in the window.
    """
    tally = _Tally(itertools.cycle(requests))
    gc.disable()  # a collection here would show as a latency there
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measured(port, tally, clients, seconds, warm_up, cpu_seconds))
    finally:
        gc.enable()


@dataclass
class _Tally:
    requests: Iterator[bytes]
    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    asking: bool = True


async def _measured(
    port: int,
    tally: _Tally,
    clients: int,
    seconds: float,
    warm_up: float,
    cpu_seconds: Callable[[], float],
) -> Load:
    tasks = [asyncio.create_task(_client(port, tally)) for _ in range(clients)]
    await asyncio.sleep(warm_up)
    await _until_each_was_answered(tally, clients)
    tally.seconds = []
    began, own, theirs = time.perf_counter(), time.process_time(), cpu_seconds()
    await asyncio.sleep(seconds)
    latencies, tally.seconds = sorted(tally.seconds), []
    theirs, own = cpu_seconds() - theirs, time.process_time() - own
    lasted = time.perf_counter() - began
    tally.asking = False
    _, left = await asyncio.wait(tasks, timeout=_PATIENCE_SECONDS)
    for task in left:
        task.cancel()
    answers, errors = len(latencies), tally.errors + len(left)
    if not answers:
        raise LoadError(f"port {port} gave no answer within {seconds:g} s, {errors} errors")
    return Load(
        rps=answers / lasted,
        p50_ms=1000 * latencies[(answers - 1) // 2],
        p99_ms=1000 * latencies[math.ceil(0.99 * answers) - 1],
        cpu_ms=1000 * theirs / answers,
        errors=errors,
        client_share=own / lasted,
    )


async def _until_each_was_answered(tally: _Tally, clients: int) -> None:
    """Waits for so many answers: before, a slow service has not come to a steady rate."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while len(tally.seconds) < clients and time.monotonic() < deadline:
        await asyncio.sleep(0.05)


async def _client(port: int, tally: _Tally) -> None:
    loop = asyncio.get_running_loop()
    while tally.asking:
        try:
            transport, connection = await loop.create_connection(
                lambda: _Connection(tally), HOST, port
            )
        except OSError:
            tally.errors += 1
            await asyncio.sleep(0.1)
            continue
        try:
            await connection.closed
        finally:
            transport.abort()


class _Connection(asyncio.Protocol):
    """Asks over one connection until the tally says stop or the service closes it."""

    def __init__(self, tally: _Tally) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self._tally = tally
        self._head = b""
        self._missing = 0

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._head += data
            end = self._head.find(_HEAD_END)
            if end < 0:
                return
            length = _LENGTH.search(self._head, 0, end)
            if length is None:  # chunked: no service here answers so
                self._transport.abort()
                return
            self._missing = end + len(_HEAD_END) + int(length[1]) - len(self._head)
        if self._missing < 0:  # more than was asked for
            self._transport.abort()
        elif not self._missing:
            self._answered()

    def connection_lost(self, error: Exception | None) -> None:
        if self._tally.asking or self._head or self._missing:
            self._tally.errors += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(next(self._tally.requests))

    def _answered(self) -> None:
        if self._head[9:12] == b"200":
            self._tally.seconds.append(time.perf_counter() - self._asked)
        else:
            self._tally.errors += 1
        self._head = b""
        if self._tally.asking:
            self._ask()
        else:
            self._transport.close()
