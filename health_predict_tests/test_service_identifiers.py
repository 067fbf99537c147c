"""An identifier that a client sends by mistake, wherever it puts it, is found nowhere afterwards.

Each place of a request gets a person of its own, so that what is found says where it came in. Then
everything that a running service says or writes is searched: answers, log, metrics, prediction log,
spans as a collector receives them, and whatever files are left.

Two things are as they are meant to be. A text field's value belongs to the prediction log's
features, unless it looks like a record number: numbers are sent there. And a request id that is a
UUID or a word is taken as what tracing makes: numbers are sent there too.
"""

import hashlib
import io
import json
import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest

from health_predict.prediction_log import WITHHELD
from health_predict.schema import CLOSED, EXAMPLE, IDENTIFIERS, INPUTS, OPEN
from health_predict.serving.batches import Csv, Parquet
from health_predict.serving.options import TOKENS
from health_predict_tests import bentos
from health_predict_tests.receivers import serving
from health_predict_tests.served_bento import Reply, serve
from health_predict_tests.wire import BATCH, SINGLE, Line, request

TOKEN = "known-to-the-caller"
KNOWN = (b"authorization", b"Bearer " + TOKEN.encode())
EXPLAINED = SINGLE + "?explain=true"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
"""An id as tracing makes it."""


@dataclass(frozen=True)
class Person:
    """The identifiers of somebody, who is nobody.

    Attributes:
        patient: a patient number, as long as the published ones.
        account: a longer one.
        record: a medical record number in the shape of a UUID.
        name: in one word, as it may stand in a header.
        mail: an address.
    """

    patient: str
    account: str
    record: str
    name: str
    mail: str

    @classmethod
    def number(cls, place: int) -> "Person":
        """Returns the person of a place."""
        letters = "".join(string.ascii_lowercase[int(digit)] for digit in f"{place:04d}")
        return cls(
            patient=f"93{place:04d}581",
            account=f"4407{place:04d}9262",
            record=f"7d41{place:04d}-9b1e-4c55-8a21-c0ffee{place:06d}",
            name=f"Quackenbush{letters}",
            mail=f"ottoline.{letters}@hospital.example",
        )

    @property
    def numbers(self) -> tuple[str, str, str]:
        """Those that are numbers, and one in words."""
        return self.patient, self.account, f"MRN {self.patient}"

    @property
    def all(self) -> str:
        """Everything in one text."""
        return " ".join(astuple(self))


@dataclass
class Evidence:
    """What the service said and wrote.

    Attributes:
        places: where a person was put, by name.
        answers: to every request.
        found: source -> what stands there.
    """

    places: dict[str, Person] = field(default_factory=dict)
    answers: list[Reply] = field(default_factory=list)
    found: dict[str, bytes] = field(default_factory=dict)

    def person(self, place: str) -> Person:
        """Returns the person of a place, made when it is first named."""
        return self.places.setdefault(place, Person.number(len(self.places)))

    def leaks(self, content: bytes) -> list[str]:
        """Returns the places whose person is named, as text or as hexadecimal digits."""
        texts = (content.lower(), content.hex().encode())
        marks = (match for text in texts for match in _MARK.finditer(text))
        numbers = {_number(next(filter(None, match.groups()))) for match in marks}
        return [place for number, place in enumerate(self.places) if number in numbers]


_MARK = re.compile(
    rb"93(\d{4})581|4407(\d{4})9262|c0ffee00(\d{4})|quackenbush([a-j]{4})|ottoline\.([a-j]{4})"
)
_DIGITS = bytes.maketrans(b"abcdefghij", b"0123456789")


