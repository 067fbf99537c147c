"""The supervisor serves real Bentos on one port and survives what happens to them."""

import contextlib
import http.client
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from health_predict import supervisor
from health_predict_tests.bentos import (
    HOST,
    Built,
    Supervised,
    ask,
    command,
    end,
    family,
    free_port,
    store,
    supervised,
    tamper,
)

Bentos = tuple[Path, dict[str, Built]]


@pytest.fixture(scope="module")
def bentos(tmp_path_factory: pytest.TempPathFactory) -> Bentos:
    """Versions 1 and 2, and a version 3 that cannot start."""
    home, made = store(tmp_path_factory.mktemp("store"))
    tamper(home, "3")
    return home, made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, bentos: Bentos) -> Iterator[Supervised]:
    with supervised(tmp_path_factory.mktemp("serving"), bentos[0]) as running:
        yield running


@pytest.fixture
def first(shared: Supervised) -> Supervised:
    """A supervisor that serves version 1."""
    assert shared.serve("1", "1").state == "serving"
    return shared


def until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_before_anything_is_deployed_it_answers_503_and_when_to_try_again(tmp_path, bentos):
    with supervised(tmp_path, bentos[0]) as running:
        assert running.status.state == "idle"
        for _ in range(30):
            status, body, headers = ask(running.port, "/predict", {"padding": "x" * 200_000})
            assert status == 503
            assert int(headers["Retry-After"]) > 0
            assert "no model" in body["detail"][0]["message"]


def test_the_wanted_bento_answers_with_the_pipelines_scores(first, bentos):
    assert ask(first.port)[1]["version"] == "1"
    for row in bentos[1]["1"].golden:
        status, body, _ = ask(first.port, "/predict", row.encounter)
        assert status == 200
        assert abs(body["probability_score"] - row.score) < 1e-6


@dataclass(frozen=True)
class Switch:
    """What clients saw of a switch from version 1 to 2."""

    status: supervisor.Status
    answers: list[tuple[int, str]]
    failures: list[Exception]
    kept_open: bool


@pytest.fixture(scope="module")
def switch(shared: Supervised, bentos: Bentos) -> Switch:
    assert shared.serve("1", "1").state == "serving"
    row = bentos[1]["1"].golden[0]
    moved = threading.Event()
    answers: list[tuple[int, str]] = []
    failures: list[Exception] = []

    def keep_asking() -> None:
        after = 0
        for _ in range(2_000):
            try:
                status, body, _ = ask(shared.port, "/predict", row.encounter)
                answers.append((status, body["model"]["version"]))
            except Exception as error:
                failures.append(error)
            after += moved.is_set()
            if after > 50:
                return
            time.sleep(0.005)

    client = threading.Thread(target=keep_asking)
    with contextlib.closing(http.client.HTTPConnection(HOST, shared.port, timeout=60)) as kept:
        kept.request("GET", "/health")
        assert b'"version":"1"' in kept.getresponse().read()
        assert kept.sock is not None
        until_closed = threading.Thread(target=kept.sock.recv, args=(1,), daemon=True)
        client.start()
        until_closed.start()
        status = shared.serve("2", "2")
        moved.set()
        client.join()
        until_closed.join(60)
        return Switch(status, answers, failures, until_closed.is_alive())


def test_a_switch_moves_the_port_without_one_failed_request(switch):
    assert switch.status.state == "serving"
    assert not switch.failures
    assert {status for status, _ in switch.answers} == {200}
    versions = [version for _, version in switch.answers]
    assert versions == sorted(versions)
    assert set(versions) == {"1", "2"}
    assert len(versions) > 100


def test_a_connection_that_was_kept_alive_does_not_keep_its_client_with_the_old_bento(switch):
    assert not switch.kept_open


@pytest.fixture
def failed(shared: Supervised) -> supervisor.Status:
    """The status of a supervisor that serves version 1 because version 3 did not start."""
    now = shared.status
    if not (now.state == "failed" and now.wanted == supervisor.Wanted("readmission:3", "3")):
        assert shared.serve("1", "1").state == "serving"
        now = shared.serve("3", "3")
    return now


def test_a_bento_that_cannot_start_is_told_with_its_log_while_the_old_one_answers(shared, failed):
    assert failed.state == "failed"
    assert "tables.json" in failed.message
    assert "sha256" in failed.message
    assert str(shared.folder / "3.log") in failed.message
    assert failed.serving is not None
    assert failed.serving.version == "1"
    assert ask(shared.port)[1]["version"] == "1"


def test_what_was_kept_is_started_again_though_its_successor_failed(shared, failed):
    os.kill(failed.backend_pid, signal.SIGKILL)
    until(lambda: shared.status.backend_pid not in (None, failed.backend_pid))
    assert ask(shared.port)[1]["version"] == "1"
    assert shared.status.state == "failed"
    assert shared.status.message == failed.message


