"""Group `serving`: the champion as a Bento, as an image, and as what answers `/predict`."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from health_predict import drill, schema
from health_predict.bundling import build_bento
from health_predict.defs.data import OWNERS
from health_predict.defs.facts import SENTENCE
from health_predict.defs.recording import move_alias, record, trigger
from health_predict.ledger import Kind, Ledger
from health_predict.local_platform import LocalPlatform
from health_predict.release import NAME, Bento, Deployment, Image, Platform
from health_predict.release_records import ReleaseRecords
from health_predict.tracking import ModelVersion, Registry
from health_predict.verification import TOLERANCE, GoldenRow

# Golden rows travel with each roll-out: enough to meet missing values and rare levels.
GOLDEN_ROWS = 20


@dg.asset(group_name="serving", owners=OWNERS, kinds={"bentoml"}, deps=["registered_model"])
def readmission_bento(
    registry: dg.ResourceParam[Registry],
    platform: dg.ResourceParam[Platform],
) -> dg.MaterializeResult[Bento]:
    """The champion compiled into a Bento: service, scorer, encoding tables, digests."""
    champion = registry.champion()
    if champion is None:
        raise dg.Failure("there is no champion yet: run the job bootstrap first")
    bento = build_bento(
        registry.load(champion),
        champion.facts,
        champion.version,
        platform.bentoml_home,
    )
    return dg.MaterializeResult(value=bento, metadata={**asdict(bento)})


@dg.asset_check(
    asset=readmission_bento,
    additional_ins={"initial": dg.AssetIn()},
    blocking=True,
)
def scorer_agrees_with_pipeline(
    readmission_bento: Bento,
    initial: pd.DataFrame,
    registry: dg.ResourceParam[Registry],
    platform: dg.ResourceParam[Platform],
) -> dg.AssetCheckResult:
    """The compiled scorer gives the pipeline's probability to 1e-6, on 10,000 encounters.

    Among them are levels nobody has seen, missing values, and counts at the ends of their ranges.
    """
    from health_predict.compiling import stress_rows
    from health_predict.scorer import Scorer

    rows = stress_rows(initial, 10_000)
    folder = Path(platform.bentoml_home) / "models" / NAME / readmission_bento.version
    compiled = Scorer.load(folder).score(rows[[*schema.INPUTS]].to_dict("records"))
    version = registry.version(readmission_bento.version)
    expected = registry.load(version).predict_proba(rows)[:, 1]
    worst = float(np.abs(compiled - expected).max())
    return dg.AssetCheckResult(
        passed=worst <= TOLERANCE,
        metadata={"largest_difference": worst, "tolerance": TOLERANCE, "rows": len(rows)},
    )


@dg.asset(group_name="serving", owners=OWNERS, kinds={"docker"})
def readmission_image(
    context: dg.AssetExecutionContext,
    readmission_bento: Bento,
    initial: pd.DataFrame,
    registry: dg.ResourceParam[Registry],
    platform: dg.ResourceParam[Platform],
) -> dg.MaterializeResult[Image]:
    """The Bento as the platform runs it, tried and named by digest. Locally the Bento itself."""
    golden = _golden_rows(initial, registry, registry.version(readmission_bento.version))
    image = platform.containerise(readmission_bento, golden, context.log.info)
    return dg.MaterializeResult(
        value=image, metadata={**asdict(image), "facts": dg.MetadataValue.json(image.facts)}
    )


@dg.asset(
    group_name="serving",
    owners=OWNERS,
    kinds={"kubernetes"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=60)),
)
def readmission_deployment(
    context: dg.AssetExecutionContext,
    readmission_image: Image,
    initial: pd.DataFrame,
    registry: dg.ResourceParam[Registry],
    ledger: dg.ResourceParam[Ledger],
    platform: dg.ResourceParam[Platform],
    releases: dg.ResourceParam[ReleaseRecords],
) -> dg.MaterializeResult[Deployment]:
    """What answers `/predict`: verified by asking the served model its version and its scores.

    If it does not answer as it should, the version before is brought back and takes the alias
    `champion` again.
    """
    golden = _golden_rows(initial, registry, registry.version(readmission_image.version))
    deployment = platform.roll_out(readmission_image, golden, context.log.info)
    record(
        context,
        ledger,
        registry,
        "rollback" if deployment.rolled_back else "release",
        deployment.sentence,
        version=deployment.version,
        facts={"image": asdict(readmission_image), "wanted": readmission_image.version},
    )
    if deployment.rolled_back and deployment.version:
        move_alias(context, ledger, registry, deployment.version, deployment.sentence)
    log = context.log.error if deployment.rolled_back else context.log.info
    log(deployment.sentence)
    kept = releases.keep(readmission_image, deployment, trigger(context), context.run_id)
    facts = {key: value for key, value in asdict(deployment).items() if value is not None}
    return dg.MaterializeResult(
        value=deployment,
        metadata={
            **facts,
            "facts": dg.MetadataValue.json(deployment.facts),
            "url": dg.MetadataValue.url(f"{deployment.url}/model-info"),
            "record": dg.MetadataValue.path(kept),
        },
    )


def _golden_rows(
    encounters: pd.DataFrame, registry: Registry, version: ModelVersion
) -> list[GoldenRow]:
    rows = encounters.sample(min(GOLDEN_ROWS, len(encounters)), random_state=0)
    scores = registry.load(version).predict_proba(rows)[:, 1]
    records = rows[[*schema.INPUTS]].to_dict("records")
    return [GoldenRow(r, float(s)) for r, s in zip(records, scores, strict=True)]


@dg.asset(group_name="serving", owners=OWNERS, kinds={"bentoml"}, deps=["readmission_deployment"])
def rollback_drill(
    context: dg.AssetExecutionContext,
    initial: pd.DataFrame,
    registry: dg.ResourceParam[Registry],
    ledger: dg.ResourceParam[Ledger],
    platform: dg.ResourceParam[Platform],
) -> dg.MaterializeResult[Deployment]:
    """A bad release on purpose: the champion with its calibration upside down, rolled out untried.

    It has to be found out by asking where clients ask, and the champion has to answer again. For
    about a second the wrong model answers: for that the drill is run on this machine only, in the
    job `drill`, by a person.
    """
    champion = registry.champion()
    if champion is None or platform.served_version() != champion.version:
        raise dg.Failure("a drill begins with the champion answering: run the job deploy first")
    if not isinstance(platform, LocalPlatform):
        raise dg.Failure("a drill lets a wrong model answer: set HEALTH_PREDICT_DEPLOYMENT=local")
    golden = _golden_rows(initial, registry, champion)
    version = f"{champion.version}{drill.SUFFIX}"
    wrong = drill.spoiled(registry.load(champion))
    bento = build_bento(
        wrong, {**champion.facts, "version": version}, version, platform.bentoml_home
    )
    image = platform.containerise(bento, golden, context.log.info)
    deployment = platform.roll_out(image, golden, context.log.info, trial=False)
    sentence = f"Drill: {deployment.sentence}"
    kind: Kind = "rollback" if deployment.rolled_back else "release"
    record(context, ledger, registry, kind, sentence, version=deployment.version)
    context.log.info(sentence)
    return dg.MaterializeResult(
        value=deployment,
        metadata={SENTENCE: sentence, "rolled_back": deployment.rolled_back},
    )


@dg.asset_check(asset=rollback_drill, blocking=True)
def champion_answers_after_the_drill(
    rollback_drill: Deployment,
    registry: dg.ResourceParam[Registry],
    platform: dg.ResourceParam[Platform],
) -> dg.AssetCheckResult:
    """The bad release was rolled back by itself, and the champion answers as before."""
    champion, served = registry.champion(), platform.served_version()
    return dg.AssetCheckResult(
        passed=rollback_drill.rolled_back and champion is not None and served == champion.version,
        metadata={"champion": champion.version if champion else "none", "served": str(served)},
    )


@dg.asset_check(asset=readmission_deployment)
def serves_the_champion(
    registry: dg.ResourceParam[Registry], platform: dg.ResourceParam[Platform]
) -> dg.AssetCheckResult:
    """Alias `champion`, what the platform was told to run, and what answers are one version."""
    champion = registry.champion()
    expected: Any = champion.version if champion else None
    declared, served = platform.declared_version(), platform.served_version()
    return dg.AssetCheckResult(
        passed=expected is not None and expected == declared == served,
        metadata={"champion": str(expected), "declared": str(declared), "served": str(served)},
    )


ASSETS = [readmission_bento, readmission_image, readmission_deployment, rollback_drill]
CHECKS = [scorer_agrees_with_pipeline, serves_the_champion, champion_answers_after_the_drill]
