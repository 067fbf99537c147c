"""Every setting in one place: environment variable, default, unit, reason.

Read when definitions are assembled or a command starts, never at import. What a setting does is
said where it is used.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from health_predict.schema import LabelName

ROOT = Path(__file__).parent.parent
"""The project's root."""

SILENCED = {
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment that keeps the dependencies from calling home; Dagster's is in dagster.yaml."""


_KEPT = "settings.json"


def silence_telemetry() -> None:
    """Turns telemetry off for this process and those it starts, before anything is imported."""
    os.environ.update(SILENCED)


class Settings(BaseSettings):
    """The settings, each read from `HEALTH_PREDICT_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="HEALTH_PREDICT_", extra="ignore", frozen=True)

    var: Path = Field(default=ROOT / "var", description="Folder of all state made by running.")
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
    cadence: str = Field(default="0 6 * * *", description="When batches arrive, cron, UTC.")
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
        "whose minute stands for a day.",
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
    sensor_interval: Annotated[int, Field(ge=1)] = Field(
        default=30, description="Seconds between two ticks of a sensor."
    )
    port: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=3500, description="Port of the local service."
    )
    deployment: Literal["local", "host", "kubernetes"] = Field(
        default="local", description="Where the service runs."
    )
    mlflow_tracking_uri: str = Field(
        default="", description="MLflow server; empty: SQLite and files under `var`."
    )

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
    def store(self) -> Path:
        """Where assets are kept."""
        return self.var / "store"

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
