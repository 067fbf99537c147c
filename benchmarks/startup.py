"""How long one waits before anything happens: imports, code location, command line, service.

Each in a fresh process, after one that warms the disk's cache and writes byte code.
Held against what none of them could be without: the bare import of Dagster or click, and the
compiled scorer behind Starlette alone. Writes `var/bench/startup.json` and a page.
"""

import json
import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.peers.running import running, services
from benchmarks.report import BENCH, Run, table
from benchmarks.serving import OURS, prepare
from benchmarks.watching import watch

BARE = "bare"
_ASSEMBLED = (
    "from health_predict.definitions import assemble; "
    "from health_predict.settings import Settings; assemble(Settings()).get_repository_def()"
)
PROCESSES: dict[str, tuple[str, ...]] = {
    "python": ("-c", "pass"),
    "import click": ("-c", "import click"),
    "command line, --help": (str(Path(sys.executable).with_name("health-predict")), "--help"),
    "import dagster": ("-c", "import dagster"),
    "import health_predict.definitions": ("-c", "import health_predict.definitions"),
    "code location loaded": ("-c", _ASSEMBLED),
}
"""What is started -> the interpreter's arguments."""
AGAINST = {
    "command line, --help": "import click",
    "import health_predict.definitions": "import dagster",
    "code location loaded": "import dagster",
}


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--service/--no-service", default=True, show_default=True)
def main(rounds: int, service: bool) -> None:
    """Runs the benchmark."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no service is left running
    run = Run("startup", "Start-up")
    started = {name: processes(name, rounds) for name in PROCESSES}
    result: dict[str, Any] = {"rounds": rounds, "processes": started}
    if service:
        result["services"] = ready(rounds)
    run.publish(ratios(result), result, page(result))


def processes(name: str, rounds: int) -> dict[str, float]:
    """Returns medians of wall clock, processor time and peak memory of a fresh process."""
    command = [sys.executable, "-W", "ignore", *PROCESSES[name]]
    # Sampling memory takes of the processor: seconds are those of rounds without it.
    timed = [watch(command, memory=False) for _ in range(rounds + 1)][1:]
    return {
        "seconds": statistics.median(one.seconds for one in timed),
        "cpu_seconds": statistics.median(one.cpu_seconds for one in timed),
        "peak_mib": watch(command).peak_mib,
    }


def ready(rounds: int) -> dict[str, float]:
    """Returns service -> median seconds from the start of its process to its first score."""
    folder = BENCH / "startup"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepared = prepare(folder, "synthetic")
    seconds: dict[str, list[float]] = {OURS: [], BARE: []}
    for _ in range(rounds + 1):
        for one in services(prepared, folder):
            if one.name in seconds:
                body = json.dumps(one.body(prepared.encounters[0])).encode()
                with running(one, folder, body) as found:
                    seconds[one.name].append(found.ready_s)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Returns the seconds of each over those of what it could not be without."""
    taken = {name: one["seconds"] for name, one in result["processes"].items()}
    found = {f"{name}, to {base}": taken[name] / taken[base] for name, base in AGAINST.items()}
    if "services" in result:
        ours, bare = (result["services"][name] for name in (OURS, BARE))
        found["service ready, to the bare one"] = ours / bare
    return found


def page(result: dict[str, Any]) -> str:
    """Returns the seconds as Markdown."""
    rows: list[Sequence[object]] = [
        (
            *(name, f"{one['seconds']:.2f}", f"{one['cpu_seconds']:.2f}"),
            f"{one['peak_mib']:,.0f}",
        )
        for name, one in result["processes"].items()
    ]
    rows += [
        (f"service ready: {name}", f"{seconds:.2f}", "", "")
        for name, seconds in result.get("services", {}).items()
    ]
    said = f"Medians of {result['rounds']} rounds."
    return f"{table(('what', 's', 'processor s', 'peak MiB'), rows)}\n\n{said}"


if __name__ == "__main__":
    main()
