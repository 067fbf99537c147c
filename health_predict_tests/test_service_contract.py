"""The served description is true: what it says is done, and nothing is done that it does not say.

schemathesis reads `/openapi.json` of a running Bento and asks it everything that follows: each
field at its limits and beyond, each method, each way to authenticate. The rest holds answers to
the types in `serving.messages`, and the description to its reader: every field explained, every
example good to paste.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import schemathesis
from hypothesis import strategies as st
from pydantic import TypeAdapter
from schemathesis.engine import events, from_schema

from health_predict import schema
from health_predict.scorer import Scorer
from health_predict.serving.application import TOKEN as TOKEN_HEADER
from health_predict.serving.messages import Answer, Facts, Health, Record, Refusal
from health_predict.serving.options import TOKENS
from health_predict_tests import bentos
from health_predict_tests.bentos import Built
from health_predict_tests.served_bento import Served, serve

TOKEN = "known-to-the-caller"
SEED = 7
EXAMPLES = 40
"""Cases that the fuzzing phase makes of an operation; what is systematic is not limited by it."""

CHECKS = {
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
}


@pytest.fixture(scope="module", autouse=True)
def notes_of_hypothesis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what Hypothesis notes out of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("hypothesis")
        patch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(folder))
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Built]]:
    return bentos.store(tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="module")
def served(store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(store[0], "readmission:1", tmp_path_factory.mktemp("open")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    tokens = {TOKENS: hashlib.sha256(TOKEN.encode()).hexdigest()}
    folder = tmp_path_factory.mktemp("guarded")
    with serve(store[0], "readmission:1", folder, **tokens) as running:
        yield running


@pytest.fixture(scope="module")
def description(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.ask("/openapi.json").json
    return found


def test_an_open_service_does_as_it_says(served):
    found = examine(served)
    assert found.problems == []
    assert found.checks == CHECKS
    assert {200, 405, 413, 415, 422} <= found.answers["POST /predict/batch"].keys()
    assert {200, 405, 415, 422} <= found.answers["POST /predict"].keys()
    assert found.answers["POST /predict"][200] > EXAMPLES
    assert len(found.answers) == len(found.operations)


def test_a_guarded_service_does_as_it_says(guarded):
    found = examine(guarded, auth={"openapi": {"token": {"bearer": TOKEN}}})
    assert found.problems == []
    assert found.checks == CHECKS
    for operation in ("POST /predict", "POST /predict/batch"):
        assert {200, 401, 405, 415, 422} <= found.answers[operation].keys()


@dataclass
class Examination:
    """What schemathesis found.

    Attributes:
        problems: what failed, in its words.
        checks: that were made.
        answers: operation -> status -> how often.
        operations: that are described -> statuses that are described of them.
    """

    operations: dict[str, set[str]]
    problems: list[str] = field(default_factory=list)
    checks: set[str] = field(default_factory=set)
    answers: dict[str, Counter[int]] = field(default_factory=dict)


def examine(served: Served, **settings: Any) -> Examination:
    """Asks a service everything that follows from its description."""
    described = served.ask("/openapi.json").json
    # Files are made here instead: schemathesis takes either their example or their making.
    del described["paths"]["/predict/batch"]["post"]["requestBody"]["content"]["text/csv"][
        "example"
    ]
    config = schemathesis.Config.from_dict(
        {
            "base-url": served.url,
            "seed": SEED,
            "cache": {"enabled": False},
            "continue-on-failure": True,
            "generation": {
                "max-examples": EXAMPLES,
                "deterministic": True,
                "database": "none",
                "no-shrink": True,
            },
            "checks": {
                "negative_data_rejection": {
                    "expected-statuses": ["401", "405", "413", "415", "422"]
                },
                "positive_data_acceptance": {"expected-statuses": ["200", "401"]},
            },
            **settings,
        }
    )
    asked = schemathesis.openapi.from_dict(described, config=config)
    asked.hook("map_body")(without_fractions)
    found = Examination(
        {
            f"{method.upper()} {path}": {*operation["responses"]}
            for path, methods in described["paths"].items()
            for method, operation in methods.items()
        }
    )
    for event in from_schema(asked).execute():
        if isinstance(event, (events.NonFatalError, events.FatalError)):
            found.problems.append(repr(event))
        elif isinstance(event, events.ScenarioFinished):
            note(event, found)
    return found


def note(event: events.ScenarioFinished, found: Examination) -> None:
    record = event.recorder
    for asked in record.interactions.values():
        if asked.response is None:
            found.problems.append(f"{record.label}: no answer to {asked.request.uri}")
        else:
            status = asked.response.status_code
            found.answers.setdefault(record.label, Counter())[status] += 1
            # Of odd methods and media types, schemathesis takes any refusal.
            if str(status) not in found.operations[record.label]:
                found.problems.append(f"{record.label}: status {status} is not described")
    for case, checks in record.checks.items():
        found.checks |= {check.name for check in checks} & CHECKS
        for failure in (c.failure_info for c in checks if c.failure_info):
            answer = record.interactions[case].response
            said = answer.content[:300] if answer else None
            found.problems.append(f"{failure.failure}\n{failure.code_sample[:2_000]}\n{said!r}")


def without_fractions(context: Any, body: Any) -> Any:
    """Writes whole numbers as such: to JSON schema 3.0 is one, the description says it is none."""
    if isinstance(body, float) and body.is_integer():
        return int(body)
    if isinstance(body, dict):
        return {name: without_fractions(context, value) for name, value in body.items()}
    return [without_fractions(context, v) for v in body] if isinstance(body, list) else body


def as_csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([schema.EXAMPLE, *rows])
    return text.getvalue().encode()


def as_parquet(row: dict[str, Any]) -> bytes:
    """Returns a file of the example and a row that differs from it."""
    content: bytes = pd.DataFrame([schema.EXAMPLE, {**schema.EXAMPLE, **row}]).to_parquet()
    return content


cells = st.text(st.characters(codec="utf-8"), max_size=5)
schemathesis.openapi.media_type(
    "text/csv", st.lists(st.lists(cells, max_size=50), max_size=5).map(as_csv)
)
schemathesis.openapi.media_type(
    "application/vnd.apache.parquet",
    st.dictionaries(st.sampled_from(schema.OPEN), cells, max_size=5).map(as_parquet),
)


@pytest.mark.parametrize("path", ["/predict", "/predict?explain=true"])
def test_an_answer_is_of_its_type(served, path):
    answer = served.ask(path, schema.EXAMPLE)
    assert answer.status == 200
    parsed = Answer.model_validate_json(answer.content, strict=True)
    assert (parsed.contributions is not None) == (parsed.log_odds is not None) == ("?" in path)


def test_records_are_of_their_type(served):
    rows = [schema.EXAMPLE, {}, {**schema.EXAMPLE, "payer_code": "never seen"}, None]
    answer = served.ask("/predict/batch", rows)
    assert answer.status == 200
    records = TypeAdapter(list[Record]).validate_json(answer.content, strict=True)
    assert [bool(record.errors) for record in records] == [False, True, False, True]


@pytest.mark.parametrize(("path", "kind"), [("/health", Health), ("/model-info", Facts)])
def test_what_is_told_of_the_model_is_of_its_type(served, path, kind):
    answer = served.ask(path)
    assert answer.status == 200
    assert kind.model_validate_json(answer.content, strict=True).version == "1"


@pytest.mark.parametrize(
    ("status", "question"),
    [
        (401, {"path": "/predict", "body": schema.EXAMPLE}),
        (404, {"path": "/predictions"}),
        (405, {"path": "/predict"}),
        (413, {"path": "/predict", "body": b" " * 2**20}),
        (415, {"path": "/predict", "body": b"", "headers": {"content-type": "text/html"}}),
        (422, {"path": "/predict", "body": {}}),
        (422, {"path": "/predict/batch", "body": {}}),
    ],
)
def test_a_refusal_is_of_its_type(guarded, status, question):
    known = {} if status == 401 else {TOKEN_HEADER: TOKEN}
    headers = {**known, **question.get("headers", {})}
    answer = guarded.ask(question["path"], question.get("body"), headers)
    assert answer.status == status
    assert Refusal.model_validate_json(answer.content, strict=True).detail


def test_every_input_is_described_with_its_unit_range_or_vocabulary(description):
    described = description["components"]["schemas"]["Encounter"]
    assert tuple(described["properties"]) == schema.INPUTS
    assert described["additionalProperties"] is False
    for column, told in described["properties"].items():
        assert len(told["description"]) > 10, column
        if column in schema.COUNTS:
            assert (told["minimum"], told["maximum"]) == schema.COUNTS[column]
            assert told["description"].endswith(("; count.", "; days."))
        elif column in schema.CODES:
            assert {"minimum", "maximum"} <= told.keys()
            assert "; code of the published table: 1 " in told["description"]
        elif column in schema.CLOSED:
            assert tuple(told["enum"]) == schema.CLOSED[column]
        else:
            assert column in schema.OPEN
            assert {"maxLength", "pattern"} <= told.keys()
            assert "null" in told["type"]
            assert "null" in told["description"]


def test_every_field_of_every_answer_is_described(description):
    shapes = description["components"]["schemas"]
    assert {"Answer", "Record", "Refusal", "Health", "Facts", "Model"} <= shapes.keys()
    mute = [
        f"{name}.{column}"
        for name, shape in shapes.items()
        for column, told in shape["properties"].items()
        if not told.get("description")
    ]
    assert mute == []


def test_every_route_is_described(description):
    from health_predict import service

    described = {path: {*methods} for path, methods in description["paths"].items()}
    assert described == {
        path: {method.lower() for method in route.methods}
        for path, route in service.app.routes.items()
    }


def test_only_a_guarded_service_asks_for_a_token(description, guarded):
    asks = guarded.ask("/openapi.json").json
    assert {*asks["components"]["securitySchemes"]} == {"token", "forwarded_token"}
    for path, methods in asks["paths"].items():
        for method, operation in methods.items():
            asked_for = [*operation.get("security", [])]
            assert bool(asked_for) == path.startswith("/predict")
            assert not description["paths"][path][method].get("security")


def test_examples_are_scored_as_printed(served, store, description):
    """Pasted as they stand in the description, each gets the score that the model gives."""
    scorer = Scorer.load(store[0] / "models" / "readmission" / "1")
    (expected,) = scorer.score([schema.EXAMPLE])
    single = description["paths"]["/predict"]["post"]["requestBody"]["content"]
    answer = served.ask("/predict", json.dumps(single["application/json"]["example"]).encode())
    assert answer.json["probability_score"] == pytest.approx(expected, abs=1e-9)
    many = description["paths"]["/predict/batch"]["post"]["requestBody"]["content"]
    answer = served.ask("/predict/batch", many["application/json"]["example"])
    assert [row["probability_score"] for row in answer.json] == [pytest.approx(expected, abs=1e-9)]
    content = many["text/csv"]["example"].encode()
    answer = served.ask("/predict/batch", content, {"content-type": "text/csv"})
    (row,) = csv.DictReader(io.StringIO(answer.content.decode()))
    assert float(row["probability_score"]) == pytest.approx(expected, abs=1e-9)
