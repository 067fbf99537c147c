"""The jobs: the slices of the graph that are run as one, and what a person decides."""

from typing import Any

import dagster as dg

from health_predict.defs.approval import reinstate_version, release_challenger
from health_predict.defs.partitions import batches

# A process a step would cost 3 s of imports each and buys nothing: steps of a job run in turn.
EXECUTOR = dg.in_process_executor
_MODEL = dg.AssetKey("registered_model")

# Where runs are Kubernetes jobs (dagster-k8s), a training's pod: what a search with two workers was
# seen to take, and half as much again; one that hangs ends after two hours, its pod after a day.
_TRAINING_POD: dict[str, Any] = {
    "dagster-k8s/config": {
        "container_config": {
            "resources": {
                "requests": {"cpu": "2", "memory": "2Gi"},
                "limits": {"memory": "2Gi"},
            }
        },
        "job_spec_config": {
            "active_deadline_seconds": 2 * 60 * 60,
            "ttl_seconds_after_finished": 24 * 60 * 60,
            "backoff_limit": 0,  # the sensor tries again, and counts
        },
    }
}

bootstrap = dg.define_asset_job(
    "bootstrap",
    selection=dg.AssetSelection.assets(
        "raw_encounters",
        "encounters",
        "quarantine",
        "initial",
        "future",
        "training_set",
        "fitted_preprocessor",
        "hpo_results",
        "registered_model",
    ),
    description="Raw data to the first champion.",
    tags=_TRAINING_POD,
    executor_def=EXECUTOR,
)

ingest_batch = dg.define_asset_job(
    "ingest_batch",
    selection=dg.AssetSelection.assets(
        "future_batch",
        "batch_predictions",
        "performance_estimate",
        "drift_report",
        "batch_performance",
    )
    | dg.AssetSelection.checks(dg.AssetCheckKey(_MODEL, "champion_is_recent")),
    partitions_def=batches,
    description="One batch arrives, is scored, and is watched for drift.",
    # A run that was killed is started again; one that failed would fail for the same reason.
    tags={"dagster/max_retries": "2", "dagster/retry_on_asset_or_op_failure": "false"},
    executor_def=EXECUTOR,
)

retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets(
        "training_set", "fitted_preprocessor", "hpo_results", "registered_model"
    ),
    description="Learn again from all known outcomes and let the gate judge the challenger.",
    tags=_TRAINING_POD,
    executor_def=EXECUTOR,
)

deploy = dg.define_asset_job(
    "deploy",
    selection=dg.AssetSelection.assets(
        "readmission_bento", "readmission_image", "readmission_deployment"
    ),
    description="Roll the champion out, verify what is served, roll back if it is not right.",
    executor_def=EXECUTOR,
)

drill = dg.define_asset_job(
    "drill",
    selection=dg.AssetSelection.assets("rollback_drill"),
    description="Roll a bad release out on purpose and see it rolled back; on this machine only.",
    executor_def=EXECUTOR,
)

report = dg.define_asset_job(
    "report",
    selection=dg.AssetSelection.assets("loop_report"),
    description="One page of what the loop did and what came of it.",
    executor_def=EXECUTOR,
)

refresh_data = dg.define_asset_job(
    "refresh_data",
    selection=dg.AssetSelection.assets(
        "raw_encounters", "encounters", "quarantine", "initial", "future"
    ),
    description="Read the source again, after broken rows were mended in it.",
    executor_def=EXECUTOR,
)


@dg.job(
    executor_def=EXECUTOR,
    description="Release the challenger that passed the gate and waits, by name and reason.",
)
def approve() -> None:
    """A person's approval."""
    release_challenger()


@dg.job(
    executor_def=EXECUTOR,
    description="Make a version that was champion before the champion again, by name and reason.",
)
def reinstate() -> None:
    """A person's way back."""
    reinstate_version()


JOBS: list[Any] = [
    *(bootstrap, ingest_batch, retrain, deploy, drill, report, refresh_data),
    *(approve, reinstate),
]
