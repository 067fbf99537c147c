"""A roll-out ends with a verified version, or with the one before and the reason in words."""

import functools
import http.server
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from health_predict import supervisor
from health_predict.local_platform import LocalPlatform
from health_predict.release import Deployment
from health_predict.verification import GoldenRow, hold, over_http, verify
from health_predict_tests.bentos import (
    HOST,
    Built,
    ask,
    build,
    end,
    family,
    free_port,
    store,
    tamper,
)

Made = dict[str, Built]


@contextmanager
def local(folder: Path, home: Path) -> Iterator[LocalPlatform]:
    platform = LocalPlatform(folder, free_port(), home)
    try:
        yield platform
    finally:
        now = supervisor.status(folder)
        if now:
            end(family(now.pid))


@pytest.fixture(scope="module")
def bentos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    """Versions 1, 2 and 4, and a version 3 that cannot start though its digest is right."""
    home, made = store(tmp_path_factory.mktemp("store"))
    recipe = home / "bentos" / "readmission" / "3" / "bento.yaml"
    recipe.write_text(recipe.read_text().replace("health_predict.service:", "absent:"))
    return home, made


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, bentos: tuple[Path, Made]
) -> Iterator[tuple[LocalPlatform, Deployment, list[str]]]:
    """A platform, its first roll-out, and what was said of it."""
    home, made = bentos
    said: list[str] = []
    with local(tmp_path_factory.mktemp("serving"), home) as platform:
        yield platform, roll_out(platform, made["1"], said.append), said


@pytest.fixture
def platform(
    started: tuple[LocalPlatform, Deployment, list[str]], bentos: tuple[Path, Made]
) -> LocalPlatform:
    """A platform that serves version 1."""
    if started[0].served_version() != "1":
        assert not roll_out(started[0], bentos[1]["1"]).rolled_back
    return started[0]


def roll_out(
    platform: LocalPlatform,
    built: Built,
    say: Callable[[str], None] = lambda _: None,
    golden: list[GoldenRow] | None = None,
    trial: bool = True,
) -> Deployment:
    rows = built.golden if golden is None else golden
    return platform.roll_out(platform.containerise(built.bento, rows, say), rows, say, trial=trial)


def shifted(built: Built) -> list[GoldenRow]:
    """Golden rows that the Bento answers otherwise, the first one right."""
    return [*built.golden[:1], *(replace(row, score=row.score + 0.01) for row in built.golden[1:])]


def backend_pid(platform: LocalPlatform) -> int:
    now = supervisor.status(platform.folder)
    assert now is not None
    assert now.backend_pid is not None
    return now.backend_pid


def test_a_first_roll_out_serves_the_version_and_says_so(started, bentos):
    platform, deployment, said = started
    assert deployment.version == deployment.wanted == "1"
    assert not deployment.rolled_back
    assert deployment.sentence == f"Version 1 answers at {platform.url}, 5 rows verified."
    assert deployment.seconds > 0
    assert any("supervisor" in sentence for sentence in said)
    row = bentos[1]["1"].golden[0]
    score = ask(platform.port, "/predict", row.encounter)[1]["probability_score"]
    assert abs(score - row.score) < 1e-6


def test_rolling_out_again_what_is_served_changes_nothing(platform, bentos):
    before = backend_pid(platform)
    deployment = roll_out(platform, bentos[1]["1"])
    assert deployment.version == "1"
    assert not deployment.rolled_back
    assert backend_pid(platform) == before


def test_a_version_that_scores_otherwise_than_its_pipeline_answers_nobody(platform, bentos):
    built, before = bentos[1]["2"], backend_pid(platform)
    deployment = roll_out(platform, built, golden=shifted(built))
    assert deployment.rolled_back
    assert deployment.version == platform.served_version() == "1"
    assert "version 2 did not take over: tried before it took over, it scores golden row 1" in (
        deployment.sentence
    )
    assert backend_pid(platform) == before


def test_a_version_found_wrong_where_clients_ask_makes_way_for_the_one_before(platform, bentos):
    built = bentos[1]["2"]
    deployment = roll_out(platform, built, golden=shifted(built), trial=False)
    right = built.golden[1].score
    assert deployment.rolled_back
    assert deployment.version == platform.served_version() == "1"
    assert deployment.wanted == "2"
    assert deployment.sentence == (
        f"Rolled back: version 2 scores golden row 1 as {right:.7f}, "
        f"the pipeline {right + 0.01:.7f}; version 1 answers."
    )


