"""Group `serving`: the champion as a Bento, as an image, and as what answers `/predict`."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from health_predict import schema
from health_predict.defs.data import OWNERS
from health_predict.defs.recording import move_alias, record
from health_predict.ledger import Ledger
from health_predict.release import (
    NAME,
    TOLERANCE,
    Bento,
    Deployment,
    GoldenRow,
    Image,
    Platform,
    build_bento,
)
from health_predict.tracking import ModelVersion, Registry

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
    """The compiled scorer gives the pipeline's probability to 1e-6, on up to 10,000 encounters."""
    from health_predict.scorer import Scorer

    rows = initial.head(10_000)
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
    readmission_bento: Bento, platform: dg.ResourceParam[Platform]
) -> dg.MaterializeResult[Image]:
    """The Bento as the platform runs it, named by digest. Locally it is the Bento itself."""
    image = platform.containerise(readmission_bento)
    return dg.MaterializeResult(value=image, metadata={**asdict(image)})


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
    return dg.MaterializeResult(
        value=deployment,
        metadata={
            **{key: value for key, value in asdict(deployment).items() if value is not None},
            "url": dg.MetadataValue.url(f"{deployment.url}/model-info"),
        },
    )


def _golden_rows(
    encounters: pd.DataFrame, registry: Registry, version: ModelVersion
) -> list[GoldenRow]:
    rows = encounters.sample(min(GOLDEN_ROWS, len(encounters)), random_state=0)
    scores = registry.load(version).predict_proba(rows)[:, 1]
    records = rows[[*schema.INPUTS]].to_dict("records")
    return [GoldenRow(r, float(s)) for r, s in zip(records, scores, strict=True)]


@dg.asset_check(asset=readmission_deployment)
def serves_the_champion(
    registry: dg.ResourceParam[Registry], platform: dg.ResourceParam[Platform]
) -> dg.AssetCheckResult:
    """The version behind the alias `champion` is the one that answers."""
    champion = registry.champion()
    expected: Any = champion.version if champion else None
    served = platform.served_version()
    return dg.AssetCheckResult(
        passed=expected is not None and served == expected,
        metadata={"champion": str(expected), "served": str(served)},
    )


ASSETS = [readmission_bento, readmission_image, readmission_deployment]
CHECKS = [scorer_agrees_with_pipeline, serves_the_champion]
