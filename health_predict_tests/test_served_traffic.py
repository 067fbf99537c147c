"""Served traffic becomes batches: cut once, read again as it was, watched like what arrives."""

import dataclasses
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from health_predict import prediction_log, schema, served, story
from health_predict.definitions import assemble
from health_predict.defs import monitoring
from health_predict.defs.automation import deploy_decision
from health_predict.defs.facts import HELD_BACK, Run, events
from health_predict.defs.partitions import (
    arriving,
    batch_key,
    batch_number,
    is_served,
    served_key,
    served_number,
)
from health_predict.defs.traffic import MOST_OPEN, decide_cut, decide_traffic, past_help
from health_predict.prediction_log import VERIFICATION, PredictionLog
from health_predict.settings import Settings
from health_predict.store import Store, open_store

ROWS = 1_000
BROKEN = {"change": "Ch", "diabetesMed": "No"}
"""The service takes it: each value is allowed, only together they break the contract."""


def log_rows(
    settings: Settings,
    rows: list[dict[str, Any]],
    *,
    version: str = "1",
    request_id: str | None = None,
) -> None:
    """Logs encounters as the service does, scored .0, .001, ... in turn."""
    assert settings.predictions is not None
    log = PredictionLog(settings.predictions)
    for number, row in enumerate(rows):
        log.add(request_id or str(uuid4()), version, number / 1_000, row)
    log.close()
    assert log.written == len(rows)


def ran(key: str, state: Any, **facts: Any) -> Run:
    run = Run("a1b2c3d4e5", "ingest_batch", state, None, 1, None, 0.0, partition=key)
    return dataclasses.replace(run, **facts)


def test_served_and_arriving_keys_are_told_apart_and_never_mistaken() -> None:
    keys = ["served-0001", "batch-0010", "batch-0002", "served-0002"]
    assert arriving(keys) == ["batch-0002", "batch-0010"]
    assert [is_served(key) for key in keys] == [True, False, False, True]
    assert served_number(served_key(12)) == 12
    with pytest.raises(ValueError, match="batch-0001"):
        batch_number(served_key(1))
    with pytest.raises(ValueError, match="served-0001"):
        served_number(batch_key(1))


def test_the_columns_of_scores_have_one_name() -> None:
    assert (served.PROBABILITY, served.VERSION) == (monitoring.PROBABILITY, monitoring.VERSION)


def test_too_few_predictions_are_no_batch_and_are_counted() -> None:
    words, fresh = decide_cut([], set(), {}, 999, 1_000)
    assert fresh is None
    assert words == "999 of the 1,000 predictions of a batch are logged."


def test_slices_are_numbered_on_from_the_newest() -> None:
    assert decide_cut([], set(), {}, 1_000, 1_000)[1] == "served-0001"
    known = [served_key(n) for n in range(1, 10)]
    assert decide_cut(known, set(known), {}, 1_000, 1_000)[1] == "served-0010"


def test_no_more_is_cut_than_is_dealt_with() -> None:
    known = [served_key(n) for n in range(1, MOST_OPEN + 1)]
    words, fresh = decide_cut(known, set(), {}, 1_000, 1_000)
    assert fresh is None
    assert "served-0001" in words
    assert decide_cut(known, known[:1], {}, 1_000, 1_000)[1] is not None
    assert decide_cut(known, set(), known[:1], 1_000, 1_000)[1] is not None


def test_a_slice_is_asked_for_until_it_was_tested_for_drift() -> None:
    key = "served-0001"
    (first,) = decide_traffic([key], set(), [], "").requests
    assert (first.job, first.partition, first.attempt) == ("ingest_batch", key, 1)
    assert decide_traffic([key], set(), [], "").requests == (first,)
    assert not decide_traffic([key], set(), [ran(key, "running")], "").requests
    (second,) = decide_traffic([key], set(), [ran(key, "failed")], "").requests
    assert (second.attempt, second.run_key == first.run_key) == (2, False)
    assert not decide_traffic([key], {key}, [ran(key, "failed")], "").requests


def test_a_slice_that_keeps_failing_is_told_to_a_person_and_the_next_goes_on() -> None:
    runs = [ran("served-0001", "failed")] * 3
    decision = decide_traffic(["served-0001", "served-0002"], set(), runs, "news")
    assert decision.alert
    assert "failed 3 times" in decision.sentence
    assert [request.partition for request in decision.requests] == ["served-0002"]


def test_a_slice_that_is_held_back_is_told_and_not_tried_again() -> None:
    runs = [ran("served-0001", "failed", held_back="served-0001 is held back: ...")]
    assert past_help(["served-0001"], set(), runs) == {"served-0001": runs[0].held_back}
    decision = decide_traffic(["served-0001"], set(), runs, "news")
    assert decision.alert
    assert not decision.requests


