"""Alerts: what a person has to know, told once while it lasts and once when it is over.

What an alert says, the channels it goes through, and the outbox that remembers what each of them
was told stand here; what calls for one is decided in `defs.alerting`. Nothing is sent unless the
settings name a channel.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import smtplib
import ssl
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from health_predict.settings import Settings

# A tick of a sensor is cut at 60 s: two channels that hang must fit into it.
_SECONDS_A_CHANNEL = 10.0
_TIMEOUT_SECONDS = 5.0
_ATTEMPTS = 2
# Slack refuses longer ones: 150 and 3,000 characters.
_LONGEST_HEADER, _LONGEST_SECTION = 140, 2_900

_log = logging.getLogger(__name__)


class DeliveryError(RuntimeError):
    """A channel did not take a message; the reason names neither its address nor its password."""


class _PassingError(DeliveryError):
    """What may be over a moment later."""


class OutboxError(RuntimeError):
    """The outbox is not what was written; the message names the file and the remedy."""


@dataclass(frozen=True)
class Alert:
    """What a person has to know.

    Attributes:
        key: names the condition: the same as long as it lasts.
        title: a few words.
        since: since when, epoch seconds.
        what: what is the matter, with numbers.
        did: what the system did about it.
        todo: what a person should do.
        links: pairs of label and address.
    """

    key: str
    title: str
    since: float
    what: str
    did: str
    todo: str
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Message:
    """An alert on its way to a channel.

    Attributes:
        alert: what is told.
        resolved: when it was found to be over, epoch seconds; None while it lasts.
    """

    alert: Alert
    resolved: float | None = None

    @property
    def subject(self) -> str:
        """One line that says what this is."""
        kind = "Alert" if self.resolved is None else "Resolved"
        return " ".join(f"{kind}: {self.alert.title}".split())

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The message as pairs of label and text, links left out."""
        alert = self.alert
        if self.resolved is not None:
            until = f"{_utc(alert.since)} until {_utc(self.resolved)}"
            return [("What it was", alert.what), ("From", until), ("To do", "Nothing is left.")]
        return [
            ("What", alert.what),
            ("Since", _utc(alert.since)),
            ("The system", alert.did),
            ("To do", alert.todo),
        ]


def _utc(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M} UTC"


class Channel(Protocol):
    """Where messages go."""

    name: str

    def send(self, message: Message) -> None:
        """Sends a message.

        Raises:
            DeliveryError: it was not taken.
        """


