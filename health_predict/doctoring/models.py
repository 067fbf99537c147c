"""Whether MLflow answers, who the champion is, and whether the ledger says the same."""

import base64
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from health_predict.doctoring import web
from health_predict.doctoring.finding import Finding, of_error
from health_predict.doctoring.postgres import Place, Unreachable, has_tables
from health_predict.experiments import EXPERIMENT
from health_predict.ledger import Ledger, LedgerError
from health_predict.settings import Settings
from health_predict.store import StoreError, open_store

if TYPE_CHECKING:
    from health_predict.tracking import ModelVersion

MLFLOW, CHAMPION, LEDGER = "MLflow", "champion", "ledger"
VARIABLE = "HEALTH_PREDICT_MLFLOW_TRACKING_URI"
_FIRST = "make demo, or make dev: the first training makes it"
_EXPERIMENTS = "SELECT name FROM experiments WHERE lifecycle_stage = 'active'"


@dataclass(frozen=True)
class Tracking:
    """What is known of MLflow.

    Attributes:
        finding: about it.
        used: whether our experiment is there; to ask for a model would otherwise make it.
    """

    finding: Finding
    used: bool = False


def tracking(settings: Settings) -> Tracking:
    """Finds out whether MLflow's server answers or its database opens, and has our experiment."""
    uri = settings.tracking_uri
    scheme = urlsplit(uri).scheme
    try:
        if scheme in ("http", "https"):
            return _server(uri)
        if scheme == "sqlite":
            return _file(Path(uri.removeprefix("sqlite:///")))
        if scheme.partition("+")[0] == "postgresql":
            return _database(Place(uri, VARIABLE))
    except (web.Unanswered, Unreachable) as error:
        return Tracking(of_error(MLFLOW, error))
    seen = f"wrong URI: {web.shown(uri)!r} names no MLflow"
    remedy = f"set {VARIABLE} to http(s)://, postgresql:// or sqlite:///, or leave it empty"
    return Tracking(Finding(MLFLOW, "wrong", seen, remedy))


def _server(uri: str) -> Tracking:
    place, base = web.shown(uri), uri.rstrip("/")
    try:
        health = web.ask(f"{base}/health", headers=_authorisation())
    except web.Unanswered as error:
        raise web.Unanswered(f"MLflow down: {error}") from None
    if problem := _problem(health, place):
        return Tracking(Finding(MLFLOW, "wrong", *problem))
    version = web.ask(f"{base}/version", headers=_authorisation()).text.strip()
    query = f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
    found = web.ask(base + query, headers=_authorisation())
    if found.status not in (200, 404):
        problem = _problem(found, place)
        return Tracking(Finding(MLFLOW, "wrong", *(problem or ("", ""))))
    return _found(f"version {version} at {place}", found.status == 200)


def _problem(answer: web.Answer, place: str) -> tuple[str, str] | None:
    """Returns what is wrong with an answer, and the remedy; None if nothing is."""
    if answer.status == 200:
        return None
    if answer.status == 401:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return f"wrong credentials: {place} answers 401", remedy
    if answer.status == 403 and "Host header" in answer.text:
        host = urlsplit(place).netloc
        return f"{place} refuses to be called {host}", f"start MLflow with --allowed-hosts {host}"
    if answer.status in (403, 404):
        remedy = f"correct {VARIABLE}: what is there is no MLflow, or under another path"
        return f"wrong URI: {place} answers {answer.status}", remedy
    return f"{place} answers {answer.status}", "read the log of MLflow's server"


def _authorisation() -> dict[str, str]:
    """Returns the header that MLflow's own client would send."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user:
        return {}
    known = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return {"Authorization": f"Basic {base64.b64encode(known.encode()).decode()}"}


def _file(path: Path) -> Tracking:
    if not path.exists():
        return Tracking(Finding(MLFLOW, "off", f"{path} is not there yet", _FIRST))
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=3)) as database:
            names = {name for (name,) in database.execute(_EXPERIMENTS)}
    except sqlite3.Error as error:
        seen = f"{path} cannot be read: {error}"
        remedy = f"stop what writes to it; if it is damaged, restore {path.name} from a backup"
        return Tracking(Finding(MLFLOW, "wrong", seen, remedy))
    return _found(f"SQLite {path}", EXPERIMENT in names)


def _database(place: Place) -> Tracking:
    with place.connected() as connection:
        if not has_tables(connection, "experiments"):
            return _found(f"PostgreSQL {place}", False)
        with connection.cursor() as cursor:
            cursor.execute(_EXPERIMENTS)
            names = {name for (name,) in cursor.fetchall()}
    return _found(f"PostgreSQL {place}", EXPERIMENT in names)


def _found(seen: str, used: bool) -> Tracking:
    if used:
        return Tracking(Finding(MLFLOW, "ok", f"{seen}, experiment {EXPERIMENT} is there"), True)
    words = f"{seen}; no experiment {EXPERIMENT} yet: the first training makes it"
    return Tracking(Finding(MLFLOW, "ok", words))


@dataclass(frozen=True)
class Models:
    """What is known of the registered models.

    Attributes:
        champion: None if there is none yet.
        anchor: the ledger's newest digest, as remembered; None if none is.
        waiting: version that waits for a person's approval; None if none does.
    """

    champion: "ModelVersion | None" = None
    anchor: str | None = None
    waiting: str | None = None


def models(settings: Settings, mlflow: Tracking) -> Models:
    """Reads what the registry knows; nothing where there is none."""
    if not mlflow.used:
        return Models()
    from health_predict.tracking import Registry

    registry = Registry(settings.tracking_uri, settings.artifacts)
    challenger = registry.challenger()
    return Models(
        registry.champion(), registry.ledger_head(), challenger.version if challenger else None
    )


def champion(mlflow: Tracking, known: Models) -> Iterator[Finding]:
    """Finds out who the champion is."""
    if mlflow.finding.state == "wrong":
        yield Finding(CHAMPION, "off", "unknown while MLflow does not answer")
    elif known.champion is None:
        yield Finding(CHAMPION, "off", "there is none yet", _FIRST)
    else:
        waits = f"; version {known.waiting} waits for the job approve" if known.waiting else ""
        found = known.champion
        yield Finding(CHAMPION, "ok", f"version {found.version}, {found.family}{waits}")


def ledger(settings: Settings, mlflow: Tracking, known: Models) -> Iterator[Finding]:
    """Finds out whether the ledger is as it was written, and agrees with the alias."""
    try:
        book = Ledger(open_store(settings.store_uri))
        count = book.verify(known.anchor)
        moves = [entry for entry in book.entries() if entry.kind == "alias_move"]
    except (LedgerError, StoreError) as error:
        yield of_error(LEDGER, error)
        return
    version = known.champion.version if known.champion else None
    recorded = moves[-1].after if moves else None
    if mlflow.finding.state == "wrong":
        seen = f"{count} entries, chain verified; not compared with MLflow, which does not answer"
        yield Finding(LEDGER, "off" if not count else "ok", seen)
    elif version != recorded:
        seen = f"the alias champion is at version {version}, by the ledger at {recorded}"
        remedy = (
            "see in MLflow who moved it; launch the job retrain, whose promotion is recorded, or "
            "restore both from one backup"
        )
        yield Finding(LEDGER, "wrong", seen, remedy)
    elif not count:
        yield Finding(LEDGER, "off", "there is none yet", _FIRST)
    else:
        yield Finding(LEDGER, "ok", f"{count} entries, chain verified, alias as recorded")