def _number(digits: bytes) -> int:
    return int(digits.translate(_DIGITS))


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Yields the address of an OpenTelemetry collector, and what it receives."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert not self.headers.get("content-encoding")
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((bentos.HOST, 0), Handler) as server, serving(server):
        yield f"http://{bentos.HOST}:{server.server_port}", received


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Puts a person everywhere, ends the service, and gathers what it left."""
    folder = tmp_path_factory.mktemp("identifiers")
    home, _ = bentos.store(folder)
    found = Evidence()
    with collector() as (address, spans):
        environment = {
            TOKENS: hashlib.sha256(TOKEN.encode()).hexdigest(),
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with serve(home, "readmission:1", folder / "served", **environment) as served:
            line = Line(served.port)
            for content, is_http in everywhere(found):
                answer = line.ask(content, is_http=is_http)
                if answer is not None:
                    found.answers.append(answer)
            line.close()
            found.found["metrics"] = served.ask("/metrics").content
    found.found["spans"] = b"\n".join(spans)
    found.found["server log"] = served.log.read_bytes()
    logged = [path.read_bytes() for path in served.predictions.iterdir()]
    found.found["prediction log"] = b"\n".join(logged)
    others = {home / "bentos", home / "models", served.predictions, served.log}
    left = [path for path in folder.rglob("*") if not others & {path, *path.parents}]
    found.found["files"] = b"\n".join(
        str(path).encode() + b"\n" + (path.read_bytes() if path.is_file() else b"") for path in left
    )
    found.found["answers"] = b"\n".join(map(shown, found.answers))
    return found


def shown(answer: Reply) -> bytes:
    """Returns all that a client can read of an answer."""
    content = answer.content
    if answer.headers.get("content-type") == Parquet.media_type:  # its pages are compressed
        content = pd.read_parquet(io.BytesIO(content)).to_csv().encode()
    return str(answer.headers).encode() + content


def everywhere(found: Evidence) -> Iterator[tuple[bytes, bool]]:
    """Yields requests with a person in each place, and whether they are HTTP."""
    for content in (
        *in_fields(found),
        *in_names(found),
        *in_structure(found),
        *in_address(found),
        *in_headers(found),
        *in_files(found),
    ):
        yield content, True
    for content in (*in_no_http(found),):
        yield content, False


def ask(body: Any, *headers: tuple[bytes, bytes], **options: Any) -> bytes:
    """Returns a request of somebody who may ask."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request(content, KNOWN, *headers, **options)


def in_fields(found: Evidence) -> Iterator[bytes]:
    for column in INPUTS:
        person = found.person(f"value of {column}")
        values: list[Any] = [*person.numbers, int(person.patient), -int(person.account)]
        if column not in OPEN:
            values += astuple(person)
        values += [[v] for v in astuple(person)] + [{person.name: person.record}]
        for value in values:
            body = {**EXAMPLE, column: value}
            yield ask(body, path=EXPLAINED)
            yield ask([body, EXAMPLE], path=BATCH)


def in_names(found: Evidence) -> Iterator[bytes]:
    for mark in astuple(found.person("unknown field")):
        yield ask({**EXAMPLE, mark: mark})
        yield ask([{**EXAMPLE, mark: mark}], path=BATCH)
        yield ask({mark: EXAMPLE})
    for column in IDENTIFIERS:
        person = found.person(column)
        for value in (*astuple(person), int(person.patient)):
            yield ask({**EXAMPLE, column: value})
    for mark in astuple(found.person("field given twice")):
        once = json.dumps(EXAMPLE)[:-1]
        yield ask(f'{once}, "{mark}": 1, "{mark}": 2}}'.encode())
        yield ask(f'{once}, "race": "{mark}"}}'.encode())
        yield ask(f'{once}, "glyburide_metformin": "{mark}"}}'.encode())


def in_structure(found: Evidence) -> Iterator[bytes]:
    person = found.person("instead of an encounter")
    for body in (person.all, [person.all], int(person.patient), {"patient": {"id": person.all}}):
        yield ask(body)
        yield ask(body, path=BATCH)
        yield ask([body, [[body]]], path=BATCH)
    for mark in astuple(found.person("malformed JSON")):
        whole = json.dumps({**EXAMPLE, "race": mark})
        place = whole.index(mark) + len(mark)
        for broken in (whole[:place], whole[:place] + "\x00", f"{mark}{whole}", f"{whole}{mark}"):
            for path in (SINGLE, BATCH):
                yield ask(broken.encode(), path=path)
                yield ask(b"[" + broken.encode(), path=path)
                yield ask(broken.encode("utf-16"), path=path)
        yield ask(f"\xff{mark}".encode("latin-1"))
        yield ask(whole.encode() + mark.encode() * 10_000)
        yield ask(whole.encode(), media_type=f"text/plain; name={mark}")
        yield ask(whole.encode(), media_type=f"{mark}/json")
        form = f'--x\r\ncontent-disposition: form-data; filename="{mark}"\r\n\r\n{whole}\r\n--x--'
        yield ask(form.encode(), media_type=f"multipart/form-data; boundary=x{mark}")