def test_going_back_to_what_is_still_served_is_settled_without_a_restart(shared, failed):
    back = shared.serve("1", "1")
    assert back.state == "serving"
    assert back.backend_pid == failed.backend_pid


def test_a_bento_that_failed_is_tried_when_it_is_asked_for_again(shared, failed):
    changed = shared.home / "models" / "readmission" / "3" / "tables.json"
    content = changed.read_text()
    changed.write_text(content.removesuffix(" "))
    try:
        assert shared.serve("3", "3").state == "serving"
    finally:
        changed.write_text(content)
    assert ask(shared.port)[1]["version"] == "3"


def test_a_bento_that_answers_as_another_version_is_refused(first):
    status = first.serve("2", "9")
    assert status.state == "failed"
    assert "answers as version 2, not 9" in status.message
    assert ask(first.port)[1]["version"] == "1"


def test_a_killed_bento_is_served_again_and_its_workers_are_gone(first):
    killed = first.status.backend_pid
    old = family(killed)
    assert len(old) > 1
    os.kill(killed, signal.SIGKILL)
    until(lambda: first.status.backend_pid not in (None, killed))
    assert ask(first.port)[1]["version"] == "1"
    assert first.status.restarts == 1
    assert not psutil.wait_procs(old, timeout=10)[1]


def test_what_is_withdrawn_is_ended(first):
    old = family(first.status.backend_pid)
    supervisor.want(first.folder, None)
    assert supervisor.await_version(first.folder, None, seconds=60).state == "idle"
    assert ask(first.port)[0] == 503
    assert not psutil.wait_procs(old, timeout=10)[1]


def test_clients_that_break_off_leave_neither_a_hang_nor_an_open_connection(first):
    process = psutil.Process(first.process.pid)
    ask(first.port)
    before = process.num_fds()
    begun = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    whole = b"GET /model-info HTTP/1.1\r\nHost: x\r\n\r\n"
    for sent in (b"", begun, whole) * 5:
        with socket.create_connection((HOST, first.port), timeout=30) as reset:
            reset.sendall(sent)
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with socket.create_connection((HOST, first.port), timeout=30) as half_closed:
            half_closed.sendall(sent)
            half_closed.shutdown(socket.SHUT_WR)
            while half_closed.recv(65536):
                pass
        with socket.create_connection((HOST, first.port), timeout=30) as closed:
            closed.sendall(sent)
        assert ask(first.port)[0] == 200
    until(lambda: process.num_fds() <= before)


def test_asked_to_stop_it_leaves_no_process_and_no_status(tmp_path, bentos):
    with supervised(tmp_path, bentos[0]) as running:
        assert running.serve("1", "1").state == "serving"
        connection = http.client.HTTPConnection(HOST, running.port)
        connection.request("GET", "/model-info")
        connection.getresponse().read()  # and is kept open
        started = family(running.process.pid)
        assert len(started) > 2
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        connection.close()
        assert not psutil.wait_procs(started, timeout=5)[1]
        assert not (tmp_path / "status.json").exists()
        assert supervisor.status(tmp_path) is None


def test_the_orphan_of_a_killed_supervisor_is_ended_by_the_next_one(tmp_path, bentos):
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(supervised(tmp_path, bentos[0]))
        assert running.serve("1", "1").state == "serving"
        orphans = family(running.process.pid)[1:]
        stack.callback(end, orphans)
        running.process.kill()
        running.process.wait()
        assert supervisor.status(tmp_path) is None
        assert all(orphan.is_running() for orphan in orphans)
        successor = stack.enter_context(supervised(tmp_path, bentos[0]))
        assert not psutil.wait_procs(orphans, timeout=10)[1]
        assert ask(successor.port)[1]["version"] == "1"


def test_a_taken_port_is_an_error_that_names_the_setting(tmp_path, bentos):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            command(tmp_path, port, bentos[0]), capture_output=True, text=True, timeout=60
        )
    assert done.returncode != 0
    assert "HEALTH_PREDICT_PORT" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_supervisor_of_a_folder_is_refused_and_the_first_goes_on(first):
    again = command(first.folder, free_port(), first.home)
    done = subprocess.run(again, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"process {first.process.pid}" in done.stderr
    assert ask(first.port)[0] == 200


def test_a_bento_that_never_starts_is_not_tried_for_ever(tmp_path, bentos):
    with supervised(tmp_path, bentos[0]) as running:
        assert running.serve("404", "404").state == "failed"
        until(lambda: running.status.restarts > supervisor.MOST_RESTARTS)
        until(lambda: running.status.state == "failed")
        given_up = running.status
        time.sleep(1)
        assert running.status == given_up
        assert ask(running.port)[0] == 503
