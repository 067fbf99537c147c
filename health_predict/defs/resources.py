"""Resources: each returns a plain object of the pure half, one definition with a local twin."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from math import log2
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
from pydantic import SecretStr

from health_predict.download import Say
from health_predict.encounters import Source, read
from health_predict.ledger import Ledger
from health_predict.local_platform import LocalPlatform
from health_predict.release import Platform
from health_predict.release_records import ReleaseRecords
from health_predict.schema import LabelName
from health_predict.separation import Chance, chance
from health_predict.settings import ROOT, Settings
from health_predict.splits import Calendar
from health_predict.store import Store, open_store


class EncounterSource(dg.ConfigurableResource):
    """Where encounters come from, and what counts as a readmission."""

    data: str
    rows: int
    label: str
    seed: int
    largest_quarantine: float
    downloads: str

    def read(self, say: Say) -> tuple[Any, Source]:
        """Returns the raw table and its source; see `encounters.read`."""
        folder = Path(self.downloads)
        return read(self.data, rows=self.rows, seed=self.seed, downloads=folder, say=say)

    @property
    def label_name(self) -> LabelName:
        """The label's name, checked when the settings were read."""
        return "30d" if self.label == "30d" else "any"


class Arrival(dg.ConfigurableResource):
    """How batches arrive and when their outcomes are known."""

    batch_rows: int
    batches: int
    label_delay_seconds: float

    def calendar(self, rows: int) -> Calendar:
        """Returns what arrives when, of a source with so many rows."""
        return Calendar(rows, self.batches, self.batch_rows)

    def matured(self, arrived_at: float) -> bool:
        """Returns whether the outcomes of a batch that arrived then (epoch seconds) are known."""
        return datetime.now(UTC).timestamp() >= arrived_at + self.label_delay_seconds


class SearchBudget(dg.ConfigurableResource):
    """What a search may spend, and on what."""

    trials: int
    workers: int
    seed: int
    families: list[str]
    seconds: float | None
    backend: str


class Gate(dg.ConfigurableResource):
    """What the gate is told by the settings.

    Attributes:
        harm: what a needless intervention costs, in foreseen readmissions.
        approval: whether a challenger that passed waits for a person.
        oldest_champion_days: age after which the loop trains without another cause.
    """

    harm: float
    approval: bool
    oldest_champion_days: float


class StoreAt(dg.ConfigurableResource):
    """Where what passes between assets, and what is told of them, is kept."""

    uri: str

    def create_resource(self, context: dg.InitResourceContext) -> Store:
        """Returns the store."""
        return open_store(self.uri)


class LedgerIn(dg.ConfigurableResource):
    """The ledger of everything that happened to models."""

    store: str

    def create_resource(self, context: dg.InitResourceContext) -> Ledger:
        """Returns the ledger."""
        return Ledger(open_store(self.store))


class DriftWatch(dg.ConfigurableResource):
    """How drift is watched: the false alarm rate, and what is major."""

    false_alarm_rate: float
    major: float
    store: str

    def chance(self, version: str, reference: Any, batch_rows: int, seed: int) -> Chance:
        """Returns how far chance takes the statistic; drawn once a version and size of batch.

        Batches of half to twice a size share it, and so do all large ones: the inflation hardly
        depends on the size. Of several runs that need it at a time one draws, the others wait.
        """
        size = round(log2(min(batch_rows, 1_024)))
        store = open_store(self.store)
        key = f"drift_reports/chance/version-{version}-rows-{2**size}-seed-{seed}.json"
        with store.locked(key):
            if not store.exists(key):
                drawn = chance(reference, batch_rows, seed=seed)
                store.write(key, json.dumps(asdict(drawn)).encode())
        return Chance(**json.loads(store.read(key)))


class Mlflow(dg.ConfigurableResource):
    """dagster-mlflow's resource, its MLflow run named after the Dagster run.

    The field names are those that dagster-mlflow reads from its config.
    """

    experiment_name: str
    mlflow_tracking_uri: str
    artifacts: str

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Any]:
        """Yields dagster-mlflow's `MlFlow`: mlflow's own functions on the run's MLflow run."""
        from health_predict.experiments import experiment_run

        with experiment_run(self.mlflow_tracking_uri, self.artifacts, context) as mlflow:
            yield mlflow


class ModelRegistry(dg.ConfigurableResource):
    """The registry of models."""

    tracking_uri: str
    artifacts: str

    def create_resource(self, context: dg.InitResourceContext) -> Any:
        """Returns a `tracking.Registry`."""
        from health_predict.tracking import Registry

        return Registry(self.tracking_uri, self.artifacts)


class LocalServing(dg.ConfigurableResource):
    """The service as a supervised process of this machine."""

    folder: str
    port: int
    bentoml_home: str

    def create_resource(self, context: dg.InitResourceContext) -> Platform:
        """Returns the embedded platform."""
        token = _secret(Settings().service_token)
        return LocalPlatform(Path(self.folder), self.port, Path(self.bentoml_home), token)


