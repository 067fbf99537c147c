"""Alerts: what a person has to know, told once while it lasts and once when it is over.

What an alert says and the outbox that remembers what each channel was told stand here; the channels
are in `channels`, what calls for an alert is decided in `defs.conditions`.
"""

import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from health_predict.store import Store

# A tick of a sensor is cut at 60 s: two channels that hang must fit into it.
_SECONDS_A_CHANNEL = 10.0
_KEY = "alerts.json"

_log = logging.getLogger(__name__)


class DeliveryError(RuntimeError):
    """A channel did not take a message; the reason names neither its address nor its password."""


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
    """The alerts that are open, and what each channel was told of them, in a store.

    Several processes may use it at a time. A message is noted once its channel took it, so a
    process that is killed in between sends it again; a channel that fails is tried again at the
    next call, for what it has not got.

    Args:
        store: keeps them as `alerts.json`; made by the first call.
        channels: where messages go, each by a name of its own.
    """

    def __init__(self, store: Store, channels: Sequence[Channel]) -> None:
        self._store = store
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
        with self._store.locked(_KEY):
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
        if not self._store.exists(_KEY):
            return []
        try:
            return [_entry(**fields) for fields in json.loads(self._store.read(_KEY))]
        except (ValueError, TypeError, KeyError):
            raise OutboxError(
                f"{self._store.where(_KEY)} is not what was written: remove it; what is open is "
                "then sent again"
            ) from None

    def _write(self, entries: Sequence[_Entry]) -> None:
        content = json.dumps([asdict(entry) for entry in entries], indent=1)
        self._store.write(_KEY, content.encode())


def _entry(alert: Mapping[str, Any], **rest: Any) -> _Entry:
    links = tuple((label, url) for label, url in alert["links"])
    return _Entry(Alert(**{**alert, "links": links}), **rest)
