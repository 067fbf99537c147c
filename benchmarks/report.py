"""What every benchmark leaves behind: a JSON and a Markdown file a run, and the list of them all.

Ratios come first: seconds are those of one machine, and what a figure is held against was measured
on the same one. What is measured, and how, is in the modules named after the files.
"""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import psutil

from health_predict.settings import ROOT

BENCH = ROOT / "var" / "bench"
"""Where results are kept; `health_predict.loop` leaves this folder alone."""
INDEX = "README.md"
PACKAGES = ("dagster", "numpy", "pandas", "ray", "scikit-learn", "scipy")
_HEADLINES = 4
"""Ratios of a benchmark that its line in the list shows."""


def machine() -> dict[str, Any]:
    """Returns what the figures are measured on, and how busy it was when asked."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


@dataclass(frozen=True)
class Run:
    """A benchmark under way; made before anything is measured.

    Attributes:
        name: what its files are called.
        title: what is measured, in words.
        command: how it was started.
        machine: what it is measured on.
        at: when it began.
        began: the same on the clock that only goes forward, seconds.
    """

    name: str
    title: str
    command: str = field(default_factory=lambda: _command())
    machine: dict[str, Any] = field(default_factory=machine)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    began: float = field(default_factory=time.monotonic)

    def publish(
        self, ratios: Mapping[str, float], result: Mapping[str, Any], *sections: str
    ) -> Path:
        """Writes both files and the list, and prints the page.

        Args:
            ratios: what was measured over what it is held against; name -> ratio.
            result: everything else, JSON values.
            sections: Markdown that follows the ratios.

        Returns:
            Path of the JSON file; the Markdown is beside it.
        """
        seconds = round(time.monotonic() - self.began, 1)
        facts = {
            "title": self.title,
            "command": self.command,
            "at": self.at,
            "seconds": seconds,
            "machine": self.machine,
            "ratios": dict(ratios),
        }
        page = "\n\n".join([f"# {self.title}", self._circumstances(seconds), *_first(ratios)])
        page = "\n\n".join([page, *(section.strip() for section in sections)]) + "\n"
        path = _write(f"{self.name}.json", json.dumps({**facts, **result}, indent=2, default=float))
        _write(f"{self.name}.md", page)
        write_index()
        sys.stdout.write(f"\n{page}\nwritten to {path}\n")
        return path

    def _circumstances(self, seconds: float) -> str:
        m = self.machine
        return (
            f"`{self.command}`, {self.at}, {seconds:,.0f} s. {m['cores']} cores "
            f"({m['processor']}), {m['memory_gib']} GiB, {m['system']}, Python {m['python']}, "
            f"load {m['load']} when it began."
        )


def _command() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    started = f"python -m {module.name}" if module else Path(sys.argv[0]).name
    return shlex.join([*started.split(), *sys.argv[1:]])


def _first(ratios: Mapping[str, float]) -> list[str]:
    rows = [(name, f"{ratio:.3g}") for name, ratio in ratios.items()]
    return [table(("ratio", ""), rows)] if rows else []


def table(head: Sequence[str], rows: Iterable[Sequence[object]], text: int = 1) -> str:
    """Returns a Markdown table.

    Args:
        head: names of the columns.
        rows: their cells, shown as they are.
        text: how many columns from the left hold text; those after them hold numbers.
    """
    rules = ["---"] * text + ["---:"] * (len(head) - text)
    lines = ([str(cell) for cell in row] for row in (head, rules, *rows))
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in c) for c in lines)


def write_index() -> Path:
    """Lists what is in the folder, each with its first ratios; returns the list's path."""
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(BENCH.glob("*.json"))}
    told = {name: result for name, result in kept.items() if "title" in result}
    rows = [
        (
            f"[{result['title']}]({name}.md)",
            f"`{result['command']}`",
            "; ".join(
                f"{ratio}: {value:.3g}"
                for ratio, value in list(result["ratios"].items())[:_HEADLINES]
            ),
            result["at"],
        )
        for name, result in told.items()
    ]
    others = ", ".join(f"[{name}]({name}.json)" for name in kept if name not in told)
    sections = ["# Benchmarks", table(("what", "command", "first ratios", "at"), rows, text=4)]
    sections += [f"Without a page: {others}."] if others else []
    return _write(INDEX, "\n\n".join(sections) + "\n")


def write(path: Path, blocks: Mapping[str, str]) -> None:
    """Puts each block between its markers, `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        click.ClickException: a marker is missing; nothing is written then.
    """
    text = path.read_text()
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise click.ClickException(f"{path} has no {begin} ... {end}: put it where it belongs")
        text = f"{before}{begin}\n{block}\n{end}{after}"
    path.write_text(text)


def _write(name: str, content: str) -> Path:
    BENCH.mkdir(parents=True, exist_ok=True)
    path = BENCH / name
    partial = path.with_name(f"{name}.partial")
    partial.write_text(content)
    partial.replace(path)
    return path