class Webhook:
    """Posts messages as Slack reads them; Mattermost, Rocket.Chat and others read the same.

    Args:
        url: the address, which is a secret: whoever knows it can post.
        timeout: seconds to wait for an answer.
        wait: seconds before a second attempt.
    """

    name = "webhook"

    def __init__(self, url: str, *, timeout: float = _TIMEOUT_SECONDS, wait: float = 0.5) -> None:
        self._url = url
        self._timeout = timeout
        self._wait = wait

    def send(self, message: Message) -> None:
        """Posts a message, a second time if the first failed for what may pass.

        Raises:
            DeliveryError: the receiver cannot be reached or did not answer 2xx.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

        attempts = Retrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_exponential(multiplier=self._wait),
            reraise=True,
        )
        attempts(self._post, slack(message))

    def _post(self, body: Mapping[str, Any]) -> None:
        import requests

        try:
            with _unlogged(urlsplit(self._url).path):
                # Followed elsewhere, the secret in the address would be told to others.
                answer = requests.post(
                    self._url, json=body, timeout=self._timeout, allow_redirects=False
                )
        except requests.RequestException as error:
            raise _PassingError(type(error).__name__) from None  # its words hold the address
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _PassingError(f"it answered {answer.status_code}")
        if not 200 <= answer.status_code < 300:
            raise DeliveryError(f"it answered {answer.status_code}")


@contextlib.contextmanager
def _unlogged(secret: str) -> Iterator[None]:
    """Keeps the path of a request out of the debug log of the package that makes it."""

    def harmless(record: logging.LogRecord) -> bool:
        return secret not in record.getMessage()

    log = logging.getLogger("urllib3.connectionpool")
    log.addFilter(harmless)
    try:
        yield
    finally:
        log.removeFilter(harmless)


def slack(message: Message) -> dict[str, Any]:
    """Returns a message as JSON values that Slack's incoming webhooks take.

    `text` holds all of it, for receivers that do not know blocks.
    """
    lines = [f"*{label}:* {_escaped(text)}" for label, text in message.lines]
    links = " | ".join(f"<{url}|{_escaped(label)}>" for label, url in message.alert.links)
    body = "\n".join([*lines, links] if links else lines)
    header = {"type": "plain_text", "text": message.subject[:_LONGEST_HEADER]}
    section = {"type": "mrkdwn", "text": body[:_LONGEST_SECTION]}
    return {
        "text": f"*{_escaped(message.subject)}*\n{body}",
        "blocks": [{"type": "header", "text": header}, {"type": "section", "text": section}],
    }


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Email:
    """Sends messages as plain text.

    Args:
        url: `smtp://` or `smtps://`, with user and password (percent-encoded) if the server asks
            for them; STARTTLS is used where it is offered.
        sender: address in From.
        recipients: addresses in To.
        timeout: seconds to wait for each answer of the server.
    """

    name = "e-mail"

    def __init__(
        self,
        url: str,
        sender: str,
        recipients: Sequence[str],
        *,
        timeout: float = _TIMEOUT_SECONDS,
    ) -> None:
        self._url = urlsplit(url)
        self._sender = sender
        self._recipients = list(recipients)
        self._timeout = timeout

    def send(self, message: Message) -> None:
        """Hands a message to the server.

        Raises:
            DeliveryError: the server cannot be reached, did not take it, or asks for a password
                over a connection that anybody can read.
        """
        try:
            with self._connected() as server:
                refused = server.send_message(self._mail(message))
        except smtplib.SMTPResponseException as error:
            raise DeliveryError(f"{type(error).__name__} {error.smtp_code}") from None
        except OSError as error:  # SMTPException is one
            raise DeliveryError(type(error).__name__) from None
        if refused:
            _log.warning(
                "e-mail: the server refused %d of the recipients in HEALTH_PREDICT_ALERT_TO",
                len(refused),
            )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        host, trusted = self._url.hostname or "", ssl.create_default_context()
        if self._url.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                host, self._url.port or 465, timeout=self._timeout, context=trusted
            )
        else:
            server = smtplib.SMTP(host, self._url.port or 25, timeout=self._timeout)
        try:
            server.ehlo()
            encrypted = self._url.scheme == "smtps"
            if not encrypted and server.has_extn("starttls"):
                server.starttls(context=trusted)
                encrypted = True
            if self._url.username:
                if not encrypted:
                    raise DeliveryError("it offers no STARTTLS and the password would be readable")
                server.login(unquote(self._url.username), unquote(self._url.password or ""))
            yield server
            with contextlib.suppress(OSError):  # it was taken, whatever the farewell
                server.quit()
        finally:
            server.close()

    def _mail(self, message: Message) -> EmailMessage:
        opening = _message_id(Message(message.alert), self._sender)
        mail = EmailMessage()
        mail["Subject"] = f"[health-predict] {message.subject}"
        mail["From"] = self._sender
        mail["To"] = ", ".join(self._recipients)
        mail["Date"] = format_datetime(datetime.now(UTC))
        mail["Message-ID"] = _message_id(message, self._sender)
        if message.resolved is not None:
            mail["In-Reply-To"] = mail["References"] = opening
        mail["Auto-Submitted"] = "auto-generated"
        parts = [f"{label}: {text}" for label, text in message.lines]
        links = [f"{label}: {url}" for label, url in message.alert.links]
        mail.set_content("\n\n".join([*parts, *links]) + "\n")
        return mail


def _message_id(message: Message, sender: str) -> str:
    """The same for the same message: a reader shows once what was sent twice."""
    words = f"{message.alert.key} {message.alert.since} {message.resolved}"
    return f"<{hashlib.sha256(words.encode()).hexdigest()[:32]}@{sender.rpartition('@')[2]}>"


def channels(settings: Settings) -> list[Channel]:
    """Returns the channels that the settings name, none by default."""
    found: list[Channel] = []
    if settings.alert_webhook:
        found.append(Webhook(settings.alert_webhook.get_secret_value()))
    if settings.alert_smtp:
        recipients = [address.strip() for address in settings.alert_to.split(",")]
        url = settings.alert_smtp.get_secret_value()
        found.append(Email(url, settings.alert_from, recipients))
    return found


@dataclass(frozen=True)
class Delivery:
    """What a call of the outbox came to.

    Attributes:
        sent: messages taken, by channel and subject.
        failed: messages not taken, with the reason.
    """

    sent: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The outcome in words; empty if there was nothing to send."""
        parts = []
        if self.sent:
            parts.append(f"Sent: {'; '.join(self.sent)}.")
        if self.failed:
            parts.append(f"Not sent, to be tried again: {'; '.join(self.failed)}.")
        return " ".join(parts)


