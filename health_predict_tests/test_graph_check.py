"""The graph check of CI: green on a sound cohort, red as soon as one blocking check fails."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from health_predict import schema
from health_predict.graph_check import FOLDER, Checked, GraphCheck, own_state
from health_predict.settings import ROOT, Settings

BLOCKING = {
    "contract_is_kept",
    "cohort_excludes_hospice_and_death",
    "label_rate_is_plausible",
    "no_patient_on_two_sides",
    "no_label_leaks_into_features",
    "scorer_agrees_with_pipeline",
}


def checked(var: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Runs the check as CI does: a process of its own, for a process has one store of Bentos."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "health_predict.graph_check", *options],
        env={
            **os.environ,
            "COLUMNS": "160",  # wide enough that no name is broken
            "HEALTH_PREDICT_VAR": str(var),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_sound_cohort_passes_and_every_blocking_check_is_shown(tmp_path: Path) -> None:
    done = checked(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = {
        name
        for line in done.stdout.splitlines()
        for name in BLOCKING
        if f" {name} " in line and "passed" in line
    }
    assert passed == BLOCKING
    assert "drift_within_bounds" in done.stdout


def test_a_blocking_check_that_fails_makes_the_exit_code_1(
    raw: pd.DataFrame, tmp_path: Path
) -> None:
    nobody_returns = raw.assign(**{schema.OUTCOME: "NO"})
    table = tmp_path / "diabetic_data.csv"
    nobody_returns.to_csv(table, index=False)
    done = checked(tmp_path, "--data", str(table))
    assert done.returncode == 1
    assert "label_rate_is_plausible" in done.stderr
    assert "bootstrap" in done.stderr


def test_it_leaves_the_state_of_a_loop_and_every_shared_service_alone(tmp_path: Path) -> None:
    shared = Settings(
        var=tmp_path,
        deployment="kubernetes",
        mlflow_tracking_uri="http://mlflow.example",
        alert_webhook="https://hooks.example/T0",
    )
    own = own_state(shared)
    assert own.var == tmp_path / FOLDER
    assert own.deployment == "local"
    assert own.tracking_uri == f"sqlite:///{tmp_path / FOLDER / 'mlflow.db'}"
    assert own.alert_webhook is None


def test_it_says_what_could_not_be_materialised(tmp_path: Path) -> None:
    done = checked(tmp_path, "--data", str(tmp_path / "nowhere.csv"))
    assert done.returncode == 1
    assert "Not materialised: bootstrap" in done.stderr


@pytest.mark.parametrize(
    ("blocking", "passed", "opens"),
    [
        (True, True, True),
        (True, False, False),
        (True, None, False),
        (False, False, True),
        (False, None, True),
    ],
)
def test_a_blocking_check_that_did_not_run_has_not_passed(
    blocking: bool, passed: bool | None, opens: bool
) -> None:
    assert GraphCheck([Checked("encounters", "is_so", blocking, passed)]).passed is opens
