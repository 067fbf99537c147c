"""What grows with the number of encounters, and how fast: seconds and memory of each step.

One table is resampled to x1, x10 and x100 its rows: whole patients are drawn again and again, each
draw a patient of its own number, so that sides hold, and spread over the order of arrival as the
first was. Every step of the graph runs once in a fresh process on what the step before it wrote;
its seconds are its own, without imports, reading and writing, its memory that of the process and
its children. An exponent is the slope of a line through the logarithms: 1 grows with the rows, 0
not at all. A step that takes more memory or processor time than allowed is said to, and what needs
it is left out. Writes `var/bench/scaling.json` and a page, and with `--write-docs` the table of
`docs/scaling.md`.
"""

import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import psutil

from benchmarks.report import BENCH, Run, table
from benchmarks.results import write
from benchmarks.watching import watch
from health_predict import schema
from health_predict.settings import ROOT, silence_telemetry

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

    from health_predict.models import Candidate

SEED = 7
FOLDER = BENCH / "scaling"
DOCS = ROOT / "docs" / "scaling.md"
BLOCK = "make bench-scaling"
QUICK_ROWS, QUICK_FACTORS = 4_000, "1,4"
BATCH_SHARE = 0.2
REFERENCE_ROWS = 10_000
SPARED = 0.35
"""Share of the free memory that a step may not take: others use this machine."""
_FIRST_PATIENT, _FIRST_ENCOUNTER = 1_000_000_000, 1_000_000_000
_TIMED = "seconds: "


# The worlds


def resampled(raw: "pd.DataFrame", factor: int, seed: int) -> "pd.DataFrame":
    """Returns a table as published, of about so many times the rows.

    Patients are drawn with replacement. A draw keeps its visits, their order and about their place
    in the file, and is a patient nobody else is. With factor 1 the table comes back as it is.
    """
    if factor == 1:
        return raw
    rng = np.random.default_rng([seed, factor])
    patients, rows_of = _visits(raw)
    drawn = rng.integers(0, len(patients), size=factor * len(patients))
    taken = [rows_of[patient] for patient in drawn]
    sizes = np.array([len(rows) for rows in taken])
    rows = np.concatenate(taken)
    place = rows + np.repeat(rng.random(len(drawn)), sizes)  # two draws of a patient are apart
    order = np.argsort(place, kind="stable")
    numbers = np.repeat(_FIRST_PATIENT + np.arange(len(drawn)), sizes)
    return raw.iloc[rows[order]].assign(
        **{
            schema.PATIENT: numbers[order].astype(str),
            schema.ENCOUNTER_ID: (_FIRST_ENCOUNTER + np.arange(len(rows))).astype(str),
        }
    )


def _visits(raw: "pd.DataFrame") -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the patients, and of each the rows in order of arrival."""
    arrived = np.argsort(raw[schema.ENCOUNTER_ID].astype(np.int64).to_numpy(), kind="stable")
    patients, member = np.unique(raw[schema.PATIENT].to_numpy()[arrived], return_inverse=True)
    grouped = np.argsort(member, kind="stable")
    return patients, np.split(arrived[grouped], np.cumsum(np.bincount(member))[:-1])


# The steps: each reads what it needs, does one thing in the clock, writes what others need


@dataclass
class Clock:
    """The seconds of what is done inside `running`."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts while inside."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began


def contract_and_cohort(folder: Path, clock: Clock) -> None:
    """Splits the raw rows by the contract, and takes the cohort."""
    from health_predict import encounters

    raw = _frame(folder, "raw")
    with clock.running():
        accepted, _ = encounters.apply_contract(raw)
        cohort = encounters.cohort(accepted, "any")
    cohort.to_parquet(folder / "cohort.parquet", index=False)


def training_set(folder: Path, clock: Clock) -> None:
    """Takes the snapshot: each patient's side, and the fingerprint of the whole."""
    import pandas as pd

    from health_predict import encounters, splits

    cohort = _frame(folder, "cohort")
    with clock.running():
        usual = encounters.untouched(cohort).drop(columns=schema.INTERVENED)
        snapshot = splits.with_side(usual.reset_index(drop=True))
        pd.util.hash_pandas_object(snapshot, index=False)
    snapshot.to_parquet(folder / "snapshot.parquet", index=False)


def preprocessor(folder: Path, clock: Clock) -> None:
    """Fits the preprocessor and makes both matrices of the search."""
    from health_predict import fitting

    snapshot = _frame(folder, "snapshot")
    with clock.running():
        fitted = fitting.fit_preprocessor(snapshot)
        sides = {side: fitting.sample(snapshot, fitted, side) for side in ("train", "validation")}
    _keep(folder, "preprocessor", fitted)
    for side, sample in sides.items():
        np.savez(folder / f"{side}.npz", sample.x, sample.y, np.asarray(sample.weight))


