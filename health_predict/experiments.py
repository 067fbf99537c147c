"""What a training leaves in MLflow: the search with its trials, the model with all beside it.

Models are written as skops files, never as pickles; what is registered of them, and what is logged
about batches, is in `tracking`. With that module the only one that imports mlflow.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_predict.schema import CODES, COUNTS, EXAMPLE, INPUTS, LABEL
from health_predict.search import SearchResult, Trial

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from sklearn.pipeline import Pipeline

EXPERIMENT = "readmission"
REFERENCE = "reference/reference.parquet"
"""Where a run keeps the rows that later batches are compared with."""

TRUSTED_TYPES = [
    "health_predict.features.derive",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.isotonic.IsotonicRegression",
    "sklearn.tree._tree.Tree",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
]
"""What skops may build beside its own list: the parts our pipelines are made of."""

_STOP_REASONS = {
    "full": "all stages",
    "halved": "successive halving: behind the best third of earlier trials",
    "out of time": "the search's seconds were spent",
}


@contextmanager
def experiment_run(tracking_uri: str, artifacts: Path | str, context: Any) -> Iterator[Any]:
    """Yields dagster-mlflow's resource, bound to the MLflow run of a Dagster run.

    dagster-mlflow's hook `end_mlflow_on_run_finished` is gone round: it ends the MLflow run after
    the first step of a job. The run is ended here, when the resource is torn down.

    Args:
        tracking_uri: MLflow server or database.
        artifacts: where artifacts are kept if the tracking store is a database: folder or URI.
        context: Dagster's resource context, its config as dagster-mlflow expects it.
    """
    import mlflow
    from dagster_mlflow.resources import MlFlow

    use_experiment(EXPERIMENT, tracking_uri, artifacts)
    try:
        yield MlFlow(context)
        failed = context.instance.get_run_stats(context.run_id).steps_failed
        mlflow.end_run("FAILED" if failed else "FINISHED")
    finally:
        mlflow.end_run("KILLED")  # without effect on a run that has ended


def use_experiment(name: str, tracking_uri: str, artifacts: Path | str) -> str:
    """Returns the id of an experiment, made unless it is there, in the store mlflow then works on.

    Args:
        name: name of the experiment.
        tracking_uri: MLflow server or database.
        artifacts: where artifacts are kept if the tracking store is a database: folder or URI. A
            server has its own place for them.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    known = mlflow.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    is_server = tracking_uri.startswith("http")
    kept = artifacts.absolute().as_uri() if isinstance(artifacts, Path) else artifacts
    try:
        made = mlflow.create_experiment(name, None if is_server else kept)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by a run beside this one
            raise
        return use_experiment(name, tracking_uri, artifacts)
    return str(made)


def log_search(mlflow: Any, result: SearchResult) -> None:
    """Logs a search under the active run: its summary, and one nested run a trial.

    Args:
        mlflow: what `experiment_run` yields.
        result: the finished search.
    """
    client, parent = mlflow.tracking_client, mlflow.active_run().info
    mlflow.log_params({"trials": len(result.trials), "seed": result.seed})
    mlflow.log_metrics(
        {
            "search_seconds": result.seconds,
            "trials_stopped_early": sum(trial.fate != "full" for trial in result.trials),
            "winner_validation_auc": result.winner.auc,
        }
    )
    mlflow.set_tag("winner_family", result.winner.family)
    for trial in result.trials:
        _log_trial(client, parent.experiment_id, parent.run_id, trial)


def _log_trial(client: "MlflowClient", experiment_id: str, parent: str, trial: Trial) -> None:
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    run = client.create_run(
        experiment_id,
        run_name=f"{trial.family}-{trial.number:02d}",
        tags={
            "mlflow.parentRunId": parent,
            "family": trial.family,
            "stop_reason": _STOP_REASONS[trial.fate],
        },
    )
    now = get_current_time_millis()
    curve = [Metric("validation_auc", auc, now, step) for step, auc in enumerate(trial.curve, 1)]
    client.log_batch(
        run.info.run_id,
        metrics=[*curve, Metric("seconds", trial.seconds, now, 0)],
        params=[Param(key, str(value)) for key, value in trial.params.items()],
    )
    client.set_terminated(run.info.run_id)


def log_model(
    mlflow: Any,
    pipeline: "Pipeline",
    snapshot: "pd.DataFrame",
    reference: "pd.DataFrame",
    tags: Mapping[str, str],
) -> str:
    """Logs the pipeline, its fitted preprocessor beside it, its data set and the drift reference.

    Args:
        mlflow: what `experiment_run` yields; its active run takes the artifacts.
        pipeline: the one fitted object.
        snapshot: what was learned from; its schema, size and digest are logged, not its rows.
        reference: rows of the training window that later batches are compared with; patients
            numbered anew, so that no identifier is kept.
        tags: what the run is tagged with.

    Returns:
        The URI of the logged model.
    """
    kept = {
        "pip_requirements": _requirements(),
        "serialization_format": "skops",
        "skops_trusted_types": TRUSTED_TYPES,
    }
    mlflow.set_tags(dict(tags))
    _log_input(mlflow, snapshot)
    logged = mlflow.sklearn.log_model(
        pipeline,
        name="model",
        signature=_signature(),
        input_example=_example(),
        pyfunc_predict_fn="predict_proba",
        **kept,
    )
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder) / "preprocessor"
        preprocessor = pipeline.named_steps["preprocess"]
        mlflow.sklearn.save_model(preprocessor, beside, pyfunc_predict_fn="transform", **kept)
        mlflow.log_artifacts(str(beside), "preprocessor")
        frame = Path(folder) / Path(REFERENCE).name
        reference.to_parquet(frame)
        mlflow.log_artifact(str(frame), str(Path(REFERENCE).parent))
    uri: str = logged.model_uri
    return uri


def log_files(mlflow: Any, files: Mapping[str, bytes]) -> None:
    """Logs what people read about a model (card, picture) beside it in the active run."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.write_bytes(content)
            mlflow.log_artifact(str(path))


def _log_input(mlflow: Any, snapshot: "pd.DataFrame") -> None:
    columns = snapshot[[*INPUTS, LABEL]]
    mlflow.log_input(
        mlflow.data.from_pandas(columns, name="training_set", targets=LABEL), context="training"
    )


def _example() -> "pd.DataFrame":
    """Returns an encounter that is nobody's."""
    import pandas as pd

    return pd.DataFrame([EXAMPLE]).astype(dict.fromkeys([*CODES, *COUNTS], "int32"))


def _requirements() -> list[str]:
    """Returns the model's packages: inferred, they would take 19 s and name CUDA wheels."""
    from importlib.metadata import packages_distributions, version

    names = ["numpy", "pandas", "scikit-learn", "skops", packages_distributions()["xgboost"][0]]
    return [f"{name}=={version(name)}" for name in names]


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    whole = {*CODES, *COUNTS}
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.integer if c in whole else DataType.string, c) for c in INPUTS
    ]
    return ModelSignature(Schema(inputs), Schema([ColSpec(DataType.double)]))
