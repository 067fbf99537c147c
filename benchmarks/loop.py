"""Where the seconds go from a drift event to the verified new version serving.

Turns the whole loop on the synthetic cohort in a state folder of its own and reads what each run
recorded. Writes `var/bench/loop.json` and a page; shares first, because seconds are those of one
machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.report import BENCH, Run, table


@click.command(help=__doc__)
@click.option("--rows", default=30_000, show_default=True, help="Rows of the synthetic cohort.")
@click.option("--batches", default=6, show_default=True)
def main(rows: int, batches: int) -> None:
    """Runs the benchmark."""
    run = Run("loop", "From a drift event to the verified new version")
    state = BENCH / "state"
    state.parent.mkdir(parents=True, exist_ok=True)
    program = str(Path(sys.executable).with_name("health-predict"))
    subprocess.run(
        [program, "loop", "--rows", str(rows), "--batches", str(batches)],
        env={**os.environ, "HEALTH_PREDICT_VAR": str(state)},
        check=True,
    )
    told = json.loads((state / "loop.json").read_text())
    result: dict[str, Any] = {"data": told["data"], "rows": rows, **told["seconds"]}
    run.publish(shares(result), result, page(result))


def shares(result: dict[str, Any]) -> dict[str, float]:
    """Returns part of the newest promotion's course -> its share of the whole, largest first."""
    newest = result["retrains"][-1]
    parts = sorted(newest["parts"].items(), key=lambda part: -part[1])
    return {f"{name}, of all": seconds / newest["drift_to_served"] for name, seconds in parts}


def page(result: dict[str, Any]) -> str:
    """Returns the newest promotion's course as Markdown."""
    newest = result["retrains"][-1]
    said = (
        f"Drift event to verified version {newest['version']} ({result['data']}): "
        f"{newest['drift_to_served']} s. First champion after {result['first_champion']} s, the "
        f"whole loop {result['total']} s.\n\n"
    )
    rows = [(name, f"{seconds:.1f}") for name, seconds in newest["parts"].items()]
    return said + table(("part", "s"), rows)


if __name__ == "__main__":
    main()
