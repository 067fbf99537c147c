"""The channels that alerts go through: a webhook that takes Slack's JSON, and e-mail.

Nothing is sent unless the settings name a channel; no address or password of one is ever logged or
repeated in an error. What was told to whom is remembered in `alerts`.
"""

import contextlib
import hashlib
import logging
import smtplib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from health_predict.alerts import Channel, DeliveryError, Message
from health_predict.settings import Settings

# Two attempts a channel: a tick of a sensor is cut at 60 s.
_TIMEOUT_SECONDS = 5.0
_ATTEMPTS = 2
# Slack refuses longer ones: 150 and 3,000 characters.
_LONGEST_HEADER, _LONGEST_SECTION = 140, 2_900

_log = logging.getLogger(__name__)


class _PassingError(DeliveryError):
    """What may be over a moment later."""


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
