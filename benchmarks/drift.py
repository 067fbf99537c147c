"""How often the drift decision is wrong where nothing drifted, and right where something did.

On encounters drawn by patient: batches that come from the reference's own world, and batches into
which emergency admissions were put. Beside it what is usual: Evidently's defaults, and a
Kolmogorov-Smirnov or chi-square test a column at .05. Then the seconds a decision takes against the
bare tests. Writes `var/bench/drift.json` and prints Markdown.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from benchmarks.loop import machine
from benchmarks.prequential import cohort, keep
from health_predict import features, schema
from health_predict.column_drift import by_column
from health_predict.drift import MAJOR, detect
from health_predict.evidently_report import write_report
from health_predict.separation import Chance, chance, separate
from health_predict.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

SIZES = (500, 1_000, 5_000)
RATES = (0.01, 0.05)
REFERENCE_ROWS = 10_000
# The world that references and undrifted batches are drawn from: the first fifth, which the first
# champion learns from. Over more of the table the world itself changes.
WORLD_ROWS = 20_000
DRAWS_A_CHANCE = 100
# Evidently takes seconds a batch and answers nearly alike each time.
USUAL_DRAWS = 10
ROUNDS = 5
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
    began = time.monotonic()
    people, source = cohort(data, "any")
    world = people.iloc[:WORLD_ROWS]
    result: dict[str, Any] = {
        "machine": machine(),
        "data": source.caption,
        "sha256": source.sha256,
        "seed": seed,
        "undrifted": [undrifted(world, rows, draws, seed) for rows in SIZES],
        "drifted": [drifted(people, shift, shifted, seed) for shift in SHIFTS],
        "seconds_a_batch": [seconds_a_batch(world, rows, seed) for rows in SIZES],
    }
    result["seconds"] = round(time.monotonic() - began, 1)
    path = keep(result, "drift")
    sys.stdout.write(f"{tables(result)}\n\n{result['seconds']} s, written to {path}\n")


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


def by_patient(
    frame: "pd.DataFrame", rows: int, rng: np.random.Generator
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Returns so many rows of randomly drawn patients, and those of the others in random order."""
    _, patient = np.unique(frame[schema.PATIENT], return_inverse=True)
    order = np.argsort(rng.permutation(patient.max() + 1)[patient], kind="stable")
    last = patient[order[rows - 1]]
    others = order[rows:][patient[order[rows:]] != last]
    return frame.iloc[order[:rows]], frame.iloc[others]


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
        from pathlib import Path

        evidently = write_report(reference, batch, Path(folder)).drifted_share
    return {
        "columns_tested_at_0.05": float(np.mean(np.array(values) < 0.05)),
        "evidently_columns": evidently,
        "our_columns": float(np.mean(ours)),
    }


def bare_tests(
    reference: "pd.DataFrame", batch: "pd.DataFrame", columns: list[str]
) -> Iterator[tuple[float, float]]:
    """Yields p-value and population stability index of each column, nothing pooled or corrected."""
    import pandas as pd
    from scipy.stats import chi2_contingency, ks_2samp

    for name in columns:
        before, now = reference[name], batch[name]
        if name in schema.COUNTS:
            p_value = ks_2samp(before, now, method="asymp").pvalue
            edges = np.unique(np.quantile(before, np.linspace(0, 1, 11)[1:-1]))
            counts = [
                np.bincount(np.searchsorted(edges, v, side="right"), minlength=len(edges) + 1)
                for v in (before, now)
            ]
        else:
            codes, levels = pd.factorize(pd.concat([before, now]))
            parts = np.split(codes, [len(before)])
            counts = [np.bincount(part, minlength=len(levels)) for part in parts]
            p_value = chi2_contingency(counts).pvalue if len(levels) > 1 else 1.0
        p, q = (np.maximum(c / c.sum(), 1e-4) for c in counts)
        yield float(p_value), float(((q - p) * np.log(q / p)).sum())


def seconds_a_batch(world: "pd.DataFrame", rows: int, seed: int) -> dict[str, Any]:
    """Returns the medians over rounds: the whole decision, the joint test, the bare tests."""
    batch, rest = by_patient(world, rows, np.random.default_rng(seed))
    reference = rest.head(REFERENCE_ROWS)
    far = Chance(1.4, 120, rows, len(reference))
    risks = (np.full(len(reference), 0.4), np.full(len(batch), 0.4))

    def decide() -> Any:
        return detect(
            reference, batch, far, probabilities=risks, flagged_from=0.5, importance={}, seed=seed
        )

    ways = {
        "decision": decide,
        "joint_test": lambda: separate(reference, batch, seed=seed),
        "columns": lambda: by_column(reference, batch, {}),
        "bare": lambda: list(bare_tests(reference, batch, list(features.MODELLED))),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):  # alternating; the first round warms up
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - began)
    seconds = {name: float(np.median(values[1:])) for name, values in taken.items()}
    began = time.perf_counter()
    chance(reference, rows, seed=seed)
    return {
        "rows": rows,
        "ratio": seconds["decision"] / seconds["bare"],
        **seconds,
        "chance_once_a_champion": time.perf_counter() - began,
    }


def tables(result: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    lines = [
        f"\n{result['data']}, batches drawn by patient\n",
        "| batch | rows | alarms at 1 % | at 5 % | major | statistic "
        "| columns: KS or chi-square at .05 | Evidently's defaults | moved, as shown here |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in (*result["undrifted"], *result["drifted"]):
        s, usual = row["statistic"], row["usual"]
        lines.append(
            f"| {row.get('shift', 'nothing drifted')} | {row['rows']:,} "
            f"| {row['alarms']['0.01']:.1%} | {row['alarms']['0.05']:.1%} | {row['major']:.0%} "
            f"| {s['mean']:.3f} ({s['low']:.3f} to {s['high']:.3f}) "
            f"| {usual['columns_tested_at_0.05']:.0%} | {usual['evidently_columns']:.0%} "
            f"| {usual['our_columns']:.0%} |"
        )
    lines += [
        "\n| rows | decision over bare tests | decision s | joint test | columns | bare "
        "| chance, once a champion |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["seconds_a_batch"]:
        lines.append(
            f"| {row['rows']:,} | {row['ratio']:.1f} | {row['decision']:.2f} "
            f"| {row['joint_test']:.2f} | {row['columns']:.2f} | {row['bare']:.2f} "
            f"| {row['chance_once_a_champion']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
