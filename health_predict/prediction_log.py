"""The prediction log: what was asked and answered, without identifiers, as JSON lines in files.

The service writes it, a row for each answered prediction; monitoring reads it. A file belongs to
one process and is only ever appended to, so a place in the log is a file and an offset. BentoML's
own `bentoml.monitoring` writes while the client waits, renames files under a reader and keeps
them for ever. What becomes of served traffic is in `served`.
"""

import contextlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import merge
from pathlib import Path
from typing import Any

from health_predict.schema import IDENTIFIERS, INPUTS, OPEN, OUTCOME

FOLDER = "HEALTH_PREDICT_PREDICTION_LOG"
"""Environment variable: the folder; unset or empty: nothing is written."""

AT, REQUEST_ID, VERSION, SCORE = "at", "request_id", "model_version", "probability_score"
FIELDS = (AT, REQUEST_ID, VERSION, SCORE, *INPUTS)
"""What a row holds."""
assert not {*IDENTIFIERS, OUTCOME} & {*FIELDS}

WITHHELD = "withheld"
VERIFICATION = "rollout-verification"
"""Request id of what a roll-out asks to verify the service: not traffic."""

# A row takes 1.4 kB: together half a gigabyte, about 370,000 predictions.
FILE_BYTES = 2 * 2**20
FILES = 256
_FLUSH_SECONDS = 0.25
# What waits while the disk takes nothing: 14 MB.
_MOST_WAITING = 10_000
_ROWS_A_WRITE = 500
_REPORT_SECONDS = 60.0
_CLOSE_SECONDS = 5.0

_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MADE_BY_MACHINE = re.compile(
    r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|(?=.*[a-f])[0-9a-f]{32}", re.IGNORECASE
)
_LONG_NUMBER = re.compile(r"\d{6}")

_as_json = json.JSONEncoder(separators=(",", ":")).encode
_logger = logging.getLogger(__name__)


def request_id(sent: str | None) -> str:
    """Returns the id a client sent if it can be told from a person's number, else a new one.

    Clients are known to put record numbers here, and the id is logged and sent back. Taken is what
    tracing makes, a UUID or 32 hexadecimal digits, and a short token of at most four digits that
    is not a number: all but 25 of 71,518 published patient numbers have more, and all encounters'.
    """
    if sent and _TOKEN.fullmatch(sent):
        if _MADE_BY_MACHINE.fullmatch(sent):
            return sent
        digits = sum(character.isdigit() for character in sent)
        if digits <= 4 and any(character.isalpha() for character in sent):
            return sent
    return str(uuid.uuid4())


def without_number(text: str) -> str:
    """Returns the value of a text field, or `withheld` if it may be a person's number.

    No code of these fields has six digits in a row; a record number in the wrong field has.
    """
    return WITHHELD if _LONG_NUMBER.search(text) else text


def _line(
    answered_as: str, version: str, probability: float, encounter: Mapping[str, Any]
) -> bytes:
    row = {
        AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
        REQUEST_ID: answered_as,
        VERSION: version,
        SCORE: probability,
        **{column: encounter[column] for column in INPUTS},
    }
    for column in OPEN:
        row[column] = without_number(row[column])
    return _as_json(row).encode() + b"\n"


