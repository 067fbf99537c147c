"""Group `registry`: the gate, and the champion it lets through."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import pandas as pd
from sklearn.pipeline import Pipeline

from health_predict import card, explanations, features, fitting, gate, schema
from health_predict.compiling import compile_pipeline
from health_predict.defs.data import OWNERS
from health_predict.defs.dossier import (
    metrics,
    model_facts,
    recorded,
    run_facts,
    shown,
    tags,
    verdict_metadata,
    version_metadata,
)
from health_predict.defs.facts import SENTENCE, WAITING, latest
from health_predict.defs.recording import champion_before, move_alias, record, trigger
from health_predict.defs.resources import EncounterSource, Gate, SearchBudget
from health_predict.experiments import log_files, log_model
from health_predict.ledger import Ledger
from health_predict.models import Candidate
from health_predict.scorer import Contributions, Scorer
from health_predict.search import SearchResult
from health_predict.tracking import ModelVersion, Registry

# What later batches are compared with: the newest part of the training window, because the
# window as a whole differs from any batch for ever.
REFERENCE_ROWS = 10_000
# Enough for a picture of what moves the scores; a forest takes 45 ms to explain one.
EXPLAINED_ROWS = 300
CARD, PICTURE = "model_card.md", "contributions.png"
# The model itself is in the registry: nothing is kept in the store.
_NOTHING: Any = dg.Nothing


@dg.asset(
    group_name="registry",
    owners=OWNERS,
    kinds={"mlflow", "scikitlearn"},
    output_required=False,
    dagster_type=_NOTHING,
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
    gate: Gate,
    mlflow: dg.ResourceParam[Any],
    registry: dg.ResourceParam[Registry],
    ledger: dg.ResourceParam[Ledger],
) -> Any:
    """The champion: the search's winner, refitted and calibrated, once the gate has let it pass.

    Champion and challenger score the same recent people of the test side, whom neither learned
    from. A promoted challenger becomes the next version and takes the alias `champion`; a refused
    one is logged with its reason, the champion stays and nothing downstream runs. Where a person's
    approval is asked for, one that passed is registered and waits for the job `approve`.
    """
    candidate = hpo_results.candidate
    fitted = fitting.learn(
        training_set, fitted_preprocessor, candidate, seed=budget.seed, harm=gate.harm
    )
    examination = _examine(training_set, candidate, fitted, registry, source, gate, budget.seed)
    verdict = examination.verdict
    explained = _contributions(fitted.pipeline, training_set)
    facts = {
        **run_facts(context, training_set, source),
        **model_facts(examination, fitted, explained),
        "champion_before": champion_before(registry),
    }
    uri = log_model(mlflow, fitted.pipeline, training_set, _reference(training_set), tags(facts))
    mlflow.log_metrics(metrics(verdict))
    run_id = mlflow.active_run().info.run_id
    context.log.info(verdict.sentence)
    record(
        context,
        ledger,
        registry,
        "verdict",
        verdict.sentence,
        facts=recorded(facts, run_id, verdict),
    )
    waits = verdict.promoted and gate.approval
    yield dg.AssetCheckResult(
        passed=verdict.promoted,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=verdict_metadata(verdict),
    )
    if not verdict.promoted:
        _observe(context, verdict_metadata(verdict))
        return
    registered = registry.register(uri, run_id, candidate.family, facts)
    picture = _picture(explained, training_set, registered)
    described = card.render(card.card(registered.facts))
    log_files(mlflow, {CARD: described.encode(), PICTURE: picture})
    record(
        context,
        ledger,
        registry,
        "registration",
        trigger(context),
        version=registered.version,
        facts=recorded(facts, run_id, verdict),
    )
    if waits:
        registry.hold(registered.version)
        words = f"Version {registered.version} waits for the job approve. {verdict.sentence}"
        _observe(
            context,
            {**verdict_metadata(verdict), SENTENCE: words, WAITING: registered.version},
        )
        return
    move_alias(context, ledger, registry, registered.version, verdict.sentence)
    yield dg.Output(
        None,
        metadata={
            **verdict_metadata(verdict),
            **version_metadata(registered),
            "what_moves_the_scores": shown(picture),
            "model_card": dg.MetadataValue.md(described),
        },
    )


def _observe(context: dg.AssetExecutionContext, metadata: dict[str, Any]) -> None:
    context.log_event(dg.AssetObservation("registered_model", metadata=metadata))


def _examine(
    snapshot: pd.DataFrame,
    candidate: Candidate,
    fitted: fitting.Fitted,
    registry: Registry,
    source: EncounterSource,
    settings: Gate,
    seed: int,
) -> gate.Examination:
    champion = None
    if version := registry.champion():
        champion = gate.Champion(registry.load(version), version.facts["threshold"])
    return gate.examine(
        snapshot,
        candidate,
        fitted,
        champion,
        label=source.label_name,
        harm=settings.harm,
        seed=seed,
    )


def _reference(snapshot: pd.DataFrame) -> pd.DataFrame:
    newest = snapshot.tail(REFERENCE_ROWS)
    numbered, _ = pd.factorize(newest[schema.PATIENT])
    kept = newest[[*schema.INPUTS]]
    return kept.assign(**{schema.PATIENT: -1 - numbered})  # nobody's number is below 1


def _contributions(pipeline: Pipeline, snapshot: pd.DataFrame) -> Contributions:
    """Returns what moves the scores of the newest held-out people."""
    with TemporaryDirectory() as folder:
        compile_pipeline(pipeline, {}, Path(folder))
        scorer = Scorer.load(Path(folder))
    return scorer.contributions(_explained(snapshot)[[*schema.INPUTS]].to_dict("records"))


def _explained(snapshot: pd.DataFrame) -> pd.DataFrame:
    return gate.held_out(snapshot).tail(EXPLAINED_ROWS)


def _picture(explained: Contributions, snapshot: pd.DataFrame, version: ModelVersion) -> bytes:
    frame = features.derive(_explained(snapshot))
    return explanations.summary_picture(
        explained,
        {name: frame[name].to_list() for name in frame.columns},
        title=f"What moves the scores: {version.family}, version {version.version}",
        caption=f"{len(frame):,} newest held-out encounters, {version.facts['data']}",
    )


@dg.asset_check(asset=registered_model)
def champion_is_recent(context: dg.AssetCheckExecutionContext, gate: Gate) -> dg.AssetCheckResult:
    """The champion took over no longer ago than the loop lets one stay unexamined."""
    promoted = latest(context.instance, "registered_model")
    age = (datetime.now(UTC).timestamp() - promoted.timestamp) / 86_400 if promoted else None
    return dg.AssetCheckResult(
        passed=age is not None and age <= gate.oldest_champion_days,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "days": "no champion" if age is None else round(age, 2),
            "limit_days": gate.oldest_champion_days,
        },
    )


ASSETS = [registered_model]
CHECKS = [champion_is_recent]
