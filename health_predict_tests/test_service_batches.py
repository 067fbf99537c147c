"""`POST /predict/batch`: every row is answered in order, a bad one by its reasons, none at length.

JSON, CSV and Parquet are held to the same; where they differ, the test says so. What needs sockets,
several clients or a look at memory is asked of a real Bento.
"""

import asyncio
import contextlib
import csv
import http.client
import io
import json
import logging
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from health_predict import prediction_log, schema, service
from health_predict.prediction_log import PredictionLog
from health_predict.serving import batches
from health_predict.serving.options import Options
from health_predict.serving.requests import LARGEST_BODY, Refused
from health_predict_tests import bentos
from health_predict_tests.conftest import FACTS
from health_predict_tests.served_bento import Served, serve
from health_predict_tests.serving import loaded

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
KINDS = (JSON, CSV, PARQUET)
TABLES = (CSV, PARQUET)
SECRET = 987654321987
"""An identifier a client sends by mistake."""

Row = dict[str, Any]
WRONG: dict[int, tuple[Row, list[str]]] = {
    1: ({"age": "old"}, ["age"]),
    2: ({"number_inpatient": -1}, ["number_inpatient"]),
    64: ({"discharge_disposition_id": 11}, ["discharge_disposition_id"]),
    65: ({"insulin": "Sideways", "gender": "x"}, ["gender", "insulin"]),
    128: ({"race": "x" * 81}, ["race"]),
    150: ({"glyburide-metformin": "Sometimes"}, ["glyburide-metformin"]),
}
"""Row of a batch, from 1 -> what is wrong with it, and the fields that are to be named."""


@pytest.fixture
def client(compiled) -> Iterator[TestClient]:
    with loaded(compiled["xgboost"]):
        yield TestClient(service.app)


@pytest.fixture(scope="module")
def rows(cohort) -> list[Row]:
    """150 encounters: two chunks and a part of one."""
    found: list[Row] = json.loads(cohort.iloc[:150][[*schema.INPUTS]].to_json(orient="records"))
    return found


@pytest.fixture(scope="module")
def scores(pipelines, cohort) -> np.ndarray:
    """What the pipeline says of `rows`."""
    found: np.ndarray = pipelines["xgboost"].predict_proba(cohort.iloc[:150])[:, 1]
    return found


def written(kind: str, rows: Sequence[Row]) -> bytes:
    """Returns rows as a client would write them."""
    if kind == JSON:
        return json.dumps(rows).encode()
    frame = pd.DataFrame(rows)
    if kind == CSV:
        text: str = frame.to_csv(index=False)
        return text.encode()
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


def parquet(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def read(kind: str, content: bytes) -> list[Row]:
    """Returns the records of an answer: reasons as one text, in whatever format they came."""
    if kind == JSON:
        found = json.loads(content)
        for record in found:
            for reasons in ("warnings", "errors"):
                told = [(one["field"], one["message"]) for one in record[reasons]]
                record[reasons] = "; ".join(": ".join(filter(None, pair)) for pair in told)
        return list(found)
    if kind == PARQUET:
        table = pq.read_table(io.BytesIO(content))
        return list(table.to_pylist())
    read_as = {"row": int, "prediction": int, "probability_score": float}
    return [
        {
            column: (read_as.get(column, str)(cell) if cell or column in REASONS else None)
            for column, cell in line.items()
        }
        for line in csv.DictReader(io.StringIO(content.decode(), newline=""))
    ]


REASONS = ("warnings", "errors")


def send(client: TestClient, kind: str, body: bytes, **headers: str) -> Any:
    return client.post("/predict/batch", content=body, headers={"content-type": kind, **headers})


def ask(client: TestClient, kind: str, body: bytes | Sequence[Row]) -> list[Row]:
    content = body if isinstance(body, bytes) else written(kind, body)
    answer = send(client, kind, content)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].split(";")[0] == kind
    return read(kind, answer.content)


