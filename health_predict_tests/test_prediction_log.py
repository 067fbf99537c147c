"""The prediction log: whole rows of every process, none of them twice, and never in the way."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from health_predict import prediction_log, schema
from health_predict.prediction_log import FIELDS, VERIFICATION, PredictionLog, read
from health_predict.verification import over_http, verify
from health_predict_tests import bentos

WRITER = """
import sys, time
from pathlib import Path
from health_predict import schema
from health_predict.prediction_log import PredictionLog
folder, name, rows, then = sys.argv[1:]
log = PredictionLog(Path(folder), file_bytes=20_000)
for number in range(int(rows)):
    log.add(f"{name}-{number}", name, number / 1000, schema.EXAMPLE)
if then == "close":
    log.close()
else:
    while log.written < int(rows):
        time.sleep(0.01)
    print("written", flush=True)
    time.sleep(60)
"""


def start_writer(folder: Path, name: str, rows: int, then: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(folder), name, str(rows), then]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def add(log: PredictionLog, count: int, name: str = "r", **fields: Any) -> None:
    for number in range(count):
        log.add(f"{name}-{number}", "3", 0.25, {**schema.EXAMPLE, **fields})


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["request_id"] for row in rows]


def all_rows(folder: Path) -> list[dict[str, Any]]:
    return read(folder, {}, 10**6).rows


def newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    opened = PredictionLog(tmp_path / "log")
    yield opened
    opened.close()


def test_a_row_holds_time_request_version_score_and_the_inputs(log: PredictionLog) -> None:
    log.add("abc", "7", 0.125, schema.EXAMPLE)
    log.close()
    (row,) = all_rows(log.folder)
    assert tuple(row) == FIELDS
    assert (row["request_id"], row["model_version"], row["probability_score"]) == (
        "abc",
        "7",
        0.125,
    )
    assert {column: row[column] for column in schema.INPUTS} == schema.EXAMPLE
    assert row["at"].endswith("+00:00")


def test_no_identifier_is_written_whatever_the_writer_is_given(log: PredictionLog) -> None:
    secrets = dict.fromkeys((*schema.IDENTIFIERS, schema.OUTCOME), "987654321987")
    log.add("abc", "7", 0.125, {**schema.EXAMPLE, **secrets, "race": "987654321987"})
    log.close()
    (path,) = log.folder.iterdir()
    assert "987654321987" not in path.read_text()
    (row,) = all_rows(log.folder)
    assert not {*secrets} & {*row}
    assert row["race"] == prediction_log.WITHHELD


def test_codes_and_bands_are_not_taken_for_identifiers(log: PredictionLog) -> None:
    told = {"diag_1": "250.01", "diag_2": "E849", "diag_3": "25001", "weight": "[100-125)"}
    log.add("abc", "7", 0.125, {**schema.EXAMPLE, **told})
    log.close()
    (row,) = all_rows(log.folder)
    assert {column: row[column] for column in told} == told


def test_rows_reach_the_disk_without_the_log_being_closed(log: PredictionLog) -> None:
    add(log, 1)
    until(lambda: len(all_rows(log.folder)) == 1)


def test_strangers_on_the_machine_cannot_read_it(log: PredictionLog) -> None:
    add(log, 1)
    log.close()
    (path,) = log.folder.iterdir()
    assert not (path.stat().st_mode | log.folder.stat().st_mode) & 0o007


def test_a_full_file_is_followed_by_a_new_one_and_the_oldest_go(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, file_bytes=1_000, files=3)
    for number in range(6):
        add(log, 2, f"round{number}")
        until(lambda n=number: log.written == 2 * (n + 1))
    log.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert ids(all_rows(tmp_path)) == [f"round{n}-{k}" for n in (3, 4, 5) for k in (0, 1)]


def test_a_log_that_was_removed_under_the_writer_is_begun_again(log: PredictionLog) -> None:
    add(log, 1, "before")
    until(lambda: log.written == 1)
    shutil.rmtree(log.folder)
    add(log, 1, "after")
    log.close()
    assert ids(all_rows(log.folder)) == ["after-0"]


def test_rows_of_several_processes_are_all_read_once_and_in_order_of_time(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, name, 200, "close") for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    rows, cursor = [], {}
    while (page := read(tmp_path, cursor, 70)).rows:
        assert [r["at"] for r in page.rows] == sorted(r["at"] for r in page.rows)
        rows += page.rows
        cursor = page.cursor
    assert sorted(ids(rows)) == sorted(f"{name}-{n}" for name in "abc" for n in range(200))
    assert len(cursor) == len(list(tmp_path.iterdir()))
    whole = all_rows(tmp_path)
    assert [r["at"] for r in whole] == sorted(r["at"] for r in whole)


def test_what_a_killed_worker_wrote_is_read_and_its_torn_line_is_passed_over(
    tmp_path: Path,
) -> None:
    writer = start_writer(tmp_path, "a", 5, "hang")
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    path = newest(tmp_path)
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0][:100])
    page = read(tmp_path, {}, 100)
    assert ids(page.rows) == [f"a-{n}" for n in range(5)]
    assert (page.torn, page.skipped) == (1, 0)
    again = read(tmp_path, page.cursor, 100)
    assert (again.rows, again.torn) == ([], 1)


def test_a_line_that_was_being_written_is_read_once_it_is_whole(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    add(log, 2)
    log.close()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    page = read(tmp_path, {}, 100)
    assert ids(page.rows) == ["r-0"]
    path.write_bytes(whole)
    assert ids(read(tmp_path, page.cursor, 100).rows) == ["r-1"]


@pytest.mark.parametrize("broken", ["{]", "[1]", '{"at": 3}', '{"at": "2026-01-01"}', "\xff"])
def test_a_line_that_is_no_row_is_skipped_counted_and_not_met_again(
    tmp_path: Path, broken: str
) -> None:
    log = PredictionLog(tmp_path)
    add(log, 2)
    log.close()
    (path,) = tmp_path.iterdir()
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, broken.encode("latin-1"), second, b""]))
    page = read(tmp_path, {}, 100)
    assert ids(page.rows) == ["r-0", "r-1"]
    assert (page.skipped, page.torn) == (1, 0)
    assert read(tmp_path, page.cursor, 100).skipped == 0


def test_a_cursor_outlives_the_files_that_rotation_removed(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, file_bytes=1)
    for number in range(3):
        add(log, 1, f"round{number}")
        until(lambda n=number: log.written == n + 1)
    log.close()
    page = read(tmp_path, {}, 1)
    for name in page.cursor:
        (tmp_path / name).unlink()
    after = read(tmp_path, page.cursor, 100)
    assert ids(after.rows) == ["round1-0", "round2-0"]
    assert set(after.cursor) == {path.name for path in tmp_path.iterdir()}


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none", {"gone": 3}, 5) == prediction_log.Page([], {}, 0, 0)


def test_where_nothing_can_be_written_it_is_said_once_and_written_once_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "log"
    folder.write_text("a file stands where the folder should")
    with caplog.at_level(logging.WARNING):
        log = PredictionLog(folder)
        add(log, 3)
        until(lambda: bool(caplog.records))
        time.sleep(1.5)
        folder.unlink()
        until(lambda: log.written == 3)
        log.close()
    (said,) = caplog.records
    assert os.strerror(errno.EEXIST) in said.message or os.strerror(errno.ENOTDIR) in said.message
    assert "3 rows wait" in said.message
    assert ids(all_rows(folder)) == ["r-0", "r-1", "r-2"]
    assert log.lost == 0


FULL_DISK = """
import resource, signal, sys, time
from pathlib import Path
from health_predict import schema
from health_predict.prediction_log import PredictionLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = PredictionLog(Path(sys.argv[1]))
log.add("first", "1", 0.5, schema.EXAMPLE)
while log.written < 1:
    time.sleep(0.01)
