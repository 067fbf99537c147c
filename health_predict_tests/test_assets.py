"""The asset graph on a small synthetic cohort: real search, registry, Bento and port."""

import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import psutil
import pytest

from health_predict import schema, splits, story, supervisor
from health_predict.definitions import assemble
from health_predict.defs.automation import deploy_decision, retrain_decision
from health_predict.defs.facts import events, observations
from health_predict.defs.training import no_patient_on_two_sides
from health_predict.release import LocalPlatform, post
from health_predict.settings import Settings
from health_predict.tracking import Registry, RegistryError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class World:
    """One state folder with its instance and definitions."""

    settings: Settings
    instance: dg.DagsterInstance
    definitions: dg.Definitions

    def run(self, job: str, **arguments: Any) -> dg.ExecuteInProcessResult:
        return (
            self.definitions.get_repository_def()
            .get_job(job)
            .execute_in_process(instance=self.instance, **arguments)
        )

    def arrive(self, batch: str) -> dg.ExecuteInProcessResult:
        self.instance.add_dynamic_partitions("batches", [batch])
        return self.run("ingest_batch", partition_key=batch)

    def registry(self) -> Registry:
        return Registry(self.settings.tracking_uri, self.settings.var / "mlflow-artifacts")

    def told(self) -> story.LoopStory:
        return story.tell(self.instance)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    var = tmp_path_factory.mktemp("world") / "var"
    settings = Settings(var=var, rows=8_000, batches=4, trials=3, port=free_port(), seed=7)
    with dg.instance_for_test() as instance:
        yield World(settings, instance, assemble(settings))
    running = supervisor.status(settings.serving)
    if running is not None:
        psutil.Process(running.pid).terminate()
        psutil.wait_procs([psutil.Process(running.pid)], timeout=20)


@pytest.fixture(scope="module")
def champion(world: World) -> World:
    assert world.run("bootstrap").success
    return world


def test_the_first_champion_is_registered_with_its_source_and_its_reason(champion: World) -> None:
    version = champion.registry().champion()
    assert version is not None
    assert version.facts["data"] == "synthetic cohort"
    assert version.facts["window"] == "initial"
    assert "Promoted as the first champion" in version.facts["verdict"]
    (event,) = events(champion.instance, "registered_model")
    assert event.metadata["version"] == version.version


