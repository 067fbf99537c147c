"""The benchmarks that end within a quarter of an hour on two cores, one after the other.

Each runs as its own command does, some of them smaller, in a process of its own; `var/bench` then
lists what is there. One that fails is named at the end and stops none after it. The others (gate,
drift, ablation, results, and these at their full size) have targets of their own.
"""

import subprocess
import sys
from collections.abc import Sequence

import click

from benchmarks.report import write_index

PARTS: dict[str, tuple[str, ...]] = {
    "startup": ("--rounds", "3"),
    "drift_cost": ("--rounds", "3"),
    "hpo": ("--quick", "--trials", "15"),
    "ticks": ("--batches", "1000"),
    "serving": ("--rounds", "1", "--seconds", "2"),
    "scaling": ("--quick",),
    "loop": (),
}
"""Module -> options that make it short."""


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(PARTS)))
def main(names: Sequence[str]) -> None:
    """Runs the benchmarks."""
    failed = [name for name in names or PARTS if not ran(name)]
    click.echo(f"\nlisted in {write_index()}")
    if failed:
        raise click.ClickException(f"did not end well: {', '.join(failed)}")


def ran(name: str) -> bool:
    """Runs one benchmark; returns whether it ended well."""
    click.echo(f"\n== {name} {' '.join(PARTS[name])}")
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *PARTS[name]]
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    main()
