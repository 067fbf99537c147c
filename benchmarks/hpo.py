"""What a search costs and finds: Ray Tune as shipped, one process, and what is done elsewhere.

Three families, `--trials` candidates. `serial` is the shipped search in one process. `plain` draws
candidates and fits each in full, one after another. `optuna` is one study as Optuna's manual has
it: its estimator proposes families too, its own successive halving prunes. `usual` is how many
pipelines use Ray: a frame of all one-hot levels in double precision, one Tuner a family, a new
actor a trial, one report at the end. Writes `var/bench/hpo.json` and a page.
"""

import json
import sys
from typing import Any

import click

from benchmarks.report import Run, table
from benchmarks.searches import WAYS
from benchmarks.watching import watch

FEW = 3


def measured(way: str, data: str, rows: int, trials: int) -> dict[str, Any]:
    """Runs one way in a process of its own; returns what it told and what it took."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.searches", way, data]
    watched = watch([*command, str(rows), str(trials)])
    told: dict[str, Any] = json.loads(watched.output.splitlines()[-1])
    return {
        **told,
        "rows": rows,
        "trials": trials,
        "cpu_seconds": watched.cpu_seconds,
        "peak_mib": watched.peak_mib,
        "processes": watched.processes,
    }


def compare(data: str, rows: int, many_rows: int, trials: int, *, quick: bool) -> dict[str, Any]:
    """Runs every way, with few trials and many rows too; the quick ones only where asked."""
    asked = {way: (way, rows, trials) for way in WAYS if not (quick and way == "usual")}
    for way in () if quick else ("ray", "serial"):
        asked[f"{way}, few trials"] = (way, rows, FEW)
        asked[f"{way}, many rows"] = (way, many_rows, trials)
    ways = {name: measured(way, data, size, count) for name, (way, size, count) in asked.items()}
    result: dict[str, Any] = {"data": data, "trials": trials, "ways": ways}
    result["same_winner"] = ways["ray"]["winner"]["params"] == ways["serial"]["winner"]["params"]
    if not quick:
        further = {
            way: (ways[way]["seconds"] - ways[f"{way}, few trials"]["seconds"]) / (trials - FEW)
            for way in ("ray", "serial")
        }
        result["seconds_a_further_trial"] = further
        result["ray_fixed_seconds"] = ways["ray"]["seconds"] - further["ray"] * trials
    return result


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Returns how the shipped search compares in wall clock, processor, memory."""
    ways = result["ways"]
    found = {
        f"{ours} to {other}, {words}": ways[ours][figure] / ways[other][figure]
        for ours in ("ray", "serial")
        for other in ("plain", "optuna", "usual", "serial")
        if other in ways and ours != other
        for figure, words in (
            ("seconds", "seconds"),
            ("cpu_seconds", "processor"),
            ("peak_mib", "memory"),
        )
    }
    if "ray, many rows" in ways:
        pair = (ways["ray, many rows"], ways["serial, many rows"])
        found["ray to serial, many rows, seconds"] = pair[0]["seconds"] / pair[1]["seconds"]
        further = result["seconds_a_further_trial"]
        found["ray to serial, a further trial"] = further["ray"] / further["serial"]
    return found


def page(result: dict[str, Any]) -> str:
    """Returns the measurements as Markdown."""
    head = ("way", "train rows", "trials", "s", "processor s", "peak MiB", "processes", "best AUC")
    rows = [
        (
            *(name, f"{way['rows']:,}", way["trials"], f"{way['seconds']:.1f}"),
            *(f"{way['cpu_seconds']:.1f}", f"{way['peak_mib']:,.0f}", way["processes"]),
            f"{way['best_auc']:.4f}",
        )
        for name, way in result["ways"].items()
    ]
    said = [
        "Seconds are those of the search; processor and memory also those of reading the data and "
        "of the imports.",
        f"Ray and one process find the same winner: {'yes' if result['same_winner'] else 'no'}.",
    ]
    if "ray_fixed_seconds" in result:
        said.append(f"Ray's fixed cost: {result['ray_fixed_seconds']:.1f} s.")
    return f"{table(head, rows)}\n\n{' '.join(said)}"


@click.command(help=__doc__)
@click.option("--data", default="synthetic", show_default=True, help="As HEALTH_PREDICT_DATA.")
@click.option("--rows", default=14_000, show_default=True, help="Rows of the train side.")
@click.option("--many-rows", default=70_000, show_default=True)
@click.option("--trials", default=30, show_default=True, type=click.IntRange(FEW + 1))
@click.option("--quick", is_flag=True, help="Without the usual way, few trials and many rows.")
def main(data: str, rows: int, many_rows: int, trials: int, quick: bool) -> None:
    """Runs the benchmark."""
    run = Run("hpo", "A search: Ray, one process, a plain loop, Optuna, the usual way")
    result = compare(data, rows, many_rows, trials, quick=quick)
    run.publish(ratios(result), result, page(result))


if __name__ == "__main__":
    main()
