"""The ways to search that `hpo` compares, each to be run in a process of its own.

`python -m benchmarks.searches WAY DATA ROWS TRIALS` prints what the search told as JSON. What it
took is measured from outside. The matrix, the spaces and the first candidates are the same for all
but the usual way.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.report import BENCH
from health_predict import encounters, fitting, models, schema, search, splits
from health_predict.models import FAMILIES, Candidate, Params, Range
from health_predict.search import SearchData, SearchResult
from health_predict.settings import silence_telemetry

if TYPE_CHECKING:
    import pandas as pd

SEED = 7


def snapshot(data: str, rows: int) -> "pd.DataFrame":
    """Returns the first encounters of the cohort, so many that `rows` are on the train side."""
    raw, _ = encounters.read(data, rows=2 * rows, seed=SEED)
    cohort = splits.with_side(encounters.cohort(encounters.apply_contract(raw)[0], "any"))
    learning = (cohort[schema.SIDE] == "train").cumsum()
    return cohort[learning <= rows].reset_index(drop=True)


def sides(data: str, rows: int) -> SearchData:
    """Returns what the ways but the usual one search on."""
    frame = snapshot(data, rows)
    preprocessor = fitting.fit_preprocessor(frame)
    train, validation = (
        fitting.sample(frame, preprocessor, side) for side in ("train", "validation")
    )
    return SearchData(train, validation)


def ray(data: str, rows: int, trials: int) -> dict[str, Any]:
    """Runs the shipped search on Ray."""
    from health_predict.tuning import search as tuned

    return _told(tuned(sides(data, rows), trials=trials, seed=SEED, backend="ray"))


def serial(data: str, rows: int, trials: int) -> dict[str, Any]:
    """Runs the shipped search in this process."""
    return _told(search.search_serially(sides(data, rows), trials=trials, seed=SEED))


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


def plain(data: str, rows: int, trials: int) -> dict[str, Any]:
    """Fits candidates in full, one after another: each family's default, then drawn ones."""
    found, rng = sides(data, rows), np.random.default_rng(SEED)
    families, began, best = list(FAMILIES), time.monotonic(), 0.0
    for number in range(trials):
        family = families[number % len(families)]
        drawn = {name: _draw(bounds, rng) for name, bounds in FAMILIES[family].space.items()}
        params = FAMILIES[family].default if number < len(families) else drawn
        estimator = models.fit(Candidate(family, params), found.train, SEED)
        best = max(best, search.validation_auc(estimator, found.validation))
    return {"seconds": time.monotonic() - began, "best_auc": best}


def _draw(bounds: Range, rng: np.random.Generator) -> float | int:
    if bounds.scale == "integer":
        return int(rng.integers(int(bounds.low), int(bounds.high) + 1))
    if bounds.scale == "log":
        return float(np.exp(rng.uniform(np.log(bounds.low), np.log(bounds.high))))
    return float(rng.uniform(bounds.low, bounds.high))


def optuna(data: str, rows: int, trials: int) -> dict[str, Any]:
    """Searches with Optuna alone, its own pruner after each stage."""
    import optuna as library

    library.logging.set_verbosity(library.logging.WARNING)
    found = sides(data, rows)

    def objective(trial: Any) -> float:
        family = trial.suggest_categorical("family", list(FAMILIES))
        space = FAMILIES[family].space
        params: Params = {n: _suggest(trial, f"{family}.{n}", space[n]) for n in space}
        auc = 0.0
        stages = search.courses(Candidate(family, params), found, SEED)
        for stage, auc in enumerate(stages, start=1):
            trial.report(auc, stage)
            if trial.should_prune():
                raise library.TrialPruned
        return auc

    began = time.monotonic()
    study = library.create_study(
        direction="maximize",
        sampler=library.samplers.TPESampler(seed=SEED),
        pruner=library.pruners.SuccessiveHalvingPruner(reduction_factor=search.REDUCTION),
    )
    for family, one in FAMILIES.items():
        default = {f"{family}.{name}": value for name, value in one.default.items()}
        study.enqueue_trial({"family": family, **default})
    study.optimize(objective, n_trials=trials)
    return {"seconds": time.monotonic() - began, "best_auc": study.best_value}


def _suggest(trial: Any, name: str, bounds: Range) -> float | int:
    if bounds.scale == "integer":
        whole: int = trial.suggest_int(name, int(bounds.low), int(bounds.high))
        return whole
    drawn: float = trial.suggest_float(name, bounds.low, bounds.high, log=bounds.scale == "log")
    return drawn


def usual(data: str, rows: int, trials: int) -> dict[str, Any]:
    """Runs the search the usual way with Ray."""
    import pandas as pd
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


WAYS: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
    "ray": ray,
    "serial": serial,
    "plain": plain,
    "optuna": optuna,
    "usual": usual,
}
"""Name -> what runs it: data, rows of the train side, candidates -> seconds and best AUC."""


if __name__ == "__main__":
    silence_telemetry()
    warnings.simplefilter("ignore")
    way, data, rows, trials = sys.argv[1:]
    told = WAYS[way](data, int(rows), int(trials))
    sys.stdout.write("\n" + json.dumps(told, default=float) + "\n")
