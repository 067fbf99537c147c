"""The whole loop with the real daemon, schedule, sensors and service, as `make demo` turns it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from health_predict.settings import ROOT

COMMAND = (str(Path(sys.executable).with_name("health-predict")), "loop")

pytestmark = pytest.mark.loop


def environment(var: Path, **settings: object) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    named = {"VAR": var, "PORT": port, "TRIALS": 3, **settings}
    return {**os.environ, **{f"HEALTH_PREDICT_{k.upper()}": str(v) for k, v in named.items()}}


def turn(var: Path, *options: str, **settings: object) -> dict[str, Any]:
    """Runs the command to its end and returns the facts that it wrote."""
    done = subprocess.run(
        [*COMMAND, *options],
        cwd=ROOT,
        env=environment(var, **settings),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:] + logs(var)
    assert users_of(var) == [], "the command left processes behind"
    facts: dict[str, Any] = json.loads((var / "loop.json").read_text())
    return facts


def logs(var: Path) -> str:
    return "".join(
        f"\n== {path.name}\n" + path.read_text(errors="replace")[-3000:]
        for path in sorted((var / "logs").glob("*.log"))
    )


def users_of(var: Path) -> list[str]:
    """Returns the processes that name the state folder on their command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(var) in word for word in words):
            found.append(" ".join(process.cmdline()))
    return found


def check_story(facts: Mapping[str, Any], batches: int) -> None:
    assert [b["batch"] for b in facts["batches"]] == [
        f"batch-{n:04d}" for n in range(1, batches + 1)
    ]
    for batch in facts["batches"]:
        drift = batch["drift"]
        assert drift["drifted"] == (drift["statistic"] > drift["threshold"])
        assert batch["reason"].endswith(".")
        assert batch["auc"] is not None
        assert batch["expected_observed"] is not None
    assert any(b["drift"]["drifted"] for b in facts["batches"])
    assert len(facts["promotions"]) >= 2, "the first champion and one that the loop made"
    newest = facts["promotions"][-1]["version"]
    assert facts["served_version"] == newest
    assert facts["predict_response"]["model"]["version"] == newest
    assert 0 < facts["predict_response"]["probability_score"] < 1
    for entry in facts["seconds"]["retrains"]:
        assert sum(entry["parts"].values()) == pytest.approx(entry["drift_to_served"], abs=10)


def test_the_loop_turns_on_the_synthetic_cohort(tmp_path: Path) -> None:
    var = tmp_path / "var"
    facts = turn(
        var, "--data", "synthetic", "--rows", "30000", "--batches", "4", "--at-a-time", "4"
    )
    check_story(facts, 4)
    assert facts["data"] == "synthetic cohort"
    page = (var / "loop.html").read_text()
    assert "Synthetic cohort" in page
    for batch in facts["batches"]:
        assert batch["batch"] in page
    status = subprocess.run(
        [COMMAND[0], "status"],
        cwd=ROOT,
        env=environment(var),
        capture_output=True,
        text=True,
        check=False,
    )
    assert status.returncode == 0, status.stderr
    newest = facts["promotions"][-1]
    assert f"version {newest['version']} ({newest['family']}" in status.stdout
    assert "batch-0004" in status.stdout
    assert "<script" not in page and " src=" not in page, "the page loads nothing"
    assert page.count("never retrained") > 2


def test_the_loop_turns_on_the_published_encounters(tmp_path: Path, archive: Path) -> None:
    facts = turn(tmp_path / "var", "--data", str(archive), "--batches", "3", "--at-a-time", "3")
    check_story(facts, 3)
    assert facts["data"] == "published encounters"


def test_ctrl_c_leaves_nothing_running_and_a_second_loop_starts_afresh(tmp_path: Path) -> None:
    var = tmp_path / "var"
    loop = subprocess.Popen(
        [*COMMAND, "--rows", "8000"],
        cwd=ROOT,
        env=environment(var),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(var.rglob("runs.db")) and time.monotonic() < deadline:
        time.sleep(0.5)  # in the middle: the daemon is up
    second = subprocess.run(
        [*COMMAND, "--rows", "8000"],
        cwd=ROOT,
        env=environment(var),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "stop it first" in second.stderr
    loop.send_signal(signal.SIGINT)
    output, _ = loop.communicate(timeout=60)
    assert loop.returncode == 130, output
    assert users_of(var) == []


def test_data_that_are_not_there_end_the_loop_with_the_remedy(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--data", "/nowhere/encounters.csv"],
        cwd=ROOT,
        env=environment(tmp_path / "var"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "no file at '/nowhere/encounters.csv'" in done.stderr
    assert "HEALTH_PREDICT_DATA" in done.stderr
    assert users_of(tmp_path / "var") == []
