"""What is true of every request: who may ask, how much at a time, what is told of it, to whom.

Where a server adds nothing the application is asked without one, as ASGI where the order of
messages matters. What the environment switches is asked of a real Bento, which reads it.
"""

import asyncio
import contextlib
import hashlib
import http.client
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from health_predict import schema, service
from health_predict.serving import application, instruments
from health_predict.serving.options import AUTH, CONCURRENCY, TOKENS, Options
from health_predict.serving.requests import LARGEST_BODY
from health_predict_tests import bentos
from health_predict_tests.conftest import FACTS
from health_predict_tests.receivers import serving
from health_predict_tests.served_bento import Served, serve
from health_predict_tests.serving import loaded

SECRET = 987654321987
"""An identifier a client sends by mistake."""
TOKEN, OTHER_TOKEN = "correct-horse-battery", "staple-of-the-ward"
DIGESTS = [hashlib.sha256(token.encode()).hexdigest() for token in (TOKEN, OTHER_TOKEN)]
CLOSED = Options(tokens=frozenset(DIGESTS))
OPEN_ROUTES = ("/", "/health", "/model-info", "/metrics", "/openapi.json")
SECURITY = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
LOGGED = ["at", "request_id", "method", "route", "status", "ms", "model_version"]


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def client(compiled) -> Iterator[TestClient]:
    with loaded(compiled["xgboost"]):
        yield TestClient(service.app)


