"""Asks the service that runs in a cluster: through the API server's proxy, or at its own address.

Whether its answers are right is not decided here.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from health_predict.cluster_link import Answer, ClusterError, Link, content_type, passes

TOKEN_HEADER = "x-health-predict-token"
"""Carries the service's token where the API server passes a request on."""


def ask_through(
    link: Link, target: str, path: str, body: Any, headers: Mapping[str, str] | None
) -> tuple[int, Any]:
    """Asks through the API server; see `health_predict.cluster.Cluster.ask_pod`.

    Args:
        link: to the API server.
        target: as in `pods/http:NAME:PORT`.
        path: with its query.
        body: JSON value to POST; None to GET.
        headers: passed on.
    """
    answer = link.request(
        "GET" if body is None else "POST",
        f"/api/v1/namespaces/{link.namespace}/{target}/proxy/{path.lstrip('/')}",
        body,
        _for_proxy(headers or {}),
        _passes_on_the_way,
    )
    if _is_away(answer):
        raise ClusterError(f"{target} does not answer at {path}: {answer.message}")
    if answer.refusal:
        raise link.refused(f"asking {target}", answer)
    if answer.json is None:
        raise ClusterError(f"{target} answers {path} not with JSON: {answer.message}")
    return answer.status, answer.json


def ask_at(url: str, body: Any, headers: Mapping[str, str] | None) -> tuple[int, Any]:
    """Asks at an address, once; see `health_predict.cluster.Cluster.ask_service`."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {**content_type(body), **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            answer = Answer(response.status, response.read())
    except urllib.error.HTTPError as error:
        with error:
            answer = Answer(error.code, error.read())
    except (OSError, HTTPException) as error:
        raise ClusterError(
            f"nothing answers at {url}: {error}: is the service's address right, and reachable?"
        ) from error
    if answer.json is None:
        raise ClusterError(f"{url} answers not with JSON: {answer.message}")
    return answer.status, answer.json


def _for_proxy(headers: Mapping[str, str]) -> dict[str, str]:
    sent = {name.lower(): value for name, value in headers.items()}
    token = sent.pop("authorization", "")
    return {**sent, TOKEN_HEADER: token.removeprefix("Bearer ").strip()} if token else sent


def _passes_on_the_way(answer: Answer) -> bool:
    """Like `passes`, where the answer may be the service's own: that one stands."""
    if not answer.refusal:  # an API server with too much to do refuses in plain text
        return answer.status == 429 and answer.json is None
    return passes(answer) and not _is_away(answer)


def _is_away(answer: Answer) -> bool:
    """Whether the API server could not reach the service behind it."""
    words = str(answer.refusal.get("message", ""))
    return "error trying to reach service" in words or "no endpoints available" in words
