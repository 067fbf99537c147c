"""A registry asked over HTTP: authorisation, manifests by tag or digest, failures that may pass.

Of the OCI distribution specification 1.1 this is the part without layers: those the engines send,
told to by `oci_registry`. Where credentials come from is handed in.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from health_predict.registry_credentials import Credentials

T = TypeVar("T")

_TIMEOUT_SECONDS = 30
_REFUSALS = (401, 403)
_KINDS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


class RegistryError(RuntimeError):
    """The registry refused or cannot be reached; the message names what and the remedy."""


class Unauthorised(RegistryError):
    """The registry does not take these credentials."""


class Passing(RegistryError):
    """A failure that may pass."""


@dataclass(frozen=True)
class Manifest:
    """What a registry has under a tag or digest.

    Attributes:
        digest: of the manifest, as the registry reports it and its bytes confirm.
        config: digest of the image's configuration, which names all its content.
        layers: compressed bytes of each layer, the base's first.
    """

    digest: str
    config: str
    layers: tuple[int, ...]


class Access(Protocol):
    """Where a registry is, and the credentials it is asked with."""

    @property
    def place(self) -> str:
        """Scheme, host and port."""

    def credentials(self) -> Credentials | None:
        """Returns credentials that are valid for a while, None if there are none."""

    def renew(self) -> bool:
        """Returns whether there are other credentials to try after some were refused."""


class RegistryHttp:
    """Asks a registry for what it has, as often as may help while it fails."""

    def __init__(self, access: Access, attempts: int, pause: float) -> None:
        """Asks with somebody's access.

        Args:
            access: where the registry is, and who asks.
            attempts: how often something is tried while the registry fails.
            pause: seconds before the second attempt, twice as long before each further one.
        """
        self._access = access
        self._attempts, self._pause = attempts, pause
        self._authorisations: dict[str, str] = {}

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self._access.place).netloc

    @property
    def plain(self) -> bool:
        """Whether nothing is encrypted."""
        return urlsplit(self._access.place).scheme == "http"

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """Returns what is under a tag or digest, None if nothing is.

        Raises:
            RegistryError: it cannot be had, or is not what its digest says.
        """
        head = self._request("HEAD", repository, reference)
        if head is None:
            return None
        reported = head.headers.get("Docker-Content-Digest", "")
        body = self._request("GET", repository, reported or reference)
        if body is None:
            raise RegistryError(
                f"{self.host} names {reported} for {repository}:{reference} and does not have it: "
                "push it under another tag, and have the registry checked"
            )
        found = f"sha256:{hashlib.sha256(body.content).hexdigest()}"
        if found != reported:
            raise RegistryError(
                f"{self.host} reports {reported or 'no digest'} for {repository}:{reference}, and "
                f"what it sends is {found}: the registry is broken, nothing may be rolled out "
                "from it"
            )
        return self._read(repository, reported, body.json())

    def attempt(self, do: Callable[[], T]) -> T:
        """Does something as often as may help: again after a `Passing` failure, bounded.

        Raises:
            RegistryError: it failed each time.
        """
        return Retrying(
            retry=retry_if_exception_type(Passing),
            stop=stop_after_attempt(self._attempts),
            wait=wait_exponential_jitter(self._pause, max=20, jitter=self._pause / 2),
            retry_error_callback=self._give_up,
        )(do)

    def unauthorised(self) -> Unauthorised:
        """Returns what is to be raised when the credentials are refused."""
        credentials = self._access.credentials()
        if credentials is None:
            return Unauthorised(
                f"{self.host} asks for credentials and none are given: set "
                "HEALTH_PREDICT_REGISTRY_USERNAME and HEALTH_PREDICT_REGISTRY_PASSWORD, or log the "
                "engine in"
            )
        return Unauthorised(
            f"{self.host} refuses user {credentials.user!r}: wrong password, or no right to push"
        )

    def _read(self, repository: str, digest: str, content: Mapping[str, Any]) -> Manifest:
        if "manifests" in content:
            runs = [
                each["digest"]
                for each in content["manifests"]
                if each.get("platform", {}).get("os") == "linux"
            ]
            if len(runs) != 1:
                raise RegistryError(
                    f"{self.host}/{repository}@{digest} is for {len(runs)} platforms, not for one"
                )
            inner = self.manifest(repository, runs[0])
            if inner is None:
                raise RegistryError(f"{self.host}/{repository}@{runs[0]} is not there")
            return Manifest(digest, inner.config, inner.layers)
        layers = tuple(int(layer["size"]) for layer in content["layers"])
        return Manifest(digest, content["config"]["digest"], layers)

    @cached_property
    def _session(self) -> requests.Session:
        return requests.Session()

    def _request(self, method: str, repository: str, reference: str) -> requests.Response | None:
        """Returns the answer, None if there is no such thing."""
        url = f"{self._access.place}/v2/{repository}/manifests/{reference}"
        return self.attempt(lambda: self._answer(method, url, repository))

    def _answer(self, method: str, url: str, repository: str) -> requests.Response | None:
        authorisation = self._authorisations.get(repository, "")
        response = self._get(method, url, authorisation)
        if response.status_code in _REFUSALS:
            authorisation = self._authorise(response, repository)
            response = self._get(method, url, authorisation)
        if response.status_code in _REFUSALS and self._access.renew():
            authorisation = self._authorise(response, repository)
            response = self._get(method, url, authorisation)
        if response.status_code in _REFUSALS:
            raise self.unauthorised()
        self._authorisations[repository] = authorisation
        if response.status_code == 404:
            return None
        if response.status_code == 429 or response.status_code >= 500:
            raise Passing(f"{self.host} answers {response.status_code} for {repository}")
        if not response.ok:
            raise RegistryError(
                f"{self.host} answers {response.status_code} for {repository}: "
                f"{response.text[:300].strip()}"
            )
        return response

    def _get(self, method: str, url: str, authorisation: str) -> requests.Response:
        try:
            return self._session.request(
                method,
                url,
                headers={"Accept": ", ".join(_KINDS)},
                auth=_Header(authorisation),
                timeout=_TIMEOUT_SECONDS,
            )
        except requests.exceptions.SSLError as error:
            raise RegistryError(
                f"{self.host} is not trusted ({error}): set REQUESTS_CA_BUNDLE to its authority"
            ) from None
        except requests.RequestException as error:
            raise Passing(f"{self.host} does not answer: {error}") from None

    def _authorise(self, refusal: requests.Response, repository: str) -> str:
        """Returns the header that a registry asks for when it answers 401."""
        asked = refusal.headers.get("WWW-Authenticate", "")
        credentials = self._access.credentials()
        scheme, _, rest = asked.partition(" ")
        if scheme.lower() == "bearer":
            return self._bearer(dict(re.findall(r'(\w+)="([^"]*)"', rest)), repository, credentials)
        if credentials is None:
            raise self.unauthorised()
        return f"Basic {credentials.encoded}"

    def _bearer(
        self, asked: Mapping[str, str], repository: str, credentials: Credentials | None
    ) -> str:
        realm = asked.get("realm", "")
        if urlsplit(realm).scheme != "https" and not self.plain:
            raise RegistryError(f"{self.host} wants the password sent unencrypted to {realm!r}")
        try:
            response = self._session.get(
                realm,
                params={
                    "service": asked.get("service", self.host),
                    "scope": f"repository:{repository}:pull,push",
                },
                auth=_Header(f"Basic {credentials.encoded}" if credentials else ""),
                timeout=_TIMEOUT_SECONDS,
            )
        except requests.RequestException as error:
            raise Passing(f"{self.host}'s tokens cannot be had from {realm}: {error}") from None
        if response.status_code in _REFUSALS:
            raise self.unauthorised()
        if not response.ok:
            raise Passing(f"{realm} answers {response.status_code} instead of a token")
        answer = response.json()
        return f"Bearer {answer.get('token') or answer['access_token']}"

    def _give_up(self, state: RetryCallState) -> Any:
        assert state.outcome is not None
        raise RegistryError(
            f"{state.outcome.exception()} ({state.attempt_number} attempts): see whether "
            f"{self.host} runs and can be reached from here, then run the step again"
        )


def checked(address: str) -> str:
    """Returns a registry's address with its scheme, HTTPS where none is given.

    Raises:
        RegistryError: it is not one.
    """
    whole = address if "://" in address else f"https://{address}"
    parts = urlsplit(whole)
    if parts.username or parts.password:
        raise RegistryError("a registry's address holds no credentials: they have settings")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise RegistryError(f"{address!r} is no registry: give host or host:port, without a path")
    return f"{parts.scheme}://{parts.netloc}"


class _Header(requests.auth.AuthBase):
    """An authorisation as it is; `requests` would put one from ~/.netrc in its place."""

    def __init__(self, authorisation: str) -> None:
        self._authorisation = authorisation

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._authorisation:
            request.headers["Authorization"] = self._authorisation
        return request
