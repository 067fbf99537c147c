"""Whether what is kept elsewhere can be reached: the store, the source of encounters, channels."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from health_predict.alerts import Outbox, OutboxError
from health_predict.channels import channels
from health_predict.doctoring import web
from health_predict.doctoring.finding import Finding, of_error
from health_predict.encounters import UCI_ARCHIVE, DataError, require
from health_predict.settings import Settings
from health_predict.store import StoreError, open_store

STORE, DATA, ALERTS, SEARCH = "store", "data source", "alerts", "search"
_ADDRESS = "correct HEALTH_PREDICT_DATA"


def store(settings: Settings) -> Iterator[Finding]:
    """Finds out whether the store takes a value, gives it back, and lets go of it."""
    uri = settings.store_uri
    if "://" not in uri and not Path(uri).exists():
        yield Finding(STORE, "off", f"{uri} is not there yet", "make demo, or make dev")
        return
    key, content = f"doctor/{uuid.uuid4().hex}", b"doctor"
    try:
        kept = open_store(uri)
        kept.write(key, content)
        try:
            found = kept.read(key)
        finally:
            kept.remove(key)
            _leave(uri)
    except StoreError as error:
        yield of_error(STORE, error)
        return
    except OSError as error:
        remedy = f"see who owns {uri}, whether it is mounted writable, and whether its disk is full"
        yield of_error(STORE, error, remedy)
        return
    if found != content:
        seen = f"{uri} gave back other bytes than were put there"
        yield Finding(STORE, "wrong", seen, "use another server or file system: data is lost there")
        return
    where = f", endpoint {end}" if (end := os.environ.get("AWS_ENDPOINT_URL_S3")) else ""
    yield Finding(STORE, "ok", f"{uri}{where if '://' in uri else ''}: put, get and delete work")


def _leave(uri: str) -> None:
    folder = Path(uri, "doctor")
    if "://" not in uri and not any(folder.iterdir()):
        folder.rmdir()


def source(settings: Settings) -> Iterator[Finding]:
    """Finds out whether encounters could be read from where they are said to be."""
    location = settings.data
    if location == "synthetic":
        yield Finding(DATA, "ok", f"synthetic, {settings.rows:,} rows: made here")
        return
    try:
        require(location)
    except DataError as error:
        yield of_error(DATA, error)
        return
    url = UCI_ARCHIVE if location == "uci" else location
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        yield _web(url)
    elif scheme == "s3":
        yield _object(url)
    else:
        yield _file(Path(location).expanduser())


def _web(url: str) -> Finding:
    try:
        answer = web.ask(url, method="HEAD")
    except web.Unanswered as error:
        return of_error(DATA, error)
    # Some servers know no HEAD; that they answer is what is asked.
    if answer.status in (200, 405, 501):
        return Finding(DATA, "ok", f"{url} answers {answer.status}")
    return Finding(DATA, "wrong", f"{url} answers {answer.status}", _ADDRESS)


def _object(url: str) -> Finding:
    parts = urlsplit(url)
    try:
        there = open_store(f"s3://{parts.netloc}").exists(parts.path.strip("/"))
    except StoreError as error:
        return of_error(DATA, error)
    if not there:
        return Finding(DATA, "wrong", f"{url} is not there", _ADDRESS)
    return Finding(DATA, "ok", f"{url} is there")


def _file(path: Path) -> Finding:
    if not os.access(path, os.R_OK):
        owner = path.stat().st_uid
        seen = f"{path} belongs to user {owner} and is not readable for user {os.getuid()}"
        return Finding(DATA, "wrong", seen, f"sudo chmod o+r {path}")
    return Finding(DATA, "ok", f"{path}, {path.stat().st_size / 1e6:.1f} MB")


def alerts(settings: Settings) -> Iterator[Finding]:
    """Finds out whether somebody is told, and what they were told that is not over."""
    told = channels(settings)
    try:
        opened = list(Outbox(open_store(settings.store_uri), []).open().values())
    except StoreError as error:
        yield of_error(ALERTS, error)
        return
    except OutboxError as error:
        yield of_error(ALERTS, error, "remove it")
        return
    for alert in opened:
        yield Finding(ALERTS, "wrong", f"open: {alert.title}. {alert.what}", alert.todo)
    if not told:
        remedy = "set HEALTH_PREDICT_ALERT_WEBHOOK or HEALTH_PREDICT_ALERT_SMTP"
        yield Finding(ALERTS, "off", "nobody is told: no channel is configured", remedy)
        return
    for secret in filter(None, (settings.alert_webhook, settings.alert_smtp)):
        yield from _channel(secret.get_secret_value())
    if not opened:
        yield Finding(ALERTS, "ok", f"none open; told by {', '.join(each.name for each in told)}")


_PORTS = {"https": 443, "http": 80, "smtps": 465, "smtp": 25, "ray": 10001}


def _channel(address: str) -> Iterator[Finding]:
    parts = urlsplit(address)
    try:
        web.reach(parts.hostname or "", parts.port or _PORTS[parts.scheme])
    except web.Unanswered as error:
        yield of_error(ALERTS, error)


def search(settings: Settings) -> Iterator[Finding]:
    """Finds out whether the Ray cluster of the search answers, where one is named."""
    address = os.environ.get("RAY_ADDRESS", "")
    if settings.search_backend == "serial" or address in ("", "local", "auto"):
        where = "in one process" if settings.search_backend == "serial" else "Ray on this machine"
        yield Finding(SEARCH, "ok", f"{where}, {settings.workers} candidates at a time")
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        web.reach(parts.hostname or "", parts.port or _PORTS["ray"])
    except web.Unanswered as error:
        remedy = "start it, correct RAY_ADDRESS, or unset it: the result is the same here"
        yield of_error(SEARCH, error, remedy)
        return
    yield Finding(SEARCH, "ok", f"a Ray cluster listens at {address}")


def dagit(settings: Settings) -> Iterator[Finding]:
    """Finds out whether Dagit answers where readers of alerts are sent."""
    url = settings.dagit_url.rstrip("/")
    try:
        answer = web.ask(f"{url}/server_info")
    except web.Unanswered as error:
        yield of_error("Dagit", error)
        return
    if "dagster_webserver_version" in answer.text:
        yield Finding("Dagit", "ok", f"answers at {url}")
    elif answer.status in (401, 403) or answer.url != f"{url}/server_info":
        yield Finding("Dagit", "ok", f"{url} asks for a login")
    else:
        remedy = "correct HEALTH_PREDICT_DAGIT_URL, or see what listens there"
        yield Finding("Dagit", "wrong", f"{url} answers {answer.status}, not as Dagit", remedy)