@pytest.fixture
def closed(compiled) -> Iterator[TestClient]:
    """A client of a service that two tokens may ask."""
    with loaded(compiled["xgboost"], options=CLOSED):
        yield TestClient(service.app)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("wrong"),
        bearer(TOKEN[:-1]),
        bearer(f"{TOKEN} {OTHER_TOKEN}"),
        bearer(DIGESTS[0]),
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {application.TOKEN: "wrong"},
        {application.TOKEN: f"Bearer {TOKEN}"},
        {"cookie": f"token={TOKEN}"},
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_who_has_no_right_token_is_told_how_to_send_one(closed, encounter, path, headers):
    answer = closed.post(path, json=encounter, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    (error,) = answer.json()["detail"]
    assert error["field"] is None
    assert "Authorization: Bearer TOKEN" in error["message"]


@pytest.mark.parametrize("token", [TOKEN, OTHER_TOKEN])
@pytest.mark.parametrize(
    "header", ["Authorization: Bearer", "authorization: bearer", "x-health-predict-token:"]
)
def test_each_token_opens_the_service_in_either_header(closed, encounter, token, header):
    name, value = f"{header} {token}".split(": ", 1)
    answer = closed.post("/predict", json=encounter, headers={name: value})
    assert answer.status_code == 200
    batch = closed.post("/predict/batch", json=[encounter], headers={name: value})
    assert batch.json()[0]["probability_score"] == answer.json()["probability_score"]


def test_a_proxy_may_keep_authorization_to_itself(closed, encounter):
    headers = {"authorization": "Basic cHJveHk6c2VjcmV0", application.TOKEN: TOKEN}
    assert closed.post("/predict", json=encounter, headers=headers).status_code == 200


@pytest.mark.parametrize("route", OPEN_ROUTES)
def test_what_tells_nothing_of_a_person_is_open(closed, route):
    assert closed.get(route).status_code == 200
    assert closed.get(route, headers=bearer("wrong")).status_code == 200


def test_who_may_not_ask_learns_nothing_of_what_was_sent(closed, encounter):
    for body in (b"no JSON", json.dumps({**encounter, "age": "old"}).encode()):
        answer = closed.post("/predict", content=body)
        assert answer.status_code == 401
        assert [error["field"] for error in answer.json()["detail"]] == [None]
        assert "JSON" not in answer.text


def test_a_service_that_was_not_configured_is_open_to_nobody(compiled, encounter):
    with loaded(compiled["xgboost"], options=application.Application({}).state.options):
        client = TestClient(service.app)
        assert client.post("/predict", json=encounter).status_code == 401
        digest_of_nothing = hashlib.sha256(b"").hexdigest()
        answer = client.post("/predict", json=encounter, headers=bearer(digest_of_nothing))
        assert answer.status_code == 401


Answers = dict[int, Callable[[TestClient, dict[str, Any]], Any]]
ANSWERS: Answers = {
    200: lambda c, e: c.post("/predict", json=e, headers=bearer(TOKEN)),
    401: lambda c, e: c.post("/predict", json=e),
    404: lambda c, e: c.get(f"/patients/{SECRET}"),
    405: lambda c, e: c.get("/predict"),
    413: lambda c, e: c.post("/predict", content=b" " * (LARGEST_BODY + 1), headers=bearer(TOKEN)),
    415: lambda c, e: c.post(
        "/predict", content=b"age", headers={"content-type": "text/plain", **bearer(TOKEN)}
    ),
    422: lambda c, e: c.post("/predict", json={}, headers=bearer(TOKEN)),
}


@pytest.mark.parametrize("status", ANSWERS)
def test_every_answer_carries_the_security_headers_and_a_request_id(closed, encounter, status):
    answer = ANSWERS[status](closed, encounter)
    assert answer.status_code == status
    assert {name: answer.headers.get_list(name) for name in SECURITY} == {
        name: [value] for name, value in SECURITY.items()
    }
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_so_do_a_streamed_answer_and_one_while_loading(closed, encounter):
    streamed = closed.post("/predict/batch", json=[encounter], headers=bearer(TOKEN))
    assert streamed.status_code == 200
    assert {*SECURITY, "x-request-id"} <= {*streamed.headers}
    with loaded_nothing():
        answer = closed.post("/predict", json=encounter)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert {*SECURITY, "x-request-id"} <= {*answer.headers}


@contextlib.contextmanager
def loaded_nothing() -> Iterator[None]:
    before = service.app.state
    service.app.state = application.State(Options(tokens=None))
    yield
    service.app.state = before


def test_the_page_has_a_policy_of_its_own_and_all_else(client):
    headers = client.get("/").headers
    (policy,) = headers.get_list("content-security-policy")
    assert policy != SECURITY["content-security-policy"]
    assert "default-src 'none'" in policy
    assert {*SECURITY} <= {*headers}


def test_no_page_from_elsewhere_may_read_an_answer(client, encounter):
    asked = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    answers = [
        client.options("/predict", headers=asked),
        client.post("/predict", json=encounter, headers=asked),
    ]
    assert [answer.status_code for answer in answers] == [405, 200]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("route", OPEN_ROUTES)
def test_options_and_other_methods_are_told_what_a_path_takes(client, route):
    for method in ("OPTIONS", "POST", "DELETE", "BREW"):
        answer = client.request(method, route)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"


class Asked:
    """One ASGI request whose messages a test sends one by one."""

    def __init__(self, path: str = "/predict", headers: dict[str, str] | None = None) -> None:
        named = {"content-type": "application/json", **(headers or {})}
        self.scope = {
            **{"type": "http", "http_version": "1.1", "method": "POST", "path": path},
            **{"raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b""},
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)},
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        self.received = 0
        self.sent: list[dict[str, Any]] = []
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send_body(self, body: bytes, more: bool = False) -> None:
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> None:
        async def receive() -> dict[str, Any]:
            self.received += 1
            return await self._messages.get()

        async def send(message: Any) -> None:
            self.sent.append(message)

        await service.app(self.scope, receive, send)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}


@contextlib.asynccontextmanager
async def waiting(count: int) -> AsyncIterator[list[tuple[Asked, "asyncio.Task[None]"]]]:
    """Yields requests that are being read: their bodies have begun and not ended."""
    found = []
    for _ in range(count):
        asked = Asked()
        asked.send_body(b"{", more=True)
        found.append((asked, asyncio.create_task(asked.answer())))
    while not all(asked.received == 2 for asked, _ in found):
        await asyncio.sleep(0)
    yield found
    for _, task in found:
        await task


