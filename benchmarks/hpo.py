"""What a search costs: Ray Tune as shipped, the same in one process, and the way it is often done.

Three families, `--trials` candidates. Each way runs in a process of its own whose memory, children
included, is sampled meanwhile. `usual` is how many pipelines do it: a frame of all one-hot levels
in double precision, one Tuner a family, a new actor a trial, one report at the end, so that ASHA
has nothing to stop. Writes `var/bench/hpo.json` and prints a Markdown table; ratios first.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import click
import pandas as pd
import psutil

from benchmarks.loop import BENCH, machine
from health_predict import encounters, fitting, schema, splits
from health_predict.models import FAMILIES
from health_predict.search import SearchData, SearchResult
from health_predict.settings import silence_telemetry

SEED = 7
FEW = 3


def snapshot(data: str, rows: int) -> pd.DataFrame:
    """Returns the first encounters of the cohort, so many that `rows` are on the train side."""
    raw, _ = encounters.read(data, rows=2 * rows, seed=SEED)
    cohort = splits.with_side(encounters.cohort(encounters.apply_contract(raw)[0], "any"))
    learning = (cohort[schema.SIDE] == "train").cumsum()
    return cohort[learning <= rows].reset_index(drop=True)


def ours(data: str, rows: int, trials: int, backend: str) -> dict[str, Any]:
    """Runs the shipped search; returns its seconds and what became of the trials."""
    from health_predict.tuning import search

    frame = snapshot(data, rows)
    preprocessor = fitting.fit_preprocessor(frame)
    sides = (fitting.sample(frame, preprocessor, side) for side in ("train", "validation"))
    result = search(
        SearchData(*sides),
        trials=trials,
        seed=SEED,
        backend="serial" if backend == "serial" else "ray",
    )
    return _told(result)


def _told(result: SearchResult) -> dict[str, Any]:
    return {
        "seconds": result.seconds,
        "start_seconds": result.start_seconds,
        "best_auc": result.winner.auc,
        "winner": asdict(result.winner),
        "stopped_early": {
            family: sum(t.fate != "full" for t in result.trials if t.family == family)
            / max(1, sum(t.family == family for t in result.trials))
            for family in FAMILIES
        },
    }


def usual(data: str, rows: int, trials: int) -> dict[str, Any]:
    """Runs the search the usual way; returns its seconds."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    frame = snapshot(data, rows)
    dummies = pd.get_dummies(frame[[*schema.INPUTS]], dtype=float)
    wide = dummies.set_axis(range(dummies.shape[1]), axis=1)  # XGBoost refuses "[" in a name
    learn, check = (frame[schema.SIDE] == side for side in ("train", "validation"))
    y = frame[schema.LABEL]
    began, best = time.monotonic(), 0.0
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    for family in FAMILIES:

        def trial(config: dict[str, Any], table: Any, family: str = family) -> None:
            from sklearn.metrics import roc_auc_score

            x, y, x_check, y_check = table
            model = _classifier(family, config).fit(x, y)
            tune.report({"auc": float(roc_auc_score(y_check, model.predict_proba(x_check)[:, 1]))})

        space = {
            name: tune.randint(int(r.low), int(r.high) + 1)
            if r.scale == "integer"
            else (tune.loguniform if r.scale == "log" else tune.uniform)(r.low, r.high)
            for name, r in FAMILIES[family].space.items()
        }
        tuner = tune.Tuner(
            tune.with_parameters(trial, table=(wide[learn], y[learn], wide[check], y[check])),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="auc", mode="max", scheduler=ASHAScheduler(), num_samples=trials // 3
            ),
            run_config=tune.RunConfig(verbose=0, storage_path=str(BENCH / "usual")),
        )
        best = max(best, (tuner.fit().get_best_result().metrics or {})["auc"])
    ray.shutdown()
    return {"seconds": time.monotonic() - began, "columns": wide.shape[1], "best_auc": best}


def _classifier(family: str, config: dict[str, Any]) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from xgboost import XGBClassifier

    renamed = {"rounds": "n_estimators", "trees": "n_estimators"}
    params = {renamed.get(name, name): value for name, value in config.items()}
    if family == "logistic_regression":
        return LogisticRegression(max_iter=1000, **params)
    return (XGBClassifier if family == "xgboost" else RandomForestClassifier)(**params)


