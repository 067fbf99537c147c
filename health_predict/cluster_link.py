"""The way to the API server of a cluster: configuration, requests, what is asked again, errors.

Of the official client this takes configuration, credentials and connections. Requests are made on
its pool, because an answer of the service that is no success must come back as an answer. Which
objects are asked for, and what they mean, is not known here.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from kubernetes.client import ApiClient  # type: ignore[import-untyped]

FIELD_MANAGER = "health-predict"

_JSON = "application/json"
_PASSING = {408, 410, 429, 500, 502, 503, 504}
# etcd that is slow answers 500, and so does a manifest that cannot be read: no use to ask for long.
_MOST_500 = 4
_LONGEST_WAIT_SECONDS = 30.0
_MOST_CHARACTERS = 1000

Object = dict[str, Any]
Say = Callable[[str], None]


class ClusterError(RuntimeError):
    """The cluster refused or cannot do it; the message names what and the remedy."""


class Unreachable(ClusterError):
    """The API server did not answer for as long as was waited for it."""


@dataclass(frozen=True)
class Conflict:
    """A field somebody else manages, and who that is in the API server's words."""

    manager: str
    field: str


@dataclass(frozen=True)
class Pace:
    """How long is waited for what, in seconds.

    Attributes:
        poll: between two looks at a roll-out.
        answer: for one answer.
        unreachable: for an API server that does not answer, answers 429 or 5xx.
        pull: for an image that cannot be pulled: the kubelet tries again after ten seconds.
        config: for a missing ConfigMap or Secret, a refused pod, a status not brought up to date.
        unschedulable: for a place: a node that is added takes a minute or two.
    """

    poll: float = 1.0
    answer: float = 30.0
    unreachable: float = 60.0
    pull: float = 20.0
    config: float = 10.0
    unschedulable: float = 180.0


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, of the API server or of the service behind it."""

    status: int
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        """The body, None if it is not JSON."""
        try:
            return json.loads(self.data)
        except ValueError:
            return None

    @property
    def refusal(self) -> Object:
        """The API server's own word on a request, empty if the answer is not that."""
        body = self.json
        is_status = isinstance(body, dict) and body.get("kind") == "Status"
        return body if is_status and body.get("apiVersion") == "v1" else {}

    @property
    def message(self) -> str:
        """The status, and what it says, in at most a few lines."""
        words = self.refusal.get("message") or self.data.decode(errors="replace").strip()
        return f"{self.status} {words[:_MOST_CHARACTERS]}".strip()

    @property
    def retry_after(self) -> float:
        """Seconds until the same request is welcome."""
        value = self.headers.get("retry-after", "")
        return min(float(value), _LONGEST_WAIT_SECONDS) if value.isdigit() else 0.0

    @property
    def conflicts(self) -> list[Conflict]:
        """Fields of others that an apply would have changed."""
        causes = self.refusal.get("details", {}).get("causes", [])
        return [
            Conflict(cause["message"].removeprefix("conflict with "), cause["field"])
            for cause in causes
            if cause.get("reason") == "FieldManagerConflict"
        ]


def passes(answer: Answer) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    if answer.status == 409:  # another write came between, which is nobody's field
        return not answer.conflicts
    return answer.status in _PASSING


def content_type(body: Any) -> dict[str, str]:
    """Returns the header that belongs to a JSON body, none without a body."""
    return {} if body is None else {"content-type": _JSON}