# Beyond it a write fails, in the middle of a row, as on a disk that is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
for number in range(20):
    log.add(f"held-{number}", "1", 0.5, schema.EXAMPLE)
time.sleep(1)
assert log.written == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.close()
assert (log.written, log.lost) == (21, 0)
"""


def test_a_full_disk_leaves_no_half_row_and_loses_none_that_found_room_later(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 rows wait" in done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    page = read(tmp_path, {}, 100)
    assert ids(page.rows) == ["first", *(f"held-{n}" for n in range(20))]
    assert (page.skipped, page.torn) == (0, 0)


def test_what_the_disk_does_not_take_is_bounded_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "_MOST_WAITING", 5)
    blocked = tmp_path / "log"
    blocked.write_text("")
    log = PredictionLog(blocked)
    add(log, 12)
    assert 0 < log.lost <= 7
    blocked.unlink()
    log.close()
    assert log.written + log.lost == 12


@pytest.mark.parametrize(
    "sent",
    [
        "0f8fad5b-d9cb-469f-a165-70867728950e",
        "4BF92F3577B34DA6A3CE929D0E0E4736",
        "load-test.7",
        "req-0042",
        prediction_log.VERIFICATION,
    ],
)
def test_a_request_id_that_cannot_be_a_persons_number_is_kept(sent: str) -> None:
    assert prediction_log.request_id(sent) == sent


@pytest.mark.parametrize(
    "sent",
    [
        *(None, "", "a b", "a\n", "x" * 65, "pati\u00ebnt", "a/b"),
        *("135", "8222157", "patient-8222157", "8.222.157-a", "12345678901234567890123456789012"),
    ],
)
def test_a_request_id_that_is_none_or_may_be_a_persons_number_is_replaced(
    sent: str | None,
) -> None:
    given = prediction_log.request_id(sent)
    assert given != sent
    assert prediction_log.request_id(given) == given
    assert given != prediction_log.request_id(sent), "each request gets its own"


def test_the_log_is_opened_only_where_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(prediction_log.FOLDER, raising=False)
    assert prediction_log.of_environment() is None
    monkeypatch.setenv(prediction_log.FOLDER, "")
    assert prediction_log.of_environment() is None
    monkeypatch.setenv(prediction_log.FOLDER, str(tmp_path))
    log = prediction_log.of_environment()
    assert log is not None
    log.close()
    assert log.folder == tmp_path


def test_what_a_bento_answered_just_before_it_was_stopped_is_in_its_log(tmp_path: Path) -> None:
    home, made = bentos.store(tmp_path)
    folder = tmp_path / "serving"
    with bentos.supervised(folder, home) as running:
        running.serve("1", "1")
        ask = over_http(f"http://127.0.0.1:{running.port}")
        verified = verify(ask, "1", made["1"].golden)
        answers = [bentos.ask(running.port, "/predict", schema.EXAMPLE) for _ in range(5)]
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(60)
    assert verified == ""
    rows = all_rows(folder / "predictions")
    asked = [row["request_id"] for row in rows if row["request_id"] != VERIFICATION]
    assert asked == [headers["x-request-id"] for _, _, headers in answers]
    assert len(rows) == len(asked) + len(made["1"].golden)
    assert {row["model_version"] for row in rows} == {"1"}