def measured(way: str, data: str, rows: int, trials: int) -> dict[str, Any]:
    """Runs one way in a process of its own; returns what it told, peak memory and leftovers."""
    before = set(psutil.pids())
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.hpo", "--way", way]
    command += ["--data", data, "--rows", str(rows), "--trials", str(trials)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, processes = 0, 0
    while running.poll() is None:
        memory = [_unique_bytes(p) for p in _family(running.pid)]
        peak, processes = max(peak, sum(memory)), max(processes, len(memory))
        time.sleep(0.25)
    output, _ = running.communicate()
    if running.returncode:
        raise click.ClickException(f"{way} ended with {running.returncode}")
    left = [p for p in psutil.pids() if p not in before and _is_ray(p)]
    told: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {
        **told,
        "peak_mib": round(peak / 2**20),
        "processes": processes,
        "processes_left": len(left),
    }


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _unique_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def _is_ray(pid: int) -> bool:
    try:
        return "ray" in " ".join(psutil.Process(pid).cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def compare(data: str, rows: int, many_rows: int, trials: int) -> dict[str, Any]:
    """Runs every way and returns the measurements with their ratios."""
    ways = {
        "ray": measured("ray", data, rows, trials),
        "serial": measured("serial", data, rows, trials),
        "ray, few trials": measured("ray", data, rows, FEW),
        "serial, few trials": measured("serial", data, rows, FEW),
        "ray, many rows": measured("ray", data, many_rows, trials),
        "serial, many rows": measured("serial", data, many_rows, trials),
        "usual": measured("usual", data, rows, trials),
    }
    seconds = {name: way["seconds"] for name, way in ways.items()}
    further = {
        way: (seconds[way] - seconds[f"{way}, few trials"]) / (trials - FEW)
        for way in ("ray", "serial")
    }
    return {
        "machine": machine(),
        "data": data,
        "trials": trials,
        "rows": {"train": rows, "many": many_rows},
        "ratios": {
            "ray to usual": seconds["ray"] / seconds["usual"],
            "ray to serial": seconds["ray"] / seconds["serial"],
            "ray to serial, many rows": seconds["ray, many rows"] / seconds["serial, many rows"],
            "further trial, ray to serial": further["ray"] / further["serial"],
        },
        "ray_fixed_seconds": seconds["ray"] - further["ray"] * trials,
        "seconds_a_further_trial": further,
        "same_winner": ways["ray"]["winner"]["params"] == ways["serial"]["winner"]["params"],
        "ways": ways,
    }


def table(result: dict[str, Any]) -> str:
    """Returns the measurements as a Markdown table."""
    ratios = [f"- {name}: {ratio:.2f}" for name, ratio in result["ratios"].items()]
    rows = [
        f"| {name} | {way['seconds']:.1f} | {way['peak_mib']:,} | {way['processes']} | "
        f"{way['best_auc']:.4f} | {way['processes_left']} |"
        for name, way in result["ways"].items()
    ]
    head = [
        "",
        f"Ray's fixed cost: {result['ray_fixed_seconds']:.1f} s",
        "",
        "| way | s | peak MiB | processes | best AUC | left running |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join(ratios + head + rows)


@click.command()
@click.option("--data", default="synthetic", show_default=True)
@click.option("--rows", default=14_000, show_default=True, help="Rows of the train side.")
@click.option("--many-rows", default=70_000, show_default=True)
@click.option("--trials", default=30, show_default=True)
@click.option("--way", hidden=True, default="")
def command(data: str, rows: int, many_rows: int, trials: int, way: str) -> None:
    """Compares the ways to search."""
    silence_telemetry()
    if way:
        told = usual(data, rows, trials) if way == "usual" else ours(data, rows, trials, way)
        sys.stdout.write("\n" + json.dumps(told, default=float) + "\n")
        return
    result = compare(data, rows, many_rows, trials)
    BENCH.mkdir(parents=True, exist_ok=True)
    (BENCH / "hpo.json").write_text(json.dumps(result, indent=2))
    sys.stdout.write(table(result) + f"\nwritten to {BENCH / 'hpo.json'}\n")


if __name__ == "__main__":
    command()
