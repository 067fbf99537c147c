"""Every environment variable that is read, as a table: default, values or unit, what it does.

The settings are taken from `settings.Settings` as they stand there; here is what their type does
not say (group and unit), and the variables that are read elsewhere. `docs/settings.md` is made of
this, and `health-predict doctor` knows a misspelt name by it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from health_predict.serving import options
from health_predict.settings import ROOT, SILENCED, Settings

PREFIX = "HEALTH_PREDICT_"

GROUPS: dict[str, tuple[str, ...]] = {
    "data": ("var", "store", "data", "rows", "label", "seed", "largest_quarantine"),
    "loop": (
        *("batch_rows", "batches", "cadence", "batches_per_tick", "arrive_at_rest", "label_delay"),
        *("served_batch_rows", "false_alarm_rate", "major_drift", "rest_batches"),
        *("oldest_champion", "sensor_interval"),
    ),
    "search": ("trials", "families", "search_seconds", "search_backend", "workers"),
    "gate": ("harm", "approval"),
    "serving": ("port", "prediction_log", "service_token"),
    "roll-out": (
        *("shadow", "registry", "registry_username", "registry_password", "repository"),
        *("create_repository", "container_engine", "base_image", "source_url", "overlay"),
        *("namespace", "kube_context", "service_url"),
    ),
    "platform": ("deployment", "postgres", "mlflow_tracking_uri", "dagit_url"),
    "alerts": ("alert_webhook", "alert_smtp", "alert_from", "alert_to"),
}
"""Group -> fields of `Settings`, in the order in which they are read about."""

UNITS = {
    "rows": "rows",
    "seed": "whole number",
    "largest_quarantine": "share of rows",
    "batch_rows": "rows",
    "batches": "batches",
    "batches_per_tick": "batches",
    "label_delay": "seconds",
    "served_batch_rows": "predictions",
    "false_alarm_rate": "share of batches",
    "major_drift": "AUC",
    "rest_batches": "batches",
    "oldest_champion": "days",
    "sensor_interval": "seconds",
    "trials": "candidates",
    "search_seconds": "seconds",
    "workers": "processes",
    "harm": "foreseen readmissions",
    "port": "port",
}
"""Unit of each number."""

KINDS = {
    "var": "folder",
    "store": "folder or `s3://`",
    "data": "name, path or address",
    "cadence": "cron, UTC; or seconds",
    "families": "names, by commas",
    "prediction_log": "folder",
    "service_token": "secret",
    "registry": "`host[:port]`",
    "registry_username": "name",
    "registry_password": "secret",
    "repository": "name",
    "base_image": "image",
    "source_url": "address",
    "overlay": "name or folder",
    "namespace": "name",
    "kube_context": "name",
    "service_url": "address",
    "postgres": "address, secret",
    "mlflow_tracking_uri": "address",
    "dagit_url": "address",
    "alert_webhook": "address, secret",
    "alert_smtp": "address, secret",
    "alert_from": "e-mail address",
    "alert_to": "addresses, by commas",
}
"""What each text is."""


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    Attributes:
        name: in full.
        default: as it is written; empty: none.
        takes: values or unit, with bounds.
        does: what it does, a sentence.
    """

    name: str
    default: str
    takes: str
    does: str


SERVICE = (
    Variable(
        options.TOKENS,
        "",
        "sha256 digests, by commas",
        "Digests of the bearer tokens that may ask (`printf %s TOKEN | sha256sum`).",
    ),
    Variable(
        options.AUTH,
        "on",
        "`on`, `off`",
        "`off` lets everybody ask; what `demo`, `dev` and `serve` do on 127.0.0.1 while no tokens "
        "are given.",
    ),
    Variable(
        options.BATCH_ROWS,
        str(options.Options.batch_rows),
        "encounters, from 1",
        "The most that a JSON batch may hold.",
    ),
    Variable(
        options.UPLOAD_BYTES,
        str(options.Options.upload_bytes),
        "bytes, from 1",
        "The most that a batch may hold.",
    ),
    Variable(
        options.CONCURRENCY,
        str(options.Options.concurrency),
        "requests, from 1",
        "Answered at a time by one worker; beyond it 503 with `Retry-After`.",
    ),
    Variable(
        options.IMAGE_DIGEST,
        "",
        "digest",
        "Digest of the image it runs from, told in the answers; a roll-out sets it.",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        "address",
        "Where traces are sent; none are made without it. OpenTelemetry reads its other variables "
        "too.",
    ),
)
"""Read by the service, in whatever process or pod it runs."""

