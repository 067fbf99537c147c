"""The service scores what training saw as training saw it, also when it is told to stop.

The same raw rows go through the asset path and through the service: without a server for every
family, over HTTP for a real Bento. What a client may send beside is in the other tests of the
service.
"""

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline
from starlette.testclient import TestClient

from health_predict import encounters, prediction_log, schema, service
from health_predict.models import FAMILIES
from health_predict.scorer import FACTS, TABLES
from health_predict.serving.batches import FORMATS
from health_predict.serving.options import AUTH
from health_predict_tests import bentos
from health_predict_tests.conftest import archive_path
from health_predict_tests.served_bento import Served, serve
from health_predict_tests.serving import loaded

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-6
ROWS = 500
"""Rows of the cohort that are compared at least."""
SENT = 700
"""Raw rows that are sent: some are outside the cohort."""
JSON, CSV, PARQUET = FORMATS

Row = dict[str, Any]
Post = Callable[[str, bytes, str], tuple[int, bytes]]
"""Posts a body of a media type to a path; returns status and content."""


@dataclass(frozen=True)
class Both:
    """Raw rows, and what became of them on the asset path.

    Attributes:
        raw: as published, a column of texts each; none breaks the contract.
        cohort: what the asset path makes of them.
        inside: (n,) whether a raw row is in the cohort.
    """

    raw: pd.DataFrame
    cohort: pd.DataFrame
    inside: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Both":
        """Sends the first rows of a table through the asset path."""
        accepted, _ = encounters.apply_contract(table.iloc[: 2 * SENT])
        kept = accepted[schema.ENCOUNTER_ID].astype(str)
        raw = table[table[schema.ENCOUNTER_ID].isin(kept[:SENT])]
        accepted, quarantined = encounters.apply_contract(raw)
        assert quarantined.empty
        cohort = encounters.cohort(accepted, "any")
        inside = raw[schema.ENCOUNTER_ID].isin(cohort[schema.ENCOUNTER_ID].astype(str)).to_numpy()
        assert inside.sum() >= ROWS
        assert not inside.all()
        return cls(raw, cohort, inside)

    def scores(self, pipeline: Pipeline) -> np.ndarray:
        """Returns the pipeline's scores, (n,) in the order of the raw rows, NaN outside."""
        scores = pipeline.predict_proba(self.cohort)[:, 1]
        by_id = dict(zip(self.cohort[schema.ENCOUNTER_ID].astype(str), scores, strict=True))
        found: np.ndarray = self.raw[schema.ENCOUNTER_ID].map(by_id).to_numpy(float)
        return found

    @property
    def requests(self) -> list[Row]:
        """The raw rows as a client sends them: numbers where numbers are asked for."""
        rows: list[Row] = self.raw[[*schema.INPUTS]].to_dict("records")
        whole = (*schema.CODES, *schema.COUNTS)
        return [{c: int(v) if c in whole else v for c, v in row.items()} for row in rows]

    def body(self, kind: str) -> bytes:
        """Returns the raw rows as a batch."""
        if kind == JSON:
            return json.dumps(self.requests).encode()
        if kind == CSV:  # the published texts themselves
            text: str = self.raw[[*schema.INPUTS]].to_csv(index=False)
            return text.encode()
        file = io.BytesIO()
        pd.DataFrame(self.requests).to_parquet(file, index=False)
        return file.getvalue()


def scores_of(kind: str, content: bytes) -> np.ndarray:
    """Returns the scores (n,) of a batch's answer, NaN for rows that were refused."""
    file = io.BytesIO(content)
    if kind == JSON:
        frame = pd.DataFrame(json.load(file))
    else:
        frame = pd.read_csv(file) if kind == CSV else pd.read_parquet(file)
    assert frame["row"].tolist() == [*range(1, len(frame) + 1)]
    refused = frame["probability_score"].isna()
    said = frame["errors"].map(lambda errors: bool(errors) and errors == errors)
    assert (refused == said).all()
    found: np.ndarray = frame["probability_score"].to_numpy(float)
    return found


def agree(served: np.ndarray, expected: np.ndarray) -> None:
    """Asserts that the same rows were scored, and alike."""
    assert np.array_equal(np.isnan(served), np.isnan(expected))
    assert np.nanmax(np.abs(served - expected)) < TOLERANCE
    assert np.nanmax(expected) - np.nanmin(expected) > 0.1  # a constant would agree with anything