def test_a_version_that_cannot_start_leaves_the_one_before_answering(platform, bentos):
    before = backend_pid(platform)
    deployment = roll_out(platform, bentos[1]["3"])
    assert deployment.rolled_back
    assert deployment.version == platform.served_version() == "1"
    assert "version 3 did not take over: it ended with exit code" in deployment.sentence
    assert str(platform.folder / "3.log") in deployment.sentence
    assert deployment.sentence.endswith("; version 1 answers.")
    assert backend_pid(platform) == before


def test_a_bento_changed_after_it_was_built_is_refused_before_anything_is_switched(
    platform, bentos
):
    before = supervisor.status(platform.folder)
    path = tamper(platform.bentoml_home, "2")
    try:
        deployment = roll_out(platform, bentos[1]["2"])
    finally:
        path.write_text(path.read_text().removesuffix(" "))
    assert deployment.rolled_back
    assert deployment.version == "1"
    assert deployment.sentence.startswith("Refused: version 2 has digest ")
    assert bentos[1]["2"].bento.digest[:12] in deployment.sentence
    assert supervisor.status(platform.folder) == before


def test_a_supervisor_that_was_killed_is_started_by_the_next_roll_out(platform, bentos):
    now = supervisor.status(platform.folder)
    assert now is not None
    os.kill(now.pid, signal.SIGKILL)
    psutil.wait_procs(family(now.pid)[:1], timeout=10)
    deployment = roll_out(platform, bentos[1]["1"])
    assert not deployment.rolled_back
    assert ask(platform.port)[1]["version"] == "1"


def test_a_version_built_again_takes_the_place_of_its_first_build(platform, bentos):
    first = bentos[1]["4"]
    assert not roll_out(platform, first).rolled_back
    before = backend_pid(platform)
    # As an attempt that was cut off leaves it.
    (platform.bentoml_home / "bentos" / "readmission" / "4" / "bento.yaml").unlink()
    one, same, other = build(platform.bentoml_home, "4=0.5", "4=0.5", "4=0.001")
    assert one.bento == same.bento
    assert other.bento.digest not in (one.bento.digest, first.bento.digest)
    deployment = roll_out(platform, other)
    assert deployment.sentence.startswith("Version 4 answers")
    assert backend_pid(platform) != before


def test_a_first_roll_out_that_fails_leaves_nothing_served(tmp_path, bentos):
    home, made = bentos
    with local(tmp_path, home) as platform:
        for _ in range(2):
            deployment = roll_out(platform, made["1"], golden=shifted(made["1"]))
            assert deployment.rolled_back
            assert deployment.version is None
            assert "golden row 1" in deployment.sentence
            assert deployment.sentence.endswith("; nothing is served.")
            assert supervisor.wanted(tmp_path) is None
            assert ask(platform.port)[0] == 503


def test_a_taken_port_fails_the_roll_out_with_the_setting_to_change(tmp_path, bentos):
    home, made = bentos
    with socket.create_server((HOST, 0)) as taken:
        platform = LocalPlatform(tmp_path, taken.getsockname()[1], home)
        deployment = roll_out(platform, made["1"])
    assert deployment.version is None
    assert deployment.rolled_back
    assert "HEALTH_PREDICT_PORT" in deployment.sentence
    assert supervisor.wanted(tmp_path) is None


def test_verification_names_the_http_error_and_the_row(platform, bentos):
    row = bentos[1]["1"].golden[0]
    without_age = {key: value for key, value in row.encounter.items() if key != "age"}
    problem = verify(platform.ask, "1", [row, GoldenRow(without_age, row.score)])
    assert problem.startswith("answers 422 to golden row 1: ")
    assert "age" in problem


def test_verification_names_the_version_that_answers_instead(platform):
    problem = verify(platform.ask, "7", [])
    assert problem == "was rolled out, but version 1 answers"


def test_verification_finds_nothing_wrong_with_what_is_right(platform, bentos):
    assert verify(platform.ask, "1", bentos[1]["1"].golden) == ""
    assert hold(platform.ask, bentos[1]["1"].golden) == ""


def test_a_load_names_how_many_requests_failed_and_why(platform, bentos):
    rows = [*bentos[1]["1"].golden[:4], shifted(bentos[1]["1"])[1]]
    problem = hold(platform.ask, rows, requests=50)
    assert problem.startswith("failed 10 of 50 requests, first with: scores golden row 0 as ")


def test_verification_says_that_nothing_answers():
    url = f"http://{HOST}:{free_port()}"
    assert verify(over_http(url), "1", []).startswith("does not answer")


def test_something_else_on_the_port_is_not_taken_for_a_version(tmp_path):
    (tmp_path / "model-info").write_text("<p>welcome</p>")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            platform = LocalPlatform(tmp_path / "serving", server.server_port, tmp_path)
            assert platform.served_version() is None
            assert "does not answer" in verify(platform.ask, "1", [])
        finally:
            server.shutdown()
            thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the test's output is the test's."""