LIBRARIES = (
    Variable(
        "AWS_ENDPOINT_URL_S3",
        "",
        "address",
        "A server that speaks S3, in place of Amazon's; read by boto3, as is the rest of AWS's "
        "chain (`AWS_PROFILE`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, ...).",
    ),
    Variable(
        "MLFLOW_TRACKING_USERNAME",
        "",
        "name",
        "User of an MLflow server that asks for one; read by MLflow.",
    ),
    Variable("MLFLOW_TRACKING_PASSWORD", "", "secret", "Its password."),
    Variable("MLFLOW_TRACKING_TOKEN", "", "secret", "A bearer token in place of both."),
    Variable(
        "PGSSLMODE",
        "prefer",
        "`disable` to `verify-full`",
        "Whether the way to Postgres is encrypted; read by libpq, as are its other variables "
        "(`PGSSLROOTCERT`, `PGCONNECT_TIMEOUT`, ...).",
    ),
    Variable(
        "RAY_ADDRESS", "", "`host:port` or `ray://`", "Ray cluster of the search; empty: one here."
    ),
    Variable(
        "RAY_AUTH_TOKEN",
        "",
        "secret",
        "Token of a Ray cluster that asks for one.",
    ),
    Variable("RAY_AUTH_TOKEN_PATH", "", "file", "Holds that token, where the variable does not."),
    Variable("RAY_USE_TLS", "0", "`0`, `1`", "Whether the way to the Ray cluster is encrypted."),
    Variable(
        "KUBECONFIG",
        "~/.kube/config",
        "files",
        "Names the cluster and who asks; in a pod without one its service account does.",
    ),
    Variable(
        "REGISTRY_AUTH_FILE",
        "",
        "file",
        "Where the engine's logins stand, before `DOCKER_CONFIG` and the places known to Podman "
        "and Docker.",
    ),
)
"""Read by the libraries that reach other systems."""

HOST = (
    Variable(
        f"{PREFIX}COMPUTE_LOGS",
        "",
        "`s3`, empty",
        "Where the output of runs goes: to the bucket below, or to a folder under `var`.",
    ),
    Variable(f"{PREFIX}COMPUTE_LOGS_BUCKET", "", "bucket", "The bucket, where it goes to S3."),
)
"""Read by the scripts and instance files of `iac/host` and `k8s/platform`."""

INTERNAL = (
    Variable(
        f"{PREFIX}SUPERVISED",
        "",
        "text",
        "Set by the supervisor, by which it finds the processes it has started.",
    ),
    Variable(
        "DAGSTER_HOME",
        "var/dagster",
        "folder",
        "Set for Dagster's processes by the commands; `health-predict environment` prints it.",
    ),
    Variable("BENTOML_HOME", "var/bentoml", "folder", "Set by what builds or serves a Bento."),
    *(
        Variable(name, value, "", "Set for every process, which are silent by default.")
        for name, value in SILENCED.items()
    ),
    Variable(
        f"{PREFIX}TEST_DATA",
        "",
        "file",
        "The published archive; tests that need it are skipped without.",
    ),
    Variable(f"{PREFIX}CACHE", "var/cache", "folder", "Base images that tests make and keep."),
)
"""Set by the programs themselves, or read by the tests alone."""