def refused(answer: Any, *fields: str | None, status: int = 422) -> str:
    """Asserts that the batch was refused as a whole for these fields; returns the messages."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == JSON
    errors = answer.json()["detail"]
    assert sorted(str(error["field"]) for error in errors) == sorted(map(str, fields))
    return "; ".join(error["message"] for error in errors)


def without_answer(record: Row) -> bool:
    """Returns whether a record is that of a row that was not scored."""
    scored = ("prediction", "probability_score", "risk_band", "warnings")
    return not any(record[key] for key in scored) and bool(record["errors"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_answered_in_order_as_the_pipeline_answers(client, rows, scores, kind):
    records = ask(client, kind, rows)
    assert [*records[0]] == [*batches.COLUMNS]
    assert [record["row"] for record in records] == [*range(1, len(rows) + 1)]
    assert [record["probability_score"] for record in records] == pytest.approx(scores, abs=1e-6)
    for record in records:
        assert record["prediction"] == int(record["probability_score"] >= FACTS["threshold"])
        assert record["risk_band"] in FACTS["risk_bands"]
        assert record["model_version"] == FACTS["version"]
        assert record["errors"] == ""


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_come_back_with_their_reasons_among_good_ones(client, rows, scores, kind):
    sent = [{**row, **WRONG.get(number, ({}, []))[0]} for number, row in enumerate(rows, 1)]
    records = ask(client, kind, sent)
    assert [record["row"] for record in records] == [*range(1, len(rows) + 1)]
    for record, score in zip(records, scores, strict=True):
        if record["row"] not in WRONG:
            assert record["probability_score"] == pytest.approx(score, abs=1e-6)
            assert record["errors"] == ""
            continue
        change, fields = WRONG[record["row"]]
        assert without_answer(record)
        assert [reason.split(":")[0] for reason in record["errors"].split("; ")] == fields
        for value in change.values():
            assert str(value) not in record["errors"] or isinstance(value, int)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_bad_rows_only_is_answered(client, rows, kind):
    records = ask(client, kind, [{**row, "age": "old"} for row in rows[:70]])
    assert [record["row"] for record in records] == [*range(1, 71)]
    assert all(map(without_answer, records))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_answered_as_it_is_alone(client, rows, kind):
    odd = {**rows[0], "medical_specialty": "Xenobiology", "payer_code": "ZZ"}
    answer = client.post("/predict", json=odd).json()
    (record,) = ask(client, kind, [odd])
    for key in ("prediction", "probability_score", "risk_band"):
        assert record[key] == answer[key]
    told = [f"{one['field']}: {one['message']}" for one in answer["warnings"]]
    assert {"payer_code", "medical_specialty"} <= {one.split(":")[0] for one in told}
    assert record["warnings"] == "; ".join(told)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_fields_and_their_spelling_do_not_matter(client, rows, kind):
    turned = [dict(reversed(row.items())) for row in rows[:3]]
    spelled = [{schema.field_name(column): v for column, v in row.items()} for row in rows[:3]]
    assert [*spelled[0]] != [*rows[0]]
    assert ask(client, kind, turned) == ask(client, kind, spelled) == ask(client, kind, rows[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_null_or_empty_or_a_question_mark(client, rows, kind):
    answers = [
        ask(client, kind, [{**rows[0], "race": text, "diag_3": text}, rows[1]])
        for text in ("?", None, "")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0]["errors"] == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_one_optional_field_may_be_left_out(client, rows, kind):
    few = [{**row, "weight": "?"} for row in rows[:3]]
    without = [{k: v for k, v in row.items() if k != "weight"} for row in few]
    assert ask(client, kind, without) == ask(client, kind, few)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_number_is_an_error_of_its_row(client, rows, kind):
    missing = {**rows[1], "number_inpatient": "" if kind == CSV else None}
    # pandas would make of a column with a gap one of fractions
    table = kind == PARQUET and pa.Table.from_pylist([rows[0], missing])
    body = parquet(table) if table else written(kind, [rows[0], missing])
    first, second = ask(client, kind, body)
    assert first["errors"] == ""
    assert second["errors"].startswith("number_inpatient: ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_nothing_is_answered_by_nothing(client, rows, kind):
    body = b"[]" if kind == JSON else written(kind, rows[:1])
    if kind == CSV:
        body = body.splitlines()[0]
    if kind == PARQUET:
        body = parquet(pa.Table.from_pylist(rows[:1]).slice(0, 0))
    assert ask(client, kind, body) == []
    content = send(client, kind, body).content
    if kind == CSV:
        assert content.decode() == ",".join(batches.COLUMNS) + "\n"
    if kind == PARQUET:
        assert pq.read_schema(io.BytesIO(content)).names == [*batches.COLUMNS]


def test_the_columns_of_a_parquet_answer_have_their_types_also_where_all_is_null(client, rows):
    for age in ("old", rows[0]["age"]):
        content = send(client, PARQUET, written(PARQUET, [{**rows[0], "age": age}])).content
        found = pq.read_schema(io.BytesIO(content))
        kinds = {one.name: str(one.type) for one in found}
        assert kinds == {
            **{"row": "int32", "prediction": "int32", "probability_score": "double"},
            **{"risk_band": "string", "model_version": "string"},
            **{"warnings": "string", "errors": "string"},
        }


# What is wrong with a whole file is said before a row of it is answered.


@pytest.mark.parametrize("kind", TABLES)
def test_an_unknown_column_is_told_by_its_place_and_not_by_its_name(client, rows, kind):
    answer = send(client, kind, written(kind, [{**rows[0], f"mrn-{SECRET}": 1}]))
    words = refused(answer, None)
    assert f"column {len(rows[0]) + 1} is not a field of an encounter" in words
    assert str(SECRET) not in answer.text
    assert "mrn" not in answer.text


def test_so_is_one_of_a_json_row_without_the_others(client, rows):
    first, second = ask(client, JSON, [{**rows[0], f"mrn-{SECRET}": SECRET}, rows[1]])
    assert "identifiers and outcomes are not accepted" in first["errors"]
    assert str(SECRET) not in first["errors"]
    assert second["errors"] == ""


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("column", [*schema.IDENTIFIERS, schema.OUTCOME])
def test_the_published_table_is_refused_with_its_identifiers_and_outcomes(
    client, rows, kind, column
):
    answer = send(client, kind, written(kind, [{column: SECRET, **rows[0]}]))
    assert "column 1 is not a field of an encounter" in refused(answer, column)
    assert str(SECRET) not in answer.text


@pytest.mark.parametrize("kind", TABLES)
def test_a_column_that_is_not_there_is_named(client, rows, kind):
    few = [{k: v for k, v in rows[0].items() if k not in ("age", "glyburide-metformin")}]
    words = refused(send(client, kind, written(kind, few)), "age", "glyburide-metformin")
    assert words == "has no column; has no column"


@pytest.mark.parametrize("kind", TABLES)
def test_a_column_in_both_spellings_is_given_twice(client, rows, kind):
    both = [{**rows[0], "glyburide_metformin": "No"}]
    words = refused(send(client, kind, written(kind, both)), "glyburide-metformin")
    assert words == f"given twice, in column {len(rows[0]) + 1}"


def test_a_column_of_the_same_name_is_given_twice(client, rows):
    header, line, *_ = written(CSV, rows[:1]).decode().splitlines()
    answer = send(client, CSV, f"{header},race\n{line},Other\n".encode())
    assert refused(answer, "race") == f"given twice, in column {len(rows[0]) + 1}"
    table = pa.Table.from_pylist(rows[:1])
    twice = pa.table([*table.columns, table["race"]], names=[*table.column_names, "race"])
    answer = send(client, PARQUET, parquet(twice))
    assert f"column {len(rows[0]) + 1}" in refused(answer, None)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("name", ["Race", "RACE", "ra ce", "file_row_number", "race_1"])
def test_a_name_is_a_field_only_as_it_is_published(client, rows, kind, name):
    renamed = [{name if k == "race" else k: v for k, v in rows[0].items()}]
    refused(send(client, kind, written(kind, renamed)), None, "race")


@pytest.mark.parametrize("kind", TABLES)
def test_blanks_around_a_name_are_not_part_of_it(client, rows, kind):
    renamed = [{f" {k} ": v for k, v in rows[0].items()}]
    assert ask(client, kind, renamed) == ask(client, kind, rows[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_beyond_the_limit_is_refused(compiled, rows, kind):
    body = written(kind, rows)
    with loaded(compiled["xgboost"], options=Options(None, upload_bytes=len(body) - 1)):
        client = TestClient(service.app)
        assert "bytes are taken" in refused(send(client, kind, body), None, status=413)

        def pieces() -> Iterator[bytes]:  # sent without its length
            for start in range(0, len(body), 1_000):
                yield body[start : start + 1_000]

        answer = client.post("/predict/batch", content=pieces(), headers={"content-type": kind})
        refused(answer, None, status=413)
    with loaded(compiled["xgboost"], options=Options(None, upload_bytes=len(body))):
        assert len(ask(TestClient(service.app), kind, body)) == len(rows)


def test_json_takes_as_many_rows_as_it_is_told_and_the_others_more(compiled, rows):
    with loaded(compiled["xgboost"], options=Options(None, batch_rows=10)):
        client = TestClient(service.app)
        assert len(ask(client, JSON, rows[:10])) == 10
        words = refused(send(client, JSON, written(JSON, rows[:11])), None, status=413)
        assert "at most 10 encounters" in words
        for kind in TABLES:
            assert len(ask(client, kind, rows[:11])) == 11


def test_parquet_is_refused_by_the_rows_it_says_it_has(client, rows, monkeypatch):
    monkeypatch.setattr(batches, "_MOST_ROWS", 10)
    assert len(ask(client, PARQUET, rows[:10])) == 10
    words = refused(send(client, PARQUET, written(PARQUET, rows[:11])), None, status=413)
    assert words.startswith("11 rows, at most 10")


@pytest.mark.parametrize("kind", ["application/x-parquet", "text/plain", "multipart/form-data", ""])
def test_another_media_type_is_refused_with_those_that_are_taken(client, rows, kind):
    words = refused(send(client, kind, written(CSV, rows)), None, status=415)
    assert all(one in words for one in KINDS)


def test_the_query_is_refused(client, rows):
    answer = client.post("/predict/batch?explain=true", json=rows[:1])
    assert "takes no query" in refused(answer, None)


# What JSON alone can hold.


@pytest.mark.parametrize("element", ["3", "null", '"text"', "[]", "[[1]]", "true", "{}"])
def test_what_is_no_encounter_is_an_error_of_its_row(client, rows, element):
    good = json.dumps(rows[0])
    records = ask(client, JSON, f"[{good}, {element}, {good}]".encode())
    assert [bool(record["errors"]) for record in records] == [False, True, False]
    assert without_answer(records[1])


def test_a_field_given_twice_is_an_error_of_its_row(client, rows):
    twice = json.dumps(rows[0])[:-1] + ', "race": "Other"}'
    first, second = ask(client, JSON, f"[{twice}, {json.dumps(rows[1])}]".encode())
    assert first["errors"] == "race: given twice"
    assert second["errors"] == ""


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b"null", b"{}", b'"text"', b"3", b"\xff\xfe[", b"[", b"[1", b"[1,"),
        *(b"[,]", b"[1,]", b"[1 2]", b"[1],", b"[1]]", b"[] []", b"[NaN]", b"[-Infinity]"),
        *(b'["a]', b"[{]", b'[{"a":}]', b"[" * 100_000, b'[{"a":' * 100_000, b'["\xe9"]'),
    ],
)
def test_what_is_no_json_array_is_refused_as_a_whole(client, body):
    words = refused(send(client, JSON, body), None)
    assert "JSON" in words


def test_blanks_between_rows_are_no_rows(client, rows):
    pretty = json.dumps(rows[:3], indent=4).replace("\n", "\r\n\t")
    assert ask(client, JSON, f" \n{pretty} \n".encode()) == ask(client, JSON, rows[:3])
    assert ask(client, JSON, b" [ \n ] ") == []


def test_an_element_longer_than_an_encounter_may_be_is_refused_with_its_row(client, rows):
    long = json.dumps(rows[0])[:-1] + " " * LARGEST_BODY + "}"
    answer = send(client, JSON, f"[{json.dumps(rows[0])}, {long}]".encode())
    assert refused(answer, None).startswith("row 2 of the array")


# What CSV alone can hold.


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_csv_is_read_as_programs_write_it(client, rows, ending):
    text = written(CSV, rows[:5]).decode()
    quoted = pd.DataFrame(rows[:5]).to_csv(index=False, quoting=csv.QUOTE_ALL)
    expected = ask(client, CSV, text.encode())
    for told in (text, quoted, f"\ufeff{text}", text.rstrip(), f"{text}\n\n"):
        assert ask(client, CSV, told.replace("\n", ending).encode()) == expected


def test_numbers_come_as_text_and_only_whole_ones_are_numbers(client, rows):
    told = {"+2": True, "02": True, "-1": False, "2.0": False, "2e0": False, " 2": False, "": False}
    told |= {"\u0662": False, "9" * 30: False, "two": False, "0x2": False, "2_0": False}
    records = ask(client, CSV, [{**rows[0], "number_inpatient": text} for text in told])
    assert [not record["errors"] for record in records] == [*told.values()]
    fields = {one["errors"].split(":")[0] for one in records if one["errors"]}
    assert fields == {"number_inpatient"}


def test_a_line_of_another_length_is_an_error_of_its_row(client, rows):
    header, *lines = written(CSV, rows[:3]).decode().splitlines()
    lines[1] += ",more"
    lines.insert(2, "only,three,cells")
    records = ask(client, CSV, "\n".join([header, *lines]).encode())
    assert [bool(record["errors"]) for record in records] == [False, True, True, False]
    width = len(header.split(","))
    assert records[1]["errors"] == f"{width + 1} cells under a header of {width} columns"
    assert records[2]["errors"].startswith("3 cells")


def test_what_is_no_utf8_is_an_error_of_its_field(client, rows):
    body = written(CSV, [{**rows[0], "payer_code": "@@"}, rows[1]]).replace(b"@@", b"\xe9\xff")
    first, second = ask(client, CSV, body)
    assert first["errors"].startswith("payer_code: ")
    assert second["errors"] == ""


def test_line_breaks_and_nulls_in_a_cell_are_refused_where_they_are(client, rows):
    odd = [{**rows[0], "payer_code": text} for text in ("a\nb", "a\0b", 'a"b', "a,b")]
    records = ask(client, CSV, [*odd, rows[1]])
    assert [bool(record["errors"]) for record in records] == [True, True, False, False, False]


@pytest.mark.parametrize(
    "odd", ['"' + "x" * 200_000, "x" * 200_000, '"' + "x\n" * 100_000, '"\n",' * 50_000]
)
def test_a_row_that_does_not_end_ends_the_answer_with_the_reason(client, rows, odd):
    header, *lines = written(CSV, rows[:5]).decode().splitlines()
    records = ask(client, CSV, "\n".join([header, *lines[:3], odd, *lines[3:]]).encode())
    assert [bool(record["errors"]) for record in records] == [False, False, False, True]
    assert "nothing after it was answered" in records[-1]["errors"]
    assert records[-1]["row"] == 4


@pytest.mark.parametrize("header", [b"", b"\n", b"\xff\xff", b"\0", b'"', b"race", b"race;age"])
def test_a_header_that_is_none_is_refused(client, rows, header):
    lines = written(CSV, rows[:2]).splitlines()[1:]
    answer = send(client, CSV, b"\n".join([header, *lines]))
    assert answer.status_code == 422
    assert len(answer.content) < 20_000


# What Parquet alone can hold.


@pytest.mark.parametrize(
    "body",
    [b"", b"PAR1", b"PAR1" * 3, b"PK\x03\x04", b"race,age\n", b"\x00" * 1_000],
)
def test_what_is_no_parquet_is_refused(client, body):
    assert refused(send(client, PARQUET, body), None) == "the body is not a Parquet file"


def test_a_parquet_file_that_was_cut_off_is_refused(client, rows):
    body = written(PARQUET, rows)
    for length in (4, len(body) // 2, len(body) - 1):
        words = refused(send(client, PARQUET, body[:length]), None)
        assert words == "the body is not a Parquet file"


def test_a_damaged_parquet_file_is_refused_or_answered_as_far_as_it_is_read(client, rows):
    whole = written(PARQUET, rows[:20])
    rng = np.random.default_rng(3)
    statuses, broken_off = set(), 0
    for place in rng.integers(4, len(whole), 60).tolist():
        body = bytearray(whole)
        body[place] ^= 0xFF
        answer = send(client, PARQUET, bytes(body))
        statuses.add(answer.status_code)
        if answer.status_code != 200:
            refused(answer, *[error["field"] for error in answer.json()["detail"]])
            continue
        records = read(PARQUET, answer.content)
        broken_off += "cannot be read from this row on" in (records or [{}])[-1].get("errors", "")
        assert len(records) <= 20
        assert all(record["errors"] or record["risk_band"] for record in records)
    assert statuses == {200, 422}
    assert broken_off


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\xff\xfe"] * 2),
        pa.array([["a"]] * 2),
        pa.array([{"mrn": SECRET}] * 2),
        pa.array([0] * 2, pa.timestamp("s")),
    ],
)
def test_a_column_of_neither_text_nor_numbers_is_refused_by_its_field(client, rows, column):
    table = pa.Table.from_pylist(rows[:2]).drop(["race"]).append_column("race", column)
    answer = send(client, PARQUET, parquet(table))
    assert refused(answer, "race") == "holds neither text nor numbers"
    assert "mrn" not in answer.text


@pytest.mark.parametrize("column", [pa.array([1.5, 2.0]), pa.array([True, False])])
def test_a_number_of_another_kind_is_an_error_of_each_row(client, rows, column):
    table = pa.Table.from_pylist(rows[:2]).drop(["number_inpatient"])
    records = ask(client, PARQUET, parquet(table.append_column("number_inpatient", column)))
    assert [record["errors"].split(":")[0] for record in records] == ["number_inpatient"] * 2


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8()])
def test_whole_numbers_of_any_width_are_numbers(client, rows, kind):
    table = pa.Table.from_pylist(rows[:5])
    for name in (*schema.CODES, *schema.COUNTS):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(kind))
    assert ask(client, PARQUET, parquet(table)) == ask(client, PARQUET, rows[:5])


def test_parquet_is_read_however_it_was_written(client, rows):
    expected = ask(client, PARQUET, rows)
    frame = pd.DataFrame(rows)
    texts = [*schema.OPEN, *schema.CLOSED]
    table = pa.Table.from_pandas(frame.astype(dict.fromkeys(texts, "category")))
    ways: list[dict[str, Any]] = [
        *({"compression": one} for one in ("none", "gzip", "zstd", "brotli")),
        *({"row_group_size": 7}, {"use_dictionary": False}, {"data_page_version": "2.0"}),
    ]
    for way in ways:
        assert ask(client, PARQUET, parquet(table, **way)) == expected


def test_no_file_of_the_machine_is_read_through_parquet(client, rows, tmp_path):
    """The file a client sends can name no other one: DuckDB is shut in."""
    (tmp_path / "other.csv").write_text("a\n1\n")
    with NamedTemporaryFile() as file:
        file.write(written(PARQUET, rows))
        file.flush()
        found = batches._database(file.name)
        with contextlib.closing(found):
            number = found.execute("SELECT count(*) FROM read_parquet(?)", [file.name])
            assert number.fetchall() == [(len(rows),)]
            for statement in (
                f"SELECT * FROM read_csv('{tmp_path / 'other.csv'}')",
                f"COPY (SELECT 1) TO '{tmp_path / 'made.csv'}'",
                "SET enable_external_access = true",
                "INSTALL httpfs",
                f"ATTACH '{tmp_path / 'made.db'}'",
            ):
                with pytest.raises(Exception, match=r"(?i)permission|disabled|locked|cannot"):
                    found.execute(statement)


# Small files that unfold.


def peak(kind: str, body: bytes) -> tuple[str, int]:
    """Reads a body as the service does; returns how it ended and the most bytes it held."""
    with NamedTemporaryFile() as file:
        file.write(body)
        file.seek(0)
        tracemalloc.start()
        try:
            read_all = sum(1 for _ in batches.FORMATS[kind].rows(file, 10_000))
            return f"{read_all} rows", tracemalloc.get_traced_memory()[1]
        except Refused as refusal:
            assert len(refusal.errors) <= 60
            return f"{refusal.status}", tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def of_one(rows: Sequence[Row], count: int, **columns: pa.Array) -> bytes:
    table = {name: pa.array([value] * count) for name, value in rows[0].items()}
    return parquet(pa.table({**table, **columns}))


UNFOLDING: dict[str, tuple[str, Callable[[list[Row]], bytes]]] = {
    "many empty objects": (JSON, lambda rows: b"[" + b"{}," * 300_000 + b"{}]"),
    "one row of many objects": (JSON, lambda rows: b"[[" + b"{}," * 300_000 + b"{}]]"),
    "rows of many objects": (
        JSON,
        lambda rows: b"[%s1]" % (b"[%s1]," % (b"{}," * 20_000) * 6),
    ),
    "many commas": (JSON, lambda rows: b"[" + b"," * 1_000_000),
    "a header of commas": (CSV, lambda rows: b"," * 1_000_000),
    "a header of one field": (CSV, lambda rows: b"race," * 200_000),
    "a line of commas": (
        CSV,
        lambda rows: written(CSV, rows[:1]) + b"," * 1_000_000,
    ),
    "a row of many lines": (CSV, lambda rows: written(CSV, rows[:1]) + b'"\n",' * 250_000),
    "a long text for many rows": (
        PARQUET,
        lambda rows: of_one(
            rows,
            2_000,
            race=pa.DictionaryArray.from_arrays(pa.array([0] * 2_000), pa.array(["x" * 100_000])),
        ),
    ),
    "lists": (PARQUET, lambda rows: of_one(rows, 200, race=pa.array([["a"] * 10_000] * 200))),
    "many columns": (
        PARQUET,
        lambda rows: parquet(pa.table({f"c{n}": pa.array([1]) for n in range(2_000)})),
    ),
}


@pytest.mark.parametrize("name", UNFOLDING)
def test_what_unfolds_to_many_times_its_size_is_not_unfolded(rows, name):
    kind, make = UNFOLDING[name]
    body = make(rows)
    ended, most = peak(kind, body)
    assert most < 24 * 2**20, ended


# Streaming, turns and what stays behind.


class Talk:
    """One ASGI request, whose answer a test watches as it is sent."""

    def __init__(self, path: str, kind: str, body: bytes) -> None:
        self.scope = {
            **{"type": "http", "http_version": "1.1", "method": "POST", "path": path},
            **{"raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b""},
            "headers": [(b"content-type", kind.encode())],
            **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)},
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        self.body = body
        self.left = asyncio.Event()
        self.started = asyncio.Event()
        self.sent: list[bytes] = []
        self.status = 0
        self.asked = False

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["body"]:
            self.sent.append(message["body"])
        self.started.set()

    async def hold(self) -> None:
        await service.app(self.scope, self.receive, self.send)


@pytest.mark.parametrize("kind", [JSON, CSV])
def test_the_first_bytes_are_sent_when_the_first_chunk_is_scored(compiled, rows, kind):
    scored: list[float] = []

    async def scenario() -> None:
        talk = Talk("/predict/batch", kind, written(kind, rows * 4))
        original = talk.send

        async def watched(message: Any) -> None:
            # A header line is no answer yet.
            if message.get("body", b"").strip() not in (b"", ",".join(batches.COLUMNS).encode()):
                scored.append(predicted(predictor))
            await original(message)

        await service.app(talk.scope, talk.receive, watched)
        assert talk.status == 200
        assert len(read(kind, b"".join(talk.sent))) == 600

    with loaded(compiled["xgboost"]) as predictor:
        asyncio.run(scenario())
    assert scored[0] == batches.CHUNK
    assert scored == sorted(scored)
    assert scored[-1] == 600


def predicted(predictor: Any) -> float:
    """Returns how many encounters were scored."""
    text = predictor.metrics.exposition()[0].decode()
    lines = [line for line in text.splitlines() if line.startswith("health_predict_predictions_t")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_single_encounters_have_their_turn_while_a_batch_is_answered(compiled, rows, kind):
    scored: dict[str, float] = {}

    async def scenario() -> None:
        batch = Talk("/predict/batch", kind, written(kind, rows * 10))
        single = Talk("/predict", JSON, json.dumps(rows[0]).encode())

        async def watched(name: str, talk: Talk) -> None:
            await talk.hold()
            scored[name] = predicted(predictor)

        running = asyncio.create_task(watched("batch", batch))
        await batch.started.wait()
        await watched("single", single)
        await running
        assert (batch.status, single.status) == (200, 200)
        assert len(read(kind, b"".join(batch.sent))) == 1_500

    with loaded(compiled["xgboost"]) as predictor:
        asyncio.run(scenario())
    assert scored["single"] < 1_000
    assert scored["batch"] == 1_501


@pytest.fixture
def access(caplog, monkeypatch) -> Callable[[], list[Row]]:
    """Returns the lines of the access log."""
    logger = logging.getLogger("health_predict.access")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda: [json.loads(r.getMessage()) for r in caplog.records if r.name == logger.name]


@pytest.mark.parametrize("kind", KINDS)
def test_who_leaves_in_the_middle_is_not_answered_to_the_end(
    compiled, rows, kind, access, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def scenario() -> None:
        talk = Talk("/predict/batch", kind, written(kind, rows * 10))
        running = asyncio.create_task(talk.hold())
        await talk.started.wait()
        assert len(files_of(tmp_path)) > 0
        talk.left.set()
        await running
        assert not service._batches.locked()
        assert service._batches._value == service._MOST_BATCHES

    with loaded(compiled["xgboost"]) as predictor:
        asyncio.run(scenario())
        assert predicted(predictor) < 1_500
    assert [line["status"] for line in access()] == [499]
    assert files_of(tmp_path) == []


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_who_takes_nothing_for_long_makes_way(compiled, rows, access, monkeypatch):
    monkeypatch.setattr(service, "_TAKEN_SECONDS", 0.05)

    async def scenario() -> None:
        talk = Talk("/predict/batch", CSV, written(CSV, rows))

        async def asleep(message: Any) -> None:
            await talk.send(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        await asyncio.wait_for(service.app(talk.scope, talk.receive, asleep), 30)
        assert service._batches._value == service._MOST_BATCHES

    with loaded(compiled["xgboost"]):
        asyncio.run(scenario())
    assert [line["status"] for line in access()] == [499]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_was_answered_leaves_no_file(client, rows, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ask(client, kind, rows)
    send(client, kind, b"nonsense")
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_answered_is_logged_and_what_was_refused_is_not(compiled, rows, kind, tmp_path):
    log = PredictionLog(tmp_path / "predictions")
    sent = [{**row, **WRONG.get(number, ({}, []))[0]} for number, row in enumerate(rows, 1)]
    with loaded(compiled["xgboost"], log=log):
        client = TestClient(service.app)
        answer = send(client, kind, written(kind, sent), **{"x-request-id": "batch-7"})
        log.close()
    records = [record for record in read(kind, answer.content) if not record["errors"]]
    logged = prediction_log.read(log.folder, {}, 1_000).rows
    assert {row["request_id"] for row in logged} == {"batch-7"}
    assert [row["probability_score"] for row in logged] == [r["probability_score"] for r in records]
    good = [row for number, row in enumerate(rows, 1) if number not in WRONG]
    assert [{c: row[c] for c in schema.INPUTS} for row in logged] == good


# A real Bento from here on.


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    home, _ = bentos.store(tmp_path_factory.mktemp("home"))
    with serve(home, "readmission:2", tmp_path_factory.mktemp("served")) as found:
        yield found


def large(kind: str, count: int) -> bytes:
    """Returns a batch whose rows differ."""
    frame = pd.DataFrame([schema.EXAMPLE] * count)
    frame["number_inpatient"] = np.arange(count) % 20
    frame["payer_code"] = (np.arange(count) % 977).astype(str)
    if kind == CSV:
        text: str = frame.to_csv(index=False)
        return text.encode()
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class Upload:
    """A batch on a socket of its own, sent and read as a test wants."""

    def __init__(self, served: Served, kind: str, body: bytes, length: int | None = None) -> None:
        self.connection = socket.socket()
        # A client that reads little: the answer waits in the service and not on the way.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.connection.settimeout(60)
        self.connection.connect((bentos.HOST, served.port))
        head = (
            f"POST /predict/batch HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body) if length is None else length}\r\n\r\n"
        )
        self.connection.sendall(head.encode() + body)

    def begun(self, end: bytes = b"\r\n\r\n") -> bytes:
        """Waits for the beginning of the answer, by default for its headers."""
        found = b""
        while end not in found:
            piece = self.connection.recv(512)
            assert piece, found
            found += piece
        return found

    def rest(self) -> tuple[int, Any, bytes]:
        response = http.client.HTTPResponse(self.connection)
        with contextlib.closing(self.connection):
            response.begin()
            return response.status, response.headers, response.read()

    def leave(self) -> None:
        """Goes away without a word, as a process that is killed does."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()


