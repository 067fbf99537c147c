"""The graph check of CI: green on a sound cohort, red as soon as one blocking check fails."""

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from health_predict import schema
from health_predict.graph_check import FOLDER, Checked, GraphCheck, main, own_state
from health_predict.settings import Settings

BLOCKING = {
    "contract_is_kept",
    "cohort_excludes_hospice_and_death",
    "label_rate_is_plausible",
    "no_patient_on_two_sides",
    "no_label_leaks_into_features",
    "scorer_agrees_with_pipeline",
}


def checked(var: Path, *options: str) -> Result:
    # Wide enough that no name is broken.
    runner = CliRunner(env={"COLUMNS": "160", "HEALTH_PREDICT_VAR": str(var)})
    return runner.invoke(main, options)


def test_a_sound_cohort_passes_and_every_blocking_check_is_shown(tmp_path: Path) -> None:
    done = checked(tmp_path)
    assert done.exit_code == 0, done.output
    passed = {
        name
        for line in done.output.splitlines()
        for name in BLOCKING
        if f" {name} " in line and "passed" in line
    }
    assert passed == BLOCKING
    assert "drift_within_bounds" in done.output


def test_a_blocking_check_that_fails_makes_the_exit_code_1(
    raw: pd.DataFrame, tmp_path: Path
) -> None:
    nobody_returns = raw.assign(**{schema.OUTCOME: "NO"})
    table = tmp_path / "diabetic_data.csv"
    nobody_returns.to_csv(table, index=False)
    done = checked(tmp_path, "--data", str(table))
    assert done.exit_code == 1
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
    assert done.exit_code == 1
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
