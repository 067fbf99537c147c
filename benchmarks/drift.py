"""How often the drift decision is wrong where nothing drifted, and right where something did.

On encounters drawn by patient: batches that come from the reference's own world, and batches into
which emergency admissions were put. Beside it what is usual: Evidently's defaults, and a
Kolmogorov-Smirnov or chi-square test a column at .05. Writes `var/bench/drift.json` and a page;
what a decision costs is in `drift_cost`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from benchmarks.drift_cost import REFERENCE_ROWS, bare_tests, by_patient
from benchmarks.prequential import cohort
from benchmarks.report import Run, table
from health_predict import features, schema
from health_predict.column_drift import by_column
from health_predict.drift import MAJOR
from health_predict.evidently_report import write_report
from health_predict.separation import Chance, chance, separate
from health_predict.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

SIZES = (500, 1_000, 5_000)
RATES = (0.01, 0.05)
# The world that references and undrifted batches are drawn from: the first fifth, which the first
# champion learns from. Over more of the table the world itself changes.
WORLD_ROWS = 20_000
DRAWS_A_CHANCE = 100
# Evidently takes seconds a batch and answers nearly alike each time.
USUAL_DRAWS = 10
EMERGENCY = ("admission_source_id", "admission_type_id")


@dataclass(frozen=True)
class Shift:
    """A way in which a batch drifts.

    Attributes:
        name: in words.
        rows: rows of the batch.
        share: share of its rows that are replaced by emergency admissions.
        ignored: features that the test does not see.
    """

    name: str
    rows: int
    share: float
    ignored: tuple[str, ...] = ()


SHIFTS = (
    Shift("a quarter are emergencies", 5_000, 0.25),
    Shift("half are emergencies", 1_000, 0.5),
    Shift("all are emergencies, their codes hidden", 1_000, 1.0, EMERGENCY),
)

Draw = Callable[[np.random.Generator], "tuple[pd.DataFrame, pd.DataFrame]"]
"""Returns a reference and a batch."""


@click.command(help=__doc__)
@click.option("--data", default=lambda: Settings().data, help="As HEALTH_PREDICT_DATA.")
@click.option("--draws", default=1_600, type=click.IntRange(10), help="Undrifted batches a size.")
@click.option("--shifted", default=100, type=click.IntRange(10), help="Drifted batches a shift.")
@click.option("--seed", default=lambda: Settings().seed, type=int)
def main(data: str, draws: int, shifted: int, seed: int) -> None:
    """Runs the benchmark."""
    run = Run("drift", "How often the drift decision is wrong, and right")
    people, source = cohort(data, "any")
    world = people.iloc[:WORLD_ROWS]
    result: dict[str, Any] = {
        "data": source.caption,
        "sha256": source.sha256,
        "seed": seed,
        "undrifted": [undrifted(world, rows, draws, seed) for rows in SIZES],
        "drifted": [drifted(people, shift, shifted, seed) for shift in SHIFTS],
    }
    run.publish(ratios(result), result, page(result))


def undrifted(world: "pd.DataFrame", rows: int, draws: int, seed: int) -> dict[str, Any]:
    """Returns how often batches of the reference's own world are called drifted."""

    def draw(rng: np.random.Generator) -> "tuple[pd.DataFrame, pd.DataFrame]":
        batch, rest = by_patient(world, rows, rng)
        return rest.head(REFERENCE_ROWS), batch

    return {"rows": rows, **_alarms(draw, rows, draws, seed)}


