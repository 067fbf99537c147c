"""Whether what was rolled out is what was meant: its version, its scores, and that it holds.

The served model is asked, over whatever way leads to it; nothing is started or stopped here. What
follows from an answer is decided by the platforms.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from health_predict.prediction_log import VERIFICATION

TOLERANCE = 1e-6
"""Largest difference of a served score from the pipeline's: invariant of the compiled scorer."""

# A roll-out's last look: enough to meet a worker that dies of its first requests, over in a second.
LOAD_REQUESTS = 100
_LOAD_CLIENTS = 4
_SECONDS = 10.0

Ask = Callable[[str, Mapping[str, Any] | None], tuple[int, Any]]
"""Asks the service: path and JSON body (None: GET) -> status and JSON."""

NOT_AN_ANSWER = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError)
"""What it may come to when something else listens there, or nothing."""


@dataclass(frozen=True)
class GoldenRow:
    """An encounter and the score the pipeline gave it when the model was judged."""

    encounter: dict[str, Any]
    score: float


def over_http(url: str, token: str = "", request_id: str = VERIFICATION) -> Ask:
    """Returns how to ask a service at an address.

    Args:
        url: its address, without a slash at the end.
        token: bearer token, empty where none is asked for.
        request_id: by default the one that is no traffic.
    """
    headers = {"content-type": "application/json", "x-request-id": request_id}
    if token:
        headers["authorization"] = f"Bearer {token}"

    def ask(path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{url}{path}", content, headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, error.read(500).decode(errors="replace")

    return ask


def served_version(ask: Ask) -> str | None:
    """Returns the version that answers, None if nothing does."""
    try:
        status, facts = ask("/model-info", None)
        return str(facts["version"]) if status == 200 else None
    except NOT_AN_ANSWER:
        return None


def verify(ask: Ask, version: str, golden: Sequence[GoldenRow]) -> str:
    """Asks the service who it is and what it answers.

    Args:
        ask: how to reach it.
        version: the model version that must answer.
        golden: rows whose scores must be met to 1e-6.

    Returns:
        What is wrong, in words that follow "version n"; an empty string if nothing is.
    """
    try:
        return _identity(ask, version) or _scores(ask, golden)
    except NOT_AN_ANSWER as error:
        return f"does not answer as the service does: {error!r}"


def hold(ask: Ask, golden: Sequence[GoldenRow], requests: int = LOAD_REQUESTS) -> str:
    """Asks for golden rows again and again, four at a time: what is wrong, as `verify` says it."""
    if not golden:
        return ""
    rows = [golden[number % len(golden)] for number in range(requests)]
    with ThreadPoolExecutor(_LOAD_CLIENTS) as clients:
        problems = list(clients.map(lambda row: verify_row(ask, row), rows))
    failed = [problem for problem in problems if problem]
    if not failed:
        return ""
    return f"failed {len(failed)} of {requests} requests, first with: {failed[0]}"


def verify_row(ask: Ask, row: GoldenRow) -> str:
    """Asks for one golden row: what is wrong, as `verify` says it."""
    try:
        return _scores(ask, [row])
    except NOT_AN_ANSWER as error:
        return f"does not answer as the service does: {error!r}"


def latency(ask: Ask, golden: Sequence[GoldenRow]) -> float:
    """Returns the median seconds of an answer to golden rows, asked one after another."""
    seconds = []
    for row in golden:
        began = time.perf_counter()
        ask("/predict", row.encounter)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def _identity(ask: Ask, version: str) -> str:
    status, facts = ask("/model-info", None)
    if status != 200:
        return f"answers {status} when asked for its version: {facts}"
    if str(facts["version"]) != version:
        return f"was rolled out, but version {facts['version']} answers"
    return ""


def _scores(ask: Ask, golden: Sequence[GoldenRow]) -> str:
    for number, row in enumerate(golden):
        status, answer = ask("/predict", row.encounter)
        if status != 200:
            return f"answers {status} to golden row {number}: {answer}"
        served = answer["probability_score"]
        if not abs(served - row.score) <= TOLERANCE:  # also where it is not a number
            return f"scores golden row {number} as {served:.7f}, the pipeline {row.score:.7f}"
    return ""