def in_address(found: Evidence) -> Iterator[bytes]:
    paths = [SINGLE, BATCH, "/", "/health", "/model-info", "/metrics", "/openapi.json", "/livez"]
    marks = [quote(mark) for mark in astuple(found.person("query"))]
    for path in paths:
        for mark in marks:
            for query in (f"?{mark}", f"?{mark}=1", f"?explain={mark}", f"?explain=true&p={mark}"):
                yield ask(EXAMPLE, path=path + query)
                yield request(b"", path=path + query, method="GET")
    for mark in (quote(mark) for mark in astuple(found.person("path"))):
        for path in (f"/{mark}", f"/predict/{mark}", f"/patients/{mark}/?x", f"/livez/{mark}"):
            yield ask(EXAMPLE, path=path)
            yield request(b"", path=path, method="GET")
        yield ask(EXAMPLE, path=f"http://{mark}@{mark}:80/predict")
        yield ask(EXAMPLE, path=f"/predict#{mark}")
        yield ask(EXAMPLE, path=f"/predict;{mark}")


def in_headers(found: Evidence) -> Iterator[bytes]:
    person = found.person("x-request-id")
    for mark in (
        *person.numbers,
        person.mail,
        f"patient-{person.patient}",
        f"mrn_{person.account}",
        person.patient.zfill(32),
        person.all,
    ):
        yield ask(EXAMPLE, (b"x-request-id", mark.encode()))
    person = found.person("a token")
    for mark in astuple(person):
        for kind in ("Bearer", "Basic", "Digest", ""):
            header = (b"authorization", f"{kind} {mark}".encode())
            yield request(json.dumps(EXAMPLE).encode(), header)
        yield request(json.dumps(EXAMPLE).encode(), (b"x-health-predict-token", mark.encode()))
    for name in (
        *("user-agent", "referer", "cookie", "origin", "from", "via", "forwarded", "accept"),
        *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "if-none-match"),
        *("baggage", "x-patient-id", "x-correlation-id", "accept-language", "content-encoding"),
        *(
            "b3",
            "uber-trace-id",
            "x-b3-traceid",
            "x-amzn-trace-id",
            "x-cloud-trace-context",
            "range",
        ),
        *("bentoml-name", "x-bentoml-request-id", "x-http-method-override", "x-original-url"),
    ):
        for mark in astuple(found.person(f"header {name}")):
            for value in (mark, f"id={mark}", f"https://hospital.example/{mark}"):
                yield ask(EXAMPLE, (name.encode(), value.encode()))
    for mark in astuple(found.person("header name")):
        yield ask(EXAMPLE, (f"x-{mark}".replace("@", "-").encode(), mark.encode()))
    person = found.person("trace context")
    parent = f"00-{person.patient.zfill(32)}-{person.patient.zfill(16)}-01"
    usual = f"00-{TRACE}-{person.patient.zfill(16)}-01"
    for mark in (*astuple(person), person.all):
        state = (b"tracestate", f"hospital={mark}".encode())
        for trace in (
            parent,
            usual,
            f"00-{TRACE}-00f067aa0ba902b7-01",
            mark,
        ):
            yield ask(EXAMPLE, (b"traceparent", trace.encode()), state)


def in_files(found: Evidence) -> Iterator[bytes]:
    good = [str(value) for value in EXAMPLE.values()]
    for column in (*CLOSED, "num_procedures", "admission_type_id"):
        person = found.person(f"cell of {column}")
        for mark in astuple(person):
            frame = pd.DataFrame([EXAMPLE, {**EXAMPLE, column: mark}]).astype(str)
            yield ask(frame.to_csv(index=False).encode(), path=BATCH, media_type=Csv.media_type)
        yield parquet(frame)
    person = found.person("cell of a text")
    for mark in person.numbers:
        frame = pd.DataFrame([{**EXAMPLE, **dict.fromkeys(OPEN, mark)}])
        yield ask(frame.to_csv(index=False).encode(), path=BATCH, media_type=Csv.media_type)
        yield parquet(frame)
    for mark in astuple(found.person("column name")):
        for frame in (pd.DataFrame([{**EXAMPLE, mark: mark}]), pd.DataFrame({mark: [mark]})):
            yield ask(frame.to_csv(index=False).encode(), path=BATCH, media_type=Csv.media_type)
            yield parquet(frame)
    person = found.person("malformed file")
    header = ",".join(INPUTS)
    for mark in astuple(person):
        for text in (
            f'{header}\n"{mark}',
            f"{header}\n{mark},{mark}\n",
            f"{header}\n\x00{mark}\n",
            f"{mark}\n{header}\n",
            f'"{mark}',
            f"{header}\n{','.join(good)}\n{','.join([mark] * len(good))}\n{mark * 20_000}",
        ):
            yield ask(text.encode(), path=BATCH, media_type=Csv.media_type)
            yield ask(text.encode(), path=BATCH, media_type=Parquet.media_type)
            yield ask(b"PAR1" + text.encode() + b"PAR1", path=BATCH, media_type=Parquet.media_type)
    for mark in person.numbers:  # what is damaged may still be read
        content = pd.DataFrame([{**EXAMPLE, "race": mark}]).to_parquet(compression=None)
        for place in range(4, len(content), 499):
            damaged = content[:place] + mark.encode() + content[place + len(mark) :]
            yield ask(damaged, path=BATCH, media_type=Parquet.media_type)


