"""The round: which parts the settings call for, looked at side by side.

What is looked at, and what is said about it, stands in the modules beside this one.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from health_predict import processes
from health_predict.doctoring import (
    cluster,
    folder,
    models,
    orchestrator,
    ports,
    service,
    stores,
    ticking,
    variables,
    versions,
)
from health_predict.doctoring.finding import Check, Finding, Once, examine
from health_predict.settings import Settings

Look = Callable[[Settings], Iterator[Finding]]

_AGAIN = "look again; if it stays, see docs/operations.md"
_BACKUP = "read the message; if what is there is damaged, restore it from a backup"
_DAGSTER = ("health_predict.definitions", "health_predict.defs.automation")
_MLFLOW = ("health_predict.tracking", "mlflow")
# boto3 tries four times, with pauses, what may pass.
_PATIENT_SECONDS = 12.0
# What asks this machine alone cannot wait for long, but may compute: beside a training too.
_LOCAL_SECONDS = 30.0


def everything() -> list[Finding]:
    """Returns what is found out about every part that the settings name."""
    settings, refused = variables.read()
    hidden = variables.secrets(settings)
    always = [
        Check("Python", versions.python, _AGAIN),
        Check("packages", versions.packages, "make install", seconds=_LOCAL_SECONDS),
        Check("settings", variables.misspelt, _AGAIN),
    ]
    if settings is None:
        rest = Finding("all other parts", "off", "not looked at: the settings say what they are")
        return [*examine(always, hidden), *refused, rest]
    return examine([*always, *due(settings)], hidden)


def due(settings: Settings) -> list[Check]:
    """Returns the checks that the settings call for."""
    dagster = Once(lambda: orchestrator.storage(settings))
    mlflow = Once(lambda: models.tracking(settings))
    known = Once(lambda: models.models(settings, mlflow()))
    return [
        Check("settings", lambda: variables.look(settings), _AGAIN),
        Check("disk", lambda: folder.disk(settings), f"see whether {settings.var} is mounted"),
        Check("state folder", lambda: folder.permissions(settings), f"ls -la {settings.var}"),
        Check("ports", lambda: ports.look(settings, processes.living(settings)), "ss -ltnp"),
        *_dagster(settings, dagster),
        *_models(settings, mlflow, known),
        *_kept(settings),
        *(_cluster(settings) if settings.deployment == "kubernetes" else ()),
        _service(settings, dagster, known),
    ]


def _dagster(settings: Settings, dagster: Once[orchestrator.Dagster]) -> Iterator[Check]:
    def working() -> Iterator[Finding]:
        instance = dagster().instance
        if instance:
            state = ticking.daemon(settings, instance)
            yield state.finding
            yield from ticking.automation(settings, instance, state.since)

    mend = "mend what the message names; dg check defs shows where"
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]], str], ...] = (
        (orchestrator.STORAGE, lambda: [dagster().finding], _BACKUP),
        (ticking.DAEMON, working, _BACKUP),
        (orchestrator.CODE, lambda: orchestrator.code(settings), mend),
    )
    for part, look, remedy in checks:
        yield Check(part, look, remedy, _DAGSTER, _LOCAL_SECONDS)
    if settings.deployment != "local":
        yield Check(
            "Dagit",
            lambda: stores.dagit(settings),
            "start Dagster's web server, or correct HEALTH_PREDICT_DAGIT_URL",
        )


def _models(
    settings: Settings, mlflow: Once[models.Tracking], known: Once[models.Models]
) -> Iterator[Check]:
    older = "read the message; a database of an older MLflow: mlflow db upgrade, after a backup"
    yield Check(models.MLFLOW, lambda: [mlflow().finding], "read the log of MLflow's server")
    for part, look, remedy in (
        (models.CHAMPION, lambda: models.champion(mlflow(), known()), older),
        (models.LEDGER, lambda: models.ledger(settings, mlflow(), known()), _BACKUP),
    ):
        yield Check(part, look, remedy, _MLFLOW, _PATIENT_SECONDS)


def _kept(settings: Settings) -> Iterator[Check]:
    network = "check the network, AWS_REGION and AWS_ENDPOINT_URL_S3"
    checks: tuple[tuple[str, Look, str], ...] = (
        (stores.STORE, stores.store, network),
        (stores.DATA, stores.source, f"{network}; is HEALTH_PREDICT_DATA right?"),
        (stores.ALERTS, stores.alerts, network),
    )
    for part, look, remedy in checks:
        yield Check(part, partial(look, settings), remedy, seconds=_PATIENT_SECONDS)
    yield Check(stores.SEARCH, lambda: stores.search(settings), "correct RAY_ADDRESS")


def _cluster(settings: Settings) -> Iterator[Check]:
    checks: tuple[tuple[str, Look, str], ...] = (
        (cluster.ENGINE, cluster.engine, "see whether its daemon hangs: docker info, podman info"),
        (cluster.REGISTRY, cluster.registry, "see whether it can be reached from here"),
        (cluster.CLUSTER, cluster.cluster, "kubectl cluster-info"),
    )
    for part, look, remedy in checks:
        yield Check(
            part,
            partial(look, settings),
            remedy,
            ("kubernetes.client", "kubernetes.config", "boto3"),
            _PATIENT_SECONDS,
        )


def _service(
    settings: Settings, dagster: Once[orchestrator.Dagster], known: Once[models.Models]
) -> Check:
    def on_its_way() -> str:
        found = dagster.if_known()
        return orchestrator.rolling_out(found.instance) if found and found.instance else ""

    def look() -> Iterator[Finding]:
        champion = (known.if_known() or models.Models()).champion
        version = champion.version if champion else None
        if settings.deployment == "kubernetes":
            return service.in_cluster(settings, version, on_its_way)
        started = "supervisor" in processes.started(settings)
        return service.local(settings, started, version, on_its_way)

    remedy = "read the newest log of the service; it hangs, or the way to it does"
    return Check(service.SERVICE, look, remedy, (*_DAGSTER, *_MLFLOW), _PATIENT_SECONDS)