def test_beyond_the_limit_of_requests_at_a_time_one_is_told_to_come_again(compiled, encounter):
    async def scenario() -> None:
        async with waiting(2) as held:
            third = Asked()
            third.send_body(json.dumps(encounter).encode())
            await third.answer()
            assert third.status == 503
            assert third.headers["retry-after"] == "1"
            assert b"2 requests are being answered already" in third.sent[1]["body"]
            assert TestClient(service.app).get("/health").status_code == 200
            for asked, _ in held:
                asked.send_body(json.dumps(encounter).encode()[1:])
        assert [asked.status for asked, _ in held] == [200, 200]
        after = Asked()
        after.send_body(json.dumps(encounter).encode())
        await after.answer()
        assert after.status == 200

    with loaded(compiled["xgboost"], options=Options(tokens=None, concurrency=2)):
        asyncio.run(scenario())


def test_who_leaves_or_is_refused_makes_room(compiled, encounter):
    async def scenario() -> None:
        async with waiting(1) as ((asked, _),):
            asked.leave()
        refused = Asked()
        refused.send_body(b"no JSON")
        await refused.answer()
        assert refused.status == 422
        after = Asked()
        after.send_body(json.dumps(encounter).encode())
        await after.answer()
        assert after.status == 200

    with loaded(compiled["xgboost"], options=Options(tokens=None, concurrency=1)):
        asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_a_body_that_does_not_arrive_is_waited_for_once(compiled, monkeypatch, path):
    monkeypatch.setattr(application, "_BODY_SECONDS", 0.05)

    async def scenario() -> None:
        asked = Asked(path)
        asked.send_body(b"{", more=True)
        await asked.answer()
        assert asked.status == 408
        assert {*SECURITY, "x-request-id"} <= {*asked.headers}
        assert b"did not arrive" in asked.sent[1]["body"]
        assert asked.received == 2  # what has not come is not read to be thrown away either

    with loaded(compiled["xgboost"]):
        asyncio.run(scenario())


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(r.getMessage()) for r in caplog.records if r.name == "health_predict.access"]


@pytest.fixture
def access(caplog, monkeypatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("health_predict.access"), "propagate", True)
    caplog.set_level(logging.DEBUG)
    return caplog


def test_a_request_is_one_line_with_the_documented_keys(client, encounter, access):
    answer = client.post("/predict", json=encounter)
    (line,) = lines(access)
    assert list(line) == LOGGED
    assert line["at"].endswith("+00:00")
    assert line["ms"] > 0
    assert {key: line[key] for key in ("request_id", "method", "route", "status")} == {
        **{"request_id": answer.headers["x-request-id"], "method": "POST"},
        **{"route": "/predict", "status": 200},
    }
    assert line["model_version"] == FACTS["version"]


def test_what_a_client_makes_up_is_in_no_line(client, encounter, access):
    client.post(f"/predict?mrn={SECRET}", json=encounter)
    client.get(f"/patients/{SECRET}", headers={"user-agent": f"ward {SECRET}"})
    client.request(f"M{SECRET}", "/predict")
    client.post("/predict", json={**encounter, "encounter_id": SECRET})
    client.post("/predict", json=encounter, headers={"x-request-id": str(SECRET)})
    told = lines(access)
    assert [(one["method"], one["route"], one["status"]) for one in told] == [
        ("POST", "/predict", 422),
        ("GET", "unknown", 404),
        ("other", "/predict", 405),
        ("POST", "/predict", 422),
        ("POST", "/predict", 200),
    ]
    assert str(SECRET) not in json.dumps(told)
    assert encounter["diag_1"] not in [value for one in told for value in one.values()]


