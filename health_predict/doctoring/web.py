"""Whether something answers at an address, and why not: name, port, certificate, silence."""

import base64
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

_SECONDS = 4.0
_MOST_BYTES = 2_000


class Unanswered(RuntimeError):
    """Nothing answers; the message names cause and remedy."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: its status, the beginning of its text, where it came from in the end."""

    status: int
    text: str
    url: str


def ask(url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    """Returns what an address answers, whatever the status.

    Args:
        url: a user and password in it are sent as basic authorisation.
        method: of HTTP.
        headers: sent along.

    Raises:
        Unanswered: nothing answers as HTTP within four seconds.
    """
    try:
        plain, sent = shown(url), {**_authorisation(url), **(headers or {})}
        request = urllib.request.Request(plain, headers=sent, method=method)
    except ValueError as error:
        raise Unanswered(f"that is no address ({error}): correct it") from None
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            text = response.read(_MOST_BYTES).decode(errors="replace")
            return Answer(response.status, text, response.url)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(_MOST_BYTES).decode(errors="replace")
            return Answer(error.code, text, error.url or plain)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _because(plain, getattr(error, "reason", error)) from None


def _authorisation(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    if parts.password is None:
        return {}
    known = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
    return {"Authorization": f"Basic {base64.b64encode(known.encode()).decode()}"}


def reach(host: str, port: int) -> None:
    """Makes a connection and ends it.

    Raises:
        Unanswered: there is none to be had.
    """
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        raise _because(f"{host}:{port}", error) from None


def shown(url: str) -> str:
    """Returns an address without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _because(place: str, reason: object) -> Unanswered:
    if isinstance(reason, socket.gaierror):
        return Unanswered(f"wrong host: the name in {place} is not known: correct the address")
    if isinstance(reason, ConnectionRefusedError):
        return Unanswered(f"nothing listens at {place}: start it, or correct the address")
    if isinstance(reason, TimeoutError):
        return Unanswered(
            f"{place} does not answer within {_SECONDS:.0f} s: see whether it hangs, and whether "
            "a firewall is between"
        )
    if isinstance(reason, ssl.SSLError):
        return Unanswered(
            f"{place} is not trusted ({reason.reason or 'TLS fails'}): correct the address, or "
            "name its authority by SSL_CERT_FILE"
        )
    return Unanswered(f"{place} does not answer as HTTP ({reason}): correct the address")
