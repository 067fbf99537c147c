"""Many encounters at a time: JSON, CSV or Parquet in, the same format out, one record a row.

A bad row does not sink the others: it comes back with its reasons. What is wrong with the file as a
whole is refused before the first row is answered. Rows are read and answered in chunks, so memory
does not grow with the file and single requests get their turn in between. Nothing is scored here.
"""

import csv
import io
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, Protocol

from health_predict.schema import CODES, COUNTS, INPUTS, Encounter, field_name
from health_predict.serving.requests import (
    LARGEST_BODY,
    PUBLISHED,
    Errors,
    Fields,
    Refused,
    decode,
    elements,
    refused,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CHUNK = 64
"""Rows answered in one go: a single request waits at most for these, some milliseconds."""

COLUMNS = (
    *("row", "prediction", "probability_score", "risk_band", "model_version"),
    *("warnings", "errors"),
)
"""Fields of a record; `row` counts from 1, a row that was refused has errors and no score."""

Record = dict[str, Any]
"""A row's answer by `COLUMNS`; warnings and errors are lists of `{field, message}`."""

Pieces = Generator[bytes, None, None]

# A few megabytes of Parquet can unfold to billions of rows.
_MOST_ROWS = 1_000_000
_WINDOW = 2_048
# Further columns would only be refused one by one, longer texts are refused as these are.
_MOST_COLUMNS = 200
_MOST_CHARACTERS = 100
_NUMBERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|BOOLEAN")
_WHOLE = (*CODES, *COUNTS)
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
_REQUIRED = [name for name, field in Encounter.model_fields.items() if field.is_required()]
_BROKEN_OFF = "the file cannot be read from this row on: nothing after it was answered"


class Format(Protocol):
    """One format of batches."""

    media_type: str

    def rows(self, file: IO[bytes], most: int) -> Iterator[Any]:
        """Yields each row as `Fields`, or as the `Refused` that it was met with.

        Args:
            file: the upload, from its beginning.
            most: most rows of a format that is held in memory whole.

        Raises:
            Refused: the file as a whole is none of encounters; raised before the first row.
        """

    def answer(self, records: Iterator[Sequence[Record]]) -> Pieces:
        """Yields the answer of chunks of records, piece by piece; closed, it lets go of all."""


def chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    """Yields rows in chunks of `CHUNK`."""
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


class Json:
    """An array of objects, answered by an array of objects."""

    media_type = "application/json"

    def rows(self, file: IO[bytes], most: int) -> Iterator[Any]:
        """Yields each row: see `Format`."""
        found = list(islice(elements(file.read()), most + 1))
        if len(found) > most:
            raise refused(
                413,
                f"at most {most} encounters are taken as JSON: send several batches, or CSV or "
                "Parquet",
            )
        return map(decode, found)

    def answer(self, records: Iterator[Sequence[Record]]) -> Pieces:
        """Yields the answer: see `Format`."""
        opening = "["
        for chunk in records:
            for record in chunk:
                yield f"{opening}\n{json.dumps(record)}".encode()
                opening = ","
        yield b"\n]\n" if opening == "," else b"[]\n"


class Csv:
    """A header of published names and a line a row, comma-separated, UTF-8."""

    media_type = "text/csv"

    def rows(self, file: IO[bytes], most: int) -> Iterator[Any]:
        """Yields each row: see `Format`."""
        # What is no UTF-8 becomes half a character, which the contract refuses in its field.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = _cells(text)
        try:
            header = next(rows, [])
        except csv.Error:
            raise refused(422, "the header is not a line of CSV") from None
        return _csv_rows(rows, _named(header))

    def answer(self, records: Iterator[Sequence[Record]]) -> Pieces:
        """Yields the answer: see `Format`."""
        yield _csv_lines([COLUMNS])
        for chunk in records:
            yield _csv_lines([_flat(record).values() for record in chunk])


class Parquet:
    """A column of each published name, answered by a file of one row group or more."""

    media_type = "application/vnd.apache.parquet"

    def rows(self, file: IO[bytes], most: int) -> Iterator[Any]:
        """Yields each row: see `Format`."""
        import duckdb

        path = file.name
        database = _database(path)
        try:
            (number,) = database.execute(
                "SELECT num_rows FROM parquet_file_metadata(?)", [path]
            ).fetchall()[0]
            described = database.execute(
                "SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM read_parquet(?))",
                [path],
            ).fetchall()
        except duckdb.Error:
            raise refused(422, "the body is not a Parquet file") from None
        names = _named([name for name, _ in described])
        columns = _selected(names, described)
        if number > _MOST_ROWS:
            raise refused(413, f"{number} rows, at most {_MOST_ROWS} are taken: send several files")
        return _parquet_rows(database, path, columns, number)

    def answer(self, records: Iterator[Sequence[Record]]) -> Pieces:
        """Yields the answer: see `Format`."""
        with TemporaryDirectory() as folder:
            lines, made = Path(folder, "records.json"), Path(folder, "records.parquet")
            with lines.open("w") as file:
                for chunk in records:
                    file.writelines(f"{json.dumps(_flat(record))}\n" for record in chunk)
                    yield b""  # whoever streams may do other work here
            with closing(_database(str(lines), str(made))) as database:
                database.execute(
                    f"COPY (SELECT * FROM read_json('{lines}', format = 'newline_delimited', "
                    f"columns = {_PARQUET_TYPES})) TO '{made}' (FORMAT parquet)"
                )
            with made.open("rb") as file:
                while piece := file.read(64 * 1024):
                    yield piece


_ALL: tuple[Format, ...] = (Json(), Csv(), Parquet())
FORMATS = {kind.media_type: kind for kind in _ALL}
"""By media type."""

_PARQUET_TYPES = str(
    {
        **{"row": "INTEGER", "prediction": "INTEGER", "probability_score": "DOUBLE"},
        **dict.fromkeys(COLUMNS[3:], "VARCHAR"),
    }
)


def record(row: int, version: str, errors: Errors) -> Record:
    """Returns the record of a row that was refused."""
    refusal = dict.fromkeys(COLUMNS)
    return {**refusal, "row": row, "model_version": version, "warnings": [], "errors": errors}


def _flat(record: Record) -> Record:
    """Returns a record of scalars: reasons as one text."""
    reasons = {
        kind: "; ".join(
            f"{reason['field']}: {reason['message']}" if reason["field"] else reason["message"]
            for reason in record[kind]
        )
        for kind in ("warnings", "errors")
    }
    return {**{column: record[column] for column in COLUMNS}, **reasons}


def _named(header: Sequence[str]) -> list[str]:
    """Returns the fields of a header's columns.

    Raises:
        Refused: a column is no field, given twice, or missing.
    """
    if len(header) > _MOST_COLUMNS:
        raise refused(422, f"{len(header)} columns: an encounter has {len(INPUTS)} fields")
    names = [field_name(column.strip()) for column in header]
    errors: Errors = []
    for number, name in enumerate(names, 1):
        if name not in Encounter.model_fields:
            # A name that was made up may itself be an identifier: only published ones come back.
            message = (
                f"column {number} is not a field of an encounter; identifiers and outcomes are not "
                "accepted: leave it out"
            )
            errors.append({"field": PUBLISHED.get(name), "message": message})
        elif name in names[: number - 1]:
            errors.append({"field": PUBLISHED[name], "message": f"given twice, in column {number}"})
    missing = [name for name in _REQUIRED if name not in names]
    errors += [{"field": PUBLISHED[name], "message": "has no column"} for name in missing]
    if errors:
        raise Refused(422, errors)
    return names


def _cells(text: io.TextIOBase) -> Iterator[list[str]]:
    """Yields the cells of each row.

    Raises:
        csv.Error: a row is none, or longer than `LARGEST_BODY`.
    """
    left = LARGEST_BODY

    def lines() -> Iterator[str]:
        nonlocal left
        while line := text.readline(left + 1):
            left -= len(line)
            if left < 0:
                raise csv.Error("longer than a row may be")
            yield line

    for cells in csv.reader(lines()):
        left = LARGEST_BODY
        yield cells


def _csv_rows(rows: Iterator[list[str]], names: Sequence[str]) -> Iterator[Any]:
    while True:
        try:
            cells = next(rows, None)
        except csv.Error:
            yield refused(422, _BROKEN_OFF)
            return
        if cells is None:
            return
        if not cells:  # an empty line
            continue
        if len(cells) != len(names):
            yield refused(422, f"{len(cells)} cells under a header of {len(names)} columns")
            continue
        yield Fields([(n, _number(n, cell)) for n, cell in zip(names, cells, strict=True)])


def _number(name: str, cell: str) -> int | str:
    return int(cell) if name in _WHOLE and _INTEGER.fullmatch(cell) else cell


def _csv_lines(rows: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _database(*paths: str) -> "DuckDBPyConnection":
    """Returns a database that can touch these files and nothing else, and asks nobody for more."""
    import duckdb

    database = duckdb.connect(
        config={
            **{"threads": 1, "memory_limit": "256MB", "temp_directory": ""},
            **{"autoinstall_known_extensions": False, "autoload_known_extensions": False},
        }
    )
    for setting in (
        "enable_progress_bar = false",
        f"allowed_paths = {list(paths)}",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        database.execute(f"SET {setting}")
    return database


def _selected(names: Sequence[str], described: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns field -> how its column is selected.

    A text that a dictionary holds once stands in every row after it was read: it is cut where it is
    too long to be taken anyway.

    Raises:
        Refused: a column holds neither text nor numbers.
    """
    errors: Errors = [
        {"field": PUBLISHED[name], "message": "holds neither text nor numbers"}
        for name, (_, kind) in zip(names, described, strict=True)
        if kind != "VARCHAR" and not _NUMBERS.fullmatch(kind)
    ]
    if errors:
        raise Refused(422, errors)
    found = {}
    for name, (column, kind) in zip(names, described, strict=True):
        quoted = '"' + column.replace('"', '""') + '"'
        found[name] = f"left({quoted}, {_MOST_CHARACTERS})" if kind == "VARCHAR" else quoted
    return found


def _parquet_rows(
    database: "DuckDBPyConnection", path: str, columns: Mapping[str, str], number: int
) -> Iterator[Any]:
    """Yields rows by windows: asked for all at once, DuckDB would hold them all.

    Args:
        database: what reads the file.
        path: of the file.
        columns: field -> how it is selected.
        number: of rows.
    """
    import duckdb

    names = list(columns)
    with closing(database):
        for start in range(0, number, _WINDOW):
            try:
                rows = database.execute(
                    f"SELECT {', '.join(columns.values())} "
                    "FROM read_parquet(?, file_row_number = true) "
                    "WHERE file_row_number >= ? AND file_row_number < ?",
                    [path, start, start + _WINDOW],
                ).fetchall()
            except duckdb.Error:
                yield refused(422, _BROKEN_OFF)
                return
            for row in rows:
                yield Fields(list(zip(names, row, strict=True)))
