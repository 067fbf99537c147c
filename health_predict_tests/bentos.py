"""Real Bentos of small models for the tests of serving, a supervisor process, and a client.

BentoML keeps one store a process, so Bentos are built by this module run as a command:
`python -m health_predict_tests.bentos HOME VERSION=C ...`, C being the inverse regularisation.
"""

import atexit
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from health_predict import supervisor
from health_predict.bundling import build_bento
from health_predict.release import Bento
from health_predict.verification import GoldenRow

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Built:
    """A Bento, and rows with the scores of the pipeline inside."""

    bento: Bento
    golden: list[GoldenRow]


def build(home: Path, *models: str) -> list[Built]:
    """Builds the Bentos of `VERSION=C` in a process of their own."""
    command = [sys.executable, "-m", "health_predict_tests.bentos", str(home), *models]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [
        Built(Bento(**one["bento"]), [GoldenRow(**row) for row in one["golden"]])
        for one in json.loads(done.stdout.splitlines()[-1])
    ]


@cache
def _store() -> tuple[Path, dict[str, Built]]:
    home = Path(tempfile.mkdtemp(prefix="bentos-"))
    atexit.register(shutil.rmtree, home)
    made = build(home, "1=0.001", "2=0.5", "3=0.05", "4=0.5")
    return home, {one.bento.version: one for one in made}


def store(folder: Path) -> tuple[Path, dict[str, Built]]:
    """Returns a BentoML home of its own with versions 1 to 4, and what is in it."""
    home, made = _store()
    return Path(shutil.copytree(home, folder / "bentoml", symlinks=True)), made


def tamper(home: Path, version: str) -> Path:
    """Changes the model of a built Bento, so that its digest does not fit; returns the file."""
    path = home / "models" / "readmission" / version / "tables.json"
    path.write_text(path.read_text() + " ")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def ask(
    port: int, path: str = "/model-info", body: Mapping[str, Any] | None = None
) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
    """Asks over a connection of its own; returns status, JSON and headers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    with contextlib.closing(connection):
        headers = {"content-type": "application/json", "connection": "close"}
        content = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, content, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers


def family(pid: int) -> list[psutil.Process]:
    """Returns a process and all it started, none if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(pids: list[psutil.Process]) -> None:
    """Ends processes: asked first, then killed."""
    for process in pids[:1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(pids, timeout=15)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def command(folder: Path, port: int, home: Path) -> list[str]:
    """Returns the supervisor's command."""
    return [sys.executable, "-m", "health_predict.supervisor", str(folder), str(port), str(home)]


@dataclass(frozen=True)
class Supervised:
    """A supervisor process, and what it was started with."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    home: Path

    @property
    def status(self) -> supervisor.Status:
        found = supervisor.status(self.folder)
        assert found is not None
        return found

    def serve(self, tag: str, version: str) -> supervisor.Status:
        """Asks for a Bento and waits for the outcome."""
        wanted = supervisor.Wanted(f"readmission:{tag}", version)
        supervisor.want(self.folder, wanted)
        return supervisor.await_version(self.folder, wanted, seconds=120)


@contextlib.contextmanager
def supervised(folder: Path, home: Path) -> Iterator[Supervised]:
    """Starts a supervisor, waits until it listens, and leaves nothing of it behind."""
    port = free_port()
    process = subprocess.Popen(command(folder, port, home))
    try:
        supervisor.await_version(folder, supervisor.wanted(folder), seconds=60)
        yield Supervised(process, folder, port, home)
    finally:
        end(family(process.pid))
        process.wait()


def _main() -> None:
    from health_predict import encounters, features, models, schema, synthetic

    home, *wanted = sys.argv[1:]
    accepted, _ = encounters.apply_contract(synthetic.cohort(1_500, 1))
    frame = encounters.cohort(accepted, "any")
    preprocessor = features.preprocessor().fit(frame)
    x, y = preprocessor.transform(frame), frame[schema.LABEL].to_numpy()
    built = []
    for version, c in (one.split("=") for one in wanted):
        candidate = models.Candidate("logistic_regression", {"C": float(c)})
        pipeline = models.pipeline(
            preprocessor, models.fit(candidate, models.Sample(x, y), 0), x, y
        )
        facts = {
            **{"name": "readmission", "version": version, "run_id": "none", "data": "synthetic"},
            **{"threshold": 0.5, "risk_bands": {"low": 0.0, "high": 0.6}},
        }
        bento = build_bento(pipeline, facts, version, Path(home))
        rows = frame.head(5)
        scores = pipeline.predict_proba(rows)[:, 1]
        records = rows[[*schema.INPUTS]].to_dict("records")
        golden = [GoldenRow(r, float(s)) for r, s in zip(records, scores, strict=True)]
        built.append(asdict(Built(bento, golden)))
    sys.stdout.write("\n" + json.dumps(built) + "\n")


if __name__ == "__main__":
    _main()