def test_one_mlflow_run_holds_search_trials_model_preprocessor_and_reference(
    champion: World,
) -> None:
    from mlflow import MlflowClient

    version = champion.registry().champion()
    assert version is not None
    client = MlflowClient(champion.settings.tracking_uri)
    children = client.search_runs(
        [client.get_run(version.run_id).info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{version.run_id}'",
    )
    assert len(children) == champion.settings.trials
    assert all(child.info.status == "FINISHED" for child in children)
    assert {a.path for a in client.list_artifacts(version.run_id)} >= {"preprocessor", "reference"}
    assert client.get_run(version.run_id).info.status == "FINISHED"
    stored = [p.name for p in champion.settings.var.rglob("*") if p.is_file()]
    assert not [name for name in stored if name.endswith((".pkl", ".pickle"))]


def test_the_drift_reference_holds_no_identifier(champion: World) -> None:
    version = champion.registry().champion()
    assert version is not None
    reference = champion.registry().reference(version)
    initial = pd.read_parquet(champion.settings.store / "initial.parquet")
    assert schema.ENCOUNTER_ID not in reference
    assert not set(reference[schema.PATIENT]) & set(initial[schema.PATIENT])


def test_a_model_file_that_was_changed_is_not_loaded(champion: World) -> None:
    version = champion.registry().champion()
    assert version is not None
    artifacts = champion.settings.var / "mlflow-artifacts"
    (model,) = [p for p in artifacts.rglob("model.skops") if "preprocessor" not in p.parts]
    kept = model.with_suffix(".kept")
    shutil.copy(model, kept)
    try:
        model.write_bytes(model.read_bytes() + b"x")
        with pytest.raises(RegistryError, match="was changed"):
            champion.registry().load(version)
    finally:
        kept.replace(model)


def test_a_test_side_patient_in_the_training_snapshot_fails_the_blocking_check(
    champion: World,
) -> None:
    snapshot = pd.read_parquet(champion.settings.store / "training_set.parquet")
    assert no_patient_on_two_sides(snapshot).passed
    moved = snapshot.copy()
    row = moved.index[moved[schema.SIDE] == "test"][0]
    moved.loc[row, schema.SIDE] = "train"
    assert not no_patient_on_two_sides(moved).passed


@pytest.fixture(scope="module")
def deployed(champion: World) -> World:
    assert deploy_decision(champion.instance).requests
    assert champion.run("deploy").success
    return champion


def test_the_champion_answers_with_the_score_of_its_pipeline(deployed: World) -> None:
    settings = deployed.settings
    platform = LocalPlatform(settings.serving, settings.port, settings.bentoml_home)
    version = deployed.registry().champion()
    assert version is not None
    assert platform.served_version() == version.version
    rows = pd.read_parquet(settings.store / "future.parquet").head(50)
    expected = deployed.registry().load(version).predict_proba(rows)[:, 1]
    for record, score in zip(rows[list(schema.INPUTS)].to_dict("records"), expected, strict=True):
        answer = post(f"{platform.url}/predict", record)
        assert answer["probability_score"] == pytest.approx(score, abs=1e-6)
        assert answer["model"]["version"] == version.version


def test_a_roll_out_that_is_done_is_not_asked_for_again(deployed: World) -> None:
    decision = deploy_decision(deployed.instance)
    assert not decision.requests
    assert "20 rows verified" in decision.sentence


@pytest.fixture(scope="module")
def watched(deployed: World) -> World:
    for batch in ("batch-0001", "batch-0002"):
        assert deployed.arrive(batch).success
    return deployed


def test_a_batch_is_scored_watched_and_told(watched: World) -> None:
    first = watched.told().batches[0]
    assert first.batch == "batch-0001"
    assert first.drift.statistic > first.drift.threshold, "the synthetic cohort drifts at once"
    assert first.auc is not None
    assert "told apart" in first.reason
    report = watched.settings.store / "drift_reports" / "batch-0001" / "report.html"
    assert "<html" in report.read_text()[:2000].lower()


def test_a_batch_that_is_ingested_again_changes_nothing(watched: World) -> None:
    scores = watched.settings.store / "batch_predictions" / "batch-0001.parquet"
    before = pd.read_parquet(scores)
    assert watched.run("ingest_batch", partition_key="batch-0001").success
    pd.testing.assert_frame_equal(pd.read_parquet(scores), before)
    assert [b.batch for b in watched.told().batches] == ["batch-0001", "batch-0002"]


@pytest.fixture(scope="module")
def retrained(watched: World) -> World:
    (request,) = retrain_decision(watched.instance, 0).requests
    tags = {"health_predict/trigger": str(request.trigger), "health_predict/attempt": "1"}
    assert watched.run("retrain", tags=tags).success
    return watched


def test_a_retraining_learns_from_all_that_arrived_and_settles_the_alarms(
    retrained: World,
) -> None:
    snapshot = pd.read_parquet(retrained.settings.store / "training_set.parquet")
    arrived = [
        pd.read_parquet(retrained.settings.store / "future_batch" / f"batch-000{n}.parquet")
        for n in (1, 2)
    ]
    initial = pd.read_parquet(retrained.settings.store / "initial.parquet")
    assert len(snapshot) == len(initial) + sum(map(len, arrived))
    assert (snapshot[schema.SIDE] == splits.side(snapshot[schema.PATIENT])).all()
    assert not retrain_decision(retrained.instance, 0).requests


def test_every_verdict_is_told_with_numbers(retrained: World) -> None:
    verdicts = len(events(retrained.instance, "registered_model"))
    verdicts += len(observations(retrained.instance, "registered_model"))
    assert verdicts == 2
    told = retrained.told()
    assert {b.decision for b in told.batches} <= {"promoted", "refused"}
    for batch in told.batches:
        assert "held-out encounters" in batch.reason


def test_a_refused_challenger_leaves_the_champion_and_runs_nothing_downstream(
    retrained: World,
) -> None:
    before = retrained.registry().champion()
    refusals = len(observations(retrained.instance, "registered_model"))
    result = retrained.run("retrain")  # the same data again cannot be better
    assert result.success
    assert retrained.registry().champion() == before
    told = observations(retrained.instance, "registered_model")
    assert len(told) == refusals + 1
    assert told[-1].metadata["sentence"].startswith("Refused")
    assert not result.asset_materializations_for_node("registered_model")
    (check,) = [
        e
        for e in result.get_asset_check_evaluations()
        if e.check_name == "challenger_beats_champion"
    ]
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.WARN


def test_no_identifier_is_written_where_people_look(retrained: World) -> None:
    initial = pd.read_parquet(retrained.settings.store / "initial.parquet")
    values = "|".join(str(v) for c in schema.IDENTIFIERS for v in initial[c].head(300))
    known = re.compile(rf"(?<![\d.])({values})(?![\d.])")  # not a part of some longer number
    looked_at: list[Path] = [
        *(retrained.settings.serving.glob("*.log")),
        *(retrained.settings.store / "drift_reports").rglob("*.html"),
        *(retrained.settings.var / "bentoml").rglob("*.json"),
    ]
    assert looked_at
    for path in looked_at:
        assert not known.search(path.read_text(errors="replace")), path
    log = "\n".join(str(e.message) for e in retrained.instance.all_logs(_newest_run(retrained)))
    assert not known.search(log)


def _newest_run(world: World) -> str:
    return world.instance.get_run_records(limit=1)[0].dagster_run.run_id
