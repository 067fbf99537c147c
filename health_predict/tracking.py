"""What is remembered of models: registered versions, the alias of the champion, watched batches.

Which version deserves the alias is decided in `evaluation`; a model is loaded from its skops file
once the digest is checked. With `experiments`, which logs what a training leaves, the only module
that imports mlflow.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_predict.experiments import EXPERIMENT, REFERENCE, use_experiment

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

MODEL = "readmission"
MONITORING = "readmission-monitoring"
"""The experiment of what is measured on batches."""

CHAMPION = "champion"
PREVIOUS = "previous"
CHALLENGER = "challenger"
"""Aliases: the version that serves, the one before, and one that waits for a person's approval."""

_DIGEST = "skops_sha256"
_LEDGER_HEAD = "ledger_head"
_FACTS = "facts"


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


class Registry:
    """Registered versions of the model and the alias of the champion.

    Args:
        tracking_uri: MLflow server or database.
        artifacts: where artifacts are kept if that is a database: folder or URI.
    """

    def __init__(self, tracking_uri: str, artifacts: Path | str) -> None:
        import mlflow

        use_experiment(EXPERIMENT, tracking_uri, artifacts)
        self._mlflow, self._artifacts, self._tracking_uri = mlflow, artifacts, tracking_uri
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
            run_id=version.run_id, artifact_path=REFERENCE
        )
        return pd.read_parquet(path)

    def log_monitoring(
        self,
        batch: str,
        kind: str,
        metrics: Mapping[str, float],
        files: Sequence[Path],
        tags: Mapping[str, str],
    ) -> str:
        """Logs what was measured on a batch: one run for a batch and a kind, however often.

        Measured again, the run that is there takes the new values; the older ones stay in the
        history of each metric.

        Args:
            batch: partition key of the batch.
            kind: what was measured, such as `drift` or `performance`.
            metrics: metric -> value.
            files: reports to keep with the run, by their names.
            tags: what else the run is tagged with.

        Returns:
            The id of the run.
        """
        from mlflow.entities import Metric, RunTag
        from mlflow.utils.time import get_current_time_millis

        run_id = self._monitoring_run(batch, kind)
        now = get_current_time_millis()
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, float(value), now, 0) for name, value in metrics.items()],
            tags=[RunTag(name, str(value)) for name, value in tags.items()],
        )
        for path in files:
            self._client.log_artifact(run_id, str(path))
        self._client.set_terminated(run_id)
        return run_id

    def _monitoring_run(self, batch: str, kind: str) -> str:
        experiment = use_experiment(MONITORING, self._tracking_uri, self._artifacts)
        found = self._client.search_runs(
            [experiment], f"tags.batch = '{batch}' AND tags.kind = '{kind}'", max_results=1
        )
        if found:
            known: str = found[0].info.run_id
            return known
        made = self._client.create_run(
            experiment, run_name=f"{batch}: {kind}", tags={"batch": batch, "kind": kind}
        )
        run_id: str = made.info.run_id
        return run_id

    def _version(self, found: Any) -> ModelVersion:
        return ModelVersion(
            str(found.version), found.run_id, found.tags["family"], json.loads(found.tags[_FACTS])
        )

    def _folder(self, uri: str) -> Path:
        return Path(self._mlflow.artifacts.download_artifacts(artifact_uri=uri))


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.skops").read_bytes()).hexdigest()
