"""Ticks of sensors and schedule on a real instance: what they request, skip and remember."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from health_predict.definitions import assemble
from health_predict.settings import Settings
from health_predict_tests.ticks import champion, drift, record, start, tick


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return assemble(Settings(batches_per_tick=3)).get_repository_def()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as real:
        yield real


def test_an_empty_instance_trains_its_first_champion(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    result = tick(definitions, instance, "retrain_on_drift")
    assert [r.job_name for r in result.run_requests or []] == ["bootstrap"]


def test_a_burst_of_three_batches_with_drift_in_the_middle_is_seen(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    champion(instance)
    for batch, drifted in ((1, False), (2, True), (3, False)):
        drift(instance, batch, drifted=drifted)
    result = tick(definitions, instance, "retrain_on_drift")
    (request,) = result.run_requests or []
    assert request.job_name == "retrain"
    assert "batch-0002" in request.tags["health_predict/reason"]


def test_a_tick_that_died_before_its_cursor_was_kept_asks_for_the_same_run(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    champion(instance)
    drift(instance, 1, drifted=True)
    first = tick(definitions, instance, "retrain_on_drift")
    again = tick(definitions, instance, "retrain_on_drift")
    assert [r.run_key for r in first.run_requests or []] == [
        r.run_key for r in again.run_requests or []
    ]


def test_a_failed_retrain_is_requested_again_and_a_success_settles_it(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    champion(instance)
    drift(instance, 1, drifted=True)
    (first,) = tick(definitions, instance, "retrain_on_drift").run_requests or []
    start(instance, first, dg.DagsterRunStatus.FAILURE)
    (second,) = tick(definitions, instance, "retrain_on_drift").run_requests or []
    assert second.run_key != first.run_key
    assert second.tags["health_predict/attempt"] == "2"
    start(instance, second, dg.DagsterRunStatus.SUCCESS)
    settled = tick(definitions, instance, "retrain_on_drift")
    assert not settled.run_requests
    assert int(settled.cursor or 0) > 0


def test_a_settled_alarm_is_not_read_again_but_a_later_one_is(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    champion(instance)
    drift(instance, 1, drifted=False)
    calm = tick(definitions, instance, "retrain_on_drift")
    drift(instance, 2, drifted=True)
    result = tick(definitions, instance, "retrain_on_drift", calm.cursor)
    (request,) = result.run_requests or []
    assert "batch-0002" in request.tags["health_predict/reason"]


def test_an_open_alarm_stays_before_the_cursor_until_it_is_answered(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    champion(instance)
    drift(instance, 1, drifted=True)
    (request,) = tick(definitions, instance, "retrain_on_drift").run_requests or []
    start(instance, request, dg.DagsterRunStatus.STARTED)
    waiting = tick(definitions, instance, "retrain_on_drift")
    assert not waiting.run_requests
    assert waiting.cursor == "0"
    assert "under way" in str(waiting.skip_reason)


def test_a_promotion_requests_its_roll_out_once(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    champion(instance, "1")
    champion(instance, "2")
    (request,) = tick(definitions, instance, "deploy_on_promotion").run_requests or []
    assert request.job_name == "deploy"
    assert "version 2" in request.tags["health_predict/reason"]
    record(
        instance, "readmission_deployment", wanted="2", rolled_back=False, sentence="It answers."
    )
    assert not tick(definitions, instance, "deploy_on_promotion").run_requests


def test_outcomes_that_matured_are_scored_by_the_job_of_their_batch(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    record(instance, "future_batch", "batch-0001")
    (request,) = tick(definitions, instance, "matured_labels").run_requests or []
    assert request.partition_key == "batch-0001"
    assert request.asset_selection == [dg.AssetKey("batch_performance")]


def schedule_tick(definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance) -> Any:
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=datetime(2026, 1, 1, tzinfo=UTC)
    )
    return definitions.get_schedule_def("arriving_batches")(context)


def test_batches_arrive_until_the_future_is_over(
    definitions: dg.RepositoryDefinition, instance: dg.DagsterInstance
) -> None:
    assert isinstance(schedule_tick(definitions, instance), dg.SkipReason)
    record(instance, "future", batches=4)
    champion(instance)
    first, second = (schedule_tick(definitions, instance) for _ in range(2))
    assert [r.partition_key for r in first] == ["batch-0001", "batch-0002", "batch-0003"]
    assert [r.partition_key for r in second] == ["batch-0004"]
    over = schedule_tick(definitions, instance)
    assert "future is over" in over.skip_message


def test_by_seconds_the_same_batches_arrive_by_a_sensor(instance: dg.DagsterInstance) -> None:
    repository = assemble(Settings(batches_per_tick=3, cadence="5")).get_repository_def()
    assert "arriving_batches" not in {schedule.name for schedule in repository.schedule_defs}
    assert repository.get_sensor_def("arriving_batches").minimum_interval_seconds == 5
    record(instance, "future", batches=4)
    champion(instance)
    first, second, over = (tick(repository, instance, "arriving_batches") for _ in range(3))
    assert [r.partition_key for r in first.run_requests or []] == [
        *("batch-0001", "batch-0002", "batch-0003")
    ]
    assert [r.partition_key for r in second.run_requests or []] == ["batch-0004"]
    assert not over.run_requests
    assert "future is over" in str(over.skip_reason)


def test_a_tick_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, dagster as dg\n"
        "from health_predict.definitions import assemble\n"
        "from health_predict.settings import Settings\n"
        "d = assemble(Settings()).get_repository_def()\n"
        "with dg.DagsterInstance.ephemeral() as i:\n"
        "    for s in d.sensor_defs:\n"
        "        if isinstance(s, dg.RunStatusSensorDefinition):\n"
        "            continue\n"
        "        c = dg.build_sensor_context(instance=i, repository_def=d, sensor_name=s.name)\n"
        "        s.evaluate_tick(c)\n"
        "heavy = {'ray', 'mlflow', 'evidently', 'bentoml', 'xgboost', 'kubernetes'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