def kept_open(served: Served) -> list[str]:
    """Returns the temporary files that the worker has open, removed ones among them."""
    found = []
    for one in Path(f"/proc/{served.worker.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(one.readlink()))
    return [path for path in found if path.startswith(str(served.temporary))]


def scored_by(served: Served) -> float:
    text = served.ask("/metrics").content.decode()
    lines = [line for line in text.splitlines() if line.startswith("health_predict_predictions_t")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_an_answer_begins_long_before_its_last_row_is_scored(served):
    before = scored_by(served)
    upload = Upload(served, CSV, large(CSV, 20_000))
    assert b"200 OK" in upload.begun(b"\n2,")  # the second row
    assert 0 < scored_by(served) - before < 20_000
    upload.leave()
    until(lambda: not kept_open(served))


def test_20_000_rows_of_parquet_are_answered_in_bounded_memory(served):
    body = large(PARQUET, 20_000)
    served.ask("/predict/batch", large(PARQUET, 2_000), {"content-type": PARQUET})
    before, seen, ended = served.memory, [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            seen.append(served.memory)

    watching = threading.Thread(target=watch)
    watching.start()
    reply = served.ask("/predict/batch", body, {"content-type": PARQUET}, seconds=120)
    ended.set()
    watching.join()
    assert reply.status == 200
    records = pq.read_table(io.BytesIO(reply.content))
    assert records["row"].to_pylist() == [*range(1, 20_001)]
    assert records["probability_score"].null_count == 0
    # The rows alone, as Python's objects, would take ten times as much.
    assert max(seen) - before < 64 * 2**20
    until(lambda: not kept_open(served))


def test_at_most_four_batches_are_answered_at_a_time(served):
    body = large(CSV, 1)
    held = [Upload(served, CSV, body[:10], len(body)) for _ in range(4)]
    small = {"content-type": CSV}
    until(lambda: served.ask("/predict/batch", body, small).status == 503)
    reply = served.ask("/predict/batch", body, small)
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert "4 batches" in reply.json["detail"][0]["message"]
    assert served.ask("/predict", schema.EXAMPLE).status == 200
    for upload in held:
        upload.connection.sendall(body[10:])
    assert [upload.rest()[0] for upload in held] == [200] * 4
    assert served.ask("/predict/batch", body, small).status == 200


@pytest.mark.parametrize("kind", TABLES)
def test_clients_that_go_away_in_the_middle_leave_their_place_and_no_file(served, kind):
    body, small = large(kind, 40_000), large(CSV, 1)
    uploads = [Upload(served, kind, body) for _ in range(4)]
    assert all(b"200 OK" in upload.begun() for upload in uploads)
    turned_away = served.ask("/predict/batch", small, {"content-type": CSV})
    assert turned_away.status == 503
    for upload in uploads:
        upload.leave()
    until(lambda: not kept_open(served))
    assert not [path for path in files_of(served.temporary) if "bentoml" not in str(path)]
    replies = [Upload(served, CSV, small[:10], len(small)) for _ in range(4)]
    until(lambda: len(kept_open(served)) == 4)  # all four places are free again
    for upload in replies:
        upload.connection.sendall(small[10:])
    assert [upload.rest()[0] for upload in replies] == [200] * 4


def test_single_predictions_are_answered_right_while_a_big_batch_runs(served):
    alone = served.ask("/predict", schema.EXAMPLE).json["probability_score"]
    found: list[Any] = []
    body = large(CSV, 20_000)
    batch = threading.Thread(
        target=lambda: found.append(
            served.ask("/predict/batch", body, {"content-type": CSV}, seconds=120)
        )
    )
    batch.start()
    singles = []
    while batch.is_alive():
        singles.append(served.ask("/predict", schema.EXAMPLE))
    assert len(singles) > 20
    assert {(one.status, one.json["probability_score"]) for one in singles} == {(200, alone)}
    records = read(CSV, found[0].content)
    assert [record["row"] for record in records] == [*range(1, 20_001)]
    assert not [record for record in records if record["errors"]]


def test_nothing_of_a_batch_is_left_when_all_are_answered(served):
    for kind in TABLES:
        assert served.ask("/predict/batch", large(kind, 100), {"content-type": kind}).status == 200
    until(lambda: not kept_open(served))
    assert not [path for path in files_of(served.temporary) if "bentoml" not in str(path)]