def test_who_left_before_the_answer_is_logged_as_gone_and_not_waited_for(compiled, access):
    async def scenario() -> None:
        asked = Asked()
        asked.send_body(b"{", more=True)
        asked.leave()
        await asked.answer()
        assert asked.status == 499  # until an answer begins, BentoML waits for it

    with loaded(compiled["xgboost"]):
        asyncio.run(scenario())
    assert [line["status"] for line in lines(access)] == [499]


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counted(before: str, after: str, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """Returns what was counted between two expositions, by labels."""
    was = samples(before)
    return {
        labels: value - was.get((found, labels), 0.0)
        for (found, labels), value in samples(after).items()
        if found == name and value != was.get((found, labels), 0.0)
    }


def labels(**named: str) -> frozenset[tuple[str, str]]:
    return frozenset(named.items())


def test_unusual_levels_are_counted_by_the_field_that_was_sent(client, encounter):
    usual = {**encounter, "medical_specialty": "?", "payer_code": "?", "diag_1": "428"}
    client.post("/predict", json=usual)
    before = client.get("/metrics").text
    for changes in ({}, {"diag_1": "E999"}, {"diag_1": "E999", "payer_code": "ZZ"}):
        client.post("/predict", json={**usual, **changes})
    rows = [{**usual, "diag_1": "E998"}, {**usual, "age": "old", "payer_code": "ZZ"}]
    client.post("/predict/batch", json=rows)
    fresh = counted(before, client.get("/metrics").text, "health_predict_unseen_category_total")
    assert fresh[labels(field="diag_1")] == 3
    assert fresh[labels(field="payer_code")] == 1
    assert {dict(key)["field"] for key in fresh} <= {*schema.INPUTS}


def test_predictions_are_counted_by_version_and_band_and_refusals_are_not(client, encounter):
    before = client.get("/metrics").text
    rows = [{**encounter, "number_inpatient": count} for count in (0, 0, 9, -1)]
    records = client.post("/predict/batch", json=rows).json()
    client.post("/predict", json={})
    after = client.get("/metrics").text
    bands = [record["risk_band"] for record in records[:3]]
    assert counted(before, after, "health_predict_predictions_total") == {
        labels(model_version=FACTS["version"], risk_band=band): bands.count(band) for band in bands
    }
    total = counted(before, after, "health_predict_risk_score_sum")
    expected = sum(record["probability_score"] for record in records[:3])
    assert total[labels(model_version=FACTS["version"])] == pytest.approx(expected)


# A real Bento from here on: its environment, its output and what it sends elsewhere.


@dataclass
class Collector:
    """A collector of OpenTelemetry spans, and what was asked of it."""

    port: int = 0
    paths: list[str] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for body in self.raw
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of(self, request_id: str) -> Span:
        """Waits for the one span of a request."""
        found: list[Span] = []

        def arrived() -> bool:
            found[:] = [one for one in self.spans if said(one)[REQUEST_ID] == request_id]
            return bool(found)

        until(arrived)
        (span,) = found
        return span


REQUEST_ID = "health_predict.request_id"


def said(span: Span) -> dict[str, Any]:
    """Returns a span's attributes."""
    return {
        one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes
    }


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.raw.append(self.rfile.read(int(self.headers["content-length"])))
            collector.paths.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((bentos.HOST, 0), Handler) as server:
        collector.port = server.server_port
        with serving(server):
            yield collector


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    found: Path = bentos.store(tmp_path_factory.mktemp("home"))[0]
    return found


@pytest.fixture(scope="module")
def served(home, collector, tmp_path_factory) -> Iterator[Served]:
    """A Bento that two tokens may ask, two requests at a time, and that sends its spans."""
    told = {
        **{TOKENS: ",".join(DIGESTS), CONCURRENCY: "2"},
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{bentos.HOST}:{collector.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with serve(home, "readmission:2", tmp_path_factory.mktemp("served"), **told) as found:
        yield found


def logged(served: Served) -> list[dict[str, Any]]:
    """Returns the access log: the lines of the Bento's output that are JSON objects."""
    text = served.log.read_text(errors="replace")
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_the_bento_reads_its_tokens_from_the_environment(served):
    assert served.ask("/predict", schema.EXAMPLE).status == 401
    assert served.ask("/predict", schema.EXAMPLE, bearer("wrong")).status == 401
    for token in (TOKEN, OTHER_TOKEN):
        assert served.ask("/predict", schema.EXAMPLE, bearer(token)).status == 200
    by_proxy = {application.TOKEN: TOKEN}
    assert served.ask("/predict", schema.EXAMPLE, by_proxy).status == 200
    for route in (*OPEN_ROUTES, "/livez", "/readyz"):
        assert served.ask(route).status == 200


def test_no_token_gets_into_answers_logs_metrics_or_spans(served, collector):
    wrong = "a-token-of-elsewhere"
    replies = [
        served.ask(path, body, headers, method)
        for token in (TOKEN, wrong)
        for headers in (bearer(token), {application.TOKEN: token})
        for path, body, method in (
            ("/predict", schema.EXAMPLE, None),
            ("/predict?explain=true", schema.EXAMPLE, None),
            (f"/predict?token={token}", schema.EXAMPLE, None),
            (f"/{token}", None, None),
            ("/predict", {token: token}, None),
            ("/predict/batch", [schema.EXAMPLE, {token: token}], None),
            ("/predict", None, "PUT"),
        )
    ]
    assert {reply.status for reply in replies} == {200, 401, 404, 405, 422}
    collector.of(replies[-1].headers["x-request-id"])
    until(lambda: list(served.predictions.glob("*")))
    seen = b"".join(
        [
            *(reply.content + str(reply.headers).encode() for reply in replies),
            served.log.read_bytes(),
            served.ask("/metrics").content,
            *(path.read_bytes() for path in served.predictions.iterdir()),
            *collector.raw,
        ]
    )
    for token in (TOKEN, wrong, *DIGESTS):
        assert token.encode() not in seen


def raw_request(served: Served, body: bytes, length: int) -> socket.socket:
    """Begins a request whose body is to be `length` bytes, and sends `body` of it."""
    connection = socket.create_connection((bentos.HOST, served.port), timeout=30)
    head = (
        f"POST /predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def status_of(connection: socket.socket) -> int:
    response = http.client.HTTPResponse(connection)
    with contextlib.closing(connection):
        response.begin()
        response.read()
        return response.status


def test_the_bento_answers_as_many_at_a_time_as_it_is_told(served):
    body = json.dumps(schema.EXAMPLE).encode()

    def turned_away() -> bool:
        reply = served.ask("/predict", schema.EXAMPLE, bearer(TOKEN))
        assert reply.status in (200, 503)
        assert reply.headers["retry-after"] == ("1" if reply.status == 503 else None)
        return reply.status == 503

    held = [raw_request(served, body[:10], len(body)) for _ in range(2)]
    until(turned_away)
    for route in (*OPEN_ROUTES, "/livez", "/readyz"):
        assert served.ask(route).status == 200
    for connection in held:
        connection.sendall(body[10:])
    assert [status_of(connection) for connection in held] == [200, 200]
    until(lambda: not turned_away())


def test_a_client_that_breaks_off_makes_room(served):
    body = json.dumps(schema.EXAMPLE).encode()
    for connection in [raw_request(served, body[:10], len(body)) for _ in range(2)]:
        connection.close()
    until(lambda: served.ask("/predict", schema.EXAMPLE, bearer(TOKEN)).status == 200)


def test_each_request_to_the_bento_is_one_line_of_its_output(served):
    ids = [f"{secrets.token_hex(15)}ab" for _ in range(4)]
    statuses = [
        served.ask("/predict", schema.EXAMPLE, {**bearer(TOKEN), "x-request-id": ids[0]}).status,
        served.ask("/predict", {}, {**bearer(TOKEN), "x-request-id": ids[1]}).status,
        served.ask(f"/patients/{SECRET}", headers={"x-request-id": ids[2]}).status,
        served.ask(
            "/predict/batch", [schema.EXAMPLE] * 3, {**bearer(TOKEN), "x-request-id": ids[3]}
        ).status,
    ]
    until(lambda: {*ids} <= {line["request_id"] for line in logged(served)})
    told = [line for line in logged(served) if line["request_id"] in ids]
    assert [line["request_id"] for line in told] == ids
    assert [line["status"] for line in told] == statuses == [200, 422, 404, 200]
    assert [line["route"] for line in told] == ["/predict", "/predict", "unknown", "/predict/batch"]
    assert all(list(line) == LOGGED for line in logged(served))
    assert {line["model_version"] for line in told} == {"2"}
    assert str(SECRET) not in served.log.read_text()


def test_the_metrics_are_named_and_labelled_as_documented(served):
    served.ask("/predict", {**schema.EXAMPLE, "diag_1": "E999"}, bearer(TOKEN))
    text = served.ask("/metrics").content.decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    documented = {
        "health_predict_predictions": ("counter", {"model_version", "risk_band"}),
        "health_predict_risk_score": ("histogram", {"model_version"}),
        "health_predict_unseen_category": ("counter", {"field"}),
        "health_predict_request_duration_seconds": ("histogram", {"route", "status"}),
        "health_predict_model_info": (
            "gauge",
            {"name", "version", "run_id", "family", "git_revision"},
        ),
    }
    assert {name: family.type for name, family in found.items()} == {
        name: kind for name, (kind, _) in documented.items()
    }
    for name, (_, named) in documented.items():
        assert {frozenset(s.labels) - {"le"} for s in found[name].samples} == {frozenset(named)}
        assert found[name].documentation
    (info,) = found["health_predict_model_info"].samples
    assert (info.labels["version"], info.labels["name"], info.value) == ("2", "readmission", 1)
    bands = {s.labels["risk_band"] for s in found["health_predict_predictions"].samples}
    assert bands == {"low", "high"}  # those of the model, also before one was met


def test_the_bento_counts_what_it_answers(served):
    before = served.ask("/metrics").content.decode()
    replies = [served.ask("/predict", schema.EXAMPLE, bearer(TOKEN)) for _ in range(3)]
    served.ask("/predict", {}, bearer(TOKEN))
    score, band = (replies[0].json[key] for key in ("probability_score", "risk_band"))
    after = served.ask("/metrics").content.decode()
    assert counted(before, after, "health_predict_predictions_total") == {
        labels(model_version="2", risk_band=band): 3
    }
    added = counted(before, after, "health_predict_risk_score_sum")
    assert added == {labels(model_version="2"): pytest.approx(3 * score)}
    seconds = counted(before, after, "health_predict_request_duration_seconds_count")
    assert seconds[labels(route="/predict", status="200")] == 3
    assert seconds[labels(route="/predict", status="422")] == 1


def test_what_a_client_makes_up_becomes_no_label(served):
    before = served.ask("/metrics").content.decode()
    for number in range(5):
        served.ask(f"/patients/{SECRET + number}")
        served.ask(f"/predict?mrn={SECRET + number}", schema.EXAMPLE, bearer(TOKEN))
        served.ask("/health", method=f"M{SECRET + number}")
        served.ask("/predict", {**schema.EXAMPLE, "payer_code": str(SECRET)}, bearer(TOKEN))
    after = served.ask("/metrics").content.decode()
    assert str(SECRET)[:6] not in after
    seconds = counted(before, after, "health_predict_request_duration_seconds_count")
    assert seconds[labels(route="unknown", status="404")] == 5
    routes = {dict(key)["route"] for name, key in samples(after) if "duration" in name}
    assert routes <= {*service.app.routes, "unknown"}


def test_a_span_of_each_request_arrives_with_its_parent(served, collector):
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    reply = served.ask(
        "/predict?explain=true",
        schema.EXAMPLE,
        {**bearer(TOKEN), "traceparent": f"00-{trace}-{parent}-01"},
    )
    span = collector.of(reply.headers["x-request-id"])
    assert span.name == "POST /predict"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    assert said(span) == {
        "http.route": "/predict",
        REQUEST_ID: reply.headers["x-request-id"],
        "http.response.status_code": 200,
    }
    assert span.end_time_unix_nano > span.start_time_unix_nano
    assert {*collector.paths} == {"/v1/traces"}


def test_a_request_without_a_parent_begins_a_trace(served, collector):
    ids = [served.ask("/health").headers["x-request-id"] for _ in range(2)]
    spans = [collector.of(one) for one in ids]
    assert [span.parent_span_id for span in spans] == [b"", b""]
    assert len({span.trace_id for span in spans}) == 2


def test_spans_say_nothing_a_client_made_up(served, collector):
    replies = [
        served.ask(f"/patients/{SECRET}?mrn={SECRET}", headers={"user-agent": f"x{SECRET}"}),
        served.ask("/predict", {**schema.EXAMPLE, "payer_code": str(SECRET)}, bearer(TOKEN)),
        served.ask("/predict", {str(SECRET): SECRET}, bearer(TOKEN)),
        served.ask("/predict", method="MKCOL"),
    ]
    spans = [collector.of(reply.headers["x-request-id"]) for reply in replies]
    statuses = [said(span)["http.response.status_code"] for span in spans]
    assert statuses == [reply.status for reply in replies]
    assert (spans[0].name, spans[-1].name) == ("GET unknown", "other /predict")
    assert all(str(SECRET).encode() not in body for body in collector.raw)


def test_the_collector_is_told_which_service_and_version(served, collector):
    collector.of(served.ask("/health").headers["x-request-id"])
    (resource,) = ExportTraceServiceRequest.FromString(collector.raw[-1]).resource_spans
    told = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (told["service.name"], told["service.version"]) == ("readmission", "2")


def test_without_a_collector_there_is_no_tracer(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    assert instruments.tracer_of_environment("1") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    assert instruments.tracer_of_environment("1") is None


def test_head_is_answered_without_a_body(served):
    for route in (*OPEN_ROUTES[:3], "/openapi.json"):
        head, get = served.ask(route, method="HEAD"), served.ask(route)
        assert (head.status, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
        assert head.headers["content-type"] == get.headers["content-type"]
    for route, status in (("/predict", 405), ("/nowhere", 404)):
        head = served.ask(route, method="HEAD")
        assert (head.status, head.content) == (status, b"")


def test_options_is_no_way_in(served):
    reply = served.ask("/predict", method="OPTIONS", headers={"origin": "https://x.example"})
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.headers["access-control-allow-origin"] is None


@pytest.fixture
def unstarted(home, tmp_path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`bentoml serve` without a word on who may ask, and its output."""
    log = tmp_path / "server.log"
    told = {name: value for name, value in os.environ.items() if name not in (AUTH, TOKENS)}
    told |= {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "TMPDIR": str(tmp_path)}
    told["BENTOML_PORT"] = str(bentos.free_port())
    command = [sys.executable, "-m", "bentoml", "serve", "readmission:1", "--host", bentos.HOST]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=told)
    try:
        yield process, log
    finally:
        for one in bentos.family(process.pid):  # the arbiter first: it starts workers for ever
            one.kill()
        process.wait()


def test_a_bento_that_is_not_told_who_may_ask_does_not_start_and_says_what_to_do(unstarted):
    process, log = unstarted
    until(lambda: process.poll() is not None or "OptionsError" in log.read_text())
    until(lambda: "is empty" in log.read_text())
    words = log.read_text()
    assert f"{TOKENS} is empty: give sha256 digests of the tokens" in words
    assert f"switch authentication off by {AUTH}=off" in words
    assert "Service readmission initialized" not in words