class ClusterServing(dg.ConfigurableResource):
    """The service in a cluster."""

    bentoml_home: str
    store: str
    overlay: str
    namespace: str
    context: str
    service_url: str
    registry: str
    registry_username: str
    repository: str
    create_repository: bool
    engine: str
    base_image: str
    source: str
    traffic: str

    def create_resource(self, context: dg.InitResourceContext) -> Platform:
        """Returns the cluster as a platform."""
        from health_predict.cluster import Cluster
        from health_predict.ecr import registry
        from health_predict.kubernetes_platform import KubernetesPlatform

        # Secrets are no fields: Dagit shows those.
        secrets = Settings()
        return KubernetesPlatform(
            bentoml_home=Path(self.bentoml_home),
            cluster=Cluster(self.namespace, self.context or None, service_url=self.service_url),
            overlay=Path(self.overlay),
            registry=registry(
                self.registry,
                self.registry_username,
                _secret(secrets.registry_password),
                create=self.create_repository,
            ),
            repository=self.repository,
            records=ReleaseRecords(open_store(self.store)),
            engine=self.engine,
            base_image=self.base_image,
            source=self.source,
            token=_secret(secrets.service_token),
            traffic=Path(self.traffic) if self.traffic else None,
        )


class Releases(dg.ConfigurableResource):
    """The records of releases."""

    store: str

    def create_resource(self, context: dg.InitResourceContext) -> ReleaseRecords:
        """Returns the records."""
        return ReleaseRecords(open_store(self.store))


class ReportPage(dg.ConfigurableResource):
    """The page of the loop report: where it is written, what it links to, what alarms wait for."""

    path: str
    dagit: str
    mlflow: str
    rest_batches: int


def _secret(given: SecretStr | None) -> str:
    return given.get_secret_value() if given else ""


def _serving(settings: Settings) -> dg.ConfigurableResource:
    if settings.deployment != "kubernetes":
        return LocalServing(
            folder=str(settings.serving),
            port=settings.port,
            bentoml_home=str(settings.bentoml_home),
        )
    folder = ROOT / "k8s" / "overlays" / settings.overlay
    return ClusterServing(
        bentoml_home=str(settings.bentoml_home),
        store=settings.store_uri,
        overlay=str(folder if folder.is_dir() else settings.overlay),
        namespace=settings.namespace,
        context=settings.kube_context,
        service_url=settings.service_url,
        registry=settings.registry,
        registry_username=settings.registry_username,
        repository=settings.repository,
        create_repository=settings.create_repository,
        engine=settings.container_engine,
        base_image=settings.base_image,
        source=settings.source_url,
        traffic=str(settings.predictions or "") if settings.shadow else "",
    )


def resources(settings: Settings) -> dict[str, Any]:
    """Returns every resource of the code location by name."""
    from health_predict.defs.io_managers import StoreIOManager

    store, artifacts = settings.store_uri, settings.artifacts
    return {
        "io_manager": StoreIOManager(uri=store),
        "store": StoreAt(uri=store),
        "source": EncounterSource(
            data=settings.data,
            rows=settings.rows,
            label=settings.label,
            seed=settings.seed,
            largest_quarantine=settings.largest_quarantine,
            downloads=str(settings.var / "downloads"),
        ),
        "arrival": Arrival(
            batch_rows=settings.batch_rows,
            batches=settings.batches,
            label_delay_seconds=settings.label_delay,
        ),
        "budget": SearchBudget(
            trials=settings.trials,
            workers=settings.workers,
            seed=settings.seed,
            families=settings.families.split(","),
            seconds=settings.search_seconds,
            backend=settings.search_backend,
        ),
        "gate": Gate(
            harm=settings.harm,
            approval=settings.approval,
            oldest_champion_days=settings.oldest_champion,
        ),
        "ledger": LedgerIn(store=store),
        "mlflow": Mlflow(
            experiment_name="readmission",
            mlflow_tracking_uri=settings.tracking_uri,
            artifacts=artifacts,
        ),
        "watch": DriftWatch(
            false_alarm_rate=settings.false_alarm_rate,
            major=settings.major_drift,
            store=store,
        ),
        "registry": ModelRegistry(tracking_uri=settings.tracking_uri, artifacts=artifacts),
        "platform": _serving(settings),
        "releases": Releases(store=store),
        "report_page": ReportPage(
            path=str(settings.var.absolute() / "loop.html"),
            dagit=settings.dagit_url.rstrip("/"),
            mlflow=_mlflow_page(settings.tracking_uri),
            rest_batches=settings.rest_batches,
        ),
    }


def _mlflow_page(tracking_uri: str) -> str:
    """Returns where MLflow is looked at: its server, or where `make dev` shows the database."""
    server = urlsplit(tracking_uri)
    if server.scheme not in ("http", "https"):
        return "http://127.0.0.1:5000"
    host = server.netloc.rpartition("@")[2]  # what stands before it is a secret
    return f"{server.scheme}://{host}{server.path.rstrip('/')}"