@dataclass
class _Entry:
    """An alert, when it was over, and the channels that were told the one and the other."""

    alert: Alert
    resolved: float | None = None
    told: list[str] = field(default_factory=list)
    told_over: list[str] = field(default_factory=list)

    def due(self, channel: str) -> Iterator[tuple[Message, list[str]]]:
        """Yields what a channel has not been told, and the list to note it in, in order."""
        if channel not in self.told:
            yield Message(self.alert), self.told
        if self.resolved is not None and channel not in self.told_over:
            yield Message(self.alert, self.resolved), self.told_over


class Outbox:
    """The alerts that are open, and what each channel was told of them, in one file.

    Several processes may use it at a time. A message is noted once its channel took it, so a
    process that is killed in between sends it again; a channel that fails is tried again at the
    next call, for what it has not got.

    Args:
        path: the JSON file; made by the first call. Beside it stands `<name>.lock`.
        channels: where messages go, each by a name of its own.
    """

    def __init__(self, path: Path, channels: Sequence[Channel]) -> None:
        self.path = path
        self.channels = tuple(channels)

    def open(self) -> dict[str, Alert]:
        """Returns the alerts that are open by key.

        Raises:
            OutboxError: the file cannot be read as an outbox.
        """
        return {e.alert.key: e.alert for e in self._read() if e.resolved is None}

    def settle(self, alerts: Sequence[Alert], among: Collection[str]) -> Delivery:
        """Opens what is new, resolves what is gone, and sends what is due.

        Args:
            alerts: all that is open now.
            among: keys that were open before `alerts` was found out: what another process opened
                since cannot be missed in it, and stays.

        Raises:
            OutboxError: the file cannot be read as an outbox.
        """
        found = {alert.key: alert for alert in alerts}
        with self._locked():
            entries = self._read()
            for entry in entries:
                if entry.resolved is not None:
                    continue
                now = found.pop(entry.alert.key, None)
                if now is not None:
                    entry.alert = replace(now, since=entry.alert.since)
                elif entry.alert.key in among:
                    entry.resolved = time.time()
            entries += [_Entry(alert) for alert in found.values()]
            return self._deliver(entries)

    def add(self, alert: Alert) -> Delivery:
        """Opens an alert, unless it is open already, and sends what is due.

        Raises:
            OutboxError: the file cannot be read as an outbox.
        """
        return self.settle([alert], among=())

    def _deliver(self, entries: list[_Entry]) -> Delivery:
        """Sends what is due and keeps what was told; the lock is held."""
        self._write(entries)
        sent, failed = [], []
        for channel in self.channels:
            ends = time.monotonic() + _SECONDS_A_CHANNEL
            for entry in entries:
                if time.monotonic() > ends:
                    failed.append(f"the rest by {channel.name} (it is slow)")
                    break
                for message, noted in entry.due(channel.name):
                    words = f"{message.subject} by {channel.name}"
                    try:
                        channel.send(message)
                    except DeliveryError as error:
                        _log.warning("%s was not sent: %s; tried again later", words, error)
                        failed.append(f"{words} ({error})")
                        break
                    noted.append(channel.name)
                    self._write(entries)
                    sent.append(words)
        names = {channel.name for channel in self.channels}
        self._write([e for e in entries if e.resolved is None or not names <= {*e.told_over}])
        return Delivery(tuple(sent), tuple(failed))

    def _read(self) -> list[_Entry]:
        if not self.path.exists():
            return []
        try:
            return [_entry(**fields) for fields in json.loads(self.path.read_text())]
        except (ValueError, TypeError, KeyError):
            raise OutboxError(
                f"{self.path} is not what was written: remove it; what is open is then sent again"
            ) from None

    def _write(self, entries: Sequence[_Entry]) -> None:
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(json.dumps([asdict(entry) for entry in entries], indent=1))
        partial.replace(self.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f"{self.path.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _entry(alert: Mapping[str, Any], **rest: Any) -> _Entry:
    links = tuple((label, url) for label, url in alert["links"])
    return _Entry(Alert(**{**alert, "links": links}), **rest)
