"""Container engines: which one this machine has, and how its programs are asked.

An engine (Docker, Podman or Buildah) is used by its command line and keeps its own configuration:
where images lie, which index and certificates a build sees. What is asked of it stands in `images`
(made and looked at), `containers` (run) and `oci_registry` (sent and fetched).
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

EngineName = Literal["docker", "podman", "buildah"]

_LAST_LINES = 8
# A first build over a slow line takes minutes; what takes longer waits for something.
_LONGEST_SECONDS = 30 * 60


class ContainerError(RuntimeError):
    """An engine, or what was asked of it, failed; the message names what and the remedy."""


@dataclass(frozen=True)
class Engine:
    """What builds, keeps, sends and runs images.

    Attributes:
        name: the program that builds, BentoML's backend.
        runner: the program that runs and sends what was built: `name` itself, Podman for Buildah,
            with which it shares its images; None if there is none.
        environment: variables of its own beside the process's, for instance where its storage is.
    """

    name: EngineName
    runner: EngineName | None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def keeper(self) -> EngineName:
        """The program that knows the most of the images."""
        return self.runner or self.name

    def call(
        self, program: EngineName, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of the engine's programs to its end; exit code and output are the caller's.

        Raises:
            ContainerError: it does not end.
        """
        return run_to_end(
            [program, *arguments], env={**os.environ, **self.environment, **environment}
        )

    def ask(self, *arguments: str) -> str:
        """Returns what the keeper of images answers.

        Raises:
            ContainerError: it exits with an error.
        """
        done = self.call(self.keeper, *arguments)
        if done.returncode:
            said = last_lines(done.stderr or done.stdout)
            raise ContainerError(f"{self.keeper} {arguments[0]} failed: {said}")
        return done.stdout.strip()


def find_engine(wanted: str = "", environment: Mapping[str, str] | None = None) -> Engine:
    """Returns the engine to use.

    Args:
        wanted: `docker`, `podman` or `buildah`; empty: the first one that works here, in this
            order. That Docker's client is installed says nothing of its daemon, so that is asked.
        environment: variables of the engine's own.

    Raises:
        ContainerError: there is none, or the one that is wanted does not work.
    """
    names = get_args(EngineName)
    if wanted and wanted not in names:
        raise ContainerError(
            f"HEALTH_PREDICT_CONTAINER_ENGINE is {wanted!r}: it takes {', '.join(names)} or nothing"
        )
    reasons = []
    for name in [wanted] if wanted else names:
        engine = _engine(name, environment or {})
        if isinstance(engine, Engine):
            return engine
        reasons.append(engine)
    raise ContainerError(
        f"no container engine: {'; '.join(reasons)}. Install podman or buildah, or start Docker"
    )


def can_run(engine: Engine) -> str:
    """Returns why the engine runs no containers, an empty string if nothing speaks against it."""
    if engine.runner is None:
        return f"{engine.name} builds images and runs none, and podman is not installed"
    done = engine.call(engine.runner, "info")
    if done.returncode:
        return f"{engine.runner} does not work here: {last_lines(done.stderr)}"
    return ""


def run_to_end(
    command: list[str], env: Mapping[str, str], cwd: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; exit code and output are the caller's.

    Raises:
        ContainerError: it does not end.
    """
    try:
        return subprocess.run(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_LONGEST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ContainerError(
            f"`{' '.join(command[:4])}` did not end within {_LONGEST_SECONDS / 60:.0f} minutes"
        ) from None


def last_lines(output: str) -> str:
    """Returns the end of a program's output, on one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:]) or "it said nothing"


def _engine(name: str, environment: Mapping[str, str]) -> Engine | str:
    """Returns an engine, or why it cannot be used."""
    if shutil.which(name) is None:
        return f"{name} is not installed"
    if name == "docker":
        engine = Engine("docker", "docker", environment)
        done = engine.call("docker", "version", "--format", "{{.Server.Version}}")
        return engine if done.returncode == 0 else f"docker: {last_lines(done.stderr)}"
    if name == "podman":
        return Engine("podman", "podman", environment)
    return Engine("buildah", "podman" if shutil.which("podman") else None, environment)