@dataclass(frozen=True)
class World:
    """One state folder with its instance and definitions."""

    settings: Settings
    instance: dg.DagsterInstance
    repository: dg.RepositoryDefinition

    def tick(self) -> dg.SensorResult:
        context = dg.build_sensor_context(
            instance=self.instance, repository_def=self.repository, sensor_name="served_traffic"
        )
        result = self.repository.get_sensor_def("served_traffic")(context)
        assert isinstance(result, dg.SensorResult)
        return result

    def requested(self) -> list[tuple[str | None, str | None]]:
        return [(r.partition_key, r.run_key) for r in self.tick().run_requests or []]

    def ingest(self, key: str) -> dg.ExecuteInProcessResult:
        return self.repository.get_job("ingest_batch").execute_in_process(
            instance=self.instance, partition_key=key, raise_on_error=False
        )

    def partitions(self) -> list[str]:
        return list(self.instance.get_dynamic_partitions("batches"))

    @property
    def store(self) -> Store:
        return open_store(self.settings.store_uri)

    def stored(self, asset: str, key: str) -> pd.DataFrame:
        return pd.read_parquet(Path(self.settings.store_uri) / asset / f"{key}.parquet")


def build(var: Path, instance: dg.DagsterInstance) -> World:
    settings = Settings(
        var=var,
        rows=8_000,
        trials=3,
        search_backend="serial",
        families="logistic_regression",
        served_batch_rows=ROWS,
    )
    return World(settings, instance, assemble(settings).get_repository_def())


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world with the record of a champion and no model."""
    monkeypatch.delenv(prediction_log.FOLDER, raising=False)
    with dg.instance_for_test() as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization("registered_model", metadata={"version": "1"})
        )
        yield build(tmp_path / "var", instance)


EXAMPLES = [schema.EXAMPLE] * ROWS


def test_without_enough_traffic_nothing_happens_and_it_is_said_why(fresh: World) -> None:
    log_rows(fresh.settings, EXAMPLES[:-1])
    result = fresh.tick()
    assert not result.run_requests
    assert result.skip_reason is not None
    assert "999 of the 1,000" in str(result.skip_reason.skip_message)
    assert fresh.partitions() == []


def test_where_no_log_is_written_that_is_the_reason(fresh: World) -> None:
    settings = fresh.settings.model_copy(update={"prediction_log": ""})
    silent = dataclasses.replace(fresh, repository=assemble(settings).get_repository_def())
    result = silent.tick()
    assert result.skip_reason is not None
    assert "HEALTH_PREDICT_PREDICTION_LOG" in str(result.skip_reason.skip_message)


def test_before_there_is_a_champion_no_slice_is_cut(tmp_path: Path) -> None:
    with dg.instance_for_test() as instance:
        empty = build(tmp_path / "var", instance)
        log_rows(empty.settings, EXAMPLES)
        assert empty.requested() == []
        assert served.slices(empty.store) == []


def test_a_tick_cuts_a_slice_and_the_next_one_asks_for_the_same_run(fresh: World) -> None:
    log_rows(fresh.settings, [*EXAMPLES, *EXAMPLES[:10]])
    asked = fresh.requested()
    assert asked == [("served-0001", "ingest_batch:served-0001:1")]
    assert fresh.partitions() == ["served-0001"]
    assert fresh.requested() == asked
    assert served.slices(fresh.store) == ["served-0001"]


def test_a_tick_that_was_killed_after_the_cut_is_made_up_for(fresh: World) -> None:
    log_rows(fresh.settings, EXAMPLES)
    fresh.tick()
    fresh.instance.delete_dynamic_partition("batches", "served-0001")
    assert fresh.requested() == [("served-0001", "ingest_batch:served-0001:1")]
    assert fresh.partitions() == ["served-0001"]


def test_every_prediction_is_in_one_slice_and_requests_of_roll_outs_are_in_none(
    fresh: World,
) -> None:
    ids = [f"ask-{part}{number}" for part in "abc" for number in range(ROWS)]
    for part in range(3):
        assert fresh.settings.predictions is not None
        log = PredictionLog(fresh.settings.predictions)
        for number in range(ROWS):
            log.add(ids[part * ROWS + number], "1", 0.5, schema.EXAMPLE)
            if number % 50 == 0:
                log.add(VERIFICATION, "1", 0.5, schema.EXAMPLE)
        log.close()
        fresh.tick()
    cut = [served.find(fresh.store, key) for key in served.slices(fresh.store)]
    assert [one.rows for one in cut] == [ROWS] * 3
    assert sum(one.left_out for one in cut) == 60
    kept = [row["request_id"] for one in cut for row in served._rows(fresh.store, one.key)]
    assert sorted(kept) == sorted(ids)


def test_a_slice_is_never_cut_twice(tmp_path: Path, store: Store) -> None:
    settings = Settings(var=tmp_path / "var")
    log_rows(settings, EXAMPLES)
    assert settings.predictions is not None
    what = served.waiting(settings.predictions, None, ROWS)
    served.cut(store, "served-0001", what)
    with pytest.raises(served.SliceError, match="cut once"):
        served.cut(store, "served-0001", what)


def test_a_slice_that_was_changed_is_refused(tmp_path: Path, store: Store) -> None:
    settings = Settings(var=tmp_path / "var")
    log_rows(settings, EXAMPLES)
    assert settings.predictions is not None
    served.cut(store, "served-0001", served.waiting(settings.predictions, None, ROWS))
    kept = store.read("served/served-0001.jsonl")
    store.write("served/served-0001.jsonl", b"\n".join(kept.splitlines()[:-1]))
    with pytest.raises(served.SliceError, match="holds 999 rows and was cut with 1000"):
        served.table(store, "served-0001")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (BROKEN, "a drug was changed though none was given"),
        ({"time_in_hospital": 15}, "time_in_hospital: '15' is not a whole number from 1 to 14"),
        ({"time_in_hospital": None}, "time_in_hospital"),
        ({"race": None}, "race: no text"),
        ({"age": "[15-25)"}, "age: '[15-25)' is not one of"),
    ],
)
def test_a_served_row_that_breaks_the_contract_is_in_quarantine_with_its_reason(
    tmp_path: Path, change: dict[str, Any], reason: str, store: Store
) -> None:
    settings = Settings(var=tmp_path / "var")
    rows: list[dict[str, Any]] = [dict(schema.EXAMPLE) for _ in range(ROWS)]
    log_rows(settings, rows)
    assert settings.predictions is not None
    what = served.waiting(settings.predictions, None, ROWS)
    what.rows[7] |= change
    served.cut(store, "served-0001", what)
    frame, broken = served.table(store, "served-0001")
    assert len(frame) == ROWS - 1
    (told,) = broken["reason"]
    assert told.startswith(reason)
    assert 0.007 not in set(frame[served.PROBABILITY])
    assert not {*schema.IDENTIFIERS, schema.OUTCOME} & {*broken.columns}


def test_served_rows_are_typed_as_arriving_ones_and_are_nobodys(
    tmp_path: Path, cohort: pd.DataFrame, store: Store
) -> None:
    settings = Settings(var=tmp_path / "var")
    sent = cohort[list(schema.INPUTS)].head(ROWS)
    log_rows(settings, sent.to_dict("records"))
    assert settings.predictions is not None
    served.cut(store, "served-0001", served.waiting(settings.predictions, None, ROWS))
    frame, broken = served.table(store, "served-0001")
    assert broken.empty
    shared = [*schema.IDENTIFIERS, *schema.INPUTS, schema.POSITION]
    assert list(frame.columns) == [*shared, served.PROBABILITY, served.VERSION]
    pd.testing.assert_series_equal(frame[shared].dtypes, cohort[shared].dtypes)
    pd.testing.assert_frame_equal(frame[list(schema.INPUTS)], sent)
    assert (frame[schema.PATIENT] < 0).all()
    assert frame[schema.PATIENT].is_unique
    np.testing.assert_array_equal(frame[served.PROBABILITY], np.arange(ROWS) / 1_000)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A champion, an arrived batch, and 2,000 served predictions: the second half is emergencies.

    Ten rows of the first break the contract, and a hundred of the third slice.
    """
    assert prediction_log.FOLDER not in os.environ
    with dg.instance_for_test() as instance:
        made = build(tmp_path_factory.mktemp("served") / "var", instance)
        bootstrap = made.repository.get_job("bootstrap")
        assert bootstrap.execute_in_process(instance=instance).success
        rows = pd.read_parquet(Path(made.settings.store_uri) / "initial.parquet").tail(ROWS)
        usual: list[dict[str, Any]] = rows[list(schema.INPUTS)].to_dict("records")
        broken = [row | BROKEN if n < 10 else row for n, row in enumerate(usual)]
        moved = [row | {"admission_type_id": 1, "admission_source_id": 7} for row in usual]
        moved = [row | {"number_emergency": 9, "number_inpatient": 9} for row in moved]
        mostly = [row | BROKEN if n < 100 else row for n, row in enumerate(usual)]
        for part in (broken, moved, mostly):
            log_rows(made.settings, part)
        yield made