def one_by_one(post: Post, both: Both, count: int) -> np.ndarray:
    """Returns the scores of the first raw rows, each asked for alone, NaN where refused."""
    found = []
    for row in both.requests[:count]:
        status, content = post("/predict", json.dumps(row).encode(), JSON)
        assert status in (200, 422), content
        found.append(json.loads(content)["probability_score"] if status == 200 else np.nan)
    return np.array(found)


def in_batch(post: Post, both: Both, kind: str) -> np.ndarray:
    status, content = post("/predict/batch", both.body(kind), kind)
    assert status == 200, content
    return scores_of(kind, content)


@pytest.fixture(scope="module", params=["synthetic", "archive"])
def both(request, raw) -> Both:
    """Raw rows of the synthetic cohort; of the published archive where it is there."""
    if request.param == "synthetic":
        return Both.of(raw)
    table, _ = encounters.read(str(archive_path()), rows=0, seed=0)
    return Both.of(table.sample(3 * SENT, random_state=2))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_scores_raw_rows_as_the_asset_path_does(family, both, pipelines, compiled):
    expected = both.scores(pipelines[family])
    with loaded(compiled[family]):
        client = TestClient(service.app)

        def post(path: str, body: bytes, kind: str) -> tuple[int, bytes]:
            answer = client.post(path, content=body, headers={"content-type": kind})
            return answer.status_code, answer.content

        agree(one_by_one(post, both, SENT), expected)
        for kind in FORMATS:
            agree(in_batch(post, both, kind), expected)


@pytest.fixture(scope="module")
def home(compiled, tmp_path_factory) -> Path:
    """A BentoML home with a Bento of the fixtures' boosted pipeline.

    BentoML keeps one store a process: the Bento comes from another one, its model from here.
    """
    found, _ = bentos.store(tmp_path_factory.mktemp("home"))
    folder = found / "models" / "readmission" / "1"
    for path in folder.glob("*"):
        if path.name != "model.yaml":
            path.unlink()
    shutil.copytree(compiled["xgboost"], folder, dirs_exist_ok=True)
    assert {FACTS, TABLES} <= {path.name for path in folder.iterdir()}
    return found


@pytest.fixture(scope="module")
def served(home, as_in_the_image, tmp_path_factory) -> Iterator[Served]:
    """The Bento with what its image holds, and open to everybody."""
    folder = tmp_path_factory.mktemp("served")
    with serve(home, "readmission:1", folder, **as_in_the_image) as found:
        yield found