def connect(kubeconfig: Path | None, context: str | None) -> "ApiClient":
    """Returns the official client; for the arguments see `health_predict.cluster.Cluster`.

    Raises:
        ClusterError: there is no configuration, or it cannot be read.
    """
    from kubernetes import client, config  # type: ignore[import-untyped]

    named = str(kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config")
    files = [Path(path).expanduser() for path in named.split(os.pathsep) if path]
    try:
        if kubeconfig or context or any(path.is_file() for path in files):
            return config.new_client_from_config(named, context)
        inside = client.Configuration()
        config.load_incluster_config(client_configuration=inside)
        return client.ApiClient(inside)
    except config.ConfigException as error:
        raise ClusterError(
            f"no way to the cluster: {error}: set KUBECONFIG to a file that names it and its "
            "context (kubectl config get-contexts), or run in a pod with a service account"
        ) from error


class _NotNow(Exception):
    def __init__(self, words: str, status: int = 0, seconds: float = 0.0) -> None:
        super().__init__(words)
        self.status, self.seconds = status, seconds


@dataclass(frozen=True)
class Link:
    """The way to a namespace: requests, made again while what is in their way may pass.

    Attributes:
        client: the official one, as `connect` returns it.
        namespace: asked about.
        pace: how long is waited for what.
        say: told what happens, a sentence at a time.
    """

    client: "ApiClient"
    namespace: str
    pace: Pace
    say: Say

    @property
    def host(self) -> str:
        """The API server's address."""
        return str(self.client.configuration.host)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        passes: Callable[[Answer], bool] = passes,
    ) -> Answer:
        """Returns the first answer that will not change in a moment.

        Args:
            method: of HTTP.
            path: with its query.
            body: JSON value; None for none.
            headers: beside those that every request has.
            passes: tells an answer that may change in a moment.

        Raises:
            ClusterError: asking again will not help: a certificate or a file is not right.
            Unreachable: no such answer came within `Pace.unreachable`.
        """
        import tenacity

        def error(state: tenacity.RetryCallState) -> _NotNow:
            raised = state.outcome.exception() if state.outcome else None
            assert isinstance(raised, _NotNow)
            return raised

        def enough(state: tenacity.RetryCallState) -> bool:
            statuses.append(error(state).status)
            late = (state.seconds_since_start or 0) >= self.pace.unreachable
            return late or statuses.count(500) >= _MOST_500

        statuses: list[int] = []
        backoff = tenacity.wait_random_exponential(multiplier=self.pace.poll / 2, max=5)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_NotNow),
            wait=lambda state: max(backoff(state), error(state).seconds),
            stop=enough,
            before_sleep=lambda state: self.say(f"The cluster: {error(state)}; trying again."),
            reraise=True,
        )
        try:
            answer: Answer = retrying(self._attempt, method, path, body, headers or {}, passes)
        except _NotNow as last:
            raise Unreachable(
                f"cluster unreachable: {self.host} was asked for up to "
                f"{self.pace.unreachable:.0f} s, and last came {last}. Is it up, and is this its "
                "address? (kubectl cluster-info; minikube status)"
            ) from last
        return answer

    def _attempt(
        self,
        method: str,
        path: str,
        body: Any,
        headers: Mapping[str, str],
        passes: Callable[[Answer], bool],
    ) -> Answer:
        import urllib3

        sent = {"accept": f"{_JSON}, */*", "user-agent": FIELD_MANAGER}
        sent |= content_type(body) | dict(headers)
        self.client.update_params_for_auth(sent, [], ["BearerToken"])
        try:
            response = self.client.rest_client.pool_manager.request(
                method,
                self.host + path,
                body=None if body is None else json.dumps(body),
                headers=sent,
                timeout=urllib3.Timeout(connect=min(10, self.pace.answer), read=self.pace.answer),
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ClusterError(
                    f"{self.host} is not who the kubeconfig expects: {error}: "
                    "get a new kubeconfig (minikube update-context; aws eks update-kubeconfig)"
                ) from error
            raise _NotNow(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            raise ClusterError(
                f"{self.host} cannot be asked: {error}: see to the files the kubeconfig names"
            ) from error
        answer = Answer(response.status, response.data, response.headers)
        if passes(answer):
            raise _NotNow(answer.message, answer.status, answer.retry_after)
        return answer

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Object | None:
        """Returns what is at a path, None if nothing is."""
        answer = self.request("GET", f"{path}?{urlencode(query)}" if query else path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self.refused(f"reading {path}", answer)
        found: Object = answer.json
        return found

    def items(self, version: str, resource: str, **query: str) -> list[Object]:
        """Returns the objects of a resource in the namespace, as `apis/apps/v1`, `deployments`."""
        found = self.get(f"/{version}/namespaces/{self.namespace}/{resource}", query)
        return found["items"] if found else []

    def refused(self, what: str, answer: Answer) -> ClusterError:
        """Returns the error for an answer that is no success."""
        remedy = {
            400: "mend the manifest",
            401: "log in to the cluster again; kubectl auth whoami tells who you are",
            403: "have a Role grant it; kubectl auth can-i --list tells what you may",
            404: f"create it first, the namespace {self.namespace} included",
            422: "mend the manifest; a field that cannot change wants the object deleted first",
        }.get(answer.status, "see what the API server says")
        return ClusterError(f"{what}: the cluster answered {answer.message}: {remedy}")