def trial(folder: Path, clock: Clock, *, family: str) -> None:
    """Fits the default of one family through all stages, scored after each."""
    from health_predict.models import Sample
    from health_predict.search import SearchData, courses

    sides = (np.load(folder / f"{side}.npz") for side in ("train", "validation"))
    data = SearchData(*(Sample(*(side[name] for name in side.files)) for side in sides))
    with clock.running():
        list(courses(_candidate(family), data, SEED))


def refit(folder: Path, clock: Clock) -> None:
    """Refits the winner, calibrates it, chooses its threshold."""
    from health_predict import fitting

    snapshot, fitted = _frame(folder, "snapshot"), _kept(folder, "preprocessor")
    with clock.running():
        learned = fitting.learn(snapshot, fitted, _candidate("xgboost"), seed=SEED)
    _keep(folder, "pipeline", learned.pipeline)


def examine(folder: Path, clock: Clock) -> None:
    """Judges a challenger against a champion on the newest people of the test side."""
    from health_predict import gate
    from health_predict.fitting import Fitted
    from health_predict.thresholds import Thresholds

    snapshot, pipeline = _frame(folder, "snapshot"), _kept(folder, "pipeline")
    fitted = Fitted(pipeline, "sigmoid", Thresholds(0.5, {}, ""))
    with clock.running():
        gate.examine(
            snapshot,
            _candidate("xgboost"),
            fitted,
            gate.Champion(pipeline, 0.5),
            label="any",
            harm=1.0,
            seed=SEED,
        )


def compiled(folder: Path, clock: Clock) -> None:
    """Compiles the pipeline for serving."""
    from health_predict.compiling import compile_pipeline

    pipeline = _kept(folder, "pipeline")
    shutil.rmtree(folder / "compiled", ignore_errors=True)
    with clock.running():
        compile_pipeline(pipeline, {}, folder / "compiled")


def scoring(folder: Path, clock: Clock) -> None:
    """Scores a batch and the reference it is held against."""
    pipeline = _kept(folder, "pipeline")
    reference, batch = _reference_and_batch(folder)
    with clock.running():
        now = pipeline.predict_proba(batch)[:, 1]
    before = pipeline.predict_proba(reference)[:, 1]
    np.savez(folder / "scores.npz", before=before, now=now)


def drift(folder: Path, clock: Clock) -> None:
    """Decides whether the batch drifted."""
    from health_predict.drift import detect
    from health_predict.separation import Chance

    reference, batch = _reference_and_batch(folder)
    scores = np.load(folder / "scores.npz")
    # Drawn once a champion; here that of the published reference, so that only this is measured.
    far = Chance(1.4, 240, 1_000, len(reference))
    with clock.running():
        detect(
            reference,
            batch,
            far,
            probabilities=(scores["before"], scores["now"]),
            flagged_from=0.5,
            importance={},
            seed=SEED,
        )


def report(folder: Path, clock: Clock) -> None:
    """Writes Evidently's report of the batch."""
    from health_predict.evidently_report import write_report

    reference, batch = _reference_and_batch(folder)
    scores = np.load(folder / "scores.npz")
    with clock.running():
        write_report(
            reference,
            batch,
            folder / "report",
            reference_probabilities=scores["before"],
            batch_probabilities=scores["now"],
            threshold=0.5,
            with_labels=True,
            seed=SEED,
        )


def outcomes(folder: Path, clock: Clock) -> None:
    """Says how well the scores of the batch foretold what came."""
    from health_predict.gate import people
    from health_predict.outcomes import assess

    _, batch = _reference_and_batch(folder)
    now = np.load(folder / "scores.npz")["now"]
    with clock.running():
        assess(people(batch), now, gate_auc=0.68, calibrated_on=1_000, seed=SEED)


def nothing(folder: Path, clock: Clock) -> None:
    """Imports what the others import: what a process takes before it has any rows."""
    import pandas  # noqa: F401
    import sklearn.pipeline  # noqa: F401
    import xgboost  # noqa: F401


STEPS: dict[str, Callable[[Path, Clock], None]] = {
    "contract and cohort": contract_and_cohort,
    "training set, sides": training_set,
    "preprocessor, matrices": preprocessor,
    "trial: logistic regression": partial(trial, family="logistic_regression"),
    "trial: random forest": partial(trial, family="random_forest"),
    "trial: XGBoost": partial(trial, family="xgboost"),
    "refit, calibration, threshold": refit,
    "gate": examine,
    "compile for serving": compiled,
    "score a batch": scoring,
    "drift decision": drift,
    "Evidently's report": report,
    "outcomes of a batch": outcomes,
}
"""In the order of the graph; each needs what those before it wrote."""
BARE = "nothing"


