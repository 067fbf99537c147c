"""What is remembered of models: MLflow runs, registered versions, the alias of the champion.

The only module that imports mlflow. Which version deserves the alias is decided in `evaluation`;
models are written and read as skops files, digests checked, never as pickles.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_predict.schema import CODES, COUNTS, EXAMPLE, INPUTS, LABEL
from health_predict.search import SearchResult, Trial

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from sklearn.pipeline import Pipeline

MODEL = "readmission"
EXPERIMENT = "readmission"
CHAMPION = "champion"
PREVIOUS = "previous"
CHALLENGER = "challenger"
"""Aliases: the version that serves, the one before, and one that waits for a person's approval."""

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
_DIGEST = "skops_sha256"
_LEDGER_HEAD = "ledger_head"
_FACTS = "facts"
_REFERENCE = "reference/reference.parquet"


class RegistryError(RuntimeError):
    """The registry does not hold what was asked for, or not what was put there."""


@dataclass(frozen=True)
class ModelVersion:
    """A registered model.

    Attributes:
        version: MLflow's version number, as text.
        run_id: MLflow run that holds model, preprocessor and reference.
        family: model family.
        facts: what is told of the model wherever it goes; JSON values only.
    """

    version: str
    run_id: str
    family: str
    facts: dict[str, Any]


@contextmanager
def experiment_run(tracking_uri: str, artifacts: Path, context: Any) -> Iterator[Any]:
    """Yields dagster-mlflow's resource, bound to the MLflow run of a Dagster run.

    dagster-mlflow's hook `end_mlflow_on_run_finished` is gone round: it ends the MLflow run after
    the first step of a job. The run is ended here, when the resource is torn down.

    Args:
        tracking_uri: MLflow server or database.
        artifacts: folder of artifacts where the tracking store is a local database.
        context: Dagster's resource context, its config as dagster-mlflow expects it.
    """
    import mlflow
    from dagster_mlflow.resources import MlFlow

    _experiment(tracking_uri, artifacts)
    try:
        yield MlFlow(context)
        failed = context.instance.get_run_stats(context.run_id).steps_failed
        mlflow.end_run("FAILED" if failed else "FINISHED")
    finally:
        mlflow.end_run("KILLED")  # without effect on a run that has ended


def _experiment(tracking_uri: str, artifacts: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    if tracking_uri.startswith("sqlite") and mlflow.get_experiment_by_name(EXPERIMENT) is None:
        mlflow.create_experiment(EXPERIMENT, artifact_location=artifacts.absolute().as_uri())


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
        frame = Path(folder) / Path(_REFERENCE).name
        reference.to_parquet(frame)
        mlflow.log_artifact(str(frame), str(Path(_REFERENCE).parent))
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


class Registry:
    """Registered versions of the model and the alias of the champion.

    Args:
        tracking_uri: MLflow server or database.
        artifacts: folder of artifacts where the tracking store is a local database.
    """

    def __init__(self, tracking_uri: str, artifacts: Path) -> None:
        import mlflow

        _experiment(tracking_uri, artifacts)
        self._mlflow = mlflow
        self._client = mlflow.MlflowClient(tracking_uri, tracking_uri)

    def champion(self) -> ModelVersion | None:
        """Returns the version behind the alias `champion`, None if there is none yet."""
        return self._behind(CHAMPION)

    def challenger(self) -> ModelVersion | None:
        """Returns the version that passed the gate and waits for approval, None if none does."""
        return self._behind(CHALLENGER)

    def _behind(self, alias: str) -> ModelVersion | None:
        from mlflow.exceptions import MlflowException

        try:
            return self._version(self._client.get_model_version_by_alias(MODEL, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def version(self, number: str) -> ModelVersion:
        """Returns one registered version."""
        return self._version(self._client.get_model_version(MODEL, number))

    def register(self, uri: str, run_id: str, family: str, facts: dict[str, Any]) -> ModelVersion:
        """Registers a logged model as the next version; no alias moves.

        Args:
            uri: what `log_model` returned.
            run_id: the run that holds it.
            family: model family.
            facts: what is told of the model wherever it goes.

        Raises:
            RegistryError: the fitted preprocessor is not beside the model in the same run.
        """
        if not self._client.list_artifacts(run_id, "preprocessor"):
            raise RegistryError(
                f"run {run_id} holds no preprocessor/: a model is registered only with the "
                "preprocessor it was fitted with"
            )
        self._ensure_model()
        version = self._client.create_model_version(
            MODEL,
            source=uri,
            run_id=run_id,
            tags={"family": family, _DIGEST: _digest(self._folder(uri))},
        )
        facts = {**facts, "name": MODEL, "version": str(version.version), "run_id": run_id}
        self._client.set_model_version_tag(MODEL, version.version, _FACTS, json.dumps(facts))
        return ModelVersion(str(version.version), run_id, family, facts)

    def promote(self, version: str) -> None:
        """Moves the alias `champion` to a version, and `previous` to the one before."""
        current = self.champion()
        if current is not None and current.version != version:
            self._client.set_registered_model_alias(MODEL, PREVIOUS, current.version)
        self._client.set_registered_model_alias(MODEL, CHAMPION, version)
        waiting = self.challenger()
        if waiting is not None and waiting.version == version:
            self._client.delete_registered_model_alias(MODEL, CHALLENGER)

    def hold(self, version: str) -> None:
        """Gives a version the alias `challenger`: it waits for a person's approval."""
        self._client.set_registered_model_alias(MODEL, CHALLENGER, version)

    def ledger_head(self) -> str | None:
        """Returns the newest ledger digest that was remembered, None if there is none."""
        found = self._client.search_registered_models(f"name = '{MODEL}'")
        return found[0].tags.get(_LEDGER_HEAD) if found else None

    def remember_ledger_head(self, digest: str) -> None:
        """Remembers the digest of the newest ledger entry, so that a cut tail is found."""
        self._ensure_model()
        self._client.set_registered_model_tag(MODEL, _LEDGER_HEAD, digest)

    def _ensure_model(self) -> None:
        if not self._client.search_registered_models(f"name = '{MODEL}'"):
            self._client.create_registered_model(MODEL)

    def load(self, version: ModelVersion) -> "Pipeline":
        """Returns the fitted pipeline of a version.

        Raises:
            RegistryError: the stored file is not the one that was registered.
        """
        registered = self._client.get_model_version(MODEL, version.version)
        folder = self._folder(f"models:/{MODEL}/{version.version}")
        found, expected = _digest(folder), registered.tags[_DIGEST]
        if found != expected:
            raise RegistryError(
                f"model version {version.version} has sha256 {found}, registered was {expected}: "
                "its file was changed; restore it or roll back to another version"
            )
        pipeline: Pipeline = self._mlflow.sklearn.load_model(str(folder))
        return pipeline

    def reference(self, version: ModelVersion) -> "pd.DataFrame":
        """Returns the rows of a version's training window that batches are compared with."""
        import pandas as pd

        path = self._mlflow.artifacts.download_artifacts(
            run_id=version.run_id, artifact_path=_REFERENCE
        )
        return pd.read_parquet(path)

    def _version(self, found: Any) -> ModelVersion:
        return ModelVersion(
            str(found.version), found.run_id, found.tags["family"], json.loads(found.tags[_FACTS])
        )

    def _folder(self, uri: str) -> Path:
        return Path(self._mlflow.artifacts.download_artifacts(artifact_uri=uri))


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.skops").read_bytes()).hexdigest()