def parquet(frame: pd.DataFrame) -> bytes:
    return ask(frame.to_parquet(compression=None), path=BATCH, media_type=Parquet.media_type)


def in_no_http(found: Evidence) -> Iterator[bytes]:
    for mark in astuple(found.person("no HTTP")):
        yield f"{mark} /predict HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        yield f"POST /predict {mark}\r\nhost: x\r\n\r\n".encode()
        yield f"POST /predict HTTP/1.1\r\n{mark}\r\n\r\n".encode()
        yield f"POST /predict HTTP/1.1\r\nhost: {mark}\r\ncontent-length: {mark}\r\n\r\n".encode()
        yield f"\x16\x03\x01{mark}".encode()
        yield mark.encode()
    for mark in astuple(found.person("chunks")):
        head = f"POST /predict HTTP/1.1\r\nhost: {mark}\r\n{KNOWN[0].decode()}: {KNOWN[1].decode()}"
        head += "\r\ntransfer-encoding: chunked\r\n\r\n"
        yield f"{head}2;{mark}={mark}\r\n{{}}\r\n0\r\nx-trailer: {mark}\r\n\r\n".encode()
        yield f"{head}{mark}\r\n{{}}\r\n".encode()
    for mark in (quote(mark) for mark in astuple(found.person("websocket"))):
        yield (
            f"GET /{mark}?{mark} HTTP/1.1\r\nhost: {mark}\r\nupgrade: websocket\r\n"
            f"connection: upgrade\r\nsec-websocket-protocol: x{mark}\r\n"
            "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()
    for mark in astuple(found.person("a body cut off")):
        row = ",".join([mark] * len(INPUTS))
        upload = f"{','.join(INPUTS)}\n{row}\n".encode()
        whole = ask(upload + b" " * 10_000, path=BATCH, media_type=Csv.media_type)
        yield whole[:-9_000]
        yield ask({**EXAMPLE, "race": mark})[:-10]


@pytest.mark.parametrize(
    "source", ["answers", "server log", "prediction log", "metrics", "spans", "files"]
)
def test_an_identifier_is_not_found_in(source, evidence):
    assert evidence.leaks(evidence.found[source]) == []


def test_a_leak_would_be_found(evidence):
    for place, person in evidence.places.items():
        for mark in (*astuple(person), person.name.upper(), quote(person.mail)):
            assert evidence.leaks(f"a{mark}b".encode()) == [place]
    first = next(iter(evidence.places.values()))
    assert evidence.leaks(bytes.fromhex(first.patient.zfill(32))) == [next(iter(evidence.places))]


def test_everything_that_is_searched_was_written(evidence):
    """Nothing is found in what is empty: all that is asked for here came in and was told of."""
    assert {200, 401, 404, 405, 413, 415, 422, 400} <= {a.status for a in evidence.answers}
    assert evidence.found["metrics"].count(b"health_predict_request_duration_seconds_count") > 10
    assert evidence.found["server log"].count(b'"route"') > len(evidence.answers) // 2
    assert evidence.found["spans"].count(b"POST /predict") > 1_000
    rows = [json.loads(row) for row in evidence.found["prediction log"].splitlines() if row]
    assert len(rows) > 1_000
    for column in OPEN:
        assert WITHHELD in {row[column] for row in rows}
    assert b"prometheus" in evidence.found["files"]


def test_a_trace_that_a_client_began_goes_on(evidence):
    assert bytes.fromhex(TRACE) in evidence.found["spans"]
