"""Group `training`: a snapshot to learn from, the preprocessor, the search."""

import hashlib
from typing import Any

import dagster as dg
import pandas as pd
from sklearn.pipeline import Pipeline

from health_predict import fitting, schema, splits
from health_predict.defs.data import OWNERS, _table_facts
from health_predict.defs.facts import NEWEST_BATCH, arrivals
from health_predict.defs.partitions import arriving, batch_key, batch_number
from health_predict.defs.resources import Arrival, SearchBudget
from health_predict.encounters import untouched
from health_predict.search import SearchData, SearchResult, Trial
from health_predict.tuning import search


@dg.asset(
    group_name="training",
    owners=OWNERS,
    kinds={"pandas", "parquet"},
    ins={"future_batch": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
)
def training_set(
    context: dg.AssetExecutionContext,
    initial: pd.DataFrame,
    future_batch: dict[str, pd.DataFrame],
    arrival: Arrival,
) -> dg.MaterializeResult[pd.DataFrame]:
    """One snapshot of all encounters whose outcomes are known, each with its patient's side.

    Models learn from the side `train`, are chosen and calibrated on `validation` and judged on
    `test`. All three are taken in one go, so that a batch that arrives in between cannot move
    the ground under a running comparison. Encounters whose care a prediction changed are left out
    of all three: what happened after them is not what the model was to foretell.
    """
    known = _matured(context.instance, future_batch, arrival)
    newest = max(map(batch_number, known), default=0)
    whole = pd.concat([initial, *known.values()], ignore_index=True)
    usual = untouched(whole).drop(columns=schema.INTERVENED, errors="ignore").reset_index(drop=True)
    snapshot = splits.with_side(usual)
    context.instance.add_run_tags(context.run_id, {NEWEST_BATCH: str(newest)})
    values = pd.util.hash_pandas_object(snapshot, index=False).to_numpy()
    return dg.MaterializeResult(
        value=snapshot,
        metadata={
            **_table_facts(snapshot),
            "rows_by_side": snapshot[schema.SIDE].value_counts().to_dict(),
            "window": "initial" if not newest else f"initial to {batch_key(newest)}",
            "newest_batch": newest,
            "label_rate": float(snapshot[schema.LABEL].mean()),
            "known_rows": len(whole),
            "intervened_left_out": len(whole) - len(snapshot),
            "fingerprint": hashlib.sha256(values.tobytes()).hexdigest()[:16],
        },
    )


def _matured(
    instance: dg.DagsterInstance, batches: dict[str, pd.DataFrame], arrival: Arrival
) -> dict[str, pd.DataFrame]:
    """Returns the batches whose outcomes are known, oldest first: none of served traffic."""
    arrived = arrivals(instance)
    return {
        key: batches[key]
        for key in arriving(batches)
        if key in arrived and arrival.matured(arrived[key])
    }


@dg.asset_check(asset=training_set, blocking=True)
def no_patient_on_two_sides(training_set: pd.DataFrame) -> dg.AssetCheckResult:
    """Each patient is on the side the keyed hash gives, so nobody is learned from and judged on."""
    wrong = training_set[schema.SIDE] != splits.side(training_set[schema.PATIENT])
    sides = training_set.groupby(schema.PATIENT)[schema.SIDE].nunique()
    return dg.AssetCheckResult(
        passed=not wrong.any() and int(sides.max()) == 1,
        metadata={
            "rows_on_the_wrong_side": int(wrong.sum()),
            "patients_on_two_sides": int((sides > 1).sum()),
        },
    )


@dg.asset(group_name="training", owners=OWNERS, kinds={"scikitlearn", "skops"})
def fitted_preprocessor(training_set: pd.DataFrame) -> dg.MaterializeResult[Pipeline]:
    """The preprocessor, fitted on the train side."""
    fitted = fitting.fit_preprocessor(training_set)
    names = fitted.named_steps["encode"].get_feature_names_out()
    return dg.MaterializeResult(
        value=fitted, metadata={"columns": len(names), "names": ", ".join(names)}
    )


@dg.asset_check(
    asset=fitted_preprocessor, additional_ins={"training_set": dg.AssetIn()}, blocking=True
)
def no_label_leaks_into_features(
    fitted_preprocessor: Pipeline, training_set: pd.DataFrame
) -> dg.AssetCheckResult:
    """No feature alone foretells the outcome so well that it must know it."""
    aucs = fitting.single_feature_aucs(training_set, fitted_preprocessor)
    leaking = [name for name, auc in aucs.items() if auc > fitting.LEAK_AUC]
    strongest = sorted(aucs, key=aucs.__getitem__, reverse=True)[:5]
    return dg.AssetCheckResult(
        passed=not leaking,
        metadata={
            "leaking": ", ".join(leaking) or "none",
            "limit": fitting.LEAK_AUC,
            "strongest": {name: round(aucs[name], 3) for name in strongest},
        },
    )


@dg.asset(group_name="training", owners=OWNERS, kinds={"ray", "optuna", "mlflow"})
def hpo_results(
    context: dg.AssetExecutionContext,
    training_set: pd.DataFrame,
    fitted_preprocessor: Pipeline,
    budget: SearchBudget,
    mlflow: dg.ResourceParam[Any],
) -> dg.MaterializeResult[SearchResult]:
    """The search over logistic regression, random forest and XGBoost on Ray Tune.

    Optuna proposes, successive halving stops what falls behind. One MLflow run holds the search,
    with a nested run for each candidate.
    """
    from health_predict.experiments import log_search

    result = search(
        SearchData(
            fitting.sample(training_set, fitted_preprocessor, "train"),
            fitting.sample(training_set, fitted_preprocessor, "validation"),
        ),
        trials=budget.trials,
        seed=budget.seed,
        workers=budget.workers,
        families=budget.families,
        seconds=budget.seconds,
        backend="serial" if budget.backend == "serial" else "ray",
        say=context.log.info,
    )
    log_search(mlflow, result)
    return dg.MaterializeResult(
        value=result,
        metadata={
            "winner": result.winner.family,
            "validation_auc": result.winner.auc,
            "trials": dg.MetadataValue.table(list(map(_row, result.trials))),
            "stopped_early": sum(trial.fate != "full" for trial in result.trials),
            "seconds": round(result.seconds, 1),
            "start_seconds": round(result.start_seconds, 1),
            "mlflow_run_id": mlflow.active_run().info.run_id,
        },
    )


def _row(trial: Trial) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "trial": trial.number + 1,
            "family": trial.family,
            "validation_auc": round(trial.auc, 4),
            "stages": len(trial.curve),
            "end": trial.fate,
            "seconds": round(trial.seconds, 2),
        }
    )


ASSETS = [training_set, fitted_preprocessor, hpo_results]
CHECKS = [no_patient_on_two_sides, no_label_leaks_into_features]
