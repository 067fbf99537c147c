"""What is measured on a batch is one MLflow run for each batch and kind, however often logged."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from health_predict.tracking import MONITORING, Registry

ORDER = ["attributes.start_time ASC"]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text("first")
    return path


def runs(uri: str) -> list[Run]:
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(MONITORING)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=ORDER))


def kept(uri: str, run_id: str, name: str) -> str:
    return Path(mlflow.MlflowClient(uri).download_artifacts(run_id, name)).read_text()


def test_a_batch_is_one_run_with_metrics_tags_and_its_report(uri, tmp_path, report):
    registry = Registry(uri, tmp_path / "artifacts")
    run_id = registry.log_monitoring(
        "batch-1", "drift", {"statistic": 0.71}, [report], {"severity": "major"}
    )
    (run,) = runs(uri)
    assert run.info.run_id == run_id
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"statistic": 0.71}
    told = {key: run.data.tags[key] for key in ("batch", "kind", "severity")}
    assert told == {"batch": "batch-1", "kind": "drift", "severity": "major"}
    assert kept(uri, run_id, "report.html") == "first"
    assert list((tmp_path / "artifacts").rglob("report.html"))


def test_the_same_batch_logged_again_renews_its_run(uri, tmp_path, report):
    first = Registry(uri, tmp_path / "artifacts").log_monitoring(
        "batch-1", "drift", {"statistic": 0.6, "share": 0.2}, [report], {"severity": "none"}
    )
    report.write_text("second")
    again = Registry(uri, tmp_path / "artifacts").log_monitoring(
        "batch-1", "drift", {"statistic": 0.8}, [report], {"severity": "major"}
    )
    (run,) = runs(uri)
    assert first == again == run.info.run_id
    assert run.data.metrics == {"statistic": 0.8, "share": 0.2}
    assert run.data.tags["severity"] == "major"
    assert kept(uri, again, "report.html") == "second"


def test_batches_and_kinds_are_runs_of_their_own(uri, tmp_path):
    registry = Registry(uri, tmp_path / "artifacts")
    logged = {
        registry.log_monitoring(batch, kind, {"n": 1.0}, [], {})
        for batch in ("batch-1", "batch-10")
        for kind in ("drift", "performance")
    }
    assert {run.info.run_id for run in runs(uri)} == logged
    assert len(logged) == 4


def test_what_trainings_log_stays_apart(uri, tmp_path):
    registry = Registry(uri, tmp_path / "artifacts")
    registry.log_monitoring("batch-1", "drift", {"n": 1.0}, [], {})
    client = mlflow.MlflowClient(uri)
    training = client.get_experiment_by_name("readmission")
    assert training is not None
    assert client.search_runs([training.experiment_id]) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A tracking server with a place of its own for artifacts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "--backend-store-uri": f"sqlite:///{tmp_path / 'server.db'}",
        "--artifacts-destination": str(tmp_path / "server-artifacts"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *(x for pair in options.items() for x in pair)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _await(f"{address}/health", process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the MLflow server ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError("the MLflow server did not answer within two minutes")


def test_a_server_keeps_the_runs_and_the_reports(server, tmp_path, report):
    registry = Registry(server, tmp_path / "artifacts")
    for text in ("first", "second"):
        report.write_text(text)
        run_id = registry.log_monitoring("batch-1", "drift", {"n": 1.0}, [report], {})
    (run,) = runs(server)
    assert run.info.run_id == run_id
    assert kept(server, run_id, "report.html") == "second"
    assert list((tmp_path / "server-artifacts").rglob("report.html"))
    assert not (tmp_path / "artifacts").exists()
