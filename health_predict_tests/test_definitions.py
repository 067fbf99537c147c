"""What the code location holds: pinned, so that a name that moves is seen."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from health_predict.definitions import assemble
from health_predict.defs.jobs import JOBS
from health_predict.defs.partitions import batch_key, batch_number
from health_predict.settings import ROOT, Settings

GROUPS = {
    "data": {"raw_encounters", "encounters", "quarantine", "initial", "future", "future_batch"},
    "training": {"training_set", "fitted_preprocessor", "hpo_results"},
    "registry": {"registered_model"},
    "serving": {
        "readmission_bento",
        "readmission_image",
        "readmission_deployment",
        "rollback_drill",
    },
    "monitoring": {
        "batch_predictions",
        "performance_estimate",
        "drift_report",
        "batch_performance",
        "loop_report",
    },
}
PARTITIONED = {"future_batch", *GROUPS["monitoring"]} - {"loop_report"}
CHECKS = {
    "contract_is_kept": "encounters",
    "cohort_excludes_hospice_and_death": "encounters",
    "label_rate_is_plausible": "encounters",
    "no_patient_on_two_sides": "training_set",
    "no_label_leaks_into_features": "fitted_preprocessor",
    "challenger_beats_champion": "registered_model",
    "champion_is_recent": "registered_model",
    "scorer_agrees_with_pipeline": "readmission_bento",
    "serves_the_champion": "readmission_deployment",
    "champion_answers_after_the_drill": "rollback_drill",
    "drift_within_bounds": "drift_report",
    "calibration_holds": "batch_performance",
    "no_concept_drift": "batch_performance",
    "report_agrees_with_the_ledger": "loop_report",
}
BLOCKING = {
    "contract_is_kept",
    "cohort_excludes_hospice_and_death",
    "label_rate_is_plausible",
    "no_patient_on_two_sides",
    "no_label_leaks_into_features",
    "scorer_agrees_with_pipeline",
    "champion_answers_after_the_drill",
}
FRESH = {"raw_encounters", "future_batch", "registered_model", "readmission_deployment"}


@pytest.fixture(scope="module")
def repository() -> dg.RepositoryDefinition:
    return assemble(Settings()).get_repository_def()


def test_the_graph_holds_exactly_the_named_assets_in_their_groups(
    repository: dg.RepositoryDefinition,
) -> None:
    graph = repository.asset_graph
    found: dict[str, set[str]] = {}
    for key in graph.get_all_asset_keys():
        found.setdefault(str(graph.get(key).group_name), set()).add(key.to_user_string())
    assert found == GROUPS


def test_batches_are_the_only_partition_scheme(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    partitioned = {
        key.to_user_string()
        for key in graph.get_all_asset_keys()
        if graph.get(key).partitions_def is not None
    }
    assert partitioned == PARTITIONED
    assert batch_number(batch_key(17)) == 17


@pytest.mark.parametrize("key", ["batch", "batch-", "batch-x", "week-0001"])
def test_a_key_that_names_no_batch_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="batch-0001"):
        batch_number(key)


def test_checks_stand_beside_their_asset_and_the_right_ones_block(
    repository: dg.RepositoryDefinition,
) -> None:
    graph = repository.asset_graph
    checks = {key.name: key.asset_key.to_user_string() for key in graph.asset_check_keys}
    assert checks == CHECKS
    blocking = {key.name for key in graph.asset_check_keys if graph.get(key).blocking}
    assert blocking == BLOCKING


def test_every_asset_tells_its_reader_what_it_is(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.kinds, key


def test_freshness_is_watched_where_age_does_harm(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    fresh = {
        key.to_user_string()
        for key in graph.get_all_asset_keys()
        if graph.get(key).freshness_policy is not None
    }
    assert fresh == FRESH


SLICES = {"bootstrap", "ingest_batch", "retrain", "deploy", "drill", "report", "refresh_data"}


def test_the_jobs_are_the_slices_of_the_graph_and_an_approval(
    repository: dg.RepositoryDefinition,
) -> None:
    assert {job.name for job in JOBS} == {*SLICES, "approve", "reinstate"}
    assets = {
        job.name: {
            key.to_user_string()
            for key in repository.get_job(job.name).asset_layer.executable_asset_keys
        }
        for job in JOBS
    }
    assert set.union(*assets.values()) == {name for group in GROUPS.values() for name in group}
    assert assets["refresh_data"] == GROUPS["data"] - PARTITIONED
    assert not assets["approve"]


def test_the_loop_is_on_by_default(repository: dg.RepositoryDefinition) -> None:
    assert {s.name for s in repository.sensor_defs} == {
        "retrain_on_drift",
        "deploy_on_promotion",
        "matured_labels",
        "unfinished_batches",
        "served_traffic",
        "alerts",
        "run_failures",
    }
    assert {s.name for s in repository.schedule_defs} == {"arriving_batches", "daily_report"}
    for sensor in repository.sensor_defs:
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    for schedule in repository.schedule_defs:
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


@pytest.mark.parametrize(
    "command",
    [["dagster", "definitions", "validate"], ["dg", "check", "defs"]],
    ids=" ".join,
)
def test_dagster_s_own_commands_need_no_flag(command: list[str]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [str(tool), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name, value", [("ROWS", "12"), ("DEPLOYMENT", "cloud"), ("LABEL", "90d"), ("PORT", "0")]
)
def test_a_setting_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HEALTH_PREDICT_{name}", value)
    with pytest.raises(ValueError, match=name.lower()):
        Settings()


@pytest.mark.parametrize("name", ["bootstrap", "retrain"])
def test_a_training_is_a_kubernetes_job_with_requests_limits_and_an_end(
    repository: dg.RepositoryDefinition, name: str
) -> None:
    from dagster_k8s.job import (
        DagsterK8sJobConfig,
        construct_dagster_k8s_job,
        get_user_defined_k8s_config,
    )
    from kubernetes import client
    from kubernetes_validate import validate

    given = get_user_defined_k8s_config(repository.get_job(name).tags)
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="readmission-platform"), ["dagster"], name, given
    )
    made = client.ApiClient().sanitize_for_serialization(job)
    validate(made, "1.36", strict=True)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["memory"] == "2Gi"
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert made["spec"]["activeDeadlineSeconds"] > 0
    assert made["spec"]["ttlSecondsAfterFinished"] > 0


@pytest.mark.parametrize(
    ("source_url", "begins"),
    [
        ("", f"{ROOT}/health_predict/defs/"),
        ("https://github.com/owner/health_predict", "https://github.com/owner/health_predict/"),
    ],
)
def test_every_asset_links_to_its_code(source_url: str, begins: str) -> None:
    graph = assemble(Settings(source_url=source_url)).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        (reference,) = graph.get(key).metadata["dagster/code_references"].code_references
        place = getattr(reference, "url", None) or reference.file_path
        assert place.startswith(begins), key