def _frame(folder: Path, name: str) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(folder / f"{name}.parquet")


def _reference_and_batch(folder: Path) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Returns the newest of what was learned from, and the newest fifth of all encounters."""
    snapshot = _frame(folder, "snapshot")
    at = len(snapshot) - int(BATCH_SHARE * len(snapshot))
    return snapshot.iloc[max(0, at - REFERENCE_ROWS) : at], snapshot.iloc[at:]


def _candidate(family: str) -> "Candidate":
    from health_predict.models import FAMILIES, Candidate

    return Candidate(family, FAMILIES[family].default)


def _keep(folder: Path, name: str, fitted: "Pipeline") -> None:
    import skops.io

    skops.io.dump(fitted, folder / f"{name}.skops")


def _kept(folder: Path, name: str) -> "Pipeline":
    import skops.io

    from health_predict.experiments import TRUSTED_TYPES

    return skops.io.load(folder / f"{name}.skops", trusted=TRUSTED_TYPES)


# The measurements


def measured(step: str, folder: Path, gib: float, cpu_seconds: int) -> dict[str, Any]:
    """Runs one step in a fresh process.

    Args:
        step: name in `STEPS`, or `BARE`.
        folder: of the world it runs on.
        gib: memory it may take.
        cpu_seconds: processor time it may take, all of the process included.

    Returns:
        `seconds` and `peak_mib`, or `failed` with the reason.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scaling", "--step", step]
    command += ["--folder", str(folder), "--gib", str(gib), "--cpu-seconds", str(cpu_seconds)]
    try:
        seen = watch(command)
    except click.ClickException as error:
        return {"failed": _reason(error.message, gib, cpu_seconds)}
    told = [line for line in seen.output.splitlines() if line.startswith(_TIMED)]
    return {"seconds": float(told[-1].removeprefix(_TIMED)), "peak_mib": round(seen.peak_mib, 1)}


_NO_MEMORY, _NO_INPUT, _NO_TIME = 71, 72, -24  # -SIGXCPU


def _reason(message: str, gib: float, cpu_seconds: int) -> str:
    code = int(message.rpartition(" ")[2])
    known = {
        _NO_MEMORY: f"more than {gib:.1f} GiB",
        _NO_TIME: f"more than {cpu_seconds:,} s",
        _NO_INPUT: "not reached",
    }
    return known.get(code, f"ended with {code}")


def run_step(step: str, folder: Path, gib: float, cpu_seconds: int) -> None:
    """Runs one step in this process, within what it may take."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    clock = Clock()
    try:
        (nothing if step == BARE else STEPS[step])(folder, clock)
    except MemoryError:
        sys.exit(_NO_MEMORY)
    except FileNotFoundError:  # what the step before it would have written
        sys.exit(_NO_INPUT)
    sys.stdout.write(f"\n{_TIMED}{clock.seconds}\n")


def worlds(data: str, rows: int, factors: Sequence[int]) -> dict[int, int]:
    """Writes the table of each factor; returns factor -> rows."""
    from health_predict import encounters

    raw, _ = encounters.read(data, rows=rows, seed=SEED)
    counted = {}
    for factor in factors:
        folder = FOLDER / str(factor)
        folder.mkdir(parents=True, exist_ok=True)
        frame = resampled(raw.head(rows), factor, SEED)
        frame.to_parquet(folder / "raw.parquet", index=False)
        counted[factor] = len(frame)
    return counted


def exponent(rows: Sequence[float], values: Sequence[float]) -> float | None:
    """Returns the slope of log(values) over log(rows), None of fewer than two points above 0."""
    points = [(math.log(n), math.log(v)) for n, v in zip(rows, values, strict=True) if v > 0]
    if len({n for n, _ in points}) < 2:
        return None
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def exponents(
    rows: dict[int, int], taken: dict[int, dict[str, Any]], floor: float
) -> dict[str, float | None]:
    """Returns how a step's seconds and its memory above a bare process grow with the rows."""
    known = [factor for factor in rows if "seconds" in taken.get(factor, {})]
    counts = [rows[factor] for factor in known]
    seconds = [taken[factor]["seconds"] for factor in known]
    above = [taken[factor]["peak_mib"] - floor for factor in known]
    return {
        "seconds": exponent(counts, seconds),
        "seconds_of_the_last_two": exponent(counts[-2:], seconds[-2:]),
        "memory": exponent(counts, above),
    }


# The page