def drifted(people: "pd.DataFrame", shift: Shift, draws: int, seed: int) -> dict[str, Any]:
    """Returns how often batches with emergency admissions put into them are called drifted."""
    emergency = people["admission_source_id"] == schema.EMERGENCY_ROOM
    elective = people[~emergency].head(WORLD_ROWS)
    emergencies = people[emergency].head(WORLD_ROWS)

    def draw(rng: np.random.Generator) -> "tuple[pd.DataFrame, pd.DataFrame]":
        import pandas as pd

        batch, rest = by_patient(elective, shift.rows, rng)
        moved = round(shift.share * shift.rows)
        arrived = emergencies.sample(moved, random_state=int(rng.integers(2**31)))
        return rest.head(REFERENCE_ROWS), pd.concat([batch.iloc[moved:], arrived])

    found = _alarms(draw, shift.rows, draws, seed, shift.ignored)
    return {"shift": shift.name, "rows": shift.rows, **found}


def _alarms(
    draw: Draw, rows: int, draws: int, seed: int, ignored: tuple[str, ...] = ()
) -> dict[str, Any]:
    rng = np.random.default_rng([seed, rows])
    statistics, beyond, major = [], dict.fromkeys(RATES, 0), 0
    far: Chance | None = None
    usual: list[dict[str, float]] = []
    for number in range(draws):
        reference, batch = draw(rng)
        if far is None or number % DRAWS_A_CHANCE == 0:  # as for the next champion
            far = chance(reference, rows, ignored=ignored, seed=number)
        found = separate(reference, batch, ignored=ignored, seed=number)
        statistics.append(found.statistic)
        for rate in RATES:
            beyond[rate] += found.statistic > far.bound(rate, found)
        major += found.statistic > max(MAJOR, far.bound(RATES[0], found))
        if number < USUAL_DRAWS:
            usual.append(usually(reference, batch, ignored))
    return {
        "draws": draws,
        "statistic": {
            "mean": float(np.mean(statistics)),
            "low": float(np.min(statistics)),
            "high": float(np.max(statistics)),
        },
        "alarms": {str(rate): count / draws for rate, count in beyond.items()},
        "major": major / draws,
        "usual": {name: float(np.mean([u[name] for u in usual])) for name in usual[0]},
    }


def usually(
    reference: "pd.DataFrame", batch: "pd.DataFrame", ignored: tuple[str, ...]
) -> dict[str, float]:
    """Returns the share of columns that the usual ways call drifted."""
    columns = [c for c in features.MODELLED if c not in ignored]
    values = [p for p, _ in bare_tests(reference, batch, columns)]
    # What this project calls moved, for comparison: corrected, pooled, of some size.
    ours = [d.moved for d in by_column(reference, batch, {}) if d.column in columns]
    with TemporaryDirectory() as folder:
        evidently = write_report(reference, batch, Path(folder)).drifted_share
    return {
        "columns_tested_at_0.05": float(np.mean(np.array(values) < 0.05)),
        "evidently_columns": evidently,
        "our_columns": float(np.mean(ours)),
    }


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Returns how many undrifted batches are called drifted, over how many were meant to be."""
    return {
        f"alarms at {float(rate):.0%} over what was asked for, {row['rows']:,} rows": share
        / float(rate)
        for row in result["undrifted"]
        for rate, share in row["alarms"].items()
    }


def page(result: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    head = (
        *("batch", "rows", "alarms at 1 %", "at 5 %", "major", "statistic"),
        *("columns: KS or chi-square at .05", "Evidently's defaults", "moved, as shown here"),
    )
    rows = []
    for row in (*result["undrifted"], *result["drifted"]):
        s, usual = row["statistic"], row["usual"]
        rows.append(
            (
                *(row.get("shift", "nothing drifted"), f"{row['rows']:,}"),
                *(f"{row['alarms']['0.01']:.1%}", f"{row['alarms']['0.05']:.1%}"),
                *(f"{row['major']:.0%}", f"{s['mean']:.3f} ({s['low']:.3f} to {s['high']:.3f})"),
                *(f"{usual['columns_tested_at_0.05']:.0%}", f"{usual['evidently_columns']:.0%}"),
                f"{usual['our_columns']:.0%}",
            )
        )
    return f"{result['data']}, batches drawn by patient\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()
