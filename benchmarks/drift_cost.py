"""What a drift decision costs: against bare tests of scipy and numpy, and against Evidently.

Undrifted batches of three sizes, drawn by patient, against a reference of the size that the loop
keeps. `bare` is a Kolmogorov-Smirnov or chi-square test and a population stability index a column
and nothing else. How often the decision is right is in `drift`. Writes `var/bench/drift_cost.json`
and a page.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from benchmarks.prequential import cohort
from benchmarks.report import Run, table
from health_predict import features, schema
from health_predict.column_drift import by_column
from health_predict.drift import detect
from health_predict.evidently_report import ROWS as SAMPLED_ROWS
from health_predict.evidently_report import write_report
from health_predict.separation import Chance, chance, separate
from health_predict.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

SIZES = (1_000, 10_000, 80_000)
REFERENCE_ROWS = 10_000
COHORT_ROWS = 100_000
ROUNDS = 5


@click.command(help=__doc__)
@click.option("--data", default=lambda: Settings().data, help="As HEALTH_PREDICT_DATA.")
@click.option("--rows", default=COHORT_ROWS, show_default=True, help="Of the synthetic cohort.")
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=lambda: Settings().seed, type=int)
def main(data: str, rows: int, rounds: int, seed: int) -> None:
    """Runs the benchmark."""
    run = Run("drift_cost", "What a drift decision costs")
    people, source = cohort(data, "any", rows)
    # A batch leaves at least a reference's worth of other patients.
    sizes = [size for size in SIZES if size <= len(people) - 1.5 * REFERENCE_ROWS]
    result: dict[str, Any] = {
        "data": source.caption,
        "sha256": source.sha256,
        "rounds": rounds,
        "batches": [cost(people, size, rounds, seed) for size in sizes],
    }
    run.publish(ratios(result), result, page(result))


def by_patient(
    frame: "pd.DataFrame", rows: int, rng: np.random.Generator
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Returns so many rows of randomly drawn patients, and those of the others in random order."""
    _, patient = np.unique(frame[schema.PATIENT], return_inverse=True)
    order = np.argsort(rng.permutation(patient.max() + 1)[patient], kind="stable")
    last = patient[order[rows - 1]]
    others = order[rows:][patient[order[rows:]] != last]
    return frame.iloc[order[:rows]], frame.iloc[others]


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


def cost(people: "pd.DataFrame", rows: int, rounds: int, seed: int) -> dict[str, Any]:
    """Returns the medians over rounds: the whole decision, its parts, and what it is held against.

    Args:
        people: encounters that batch and reference are drawn from.
        rows: rows of the batch.
        rounds: how often each is timed, in turn.
        seed: seed of the draw and of the decision.
    """
    batch, rest = by_patient(people, rows, np.random.default_rng(seed))
    reference = rest.head(REFERENCE_ROWS)
    far = Chance(1.4, 120, rows, len(reference))
    risks = (np.full(len(reference), 0.4), np.full(len(batch), 0.4))

    def decide() -> Any:
        return detect(
            reference, batch, far, probabilities=risks, flagged_from=0.5, importance={}, seed=seed
        )

    def evidently() -> Any:
        with TemporaryDirectory() as folder:
            return write_report(reference, batch, Path(folder))

    ways: dict[str, Callable[[], Any]] = {
        "decision": decide,
        "joint_test": lambda: separate(reference, batch, seed=seed),
        "columns": lambda: by_column(reference, batch, {}),
        "bare": lambda: list(bare_tests(reference, batch, list(features.MODELLED))),
        "evidently": evidently,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # alternating; the first round warms up and imports
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - began)
    began = time.perf_counter()
    chance(reference, rows, seed=seed)
    return {
        "rows": rows,
        "seconds": {name: float(np.median(values[1:])) for name, values in taken.items()},
        "chance_once_a_champion": time.perf_counter() - began,
    }


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Returns the decision's seconds over those of the bare tests and of Evidently's report."""
    return {
        f"decision to {words}, {one['rows']:,} rows": one["seconds"]["decision"]
        / one["seconds"][other]
        for other, words in (("bare", "bare tests"), ("evidently", "Evidently's report"))
        for one in result["batches"]
    }


def page(result: dict[str, Any]) -> str:
    """Returns the seconds as Markdown."""
    head = (
        *("rows of the batch", "decision s", "its joint test", "its columns", "bare tests"),
        *("Evidently's report", "chance, once a champion"),
    )
    rows = [
        (
            f"{one['rows']:,}",
            *(f"{seconds:.2f}" for seconds in one["seconds"].values()),
            f"{one['chance_once_a_champion']:.1f}",
        )
        for one in result["batches"]
    ]
    said = (
        f"{result['data']}, reference of {REFERENCE_ROWS:,} rows, {len(features.MODELLED)} "
        f"columns; medians of {result['rounds']} alternating rounds, imports left out. Evidently's "
        f"report is of at most {SAMPLED_ROWS:,} sampled rows a side, as it is used here."
    )
    return f"{said}\n\n{table(head, rows, text=0)}"


if __name__ == "__main__":
    main()
