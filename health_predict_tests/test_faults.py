"""What may go wrong between a drifted batch and its answer: nothing is lost or answered twice.

Ticks on a real instance; crashes under the real daemon are in `test_loop_faults`.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from mlflow import MlflowClient

from health_predict.definitions import assemble
from health_predict.defs.automation import deploy_decision
from health_predict.defs.decisions import MOST_ATTEMPTS
from health_predict.settings import Settings
from health_predict.tracking import MODEL, Registry
from health_predict_tests.ticks import champion, drift, record, start, tick

FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS


@pytest.fixture(scope="module")
def definitions() -> dg.RepositoryDefinition:
    return assemble(Settings()).get_repository_def()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as real:
        yield real


@pytest.fixture
def retrains(definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance) -> "Retrains":
    champion(instance)
    return Retrains(definitions, instance)


class Retrains:
    """The sensor `retrain_on_drift`, its cursor kept as the daemon keeps it."""

    def __init__(self, definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance) -> None:
        self.definitions, self.instance = definitions, instance
        self.cursor: str | None = None
        self.said = ""

    def tick(self) -> list[dg.RunRequest]:
        result = tick(self.definitions, self.instance, "retrain_on_drift", self.cursor)
        self.cursor = result.cursor
        requests = result.run_requests or []
        self.said = requests[0].tags["health_predict/reason"] if requests else result.skip_reason
        return requests

    def ends(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
        start(self.instance, request, status)


def test_a_drifted_batch_in_the_middle_of_a_burst_is_answered_once(retrains: Retrains) -> None:
    for batch, drifted in ((1, False), (2, True), (3, False)):
        drift(retrains.instance, batch, drifted=drifted)
    (request,) = retrains.tick()
    retrains.ends(request, SUCCESS)
    champion(retrains.instance, "2")
    assert retrains.tick() == []
    assert retrains.tick() == []


def test_a_training_that_fails_twice_and_then_works_is_one_answer(retrains: Retrains) -> None:
    drift(retrains.instance, 1, drifted=True)
    keys = []
    for status in (FAILURE, FAILURE, SUCCESS):
        (request,) = retrains.tick()
        keys.append(request.run_key)
        retrains.ends(request, status)
    assert len(set(keys)) == MOST_ATTEMPTS
    assert retrains.tick() == []


def test_a_training_that_fails_three_times_waits_for_a_person_and_says_so(
    retrains: Retrains,
) -> None:
    drift(retrains.instance, 1, drifted=True)
    for _ in range(MOST_ATTEMPTS):
        (request,) = retrains.tick()
        retrains.ends(request, FAILURE)
    assert retrains.tick() == []
    assert "retrain failed 3 times" in str(retrains.said)
    assert "by hand" in str(retrains.said)
    drift(retrains.instance, 2, drifted=True)  # and the next drifted batch is tried afresh
    (request,) = retrains.tick()
    assert request.tags["health_predict/attempt"] == "1"


def test_two_batches_that_drift_during_a_retraining_are_answered_by_the_next_together(
    retrains: Retrains,
) -> None:
    drift(retrains.instance, 1, drifted=True)
    (first,) = retrains.tick()
    started = start(retrains.instance, first, dg.DagsterRunStatus.STARTED)
    for batch in (2, 3):
        drift(retrains.instance, batch, drifted=True)
        assert retrains.tick() == []
        assert "under way" in str(retrains.said)
    retrains.instance.delete_run(started.run_id)
    first.tags["health_predict/newest_batch"] = "1"  # what it learned from
    retrains.ends(first, SUCCESS)
    champion(retrains.instance, "2")
    (second,) = retrains.tick()
    assert second.tags["health_predict/attempt"] == "1"
    assert "Retraining for batch-0002, batch-0003" in str(retrains.said)
    retrains.ends(second, SUCCESS)
    champion(retrains.instance, "3")
    assert retrains.tick() == []


def test_a_champion_that_was_moved_by_hand_is_rolled_out_once_and_never_vanishes(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    def deployed(version: str) -> None:
        facts = {"wanted": version, "version": version, "rolled_back": False}
        record(instance, "readmission_deployment", sentence="It answers.", **facts)

    champion(instance, "2")
    deployed("2")
    record(instance, "batch_predictions", "batch-0004", champion_version="1")
    (request,) = tick(definitions, instance, "deploy_on_promotion").run_requests or []
    assert "moved to it by hand" in request.tags["health_predict/reason"]
    start(instance, request, SUCCESS)
    deployed("1")
    for _ in range(2):
        result = tick(definitions, instance, "deploy_on_promotion")
        assert not result.run_requests
        assert "Version 1 was rolled out" in str(result.skip_reason)
    champion(instance, "3")  # a later promotion is rolled out as ever
    (request,) = tick(definitions, instance, "deploy_on_promotion").run_requests or []
    assert "version 3" in request.tags["health_predict/reason"]


def test_a_batch_that_is_requested_twice_is_one_run_and_one_answer(retrains: Retrains) -> None:
    drift(retrains.instance, 1, drifted=True)
    drift(retrains.instance, 1, drifted=True)
    (request,) = retrains.tick()
    retrains.ends(request, SUCCESS)
    champion(retrains.instance, "2")
    assert retrains.tick() == []


def test_a_cursor_that_is_lost_brings_no_old_alarm_back(retrains: Retrains) -> None:
    drift(retrains.instance, 1, drifted=True)
    (request,) = retrains.tick()
    retrains.ends(request, SUCCESS)
    champion(retrains.instance, "2")
    retrains.cursor = None
    assert retrains.tick() == []


@pytest.fixture(scope="module")
def ready(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Settings, dg.DagsterInstance]]:
    var = tmp_path_factory.mktemp("ready") / "var"
    settings = Settings(
        var=var,
        rows=8_000,
        batches=4,
        trials=3,
        families="logistic_regression",
        search_backend="serial",
    )
    with dg.instance_for_test() as real:
        repository = assemble(settings).get_repository_def()
        assert repository.get_job("bootstrap").execute_in_process(instance=real).success
        yield settings, real


def test_a_batch_that_met_an_unreachable_store_is_ingested_once_it_is_back(
    ready: tuple[Settings, dg.DagsterInstance],
) -> None:
    settings, instance = ready
    repository = assemble(settings).get_repository_def()
    job = repository.get_job("ingest_batch")
    before = _champion(settings)
    instance.add_dynamic_partitions("batches", ["batch-0001"])
    away = Path(settings.store_uri).rename(Path(settings.store_uri).with_name("away"))
    Path(settings.store_uri).write_text("not a folder")  # what an unmounted share looks like
    try:
        failed = job.execute_in_process(
            instance=instance, partition_key="batch-0001", raise_on_error=False
        )
        assert not failed.success
    finally:
        Path(settings.store_uri).unlink()
        away.rename(Path(settings.store_uri))
    (request,) = tick(repository, instance, "unfinished_batches").run_requests or []
    assert (request.partition_key, request.asset_selection) == ("batch-0001", None)
    assert request.tags["health_predict/attempt"] == "2"
    assert job.execute_in_process(instance=instance, partition_key="batch-0001").success
    assert not tick(repository, instance, "unfinished_batches").run_requests
    assert _champion(settings) == before


def test_a_batch_keeps_the_champion_of_its_day_and_the_next_meets_one_moved_by_hand(
    ready: tuple[Settings, dg.DagsterInstance],
) -> None:
    settings, instance = ready
    repository = assemble(settings).get_repository_def()
    job = repository.get_job("ingest_batch")
    registry = _registry(settings)
    first = registry.champion()
    assert first is not None

    def ingested(key: str) -> pd.DataFrame:
        instance.add_dynamic_partitions("batches", [key])
        assert job.execute_in_process(instance=instance, partition_key=key).success
        return pd.read_parquet(Path(settings.store_uri) / "batch_predictions" / f"{key}.parquet")

    before = ingested("batch-0003")
    source = MlflowClient(settings.tracking_uri).get_model_version(MODEL, first.version).source
    second = registry.register(str(source), first.run_id, first.family, first.facts)
    registry.promote(second.version)  # as a person would in MLflow's UI
    try:
        pd.testing.assert_frame_equal(ingested("batch-0003"), before)
        assert not deploy_decision(instance).sentence.count("by hand")
        assert set(ingested("batch-0004")["model_version"]) == {second.version}
        served = {"wanted": first.version, "version": first.version, "rolled_back": False}
        record(instance, "readmission_deployment", sentence="It answers.", **served)
        record(instance, "batch_predictions", "batch-0004", champion_version=second.version)
        assert f"Rolling out version {second.version}" in deploy_decision(instance).sentence
    finally:
        registry.promote(first.version)


def _registry(settings: Settings) -> Registry:
    return Registry(settings.tracking_uri, settings.artifacts)


def _champion(settings: Settings) -> str | None:
    found = _registry(settings).champion()
    return found.version if found else None


def test_a_person_forces_a_training_by_name_and_reason(retrains: Retrains) -> None:
    from health_predict.defs.recording import force_retrain

    with pytest.raises(ValueError, match="by somebody for a reason"):
        force_retrain(retrains.instance, "Ada Lovelace", " ")
    assert retrains.tick() == []
    force_retrain(retrains.instance, "Ada Lovelace", "the hospital recoded its admissions")
    (request,) = retrains.tick()
    assert "Forced by Ada Lovelace: the hospital recoded" in request.tags["health_predict/reason"]
    retrains.ends(request, SUCCESS)
    assert retrains.tick() == []


def test_the_age_of_the_champion_is_a_check_with_its_limit(
    ready: tuple[Settings, dg.DagsterInstance],
) -> None:
    settings, instance = ready
    for limit, passed in ((60.0, True), (1e-9, False)):
        aged = settings.model_copy(update={"oldest_champion": limit})
        job = assemble(aged).get_repository_def().get_job("ingest_batch")
        instance.add_dynamic_partitions("batches", ["batch-0002"])
        result = job.execute_in_process(
            instance=instance,
            partition_key="batch-0002",
            op_selection=["registered_model_champion_is_recent"],
        )
        (check,) = result.get_asset_check_evaluations()
        assert check.check_name == "champion_is_recent"
        assert check.passed is passed
