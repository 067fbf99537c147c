"""A command run to its end in a process of its own, with what it and all its children took.

Memory is sampled, so a peak between two samples is missed. What the commands do is theirs.
"""

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click
import psutil

_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Watched:
    """What a command took.

    Attributes:
        seconds: from start to end.
        cpu_seconds: processor time of all its processes.
        peak_mib: most memory its processes had at a time that they share with nobody.
        processes: most processes at a time.
        output: its standard output.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    processes: int
    output: str


def watch(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, memory: bool = True
) -> Watched:
    """Runs a command and returns what it took.

    Args:
        command: program and arguments.
        environment: what it sees beside this process's environment.
        memory: whether memory is sampled, which takes some of the processor it is measured on.

    Raises:
        click.ClickException: it ended with another code than 0.
    """
    used: dict[int, float] = {}
    peak, most = 0, 0
    # A file and not a pipe, which would stop the command once it is full.
    with tempfile.TemporaryFile("w+") as output:
        before, began = _of_children(), time.perf_counter()
        running = subprocess.Popen(
            command, stdout=output, env={**os.environ, **(environment or {})}
        )
        while memory and running.poll() is None:
            sampled = {process.pid: _sample(process) for process in _family(running.pid)}
            used.update({pid: cpu for pid, (cpu, _) in sampled.items() if cpu})
            peak = max(peak, sum(held for _, held in sampled.values()))
            most = max(most, len(sampled))
            time.sleep(_SAMPLE_SECONDS)
        code = running.wait()
        seconds = time.perf_counter() - began
        output.seek(0)
        told = output.read()
    if code:
        raise click.ClickException(f"{' '.join(command)} ended with {code}")
    # Whom nobody waited for, such as Ray's daemons, only the samples know.
    cpu = max(_of_children() - before, sum(used.values()))
    return Watched(seconds, cpu, peak / 2**20, most, told)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _sample(process: psutil.Process) -> tuple[float, int]:
    """Returns processor seconds so far and bytes of memory; nothing of one that has ended."""
    try:
        with process.oneshot():
            return sum(process.cpu_times()[:2]), int(process.memory_full_info().uss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0, 0