class PredictionLog:
    """Writes the log of one process: `add` only remembers, a thread writes.

    What the disk does not take is kept and tried again; beyond 10,000 rows the newest are given
    up. Rows are in the operating system's hands within a second, and lost by a SIGKILL only
    before.

    Attributes:
        folder: where the files stand; made when the first row is written.
        file_bytes: size at which a file is closed; one write may exceed it.
        files: how many files are kept, of all processes; those written longest ago go first.
        written: rows on disk.
        lost: rows given up because the disk took nothing for too long.
    """

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        self.folder = folder
        self.file_bytes = file_bytes
        self.files = files
        self.written = 0
        self.lost = 0
        self._waiting: deque[bytes] = deque()
        self._file: int | None = None
        self._path = folder
        self._size = 0
        self._reported = -_REPORT_SECONDS
        self._reported_lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def add(
        self, answered_as: str, version: str, probability: float, encounter: Mapping[str, Any]
    ) -> None:
        """Remembers one answered prediction; takes microseconds and does not fail.

        Args:
            answered_as: the request id.
            version: of the model that answered.
            probability: the score in the answer.
            encounter: what was scored, by published column.
        """
        if len(self._waiting) >= _MOST_WAITING:
            self.lost += 1
        else:
            self._waiting.append(_line(answered_as, version, probability, encounter))

    def close(self) -> None:
        """Writes what waits and ends; a disk that hangs is not waited for longer than 5 s."""
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closing.wait(_FLUSH_SECONDS):
            self._flush()
        self._flush()
        self._end_file()

    def _flush(self) -> None:
        while self._waiting:
            rows = [self._waiting.popleft() for _ in range(min(len(self._waiting), _ROWS_A_WRITE))]
            try:
                self._write(b"".join(rows))
            except OSError as error:
                self._waiting.extendleft(reversed(rows))
                self._report(error)
                self._closing.wait(1.0)
                return
            self.written += len(rows)
        if self.lost > self._reported_lost:
            self._report(None)

    def _write(self, content: bytes) -> None:
        if self._file is None or self._size >= self.file_bytes or self._is_gone(self._file):
            self._end_file()
            self._file = self._new_file()
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):  # a full disk allows it: no half line stays
                os.ftruncate(self._file, self._size)
            self._end_file()
            raise
        self._size += len(content)

    @staticmethod
    def _is_gone(file: int) -> bool:
        """Returns whether somebody removed the file, by rotation or by hand."""
        try:
            return os.fstat(file).st_nlink == 0
        except OSError:  # of a network disk that went away
            return True

    def _new_file(self) -> int:
        # Inputs without identifiers are still about people: nothing for others on the machine.
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._remove_oldest()
        name = f"predictions-{os.getpid()}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl"
        self._path, self._size = self.folder / name, 0
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)

    def _remove_oldest(self) -> None:
        last_written = {}
        for path in _files(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process rotates too
                last_written[path] = path.stat().st_mtime_ns
        oldest_first = sorted(last_written, key=last_written.__getitem__)
        for path in oldest_first[: max(0, len(oldest_first) - self.files + 1)]:
            path.unlink(missing_ok=True)

    def _end_file(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            os.close(self._file)
            if self._size == 0:  # a disk that stays full shall not fill up with empty files
                self._path.unlink(missing_ok=True)
        self._file = None

    def _report(self, error: OSError | None) -> None:
        if time.monotonic() - self._reported < _REPORT_SECONDS:
            return
        self._reported, self._reported_lost = time.monotonic(), self.lost
        cause = f"cannot be written ({os.strerror(error.errno or 0)})" if error else "is written"
        _logger.warning(
            "The prediction log in %s %s: %d rows wait, %d are lost since the start. Requests are "
            "answered all the same; make room or let the service write there.",
            *(self.folder, cause, len(self._waiting), self.lost),
        )


def of_environment() -> PredictionLog | None:
    """Returns the log that the environment asks for, None if it asks for none."""
    folder = os.environ.get(FOLDER)
    return PredictionLog(Path(folder)) if folder else None


Cursor = Mapping[str, int]
"""File name -> bytes read of it; what is not in it was not begun."""


@dataclass(frozen=True)
class Page:
    """Some rows of the log.

    Attributes:
        rows: by `FIELDS`, in order of time.
        cursor: where to go on; names only files that are still there.
        skipped: lines passed over because they are no row.
        torn: files that end inside a line: of a worker that was killed, or is writing just now.
    """

    rows: list[dict[str, Any]]
    cursor: dict[str, int]
    skipped: int
    torn: int


def read(folder: Path, after: Cursor, limit: int) -> Page:
    """Reads rows that were not read before, oldest first.

    Every row is read once, whatever other processes append meanwhile. A worker's rows reach the
    disk up to a second late, so a page may hold rows that are as much older than the last page's.

    Args:
        folder: the log's; one that is not there yet is empty.
        after: the cursor of the page before, empty for the first.
        limit: most rows of a page.
    """
    paths = {path.name: path for path in _files(folder)}
    cursor = {name: offset for name, offset in after.items() if name in paths}
    torn: set[str] = set()
    rows: list[dict[str, Any]] = []
    skipped = 0
    lines = merge(*(_lines(path, cursor.get(name, 0), torn) for name, path in paths.items()))
    for _, name, offset, row in lines if limit > 0 else ():
        cursor[name] = offset
        if row is None:
            skipped += 1
            continue
        rows.append(row)
        if len(rows) == limit:
            break
    return Page(sorted(rows, key=lambda row: row[AT]), cursor, skipped, len(torn))


def _lines(
    path: Path, offset: int, torn: set[str]
) -> Iterator[tuple[str, str, int, dict[str, Any] | None]]:
    """Yields time, file, offset behind it and row of each whole line; no row: None."""
    at = ""
    with contextlib.suppress(FileNotFoundError):  # removed by rotation just now
        if path.stat().st_size <= offset:
            return
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    torn.add(path.name)
                    return
                offset += len(line)
                row = _row(line)
                at = row[AT] if row else at
                yield at, path.name, offset, row


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and row.keys() >= set(FIELDS) and isinstance(row[AT], str)
    return row if whole else None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("predictions-*.jsonl"))
