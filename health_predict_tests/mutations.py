"""Requests that a prediction service should never get and will: made from good ones, by a seed.

A mutator draws requests as bytes, so that they can be what no HTTP client would send. What is to be
answered to them is said by `test_service_fuzz`; nothing is sent here.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import pandas as pd

from health_predict.schema import COUNTS, EXAMPLE, INPUTS, OPEN, field_name
from health_predict.serving.batches import Csv, Json, Parquet
from health_predict_tests.wire import BATCH, SINGLE, request


@dataclass(frozen=True)
class Attempt:
    """A request as it goes over the wire.

    Attributes:
        kind: how it was made.
        content: request line, headers and body.
        path: asked for, as far as it is one of the service's.
        media_type: of the body, as far as it is one of the service's.
        rows: how many records are due if a JSON batch is answered at all; None: unknown.
        is_http: whether a server must be able to read it.
        method: for the reader of the answer: one to HEAD has no body.
    """

    kind: str
    content: bytes
    path: str = SINGLE
    media_type: str = Json.media_type
    rows: int | None = None
    is_http: bool = True
    method: str = "POST"

    @property
    def is_golden(self) -> bool:
        """Whether it is the example itself, sent as it should be."""
        return self.kind == "golden"


def golden() -> Attempt:
    """Returns the example, sent as it should be."""
    return Attempt("golden", request(json.dumps(EXAMPLE).encode()))


class Mutator:
    """Draws attempts.

    Args:
        seed: equal seeds draw the same.
        parquet: how many of a hundred attempts are batches of Parquet.
    """

    def __init__(self, seed: int, parquet: int) -> None:
        self.random = Random(seed)
        self._kinds: list[tuple[int, Callable[[], Attempt]]] = [
            (45, self._single),
            (12, self._explained),
            (12, self._enveloped),
            (10, self._json_batch),
            (10, self._csv_batch),
            (5, self._not_http),
            (5, golden),
            (parquet, self.parquet_batch),
        ]

    def draw(self) -> Attempt:
        """Returns the next attempt."""
        weights = [weight for weight, _ in self._kinds]
        ((_, make),) = self.random.choices(self._kinds, weights)
        return make()

    def _single(self) -> Attempt:
        kind, body = self._body()
        return Attempt(kind, request(body))

    def _explained(self) -> Attempt:
        kind, body = self._body()
        query = self.random.choice(["?explain=true", "?explain=true", *_QUERIES])
        return Attempt(f"{kind}, query", request(body, path=SINGLE + query))

    def _enveloped(self) -> Attempt:
        """A good or a bad body in an odd envelope."""
        kind, body = self._body() if self.random.random() < 0.3 else ("", _GOOD)
        draw = self.random.choice
        where = draw(["media type", "method", "path", "header", "chunks", "gzip"])
        kind = f"{kind} {where}".strip()
        if where == "media type":
            media_type = draw(_MEDIA_TYPES)
            path = draw([SINGLE, BATCH])
            content = request(body, path=path, media_type=media_type)
            return Attempt(kind, content, path, "unknown")
        if where == "method":
            method, path = draw(_METHODS), draw(_PATHS_OF_SERVICE)
            content = request(body, method=method, path=path)
            return Attempt(kind, content, path, method=method)
        if where == "path":
            return Attempt(kind, request(body, path=draw(_PATHS)), "unknown")
        if where == "header":
            headers = [self._header() for _ in range(self.random.choice([1, 1, 2, 5]))]
            return Attempt(kind, request(body, *headers))
        if where == "chunks":
            return Attempt(kind, self._chunked(body))
        packed = draw([gzip.compress(body), body, gzip.compress(b" " * 10_000_000)])
        encoding = draw([b"gzip", b"deflate", b"br", b"identity", b"gzip, gzip"])
        return Attempt(kind, request(packed, (b"content-encoding", encoding)))

    def _json_batch(self) -> Attempt:
        rows = [self._body() for _ in range(self.random.randint(0, 4))]
        if self.random.random() < 0.5:  # each is a value by itself: each gets a record
            rows = [row for row in rows if _is_json(row[1])]
            body, due = b"[" + b", ".join(row for _, row in rows) + b"]", len(rows)
            if _is_json(body):
                content = request(body, path=BATCH)
                return Attempt("JSON batch of values", content, BATCH, rows=due)
        body = b"[" + b", ".join(row for _, row in rows) + b"]"
        if self.random.random() < 0.3:
            body = self._damaged(body)
        return Attempt("JSON batch", request(body, path=BATCH), BATCH)

    def _csv_batch(self) -> Attempt:
        body = self._csv()
        if self.random.random() < 0.2:
            body = self._damaged(body)
        content = request(body, path=BATCH, media_type=Csv.media_type)
        return Attempt("CSV batch", content, BATCH, Csv.media_type)

    def parquet_batch(self) -> Attempt:
        """Returns a file, most often one that is damaged."""
        body = self.random.choice([*_parquet_files(), _GOOD, b"PAR1PAR1", b""])
        if self.random.random() < 0.8:
            body = self._damaged(body)
        content = request(body, path=BATCH, media_type=Parquet.media_type)
        return Attempt("Parquet batch", content, BATCH, Parquet.media_type)

    def _not_http(self) -> Attempt:
        if self.random.random() < 0.3:
            content = self._damaged(request(_GOOD))
            return Attempt("damaged request", content, "unknown", is_http=False)
        content = self.random.choice(_NOT_HTTP)
        if self.random.random() < 0.2:
            content = _HEAD + self.random.randbytes(self.random.randint(0, 400))
        return Attempt("no HTTP", content, "unknown", is_http=False)

    def _body(self) -> tuple[str, bytes]:
        """Returns an encounter gone wrong, and how."""
        make = self.random.choice(
            [
                *(self._values, self._values, self._values, self._names, self._twice),
                *(self._cut, self._flipped, self._encoded, self._whole, self._noise),
            ]
        )
        return make.__name__.strip("_"), make()

    def _values(self) -> bytes:
        pairs = _pairs()
        many = self.random.choice([1, 1, 1, 2, 3, 47])
        for pair in self.random.sample(pairs, many):
            pair[1] = self._value()
        return self._object(pairs)

    def _value(self) -> str:
        if self.random.random() < 0.7:
            return self.random.choice(_VALUES)
        if self.random.random() < 0.5:
            return str(self.random.randint(-(10**12), 10**12) >> self.random.randint(0, 38))
        letters = [chr(self.random.randrange(0x110000)) for _ in range(self.random.randint(1, 90))]
        # Lone surrogates among them are no UTF-8 unless escaped.
        return json.dumps("".join(letters), ensure_ascii=self.random.random() < 0.5)

    def _names(self) -> bytes:
        pairs = _pairs()
        for _ in range(self.random.randint(0, 3)):
            pairs.pop(self.random.randrange(len(pairs)))
        for _ in range(self.random.randint(0, 3)):
            place = self.random.randrange(len(pairs))
            pairs.insert(place, [self.random.choice(_NAMES), self._value()])
        if self.random.random() < 0.3:
            self.random.shuffle(pairs)
        return self._object(pairs)

    def _twice(self) -> bytes:
        pairs = _pairs()
        name, value = self.random.choice(pairs)
        spelled = self.random.choice([name, name.replace("-", "_"), '"glyburide_metformin"'])
        pairs.append([spelled, self.random.choice([value, self._value()])])
        return self._object(pairs)

    def _cut(self) -> bytes:
        return _GOOD[: self.random.randrange(len(_GOOD))]

    def _flipped(self) -> bytes:
        return self._damaged(_GOOD)

    def _encoded(self) -> bytes:
        text = _GOOD.decode()
        encoding = self.random.choice(
            ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037", "utf-7"]
        )
        return text.encode(encoding)

    def _whole(self) -> bytes:
        value = self.random.choice(
            [self._value(), f"[{self._value()}]", "[" * 30_000, '{"a":' * 9_000]
        )
        return value.encode("utf-8", "surrogatepass")

    def _noise(self) -> bytes:
        return self.random.randbytes(self.random.randint(0, 3_000))

    def _object(self, pairs: Sequence[Sequence[str]]) -> bytes:
        comma = self.random.choice([", ", ",", " ,\n\t", ",,", ", // \n"] + [", "] * 20)
        text = "{" + comma.join(f"{name}: {value}" for name, value in pairs) + "}"
        return text.encode("utf-8", "surrogatepass")

    def _damaged(self, content: bytes) -> bytes:
        """Returns bytes of which some are changed, lost, repeated or put in."""
        damaged = bytearray(content)
        for _ in range(self.random.choice([1, 1, 2, 5, 20])):
            place = self.random.randrange(len(damaged) + 1)
            how = self.random.randrange(5)
            if how == 0:
                damaged[place : place + 1] = self.random.randbytes(1)
            elif how == 1:
                del damaged[place : place + self.random.randint(1, 40)]
            elif how == 2:
                damaged[place:place] = self.random.choice(_SNIPPETS)
            elif how == 3:
                damaged[place:place] = damaged[place : place + self.random.randint(1, 200)]
            else:
                damaged[place : place + 1] = bytes([1 << self.random.randrange(8)])
        return bytes(damaged)

    def _header(self) -> tuple[bytes, bytes]:
        name = self.random.choice(_HEADER_NAMES)
        size = self.random.choice([0, 10, 100, 8_000, 60_000])
        value = self.random.choice(_HEADER_VALUES)
        return name, (value * (size // max(len(value), 1) + 1))[: max(size, 1)]

    def _chunked(self, body: bytes) -> bytes:
        size = self.random.choice([1, 7, 300, len(body) + 1])
        size = max(size, len(body) // 400 + 1)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        extension = self.random.choice([b"", b";a=b", b";" + b"x" * 500])
        chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in pieces)
        trailer = self.random.choice([b"", b"x-trailer: 1\r\n"])
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + chunks + b"0\r\n" + trailer + b"\r\n"

    def _csv(self) -> bytes:
        header = list(INPUTS)
        rows = [
            [str(value) for value in EXAMPLE.values()] for _ in range(self.random.randint(0, 4))
        ]
        for row in rows:
            for _ in range(self.random.choice([0, 1, 1, 3])):
                row[self.random.randrange(len(row))] = self.random.choice(_CELLS)
            if self.random.random() < 0.05:
                row.pop()
        if self.random.random() < 0.2:
            self.random.choice(_HEADER_CHANGES)(header, self.random)
        if self.random.random() < 0.02 and rows:
            rows[0][0] = "x" * 1_000_000
        end = self.random.choice(["\n", "\r\n", "\r\n", "\r", "\n\n"])
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=end).writerows([header, *rows])
        encoding = self.random.choice(["utf-8"] * 6 + ["utf-8-sig", "latin-1", "utf-16"])
        return text.getvalue().encode(encoding, "replace")


def large(random: Random, scored: bool = True) -> list[Attempt]:
    """Returns requests of 10 MB, one of each kind.

    Args:
        random: draws what is noise.
        scored: whether one of them has thousands of encounters to score, which takes seconds.
    """
    many = 10_000_000
    cells = ",".join(["y" * (many // len(INPUTS))] * len(INPUTS))
    bodies = [
        ("blanks", SINGLE, Json.media_type, b" " * many),
        ("encounter with a long text", SINGLE, Json.media_type, _with("race", "z" * many)),
        ("one long text", BATCH, Json.media_type, b'["' + b"a" * many + b'"]'),
        ("numbers", BATCH, Json.media_type, b"[" + b"1," * (many // 2) + b"1]"),
        ("nested", BATCH, Json.media_type, b"[" * many),
        ("one cell", BATCH, Csv.media_type, b"a" * many),
        ("long cells", BATCH, Csv.media_type, f"{','.join(INPUTS)}\n{cells}\n".encode()),
        ("noise as Parquet", BATCH, Parquet.media_type, b"PAR1" + random.randbytes(many) + b"PAR1"),
        (
            "good rows",
            BATCH,
            Json.media_type,
            b"[" + _GOOD + (b"," + _GOOD) * (many // len(_GOOD)) + b"]",
        ),
    ]
    return [
        Attempt(
            f"10 MB: {kind}",
            request(body, path=path, media_type=media_type),
            path,
            media_type,
        )
        for kind, path, media_type, body in bodies
        if scored or kind != "good rows"
    ]


def _with(column: str, value: Any) -> bytes:
    return json.dumps({**EXAMPLE, column: value}).encode()


def _pairs() -> list[list[str]]:
    return [[json.dumps(name), json.dumps(value)] for name, value in EXAMPLE.items()]


def _is_json(body: bytes) -> bool:
    def no_constant(_: str) -> None:
        raise ValueError

    try:
        json.loads(body.decode(), parse_constant=no_constant)
    except (ValueError, RecursionError):
        return False
    return True


@cache
def _parquet_files() -> list[bytes]:
    """Files of many writers: types, compressions, no rows, columns that are none."""
    frame = pd.DataFrame([EXAMPLE] * 5)
    some_missing = frame.assign(race=[None, "Other", "?", None, "x" * 200])
    return [
        frame.to_parquet(),
        frame.to_parquet(compression="gzip"),
        frame.to_parquet(compression=None, row_group_size=2),
        frame.to_parquet(compression="zstd", use_dictionary=False),
        frame.head(0).to_parquet(),
        some_missing.to_parquet(),
        some_missing.astype(str).to_parquet(),
        frame.astype({"time_in_hospital": "float64", "num_procedures": "int8"}).to_parquet(),
        frame.assign(race=[["Other"]] * 5, num_procedures=pd.Timestamp("2026-01-01")).to_parquet(),
        frame.rename(columns=field_name).to_parquet(),
        frame.assign(patient_nbr=1).to_parquet(),
        frame.drop(columns="race").to_parquet(),
        pd.DataFrame({"": [1]}).to_parquet(),
    ]


def _swap(header: list[str], random: Random) -> None:
    random.shuffle(header)


def _lose(header: list[str], random: Random) -> None:
    header.pop(random.randrange(len(header)))


def _rename(header: list[str], random: Random) -> None:
    header[random.randrange(len(header))] = random.choice(_CELLS)


def _underscores(header: list[str], random: Random) -> None:
    header[:] = [f" {field_name(column)} " for column in header]


def _repeat(header: list[str], random: Random) -> None:
    header.append(random.choice(header))


_HEADER_CHANGES = [_swap, _lose, _rename, _underscores, _repeat]
_GOOD = json.dumps(EXAMPLE).encode()
_TEXTS = [
    *("", "?", "No", "None", "nan", "NaN", "1e400", "-", "V", "E", "V.", "250.1.1", "[70-80)"),
    *("\u0663", "\u00b2", "\uff11\uff12\uff13", "\u202e", "\ufeff", "e\u0301" * 40, "\U0001f600"),
    *("x" * 80, "x" * 81, "x" * 60_000, "\x00", "a\x00b", "\n", "\r\n", "\x7f", "\x85", "\u2028"),
    *("=cmd|' /C calc'!A0", "${jndi:ldap://127.0.0.1/x}", "'; DROP TABLE encounters; --"),
    *("../../etc/passwd", "<script>alert(1)</script>", "%s%n%x", "{0.__class__}", "2026-01-01"),
]
_VALUES = [
    *("null", "true", "false", "0", "-1", "-0", "1e999", "-1e999", "1e-999", "3.0", "3.5", "1E2"),
    *("9" * 400, "-" + "9" * 400, "9" * 5_000, "0." + "1" * 5_000, "2147483648", str(2**63)),
    *("NaN", "Infinity", "-Infinity", "0x10", "01", "+1", "1_000", "undefined", "", "'x'", ".5"),
    *("[]", "{}", "[[[]]]", "[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500, "[1, 2]"),
    *('"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\\x41"', '"\\u12"', '"\ud800"', '"\t"'),
    *map(json.dumps, _TEXTS),
]
_NAMES = [
    *('"patient_nbr"', '"encounter_id"', '"readmitted"', '"unknown"', '""', '" race"', '"Race"'),
    *('"__class__"', '"columns"', '"model_config"', '"\\ud800"', '"\\u0000"', '"ra\\u0063e"'),
    *(f'"{"n" * 5_000}"', "race", "1", "null", '"glyburide_metformin"', '"a-b"', '"self"'),
]
_CELLS = [
    *_TEXTS,
    *('a"b"c', '"', "+1", "@SUM(A1)", "-1+1", "1.0", " 5", "5 ", "9" * 400, "\u0665", "1,2", ";"),
    *(EXAMPLE[column] for column in OPEN),
    *map(str, (limit + by for limits in COUNTS.values() for limit in limits for by in (-1, 0, 1))),
]
_SNIPPETS = [
    b"\x00",
    b"\xff",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b",",
    b"\r\n",
    b"\xed\xa0\x80",
    b"PAR1",
]
_QUERIES = [
    *("?", "?explain=false", "?explain", "?explain=1", "?explain=true&explain=true"),
    *("?Explain=true", "?explain=%74rue", "?explain=true;x", "?x=1", "?%00=%ff", "?&&&"),
    *("?explain=" + "t" * 8_000, "?" + "&".join(["a=1"] * 2_000), "?explain[]=true"),
]
_MEDIA_TYPES = [
    *(None, "", "text/plain", "application/xml", "multipart/form-data; boundary=x", "*/*", ";"),
    *("application/x-www-form-urlencoded", "application/json; charset=utf-16", "text/csv;header"),
    *("application/jsonx", "application/vnd.apache", "APPLICATION/JSON", "j" * 5_000),
    *("application/json, text/csv", "application/octet-stream", " application/json "),
]
_METHODS = [
    *("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "LOCK"),
    *("REPORT", "M-SEARCH", "PURGE", "NOTIFY", "SOURCE"),
]
_PATHS_OF_SERVICE = [SINGLE, BATCH, "/", "/health", "/model-info", "/metrics"]
_PATHS = [
    *("/predict/", "//predict", "/predict%2Fbatch", "/../predict", "/./predict", "/%00"),
    *("/predict;x=1", "/PREDICT", "/" + "a" * 8_000, "/%", "/%zz", "/%ff", "/predict%20"),
    *("/livez/", "/docs", "/static_content/../../etc/passwd", "/assets/%2e%2e/x", "/.env"),
    *("/predict/batch/x", "/metrics/", "/%e2%80%ae", "/?explain=true", "/predict\\"),
]
_HEADER_NAMES = [
    *(b"x-request-id", b"authorization", b"x-health-predict-token", b"cookie", b"accept"),
    *(b"user-agent", b"referer", b"traceparent", b"tracestate", b"baggage", b"x-forwarded-for"),
    *(b"accept-encoding", b"range", b"if-match", b"x-" + b"n" * 2_000, b"te", b"forwarded"),
]
_HEADER_VALUES = [
    *(b"a", b"Bearer x", b"bytes=0-0", b"\xff", b"\xe9", b"00-0af7651916cd43dd8448eb211c80319c-"),
    *(b"a=b,", b"gzip, ", b"%00", b"*", b"(){:;};", b"x=y; ", b"1"),
]
_HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\n"
_NOT_HTTP = [
    *(b"", b"\r\n\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", _HEAD, _HEAD[:20]),
    *(b"GET /\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"GET /\xe2\x80\xae?\xff HTTP/1.1\r\n\r\n"),
    *(b"get / HTTP/1.1\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"),
    *(b"POST / HTTP/9.9\r\n\r\n", b"POST /\x00 HTTP/1.1\r\n\r\n", b"POST x HTTP/1.1\r\n\r\n"),
    b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    _HEAD + b"content-length: -1\r\n\r\n{}",
    _HEAD + b"content-length: two\r\n\r\n{}",
    _HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    _HEAD + b"content-length: 99999999999999999999999\r\n\r\n{}",
    _HEAD + b"content-length: 5000\r\n\r\n{}",
    _HEAD + b"content-length: 1\r\n\r\n{}{}{}{}",
    _HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
    _HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    _HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
    _HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}",
    _HEAD + b"transfer-encoding: nonsense\r\n\r\n{}",
    _HEAD + b"no colon\r\n\r\n",
    _HEAD + b"x: a\r\n folded\r\n\r\n",
    _HEAD + b"x: \x00\r\n\r\n",
    _HEAD + b": nameless\r\n\r\n",
    _HEAD + b"x y: spaced\r\n\r\n",
    _HEAD + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\n{}",
    b"GET /predict HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
]