def header(factors: Sequence[int]) -> tuple[str, ...]:
    """Returns the head of the table."""
    times = (f"x{factor}, s" for factor in factors)
    memory = (f"x{factor}, MiB" for factor in factors)
    return ("step", *times, "exponent", "last two", *memory, "exponent of memory")


def page(result: dict[str, Any]) -> str:
    """Returns the table: a line a step."""
    factors = [int(factor) for factor in result["rows"]]
    lines = []
    for name, step in result["steps"].items():
        cells = [step["taken"].get(str(factor), {}) for factor in factors]
        e = step["exponents"]
        lines.append(
            (
                name,
                *(_cell(cell, "seconds", "{:,.2f}") for cell in cells),
                *(_slope(e["seconds"]), _slope(e["seconds_of_the_last_two"])),
                *(_cell(cell, "peak_mib", "{:,.0f}") for cell in cells),
                _slope(e["memory"]),
            )
        )
    return table(header(factors), lines)


def _cell(cell: dict[str, Any], name: str, form: str) -> str:
    return form.format(cell[name]) if name in cell else cell.get("failed", "not reached")


def _slope(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def circumstances(result: dict[str, Any], run: Run) -> str:
    """Returns what the figures were made of, and when."""
    m = run.machine
    rows = ", ".join(f"x{factor} {count:,}" for factor, count in result["rows"].items())
    return (
        f"Rows of {result['data']} data: {rows}. {m['cores']} cores ({m['processor']}), "
        f"{m['memory_gib']} GiB, Python {m['python']}, made {run.at[:10]}. A bare process with the "
        f"same imports takes {result['bare_mib']:,.0f} MiB."
    )


@click.command(help=__doc__)
@click.option("--data", default="synthetic", show_default=True, help="As HEALTH_PREDICT_DATA.")
@click.option("--rows", default=4_000, show_default=True, type=click.IntRange(2_000), help="At x1.")
@click.option("--factors", default="1,10,100", show_default=True)
@click.option("--quick", is_flag=True, help=f"{QUICK_ROWS} rows, factors {QUICK_FACTORS}.")
@click.option("--cpu-seconds", default=300, show_default=True, help="That a step may take.")
@click.option("--gib", default=0.0, help="Memory a step may take; 0: most of what is free.")
@click.option("--write-docs", is_flag=True, help="Put the table into docs/scaling.md.")
@click.option("--step", hidden=True, default="", type=click.Choice(["", BARE, *STEPS]))
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    data: str,
    rows: int,
    factors: str,
    quick: bool,
    cpu_seconds: int,
    gib: float,
    write_docs: bool,
    step: str,
    folder: Path,
) -> None:
    """Runs the benchmark."""
    silence_telemetry()
    if step:
        run_step(step, folder, gib, cpu_seconds)
        return
    run = Run("scaling", "What grows with the number of encounters")
    rows, factors = (QUICK_ROWS, QUICK_FACTORS) if quick else (rows, factors)
    gib = gib or (1 - SPARED) * psutil.virtual_memory().available / 2**30
    times = sorted({int(factor) for factor in factors.split(",")})
    try:
        result = _measure(data, rows, times, gib, cpu_seconds)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    largest = f"x{times[-1]} to x{times[0]}"
    ratios = {
        f"{name}, {largest}": found["taken"][str(times[-1])]["seconds"]
        / found["taken"][str(times[0])]["seconds"]
        for name, found in result["steps"].items()
        if all("seconds" in found["taken"].get(str(t), {}) for t in (times[0], times[-1]))
    }
    shown = page(result)
    run.publish(ratios, result, circumstances(result, run), shown)
    if write_docs:
        write(DOCS, {BLOCK: f"{circumstances(result, run)}\n\n{shown}"})


def _measure(
    data: str, rows: int, factors: Sequence[int], gib: float, cpu_seconds: int
) -> dict[str, Any]:
    counted = worlds(data, rows, factors)
    bare = measured(BARE, FOLDER, gib, cpu_seconds)["peak_mib"]
    taken: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in STEPS}
    for factor in factors:
        for name in STEPS:
            found = measured(name, FOLDER / str(factor), gib, cpu_seconds)
            sys.stderr.write(f"x{factor} {name}: {found}\n")
            taken[name][factor] = found
    return {
        "data": data,
        "rows": {str(factor): count for factor, count in counted.items()},
        "limits": {"gib": gib, "cpu_seconds": cpu_seconds},
        "bare_mib": bare,
        "steps": {
            name: {
                "taken": {str(factor): found for factor, found in each.items()},
                "exponents": exponents(counted, each, bare),
            }
            for name, each in taken.items()
        },
    }


if __name__ == "__main__":
    main()