def test_a_bento_scores_raw_rows_as_the_asset_path_does(both, pipelines, served):
    def post(path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        reply = served.ask(path, body, {"content-type": kind})
        return reply.status, reply.content

    expected = both.scores(pipelines["xgboost"])
    agree(one_by_one(post, both, SENT), expected)
    for kind in FORMATS:
        agree(in_batch(post, both, kind), expected)


def test_a_bento_that_is_open_to_everybody_says_so(served):
    words = served.log.read_text()
    assert f"Authentication is switched off by {AUTH}" in words
    assert "everybody may ask" in words


def test_the_service_calls_nobody(served):
    served.ask("/predict?explain=true", schema.EXAMPLE)
    connections = served.worker.net_connections(kind="inet")
    assert {one.laddr.port for one in connections} == {served.port}


# What the image holds is enough. XGBoost imports pandas and more where it finds them, so here they
# are hidden.

TRAINING = (
    *("pandas", "sklearn", "mlflow", "dagster", "ray", "evidently", "pyarrow", "matplotlib"),
    *("skops", "pandera", "optuna", "kubernetes"),
)
"""Libraries of training, some of them: none is in the image."""
UNUSED = ("scipy.stats", "opentelemetry.exporter")
"""What is in the image, and is not to be loaded as long as nobody asks for it."""


HIDE = """
import sys
from importlib.machinery import PathFinder
hidden = set({})
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.split(".")[0] not in hidden
        return super().find_spec(name, path, target) if known else None
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def in_the_image() -> set[str]:
    """Returns the distributions that the image's lock file installs."""
    lock = (ROOT / "requirements-serving.lock").read_text()
    return {canonical(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.fixture(scope="module")
def as_in_the_image(tmp_path_factory) -> dict[str, str]:
    """An environment in which Python finds what the image holds, and no other installed module."""
    there = in_the_image()
    hidden = [
        module
        for module, distributions in packages_distributions().items()
        if module != "health_predict" and not there & {*map(canonical, distributions)}
    ]
    assert {*TRAINING} <= {*hidden}
    assert not {"numpy", "xgboost", "bentoml", "duckdb"} & {*hidden}
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(HIDE.format(hidden))
    return {"PYTHONPATH": str(folder)}


USE = """
import json, sys
from pathlib import Path
from starlette.testclient import TestClient
from health_predict import schema, service
from health_predict.scorer import Scorer
from health_predict.serving.application import State
from health_predict.serving.instruments import Metrics
from health_predict.serving.options import Options
from health_predict.serving.predictor import Predictor
folder, batch, *unused = sys.argv[1:]
scorer = Scorer.load(Path(folder))
service.app.state = State(Options(tokens=None), Predictor(scorer, Metrics(scorer.facts)))
client = TestClient(service.app)
explained = client.post("/predict?explain=true", json=schema.EXAMPLE)
kind = "application/vnd.apache.parquet"
content = Path(batch).read_bytes()
answered = client.post("/predict/batch", content=content, headers={"content-type": kind})
assert (explained.status_code, answered.status_code) == (200, 200)
assert client.get("/").status_code == 200
print(json.dumps([name for name in unused if name in sys.modules]))
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_image_holds_is_enough_to_answer(family, compiled, as_in_the_image, tmp_path):
    batch = tmp_path / "batch.parquet"
    pd.DataFrame([schema.EXAMPLE] * 3).to_parquet(batch)
    command = [sys.executable, "-W", "ignore", "-c", USE, str(compiled[family]), str(batch)]
    environment = {**os.environ, **as_in_the_image}
    done = subprocess.run(
        [*command, *UNUSED], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_bento_that_has_answered_everything_has_loaded_nothing_of_training(served):
    served.ask("/predict?explain=true", schema.EXAMPLE)
    file = io.BytesIO()
    pd.DataFrame([schema.EXAMPLE] * 3).to_parquet(file)
    reply = served.ask("/predict/batch", file.getvalue(), {"content-type": PARQUET})
    assert reply.status == 200
    files = {Path(one.path) for one in served.worker.memory_maps()}
    packages = {part for path in files for part in path.parts}
    assert {"numpy", "xgboost"} <= packages  # it can be seen
    assert not {*TRAINING} & packages
    assert not any("scipy/stats" in str(path) for path in files)


# Told to stop, it answers what it was asked.

CLIENTS = 8
MOST_REQUESTS = 2_000
"""A client's, should the service never stop."""
_AWAY = (ConnectionError, http.client.BadStatusLine, TimeoutError)


@dataclass
class Exchange:
    """One request and what became of it.

    Attributes:
        row: number of the encounter that was sent.
        sent: when all of it was sent, monotonic seconds; None if it was not.
        status: of the answer, None if none began.
        request_id: of the answer.
        score: in the answer.
        broken: whether the answer began and did not end, or was no answer.
    """

    row: int
    sent: float | None = None
    status: int | None = None
    request_id: str = ""
    score: float | None = None
    broken: bool = False


@dataclass
class Load:
    """Clients that keep asking until nobody answers any more."""

    port: int
    bodies: Sequence[bytes]
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def answered(self) -> list[Exchange]:
        return [one for one in [*self.exchanges] if one.status is not None]

    def run(self, client: int) -> None:
        """Asks as one client, over one connection as long as it lasts."""
        connection = http.client.HTTPConnection(bentos.HOST, self.port, timeout=40)
        for number in range(MOST_REQUESTS):
            exchange = Exchange((client + CLIENTS * number) % len(self.bodies))
            self.exchanges.append(exchange)
            try:
                self.ask(connection, exchange)
            except _AWAY:
                connection.close()
                if exchange.sent is None:  # nobody takes it any more
                    return
        raise AssertionError("the service did not stop")

    def ask(self, connection: http.client.HTTPConnection, exchange: Exchange) -> None:
        body = self.bodies[exchange.row]
        connection.request("POST", "/predict", body, {"content-type": JSON})
        exchange.sent = time.monotonic()
        response = connection.getresponse()
        exchange.status = response.status
        exchange.request_id = response.headers["x-request-id"]
        try:
            content = json.loads(response.read())
        except (http.client.IncompleteRead, ConnectionError, ValueError):
            exchange.broken = True
            return
        exchange.score = content.get("probability_score")


def half_sent(port: int, path: str, kind: str, body: bytes) -> socket.socket:
    """Begins a request, of whose body the last byte is to come."""
    connection = socket.create_connection((bentos.HOST, port), timeout=40)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nx-request-id: last-{len(body)}\r\n"
        f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body[:-1])
    return connection


def answer_to(connection: socket.socket) -> tuple[int, str, bytes]:
    response = http.client.HTTPResponse(connection)
    with contextlib.closing(connection):
        response.begin()
        return response.status, response.headers["x-request-id"], response.read()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def stopping(home, tmp_path) -> Iterator[Served]:
    """A Bento that a test ends itself."""
    with serve(home, "readmission:1", tmp_path) as found:
        yield found


def logged_in(folder: Path) -> Mapping[str, list[Row]]:
    """Returns the prediction log's rows by request id."""
    found: dict[str, list[Row]] = {}
    for row in prediction_log.read(folder, {}, 10**6).rows:
        found.setdefault(row["request_id"], []).append(row)
    return found


def test_told_to_stop_under_load_it_ends_what_it_began_and_answers_nothing_wrong(
    raw, pipelines, stopping
):
    both = Both.of(raw)
    inside = np.flatnonzero(both.inside)
    expected = both.scores(pipelines["xgboost"])[inside]
    requests = both.requests
    bodies = [json.dumps(requests[number]).encode() for number in inside]

    load = Load(stopping.port, bodies)
    clients = [threading.Thread(target=load.run, args=(n,)) for n in range(CLIENTS)]
    single = half_sent(stopping.port, "/predict", JSON, bodies[7])
    batch = half_sent(stopping.port, "/predict/batch", CSV, both.body(CSV))
    gone = half_sent(stopping.port, "/predict", JSON, bodies[8])
    for client in clients:
        client.start()
    until(lambda: len(load.answered) > 40 * CLIENTS)
    gone.close()
    until(lambda: '"status": 499' in stopping.log.read_text())
    told = time.monotonic()
    stopping.process.terminate()
    time.sleep(0.3)  # it has heard it: what it began is still to be ended
    single.sendall(bodies[7][-1:])
    batch.sendall(both.body(CSV)[-1:])

    status, single_id, content = answer_to(single)
    assert status == 200
    assert json.loads(content)["probability_score"] == pytest.approx(expected[7], abs=TOLERANCE)
    status, batch_id, content = answer_to(batch)
    assert status == 200
    agree(scores_of(CSV, content), both.scores(pipelines["xgboost"]))

    for client in clients:
        client.join(60)
        assert not client.is_alive()
    # Shorter than BentoML's 45 s: it must not wait for the client that went away.
    assert stopping.process.wait(30) == 0
    stopping.worker.wait(30)

    answered = [one for one in load.answered if one.status == 200]
    assert {one.status for one in load.answered} <= {200, 503}
    assert not [one for one in load.exchanges if one.broken]
    assert len(answered) > 40 * CLIENTS
    wrong = [one for one in answered if not abs(one.score - expected[one.row]) < TOLERANCE]
    assert wrong == []
    sent = [one for one in load.exchanges if one.sent is not None and one.sent < told]
    assert [one for one in sent if one.status != 200] == []

    logged = logged_in(stopping.predictions)
    for one in answered:
        (row,) = logged[one.request_id]
        assert row["probability_score"] == one.score
    assert len(logged[single_id]) == 1
    assert len(logged[batch_id]) == both.inside.sum()


def test_told_to_stop_while_idle_it_ends_and_says_so(stopping):
    assert stopping.ask("/predict", schema.EXAMPLE).status == 200
    stopping.process.terminate()
    assert stopping.process.wait(30) == 0
    assert len(logged_in(stopping.predictions)) == 1
    with pytest.raises(OSError):
        stopping.ask("/health")
