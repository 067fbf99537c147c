"""Nothing calls home: every dependency is used once while the sockets are watched.

The watcher is put into each Python process by `sitecustomize`, so that workers which a dependency
starts are watched as well. It notes what is asked of the network before it is asked.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from health_predict import settings

ROOT = Path(__file__).parents[1]

WATCHER = """
import os, socket

def _is_near(host):
    return host in (None, "", "localhost", "::1", "::", "0.0.0.0", socket.gethostname()) or (
        str(host).startswith("127.")
    )

def _note(how, host):
    host = host.decode() if isinstance(host, bytes) else host
    if not _is_near(host):
        with open(os.environ["WATCHED"], "a") as log:
            log.write(f"{how} {host}\\n")

def _watch(name):
    original = getattr(socket.socket, name)
    def watched(self, *arguments):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _note(name, arguments[-1][0])
        return original(self, *arguments)
    setattr(socket.socket, name, watched)

for _name in ("connect", "connect_ex", "sendto"):
    _watch(_name)

_getaddrinfo = socket.getaddrinfo
def _watched_getaddrinfo(host, *arguments, **options):
    _note("getaddrinfo", host)
    return _getaddrinfo(host, *arguments, **options)
socket.getaddrinfo = _watched_getaddrinfo
"""

USE_EVERYTHING = """
from health_predict.settings import silence_telemetry
silence_telemetry()

import time
from pathlib import Path

import numpy as np

import dagster as dg

@dg.asset
def tiny():
    return 1

with dg.DagsterInstance.ephemeral() as instance:
    assert dg.materialize([tiny], instance=instance).success

import mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("watched")
with mlflow.start_run():
    mlflow.log_metric("auc", 0.7)

from health_predict import encounters, evidently_report
raw, _ = encounters.read("synthetic", rows=400, seed=0)
frame = encounters.cohort(encounters.apply_contract(raw)[0], "any")
evidently_report.write_report(frame.iloc[:200], frame.iloc[200:], Path("batch-1"))

import bentoml
import health_predict.service
assert bentoml.models.list() == []

from health_predict.models import Sample
from health_predict.tuning import SearchData, search
x = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
y = (x[:, 0] > 0).astype(int)
sample = Sample(x, y)
assert len(search(SearchData(sample, sample), trials=3, seed=0).trials) == 3

time.sleep(3)  # telemetry is sent by threads that first collect
print("used")
"""

REACH_OUT = """
import socket, subprocess, sys
for call in (
    lambda: socket.create_connection(("198.51.100.1", 80), timeout=0.05),
    lambda: socket.socket().connect_ex(("198.51.100.2", 80)),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("198.51.100.3", 80)),
):
    socket.setdefaulttimeout(0.05)
    try:
        call()
    except OSError:
        pass
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


def run_watched(script: str, folder: Path) -> tuple[str, list[str]]:
    """Runs a script in a fresh interpreter; returns its output and what it asked of the network."""
    (folder / "watcher").mkdir()
    (folder / "watcher" / "sitecustomize.py").write_text(WATCHER)
    (folder / "script.py").write_text(script)
    quiet = {k: v for k, v in os.environ.items() if k not in settings.SILENCED}
    environment = quiet | {
        "PYTHONPATH": f"{folder / 'watcher'}{os.pathsep}{ROOT}",
        "WATCHED": str(folder / "watched.txt"),
        "HOME": str(folder),
        "BENTOML_HOME": str(folder / "bentoml"),
    }
    done = subprocess.run(
        [sys.executable, str(folder / "script.py")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    log = folder / "watched.txt"
    return done.stdout, log.read_text().splitlines() if log.exists() else []


def test_the_watcher_sees_who_reaches_out_in_a_process_and_in_its_children(tmp_path):
    _, seen = run_watched(REACH_OUT, tmp_path)
    attempts = ["connect 198.51.100.1", "connect_ex 198.51.100.2", "sendto 198.51.100.3"]
    assert [line for line in seen if not line.startswith("getaddrinfo")] == attempts * 2
    assert seen.count("getaddrinfo 198.51.100.1") == 2


def test_no_dependency_calls_home(tmp_path):
    output, seen = run_watched(USE_EVERYTHING, tmp_path)
    assert output.splitlines()[-1] == "used"
    assert seen == []


def test_dagsters_telemetry_is_off_where_the_instance_is_configured():
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert instance["telemetry"] == {"enabled": False}


def test_silence_is_set_for_this_process_and_overrules_what_was_set(monkeypatch):
    for name in settings.SILENCED:
        monkeypatch.setenv(name, "loud")
    settings.silence_telemetry()
    assert {name: os.environ[name] for name in settings.SILENCED} == settings.SILENCED


@pytest.mark.parametrize("name", ["DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"])
def test_the_tests_themselves_are_silent(name):
    assert os.environ[name] == settings.SILENCED[name]
