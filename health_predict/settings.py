"""Every setting in one place: environment variable, default, unit, reason.

Read when definitions are assembled or a command starts, never at import. What a setting does is
said where it is used.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from health_predict.schema import LabelName

ROOT = Path(__file__).parent.parent
"""The project's root."""

SILENCED = {
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Environment that keeps the dependencies from calling home and from drawing bars into logs;
Dagster's is in dagster.yaml.
"""


_KEPT = "settings.json"
_ADDRESS = re.compile(r"[^@\s,<>]+@[^@\s,<>]+")


def silence_telemetry() -> None:
    """Turns telemetry off for this process and those it starts, before anything is imported."""
    os.environ.update(SILENCED)


class Settings(BaseSettings):
    """The settings, each read from `HEALTH_PREDICT_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix="HEALTH_PREDICT_",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it can be a secret
    )

    var: Path = Field(default=ROOT / "var", description="Folder of all state made by running.")
    store: str = Field(
        default="",
        description="Where assets are kept: a folder, or `s3://bucket/prefix`; empty: `store` "
        "under `var`.",
    )
    data: str = Field(
        default="synthetic",
        description="`synthetic`, `uci`, a path to the csv or zip, `https://...` or `s3://...`.",
    )
    rows: Annotated[int, Field(ge=2000)] = Field(
        default=30_000, description="Rows of the synthetic cohort."
    )
    label: LabelName = Field(default="any", description="Readmission: `any`, or within `30d`.")
    seed: int = Field(default=7, description="Seed of cohort, search, gate and drift test.")
    batch_rows: Annotated[int, Field(ge=200)] = Field(
        default=4_000, description="Rows of an arriving batch."
    )
    cadence: str = Field(
        default="0 6 * * *",
        description="When batches arrive: cron, UTC, or so many seconds apart, as in the demo.",
    )
    batches_per_tick: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Batches that arrive at a time."
    )
    batches: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Batches the future is cut into, in place of `batch_rows`; 0: as many as fit.",
    )
    arrive_at_rest: bool = Field(
        default=False,
        description="Whether batches wait for a training to end; the demo sets it, "
        "whose seconds stand for a day.",
    )
    label_delay: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Seconds from arrival until a batch's outcomes are known."
    )
    trials: Annotated[int, Field(ge=3)] = Field(
        default=9, description="Candidates a search tries, over all families."
    )
    families: str = Field(
        default="logistic_regression,random_forest,xgboost",
        pattern=r"^[a-z_]+(,[a-z_]+)*$",
        description="Model families that compete, separated by commas.",
    )
    search_seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Seconds after which a search begins nothing new; empty: none."
    )
    search_backend: Literal["ray", "serial"] = Field(
        default="ray", description="`ray`, or `serial`: one process, same trials, same winner."
    )
    workers: Annotated[int, Field(ge=1)] = Field(
        default=2, description="Candidates fitted at a time."
    )
    harm: Annotated[float, Field(gt=0)] = Field(
        default=1.0,
        description="What a needless intervention costs, in foreseen readmissions: sets the "
        "threshold and the risk bands.",
    )
    approval: bool = Field(
        default=False,
        description="Whether a challenger that passed the gate waits for the job `approve`.",
    )
    largest_quarantine: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05,
        description="Share of rows that may break the contract: beyond it a batch is held back.",
    )
    prediction_log: str | None = Field(
        default=None,
        description="Folder of the prediction log; unset: `serving/predictions` under `var`; "
        "empty: none is written.",
    )
    # A sensor's tick reads them all: about a second at the upper end.
    served_batch_rows: Annotated[int, Field(ge=200, le=10_000)] = Field(
        default=1_000, description="Predictions of a batch of served traffic."
    )
    false_alarm_rate: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.01, description="Share of undrifted batches that may be called drifted."
    )
    major_drift: Annotated[float, Field(ge=0.5, le=1)] = Field(
        default=0.70, description="Separation of batch and reference (AUC) worth a retraining."
    )
    rest_batches: Annotated[int, Field(ge=0)] = Field(
        default=2,
        description="Batches of one shift that rest after a training whose challenger did not "
        "take over.",
    )
    oldest_champion: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Days after the newest verdict until the loop trains anyway."
    )
    sensor_interval: Annotated[int, Field(ge=1)] = Field(
        default=30, description="Seconds between two ticks of a sensor."
    )
    port: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=3500, description="Port of the local service."
    )
    deployment: Literal["local", "host", "kubernetes"] = Field(
        default="local",
        description="Where it all runs: `local` (everything under `var`), `host` (Postgres, the "
        "service supervised beside the code server) or `kubernetes` (Postgres, the service in a "
        "cluster).",
    )
    registry: str = Field(
        default="",
        description="Registry that images are pushed to, `host[:port]`; Amazon's is known by name.",
    )
    registry_username: str = Field(
        default="",
        description="User of the registry; empty: as the engine is logged in, or AWS's token.",
    )
    registry_password: SecretStr | None = Field(
        default=None, exclude=True, description="Its password; goes with the user."
    )
    repository: str = Field(default="readmission", description="Name of the images there.")
    create_repository: bool = Field(
        default=False, description="Whether a missing repository of Amazon's registry is made."
    )
    container_engine: Literal["", "docker", "podman", "buildah"] = Field(
        default="", description="What builds images; empty: the first that works."
    )
    base_image: str = Field(
        default="python:3.11-slim-bookworm",
        description="What images are built on; where it matters by digest, `name@sha256:...`: a "
        "tag moves.",
    )
    source_url: str = Field(default="", description="Address of the source, for image labels.")
    overlay: str = Field(
        default="minikube",
        description="Kustomize overlay that is rolled out: `minikube`, `eks` or a folder.",
    )
    namespace: str = Field(default="health-predict", description="Namespace of the service.")
    kube_context: str = Field(
        default="", description="Context of the kubeconfig; empty: its current one."
    )
    service_url: str = Field(
        default="",
        description="Where the service in the cluster is asked; empty: through the API server.",
    )
    shadow: bool = Field(
        default=False,
        description="Whether a new version first runs beside the old one, on logged requests.",
    )
    service_token: SecretStr | None = Field(
        default=None,
        exclude=True,
        description="Bearer token with which the loop asks the service; its sha256 is to stand in "
        "the service's own HEALTH_PREDICT_TOKENS. Empty: none is sent.",
    )
    postgres: SecretStr | None = Field(
        default=None,
        exclude=True,
        description="Database of Dagster, `postgresql://user:password@host:5432/dagster`; needed "
        "unless the deployment is `local`.",
    )
    mlflow_tracking_uri: str = Field(
        default="",
        description="MLflow server or database; empty: SQLite and files under `var`.",
    )
    dagit_url: str = Field(
        default="http://127.0.0.1:3000",
        pattern=r"^https?://",
        description="Where Dagit is found by those who read alerts: what links begin with.",
    )
    alert_from: str = Field(default="", description="Sender of alerts by e-mail.")
    alert_to: str = Field(default="", description="Recipients, separated by commas.")
    # Left out wherever settings are written: children find them in the environment.
    alert_smtp: SecretStr | None = Field(
        default=None,
        exclude=True,
        description="Mail server for alerts, `smtps://user:password@host:465` or `smtp://`; "
        "empty: no e-mail.",
    )
    alert_webhook: SecretStr | None = Field(
        default=None,
        exclude=True,
        description="Address that alerts are posted to as Slack reads them; empty: none.",
    )

    @field_validator("store")
    @classmethod
    def _is_store(cls, uri: str) -> str:
        if "://" in uri and not re.match(r"s3://[^/]", uri):
            raise ValueError("HEALTH_PREDICT_STORE is a folder or s3://bucket/prefix")
        return uri

    @field_validator("postgres")
    @classmethod
    def _is_database(cls, secret: SecretStr | None) -> SecretStr | None:
        if not secret:
            return None
        _check_address(
            secret,
            ("postgresql",),
            "HEALTH_PREDICT_POSTGRES is no database: give "
            "postgresql://user:password@host:5432/dagster, what is not a letter or digit in user "
            "and password percent-encoded",
        )
        return secret

    @field_validator("alert_webhook")
    @classmethod
    def _is_web_address(cls, secret: SecretStr | None) -> SecretStr | None:
        if not secret:
            return None
        _check_address(
            secret,
            ("https", "http"),
            "HEALTH_PREDICT_ALERT_WEBHOOK is no http(s) address: copy it whole from where the "
            "webhook was made, or leave it empty",
        )
        return secret

    @field_validator("alert_smtp")
    @classmethod
    def _is_mail_server(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if not secret:
            return None
        _check_address(
            secret,
            ("smtps", "smtp"),
            "HEALTH_PREDICT_ALERT_SMTP is no mail server: give smtps://user:password@host:465 or "
            "smtp://host:25, what is not a letter or digit in user and password percent-encoded",
        )
        for name in ("alert_from", "alert_to"):
            given = str(info.data.get(name, ""))
            addresses = given.split(",") if name == "alert_to" else [given]
            if not all(_ADDRESS.fullmatch(address.strip()) for address in addresses):
                raise ValueError(
                    f"HEALTH_PREDICT_ALERT_SMTP needs HEALTH_PREDICT_{name.upper()}: give it as "
                    "somebody@example.org"
                )
        return secret

    @classmethod
    def of_state(cls) -> "Settings":
        """Returns the settings that the state in `var` was made with; the environment outranks.

        Without them, Dagit opened after a demo on real data would read synthetic ones.
        """
        path = cls().var / _KEPT
        kept = json.loads(path.read_text()) if path.exists() else {}
        free = {k: v for k, v in kept.items() if f"HEALTH_PREDICT_{k.upper()}" not in os.environ}
        return cls(**free)

    def keep(self) -> None:
        """Writes the settings beside the state that is made with them."""
        self.var.mkdir(parents=True, exist_ok=True)
        (self.var / _KEPT).write_text(self.model_dump_json(indent=1))

    @property
    def store_uri(self) -> str:
        """Where assets are kept: a path, or an `s3://` address."""
        return self.store or str((self.var / "store").absolute())

    @property
    def artifacts(self) -> str:
        """Where MLflow keeps files if no server of its own does: beside the store."""
        if "://" in self.store:
            return f"{self.store.rstrip('/')}/mlflow-artifacts"
        return (self.var / "mlflow-artifacts").absolute().as_uri()

    @property
    def tracking_uri(self) -> str:
        """Where MLflow logs to."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.var / 'mlflow.db'}"

    @property
    def bentoml_home(self) -> Path:
        """BentoML's store."""
        return self.var / "bentoml"

    @property
    def serving(self) -> Path:
        """The local supervisor's folder."""
        return self.var / "serving"

    @property
    def predictions(self) -> Path | None:
        """Folder of the prediction log, None if none is written."""
        if self.prediction_log is None:
            return self.serving / "predictions"
        return Path(self.prediction_log) if self.prediction_log else None


def _check_address(secret: SecretStr, schemes: tuple[str, ...], remedy: str) -> None:
    """Raises `ValueError` with the remedy alone: what is wrong would show the secret."""
    try:
        parts = urlsplit(secret.get_secret_value())
        port = parts.port
        credentials = unquote(f"{parts.username}{parts.password}")
    except ValueError:
        raise ValueError(remedy) from None
    # A password with a bare slash would end the host; a mail server has no path.
    torn = "smtp" in schemes and (parts.path.strip("/") or parts.query or parts.fragment)
    if parts.scheme not in schemes or not parts.hostname or port == 0 or torn:
        raise ValueError(remedy)
    if not credentials.isascii():
        raise ValueError(f"{remedy}; only ASCII can be sent")
