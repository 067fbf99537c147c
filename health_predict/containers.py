"""Trials of images on this machine: run as Kubernetes runs them, asked, and removed.

What a running service must answer is handed in: neither models nor clusters are known here. Which
engine runs an image is `engines`, how it was made `images`.
"""

import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from health_predict.engines import ContainerError, Engine, can_run, last_lines

PORT = 3000
"""What the service listens on inside the image."""
READY_SECONDS = 120.0

_HOST = "127.0.0.1"
_TRIAL = "health-predict.trial"
_ERRORS = 8
_ENGINE_FAILED = 125  # of `run`: the engine itself, not what it ran
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): .*$", re.MULTILINE)


class CannotRun(ContainerError):
    """This machine's engine runs no containers."""


@dataclass(frozen=True)
class Running:
    """A container that was started.

    Attributes:
        url: where its service answers once it is ready.
        container: its id.
        engine: whose container it is.
    """

    url: str
    container: str
    engine: Engine

    def ended(self) -> str:
        """Returns how it ended, an empty string while it runs."""
        state = json.loads(
            self.engine.ask("inspect", "--format", "{{json .State}}", self.container)
        )
        if state["Status"] in ("created", "initialized", "running"):
            return ""
        return f"it ended with exit code {state['ExitCode']}; {self.told()}"

    def told(self) -> str:
        """Returns what its output says of failures, or its end, on one line.

        When a worker cannot start, BentoML's own failure comes after the one that matters.
        """
        done = self.engine.call(self.engine.keeper, "logs", self.container)
        output = done.stdout + done.stderr
        errors = dict.fromkeys(_ERROR.findall(output))
        return f"its output: {' | '.join([*errors][-_ERRORS:]) or last_lines(output)}"


@dataclass(frozen=True)
class Smoke:
    """What came of trying an image.

    Attributes:
        problem: what is wrong, in words; empty if nothing is.
        ready_seconds: until the service was ready, None if it never was.
        seconds: what all of it took.
    """

    problem: str
    ready_seconds: float | None
    seconds: float


@contextmanager
def run(
    image: str, engine: Engine, port: int, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Runs an image as Kubernetes runs it, answering on 127.0.0.1 only; stops and removes it after.

    Its files are read-only but for /tmp, it has no capabilities and cannot get any.

    Args:
        image: its name on this machine; it is not pulled.
        engine: what runs it.
        port: a free port of this machine.
        environment: variables of the service's.

    Raises:
        CannotRun: the engine runs no containers, or not this one.
    """
    reason = can_run(engine)
    if reason:
        raise CannotRun(reason)
    _remove_left_behind(engine)
    given = {**_listening(engine, port), **(environment or {})}
    started = engine.call(
        engine.keeper,
        *("run", "--detach", "--pull", "never", "--label", f"{_TRIAL}={os.getpid()}"),
        *("--read-only", "--tmpfs", "/tmp:rw,mode=1777"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *_network(engine, port),
        *(part for name in given for part in ("--env", name)),
        image,
        **given,  # values by the environment: a command line can be read by everybody
    )
    if started.returncode == _ENGINE_FAILED:
        raise CannotRun(f"{engine.keeper} cannot run {image}: {last_lines(started.stderr)}")
    if started.returncode:
        raise ContainerError(f"{image} does not start: {last_lines(started.stderr)}")
    container = started.stdout.split()[-1]
    try:
        yield Running(f"http://{_HOST}:{port}", container, engine)
    finally:
        engine.call(engine.keeper, "stop", "-t", str(_GRACE_SECONDS), container)
        engine.ask("rm", "--force", container)


def smoke(
    image: str,
    engine: Engine,
    verify: Callable[[str], str],
    port: int,
    environment: Mapping[str, str] | None = None,
    seconds: float = READY_SECONDS,
) -> Smoke:
    """Tries an image: runs it, waits until it is ready, asks what it must answer, removes it.

    Args:
        image: its name on this machine.
        engine: what runs it.
        verify: asks the service at an address and returns what is wrong, an empty string if
            nothing is.
        port: a free port of this machine.
        environment: variables of the service's; it is open to everybody on this machine while it
            is tried.
        seconds: how long to wait for it.

    Raises:
        CannotRun: the engine runs no containers: that says nothing of the image.
    """
    began = time.monotonic()
    ready = None
    try:
        given = {"HEALTH_PREDICT_AUTH": "off", **(environment or {})}
        with run(image, engine, port, given) as running:
            problem = _await_ready(running, began + seconds)
            if not problem:
                ready = time.monotonic() - began
                problem = _unhealthy(running.url) or verify(running.url) or running.ended()
    except CannotRun:
        raise
    except ContainerError as error:
        problem = str(error)
    return Smoke(problem, ready, time.monotonic() - began)


def _network(engine: Engine, port: int) -> list[str]:
    # Podman as root needs a network plug-in to publish a port, and none to be on this machine's.
    if engine.keeper == "podman" and sys.platform == "linux":
        return ["--network", "host"]
    return ["--publish", f"{_HOST}:{port}:{PORT}"]


def _listening(engine: Engine, port: int) -> dict[str, str]:
    if "host" in _network(engine, port):
        return {"BENTOML_HOST": _HOST, "BENTOML_PORT": str(port)}
    return {}


def _remove_left_behind(engine: Engine) -> None:
    """Removes containers of earlier trials whose process was killed."""
    form = f'{{{{.ID}}}} {{{{index .Labels "{_TRIAL}"}}}}'
    if engine.keeper == "docker":
        form = f'{{{{.ID}}}} {{{{.Label "{_TRIAL}"}}}}'
    listed = engine.ask("ps", "--all", "--filter", f"label={_TRIAL}", "--format", form)
    for line in listed.splitlines():
        container, process = line.split()
        if not psutil.pid_exists(int(process)):
            engine.call(engine.keeper, "kill", container)
            engine.call(engine.keeper, "rm", "--force", container)


def _await_ready(running: Running, deadline: float) -> str:
    """Returns why the service is not ready, an empty string once it is."""
    while time.monotonic() < deadline:
        ended = running.ended()
        if ended:
            return ended
        try:
            with urllib.request.urlopen(f"{running.url}/readyz", timeout=2):
                return ""
        except OSError:  # nothing listens yet, or it says that it loads
            time.sleep(_POLL_SECONDS)
    return f"it was not ready in time; {running.told()}"


def _unhealthy(url: str) -> str:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
            health = json.load(response)
            loaded = health["model_loaded"]
    except urllib.error.HTTPError as error:
        return f"/health answers {error.code}"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"/health does not answer as the service does: {error!r}"
    return "" if loaded is True else f"/health says that no model is loaded: {health}"