@pytest.fixture(scope="module")
def watched(world: World) -> World:
    for number in (1, 2, 3):
        assert world.requested()[-1] == (
            f"served-000{number}",
            f"ingest_batch:served-000{number}:1",
        )
    assert world.ingest("served-0001").success
    return world


def test_a_slice_becomes_a_batch_with_the_scores_that_were_served(watched: World) -> None:
    batch = watched.stored("future_batch", "served-0001")
    assert len(batch) == ROWS - 10
    scored = watched.stored("batch_predictions", "served-0001")
    np.testing.assert_array_equal(scored["probability"], np.arange(10, ROWS) / 1_000)
    assert set(scored["model_version"]) == {"1"}
    (event,) = events(watched.instance, "future_batch")
    assert event.metadata["quarantined"] == 10
    kept = pd.read_parquet(io.BytesIO(watched.store.read("served/quarantine-served-0001.parquet")))
    assert set(kept["reason"]) == {"a drug was changed though none was given"}


def test_a_batch_of_served_traffic_is_tested_for_drift_and_has_no_performance(
    watched: World,
) -> None:
    (report,) = events(watched.instance, "drift_report")
    assert report.partition == "served-0001"
    assert report.metadata["drifted"] is False
    assert not events(watched.instance, "batch_performance")


