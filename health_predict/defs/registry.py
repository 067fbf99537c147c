"""Group `registry`: the gate, and the champion it lets through."""

import subprocess
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from health_predict import models, schema
from health_predict.defs.data import OWNERS
from health_predict.defs.resources import EncounterSource, SearchBudget
from health_predict.defs.training import on_side
from health_predict.evaluation import Verdict, judge
from health_predict.settings import ROOT
from health_predict.tracking import ModelVersion, Registry, log_model
from health_predict.tuning import SearchResult

# The rate of readmission moves within months: a model is calibrated and judged on the newest
# people of its side. 2,000 of them give the margins of the gate their meaning.
RECENT = 2_000
# What later batches are compared with: the newest part of the training window, because the
# window as a whole differs from any batch for ever.
REFERENCE_ROWS = 10_000
# With both errors equally costly; chosen by net benefit once the gate weighs them.
THRESHOLD = 0.5
RISK_BANDS = {"low": 0.0, "medium": 0.3, "high": 0.6}

PROMOTED = "promoted"
SENTENCE = "sentence"


@dg.asset(
    group_name="registry",
    owners=OWNERS,
    kinds={"mlflow", "scikitlearn"},
    output_required=False,
    dagster_type=dg.PythonObjectDagsterType(ModelVersion),
    deps=["raw_encounters"],
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=60)),
    check_specs=[
        dg.AssetCheckSpec(
            "challenger_beats_champion",
            asset="registered_model",
            description="The newest challenger was better than the champion on held-out people.",
        )
    ],
)
def registered_model(
    context: dg.AssetExecutionContext,
    training_set: pd.DataFrame,
    fitted_preprocessor: Pipeline,
    hpo_results: SearchResult,
    source: EncounterSource,
    budget: SearchBudget,
    mlflow: dg.ResourceParam[Any],
    registry: dg.ResourceParam[Registry],
) -> Any:
    """The champion: the search's winner, refitted and calibrated, once the gate has let it pass.

    Champion and challenger score the same recent people of the test side, whom neither learned
    from. A promoted challenger becomes the next version and takes the alias `champion`; a refused
    one is logged with its reason, the champion stays and nothing downstream runs.
    """
    pipeline = _refit(training_set, fitted_preprocessor, hpo_results, budget.seed)
    champion = registry.champion()
    verdict = _judge(training_set, pipeline, champion and registry.load(champion), budget.seed)
    facts = _facts(context, training_set, hpo_results, verdict, source)
    uri = log_model(mlflow, pipeline, _reference(training_set), _tags(facts))
    mlflow.log_metrics(_metrics(verdict))
    run_id = mlflow.active_run().info.run_id
    context.log.info(verdict.sentence)
    yield dg.AssetCheckResult(
        passed=verdict.promoted,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_verdict_metadata(verdict),
    )
    if not verdict.promoted:
        context.log_event(
            dg.AssetObservation("registered_model", metadata=_verdict_metadata(verdict))
        )
        return
    registered = registry.register(uri, run_id, hpo_results.winner.family, facts)
    registry.promote(registered.version)
    yield dg.Output(
        registered,
        metadata={
            **_verdict_metadata(verdict),
            "version": registered.version,
            "family": registered.family,
            "window": facts["window"],
            "data": facts["data"],
            "mlflow_run_id": run_id,
        },
    )


def _refit(
    snapshot: pd.DataFrame, preprocessor: Pipeline, result: SearchResult, seed: int
) -> Pipeline:
    train = on_side(snapshot, "train")
    calibration = on_side(snapshot, "validation").tail(RECENT)
    classifier = models.fit(
        result.candidate, preprocessor.transform(train), train[schema.LABEL].to_numpy(), seed
    )
    return models.pipeline(
        preprocessor,
        classifier,
        preprocessor.transform(calibration),
        calibration[schema.LABEL].to_numpy(),
    )


def _judge(
    snapshot: pd.DataFrame, challenger: Pipeline, champion: Pipeline | None, seed: int
) -> Verdict:
    people = on_side(snapshot, "test").tail(RECENT)

    def scores(pipeline: Pipeline) -> np.ndarray:
        probabilities: np.ndarray = pipeline.predict_proba(people)[:, 1]
        return probabilities

    return judge(
        people[schema.LABEL].to_numpy(),
        people[schema.PATIENT].to_numpy(),
        scores(challenger),
        champion and scores(champion),
        seed=seed,
    )


def _reference(snapshot: pd.DataFrame) -> pd.DataFrame:
    newest = snapshot.tail(REFERENCE_ROWS)
    numbered, _ = pd.factorize(newest[schema.PATIENT])
    kept = newest[[*schema.INPUTS]]
    return kept.assign(**{schema.PATIENT: -1 - numbered})  # nobody's number is below 1


def _facts(
    context: dg.AssetExecutionContext,
    snapshot: pd.DataFrame,
    result: SearchResult,
    verdict: Verdict,
    source: EncounterSource,
) -> dict[str, Any]:
    raw = _latest(context.instance, "raw_encounters")
    trained_on = _latest(context.instance, "training_set")
    return {
        "family": result.winner.family,
        "params": result.winner.params,
        "data": raw["caption"],
        "data_sha256": raw["sha256"],
        "label": source.label_name,
        "window": trained_on["window"],
        "newest_batch": trained_on["newest_batch"],
        "fingerprint": trained_on["fingerprint"],
        "train_rows": int((snapshot[schema.SIDE] == "train").sum()),
        "test": asdict(verdict.challenger),
        "verdict": verdict.sentence,
        "threshold": THRESHOLD,
        "risk_bands": RISK_BANDS,
        "git_revision": _git_revision(),
        "dagster_run_id": context.run_id,
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "intended_use": "decision support for care after discharge; not a diagnosis",
    }


def _latest(instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    if event is None or event.asset_materialization is None:
        raise dg.Failure(f"{asset} was never materialised: run the job bootstrap first")
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def _git_revision() -> str:
    """Returns the revision of the checkout; `unknown` outside of one."""
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"


def _tags(facts: dict[str, Any]) -> dict[str, str]:
    kept = ("data", "data_sha256", "label", "window", "fingerprint", "git_revision", "verdict")
    return {key: str(facts[key]) for key in kept}


def _metrics(verdict: Verdict) -> dict[str, float]:
    return {
        f"{who}_{name}": float(value)
        for who, scores in (("challenger", verdict.challenger), ("champion", verdict.champion))
        if scores is not None
        for name, value in asdict(scores).items()
    }


def _verdict_metadata(verdict: Verdict) -> dict[str, Any]:
    return {
        SENTENCE: verdict.sentence,
        PROMOTED: verdict.promoted,
        "auc": verdict.challenger.auc,
        "expected_observed": verdict.challenger.expected_observed,
        "held_out_encounters": verdict.challenger.n,
        "clauses": dg.MetadataValue.table(
            [dg.TableRecord({**asdict(clause)}) for clause in verdict.clauses]
        ),
    }


ASSETS = [registered_model]
CHECKS: list[dg.AssetChecksDefinition] = []
