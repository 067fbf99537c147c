"""Facts recorded on a real instance, and ticks of sensors on it."""

from typing import Any
from uuid import uuid4

import dagster as dg


def record(instance: dg.DagsterInstance, asset: str, partition: str | None = None, **facts: Any):
    instance.report_runless_asset_event(
        dg.AssetMaterialization(asset, partition=partition, metadata=facts)
    )


def champion(instance: dg.DagsterInstance, version: str = "1") -> None:
    record(instance, "registered_model", version=version, sentence="Promoted.")


def drift(instance: dg.DagsterInstance, batch: int, *, drifted: bool) -> None:
    facts = {"drifted": drifted, "sentence": f"batch {batch} reported."}
    record(instance, "drift_report", f"batch-{batch:04d}", **facts)


def tick(
    definitions: dg.RepositoryDefinition,
    instance: dg.DagsterInstance,
    sensor: str,
    cursor: str | None = None,
) -> dg.SensorResult:
    context = dg.build_sensor_context(
        instance=instance, cursor=cursor, repository_def=definitions, sensor_name=sensor
    )
    result = definitions.get_sensor_def(sensor)(context)
    assert isinstance(result, dg.SensorResult)
    return result


def start(
    instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus
) -> dg.DagsterRun:
    run = dg.DagsterRun(
        job_name=request.job_name or "",
        run_id=str(uuid4()),
        tags=request.tags,
        status=status,
    )
    return instance.add_run(run)