def test_served_traffic_that_drifted_raises_an_alarm(watched: World) -> None:
    assert watched.ingest("served-0002").success
    report = events(watched.instance, "drift_report")[-1]
    assert (report.partition, report.metadata["drifted"]) == ("served-0002", True)


def test_a_slice_mostly_broken_is_held_back_and_who_sent_it_is_to_be_mended(
    watched: World,
) -> None:
    result = watched.ingest("served-0003")
    assert not result.success
    run = watched.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert "served-0003 is held back: 10% of its rows" in run.tags[HELD_BACK]
    assert "Mend the client" in run.tags[HELD_BACK]
    ticked = watched.tick()
    assert "served-0003" in str(ticked.skip_reason)
    assert not ticked.run_requests


def test_a_slice_read_again_after_the_log_is_gone_gives_equal_rows(watched: World) -> None:
    before = {
        asset: watched.stored(asset, "served-0001")
        for asset in ("future_batch", "batch_predictions")
    }
    assert watched.settings.predictions is not None
    for path in watched.settings.predictions.iterdir():
        path.unlink()
    assert watched.ingest("served-0001").success
    for asset, frame in before.items():
        pd.testing.assert_frame_equal(watched.stored(asset, "served-0001"), frame)


def test_a_slice_that_was_never_cut_cannot_be_materialised(watched: World) -> None:
    watched.instance.add_dynamic_partitions("batches", ["served-0009"])
    result = watched.ingest("served-0009")
    (failure,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    assert "there is no slice served-0009" in str(failure.event_specific_data)
    watched.instance.delete_dynamic_partition("batches", "served-0009")


def test_nothing_is_learned_from_served_traffic_and_the_story_goes_on(watched: World) -> None:
    initial = pd.read_parquet(Path(watched.settings.store_uri) / "initial.parquet")
    retrain = watched.repository.get_job("retrain")
    result = retrain.execute_in_process(
        instance=watched.instance, asset_selection=[dg.AssetKey("training_set")]
    )
    assert result.success
    snapshot = pd.read_parquet(Path(watched.settings.store_uri) / "training_set.parquet")
    assert len(snapshot) == len(initial)
    assert (snapshot[schema.PATIENT] > 0).all()
    assert story.tell(watched.instance).batches == []


def test_the_other_sensors_bear_served_batches(watched: World) -> None:
    for name in ("retrain_on_drift", "matured_labels"):
        context = dg.build_sensor_context(
            instance=watched.instance, repository_def=watched.repository, sensor_name=name
        )
        result = watched.repository.get_sensor_def(name)(context)
        requests = result.run_requests or []
        assert [r.job_name for r in requests] == (["retrain"] if "drift" in name else [])
    arrival = watched.repository.get_schedule_def("arriving_batches")
    (asked,) = arrival(dg.build_schedule_context(instance=watched.instance))
    assert asked.partition_key == "batch-0001"


def test_scores_served_by_an_older_version_do_not_look_like_an_alias_moved_by_hand(
    watched: World,
) -> None:
    for asset, facts in (
        ("registered_model", {"version": "2", "sentence": "Promoted."}),
        ("readmission_deployment", {"wanted": "2", "version": "2", "sentence": "Live."}),
    ):
        watched.instance.report_runless_asset_event(dg.AssetMaterialization(asset, metadata=facts))
    assert watched.ingest("served-0001").success
    decision = deploy_decision(watched.instance)
    assert not decision.requests, decision.sentence
