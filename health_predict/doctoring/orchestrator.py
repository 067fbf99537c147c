"""Whether Dagster's storage is whole and the definitions load; nothing is made by asking.

An instance without tables is not opened, because that makes them. Who works on it is in `ticking`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg

from health_predict import processes
from health_predict.defs.automation import deploy_decision
from health_predict.defs.facts import in_progress, runs
from health_predict.doctoring.finding import Finding, of_error
from health_predict.doctoring.postgres import Place, Unreachable, has_tables
from health_predict.settings import Settings

STORAGE, CODE = "Dagster storage", "code location"
_TABLES = ("runs", "event_logs", "job_ticks")


@dataclass(frozen=True)
class Dagster:
    """What is known of the instance.

    Attributes:
        finding: about its storage.
        instance: None where its storage is not there.
    """

    finding: Finding
    instance: dg.DagsterInstance | None = None


def storage(settings: Settings) -> Dagster:
    """Opens the instance, unless that would make its tables, and finds out whether it is whole."""
    missing = _missing(settings)
    if missing:
        return Dagster(missing)
    with TemporaryDirectory() as folder:
        Path(folder, "dagster.yaml").write_text(processes.instance_file(settings))
        instance = dg.DagsterInstance.from_config(folder)
    parts = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    versions = [version for part in parts if part and (version := part.alembic_version())]
    old = sorted({f"{found} instead of {head}" for found, head in versions if found != head})
    kind = "PostgreSQL" if settings.deployment != "local" else "SQLite"
    if old:
        seen = f"{kind}: its schema is {', '.join(old)}, of another version of Dagster"
        remedy = "stop the daemon, make a backup, then: " + _with_home("dagster instance migrate")
        return Dagster(Finding(STORAGE, "wrong", seen, remedy), instance)
    seen = f"{kind} {_where(settings)}, schema {versions[0][1]}, {instance.get_runs_count()} runs"
    return Dagster(Finding(STORAGE, "ok", seen), instance)


def _where(settings: Settings) -> str:
    return str(_database(settings) or settings.var / "dagster" / "storage")


def _database(settings: Settings) -> Place | None:
    if settings.deployment == "local" or settings.postgres is None:
        return None
    return Place(settings.postgres.get_secret_value(), "HEALTH_PREDICT_POSTGRES")


def _missing(settings: Settings) -> Finding | None:
    """Returns why the instance is not opened, None if nothing is against it."""
    if settings.deployment == "local":
        folder = settings.var / "dagster" / "storage"
        if folder.is_dir():
            return None
        return Finding(STORAGE, "off", f"no state in {settings.var} yet", "make demo, or make dev")
    place = _database(settings)
    if place is None:
        return Finding(STORAGE, "off", "no database is given: see settings")
    try:
        with place.connected() as connection:
            if has_tables(connection, *_TABLES):
                return None
    except Unreachable as error:
        return of_error(STORAGE, error)
    seen = f"{place} has no tables of Dagster yet"
    return Finding(STORAGE, "wrong", seen, "start Dagster's web server or daemon: they make them")


def _with_home(command: str) -> str:
    return f'eval "$(health-predict environment)"; {command}'


def code(settings: Settings) -> Iterator[Finding]:
    """Finds out whether the definitions load as a code server would load them."""
    from health_predict.definitions import assemble

    repository = assemble(settings).get_repository_def()
    repository.load_all_definitions()
    jobs, assets = repository.get_all_jobs(), repository.asset_graph.get_all_asset_keys()
    yield Finding(CODE, "ok", f"{len(assets)} assets, {len(jobs)} jobs")


def rolling_out(instance: dg.DagsterInstance) -> str:
    """Returns what is on its way to be served, in words; empty if nothing is."""
    if list(in_progress(runs(instance, "deploy"))):
        return "a roll-out is under way"
    decision = deploy_decision(instance)
    return decision.sentence if decision.requests else ""