HEADINGS = {
    "data": "Data and state",
    "loop": "Loop",
    "search": "Search",
    "gate": "Gate",
    "serving": "Serving",
    "roll-out": "Roll-out",
    "platform": "Platform",
    "alerts": "Alerts",
}
OTHERS = {
    "Read by the service": SERVICE,
    "Read by libraries": LIBRARIES,
    "Read by iac/host and k8s/platform": HOST,
    "Internal": INTERNAL,
}

_BEFORE = """\
# Settings

Made by `health-predict settings --markdown > docs/settings.md`; a test compares. All settings are
environment variables, checked when a command starts. What is not set keeps its default, or in
`make dev`, `make serve` and Dagster the value that the state in `var` was made with. A secret is
shown nowhere and not written down beside the state. `health-predict doctor` names what is misspelt
and checks what the settings point to.
"""


def variables() -> dict[str, tuple[Variable, ...]]:
    """Returns every variable by heading."""
    fields = {
        HEADINGS[group]: tuple(_variable(name) for name in names) for group, names in GROUPS.items()
    }
    return {**fields, **OTHERS}


def known() -> set[str]:
    """Returns the names of all variables."""
    return {variable.name for group in variables().values() for variable in group}


def secret() -> set[str]:
    """Returns the names of the variables that hold a secret."""
    return {
        variable.name
        for group in variables().values()
        for variable in group
        if "secret" in variable.takes
    }


def in_force(settings: Settings) -> dict[str, str]:
    """Returns each setting's value as text, secrets hidden."""
    fields = [name for group in GROUPS.values() for name in group]
    values = {name: getattr(settings, name) for name in fields}
    return {
        f"{PREFIX}{name.upper()}": "" if value is None else _hidden(str(value))
        for name, value in values.items()
    }


def _hidden(text: str) -> str:
    """Returns a text, the password of an address hidden."""
    password = urlsplit(text).password if "://" in text else None
    return text.replace(f":{password}@", ":***@") if password else text


def markdown() -> str:
    """Returns the table as the page `docs/settings.md`."""
    parts = [_BEFORE]
    for heading, group in variables().items():
        lines = [f"## {heading}", "", "| variable | default | takes | what it does |"]
        lines += ["|---|---|---|---|", *(_line(variable) for variable in group), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _line(variable: Variable) -> str:
    default = f"`{variable.default}`" if variable.default else ""
    cells = (f"`{variable.name}`", default, variable.takes, variable.does)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _variable(name: str) -> Variable:
    field = Settings.model_fields[name]
    return Variable(
        f"{PREFIX}{name.upper()}", _default(field.default), _takes(name, field), _does(field)
    )


def _default(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path):
        return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
    return str(value)


def _does(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _takes(name: str, field: FieldInfo) -> str:
    if name in KINDS:
        return KINDS[name]
    kinds = list(_flat(field.annotation))
    values = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if bool in kinds:
        values = ["true", "false"]
    if values:
        return ", ".join(f"`{value}`" if value else "empty" for value in values)
    return ", ".join([UNITS[name], *_bounds(field)]).replace(", to ", " to ")


def _flat(annotation: Any) -> Iterator[Any]:
    """Yields the types of a union, aliases and annotations taken off."""
    if get_origin(annotation) in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _flat(inner)
    elif hasattr(annotation, "__metadata__"):
        yield from _flat(get_args(annotation)[0])
    else:
        yield annotation


def _bounds(field: FieldInfo) -> Iterator[str]:
    metadata = list(field.metadata)
    for inner in get_args(field.annotation):
        for given in getattr(inner, "__metadata__", ()):
            metadata += given.metadata if isinstance(given, FieldInfo) else [given]
    for bound in metadata:
        if isinstance(bound, Ge):
            yield f"from {bound.ge}"
        elif isinstance(bound, Gt):
            yield f"above {bound.gt}"
        elif isinstance(bound, Le):
            yield f"to {bound.le}"
        elif isinstance(bound, Lt):
            yield f"below {bound.lt}"
