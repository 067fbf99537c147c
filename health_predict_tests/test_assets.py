"""The asset graph on a small synthetic cohort: real search, registry, Bento and port."""

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import pandas as pd
import psutil
import pytest
from sklearn.metrics import roc_auc_score
from starlette.testclient import TestClient

from health_predict import encounters, schema, service, splits, story, supervisor
from health_predict.definitions import assemble
from health_predict.defs.automation import deploy_decision, matured_decision, retrain_decision
from health_predict.defs.facts import events, observations
from health_predict.defs.recording import move_alias
from health_predict.defs.training import no_patient_on_two_sides
from health_predict.ledger import Entry, Ledger
from health_predict.local_platform import LocalPlatform
from health_predict.loop_report import LoopReport
from health_predict.models import FAMILIES
from health_predict.release import NAME
from health_predict.release_records import ReleaseRecords
from health_predict.settings import Settings
from health_predict.store import open_store
from health_predict.tracking import MODEL, Registry, RegistryError
from health_predict.verification import LOAD_REQUESTS
from health_predict_tests.serving import loaded


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
        return Registry(self.settings.tracking_uri, self.settings.artifacts)

    def ledger(self) -> list[Entry]:
        """Returns the entries, verified against the digest that the registry remembers."""
        ledger = Ledger(open_store(self.settings.store_uri))
        assert ledger.verify(self.registry().ledger_head()) == len(ledger.entries())
        return ledger.entries()

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
    initial = pd.read_parquet(Path(champion.settings.store_uri) / "initial.parquet")
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
    snapshot = pd.read_parquet(Path(champion.settings.store_uri) / "training_set.parquet")
    assert no_patient_on_two_sides(snapshot).passed
    moved = snapshot.copy()
    row = moved.index[moved[schema.SIDE] == "test"][0]
    moved.loc[row, schema.SIDE] = "train"
    assert not no_patient_on_two_sides(moved).passed


def test_a_patient_on_two_sides_fails_the_run_and_nothing_is_learned(
    champion: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = splits.with_side

    def leaking(frame: pd.DataFrame) -> pd.DataFrame:
        sided = honest(frame)
        row = sided.index[sided[schema.SIDE] == "test"][0]
        sided.loc[row, schema.SIDE] = "train"
        return sided

    before = champion.registry().champion()
    monkeypatch.setattr(splits, "with_side", leaking)
    result = champion.run("retrain", raise_on_error=False)
    assert not result.success
    failed = {e.check_name for e in result.get_asset_check_evaluations() if not e.passed}
    assert failed == {"no_patient_on_two_sides"}
    made = {e.asset_key.to_user_string() for e in result.get_asset_materialization_events()}
    assert made == {"training_set"}
    assert champion.registry().champion() == before


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
    rows = pd.read_parquet(Path(settings.store_uri) / "future.parquet").head(50)
    expected = deployed.registry().load(version).predict_proba(rows)[:, 1]
    for record, score in zip(rows[list(schema.INPUTS)].to_dict("records"), expected, strict=True):
        _, answer = platform.ask("/predict", record)
        assert answer["probability_score"] == pytest.approx(score, abs=1e-6)
        assert answer["model"]["version"] == version.version


def test_a_roll_out_that_is_done_is_not_asked_for_again(deployed: World) -> None:
    decision = deploy_decision(deployed.instance)
    assert not decision.requests
    assert "20 rows verified" in decision.sentence


def test_the_ledger_tells_the_way_of_the_first_champion_to_its_port(deployed: World) -> None:
    entries = deployed.ledger()
    assert [e.kind for e in entries] == ["verdict", "registration", "alias_move", "release"]
    verdict, registration, move, release = entries
    version = deployed.registry().champion()
    assert version is not None
    assert verdict.why == version.facts["verdict"]
    assert verdict.facts["fingerprint"] == version.facts["fingerprint"]
    assert (registration.version, release.version) == (version.version, version.version)
    assert (move.before, move.after) == (None, version.version)


def test_the_release_is_on_record_with_its_digest_and_what_was_verified(deployed: World) -> None:
    (record,) = ReleaseRecords(open_store(deployed.settings.store_uri)).all()
    (event,) = events(deployed.instance, "readmission_deployment")
    assert record["outcome"] == "released"
    assert record["sentence"] == event.metadata["sentence"]
    assert record["image"]["digest"] in record["image"]["reference"]
    assert record["deployment"]["facts"] == {
        "golden_rows": 20,
        "load_requests": LOAD_REQUESTS,
        "failed": 0,
    }


def test_a_drill_rolls_a_bad_release_back_and_leaves_the_champion_answering(
    deployed: World,
) -> None:
    version = deployed.registry().champion()
    assert version is not None
    assert deployed.run("drill").success
    (sentence,) = deployed.told().rollbacks
    assert sentence.startswith(f"Drill: Rolled back: version {version.version}-drill scores golden")
    assert sentence.endswith(f"; version {version.version} answers.")
    entry = deployed.ledger()[-1]
    assert (entry.kind, entry.version, entry.why) == ("rollback", version.version, sentence)
    assert not deploy_decision(deployed.instance).requests


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
    report = Path(watched.settings.store_uri) / "drift_reports" / "batch-0001" / "report.html"
    assert "<html" in report.read_text()[:2000].lower()


def test_a_batch_that_is_ingested_again_changes_nothing(watched: World) -> None:
    scores = Path(watched.settings.store_uri) / "batch_predictions" / "batch-0001.parquet"
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
    snapshot = pd.read_parquet(Path(retrained.settings.store_uri) / "training_set.parquet")
    arrived = [
        pd.read_parquet(
            Path(retrained.settings.store_uri) / "future_batch" / f"batch-000{n}.parquet"
        )
        for n in (1, 2)
    ]
    initial = pd.read_parquet(Path(retrained.settings.store_uri) / "initial.parquet")
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
    newest = retrained.ledger()[-1]
    assert (newest.kind, newest.facts["promoted"]) == ("verdict", False)
    assert newest.why == told[-1].metadata["sentence"]


@pytest.fixture(scope="module")
def reported(retrained: World) -> tuple[World, LoopReport]:
    done = retrained.run("report")
    (check,) = done.get_asset_check_evaluations()
    assert check.passed, check.metadata["sentence"]
    made: LoopReport = done.asset_value("loop_report")
    return retrained, made


def test_the_report_tells_the_story_on_its_page_and_in_dagit(
    reported: tuple[World, LoopReport],
) -> None:
    world, made = reported
    assert made.story == world.told()
    assert made.page == str(world.settings.var / "loop.html")
    page = Path(made.page).read_text()
    assert made.headline in page
    assert [served.version for served in made.served] == ["1"], "version 1 was rolled out"
    (event,) = events(world.instance, "loop_report")
    assert event.metadata["sentence"] == made.headline
    assert event.metadata["timeline"].startswith("![The batches](data:image/png;base64,")
    for batch in made.batches:
        assert (Path(made.page).parent / f"store/drift_reports/{batch.told.batch}").is_dir()
        assert f'href="store/drift_reports/{batch.told.batch}/report.html"' in page
        assert batch.moved, "the synthetic cohort drifts at once"


def test_the_never_retrained_column_is_what_the_first_version_says_alone(
    reported: tuple[World, LoopReport],
) -> None:
    world, made = reported
    registry = world.registry()
    pipeline = registry.load(registry.version("1"))
    assert len(made.batches) == 2
    for batch in made.batches:
        stored = Path(world.settings.store_uri) / "future_batch" / f"{batch.told.batch}.parquet"
        frame = pd.read_parquet(stored)
        alone = pipeline.predict_proba(frame)[:, 1]
        assert batch.first is not None and batch.first.auc is not None
        assert batch.first.version == "1"
        assert batch.first.n == len(frame)
        assert batch.first.auc.value == pytest.approx(roc_auc_score(frame[schema.LABEL], alone))


def test_no_identifier_is_written_where_people_look(
    retrained: World, reported: tuple[World, LoopReport]
) -> None:
    initial = pd.read_parquet(Path(retrained.settings.store_uri) / "initial.parquet")
    values = "|".join(str(v) for c in schema.IDENTIFIERS for v in initial[c].head(300))
    known = re.compile(rf"(?<![\d.])({values})(?![\d.])")  # not a part of some longer number
    looked_at: list[Path] = [
        *(retrained.settings.serving.glob("*.log")),
        *(Path(retrained.settings.store_uri) / "drift_reports").rglob("*.html"),
        *(retrained.settings.var / "bentoml").rglob("*.json"),
        Path(reported[1].page),
        Path(retrained.settings.store_uri) / "loop_report.json",
    ]
    assert looked_at
    for path in looked_at:
        assert not known.search(path.read_text(errors="replace")), path
    log = "\n".join(str(e.message) for e in retrained.instance.all_logs(_newest_run(retrained)))
    assert not known.search(log)


def _newest_run(world: World) -> str:
    return world.instance.get_run_records(limit=1)[0].dagster_run.run_id


@contextmanager
def another(world: World, folder: Path, **values: Any) -> Iterator[World]:
    """Yields a world of its own with a quick search; BentoML keeps one store a process."""
    var = folder / "var"
    var.mkdir()
    world.settings.bentoml_home.mkdir(parents=True, exist_ok=True)
    (var / "bentoml").symlink_to(world.settings.bentoml_home)
    quick = {"rows": 16_000, "trials": 3, "search_backend": "serial", "seed": 7}
    settings = Settings(var=var, port=free_port(), **{**quick, **values})
    with dg.instance_for_test() as instance:
        yield World(settings, instance, assemble(settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_comes_from_the_search_to_the_answer_of_the_service(
    world: World, tmp_path: Path, family: str
) -> None:
    with another(world, tmp_path, families=family) as own:
        assert own.run("bootstrap").success
        version = own.registry().champion()
        assert version is not None
        assert version.family == family
        built = own.run("deploy", asset_selection=[dg.AssetKey("readmission_bento")])
        assert built.success
        folder = own.settings.bentoml_home / "models" / NAME / version.version
        rows = pd.read_parquet(Path(own.settings.store_uri) / "future.parquet").head(40)
        expected = own.registry().load(version).predict_proba(rows)[:, 1]
        records = rows[list(schema.INPUTS)].to_dict("records")
        with loaded(folder):
            client = TestClient(service.app)
            answers = [client.post("/predict", json=record).json() for record in records]
        told = [answer["probability_score"] for answer in answers]
        assert told == pytest.approx(expected, abs=1e-6)
        assert {answer["model"]["run_id"] for answer in answers} == {version.run_id}


@pytest.fixture(scope="module")
def waiting(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("waiting")
    with another(world, folder, families="logistic_regression", approval=True) as own:
        assert own.run("bootstrap").success
        yield own


def approve(world: World, **config: str) -> dg.ExecuteInProcessResult:
    ops = {"release_challenger": {"config": config}}
    return world.run("approve", run_config={"ops": ops}, raise_on_error=False)


def test_where_approval_is_asked_for_a_challenger_that_passed_waits(waiting: World) -> None:
    assert waiting.registry().champion() is None
    challenger = waiting.registry().challenger()
    assert challenger is not None
    assert not events(waiting.instance, "registered_model")
    (observed,) = observations(waiting.instance, "registered_model")
    assert observed.metadata["waiting_version"] == challenger.version
    assert "waits for the job approve" in observed.metadata["sentence"]
    assert not deploy_decision(waiting.instance).requests
    assert [e.kind for e in waiting.ledger()] == ["verdict", "registration"]


def test_a_challenger_that_waits_is_not_called_refused(waiting: World) -> None:
    decision = retrain_decision(waiting.instance, 0)
    assert not decision.requests
    assert "refused" not in decision.sentence
    assert "approve" in decision.sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reason": "  "}, "an approval needs a name and a reason"),
        ({"name": ""}, "an approval needs a name and a reason"),
        ({"version": "9"}, "version 9 does not wait for approval, version 1 does"),
    ],
)
def test_an_approval_that_says_too_little_or_the_wrong_version_releases_nothing(
    waiting: World, change: dict[str, str], words: str
) -> None:
    result = approve(waiting, **{"version": "1", "name": "Ada", "reason": "read it", **change})
    assert not result.success
    (failure,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    assert words in str(failure.event_specific_data)
    assert waiting.registry().champion() is None
    assert "approval" not in [e.kind for e in waiting.ledger()]


def test_an_approval_with_name_and_reason_releases_the_challenger_once(waiting: World) -> None:
    approval = {"version": "1", "name": "Ada Lovelace", "reason": "I read the card."}
    assert approve(waiting, **approval).success
    champion = waiting.registry().champion()
    assert champion is not None
    assert champion.version == "1"
    assert waiting.registry().challenger() is None
    entries = waiting.ledger()
    kinds = [e.kind for e in entries]
    assert kinds == ["verdict", "registration", "approval", "alias_move"]
    assert [e.who for e in entries[2:]] == ["Ada Lovelace"] * 2
    assert "I read the card." in entries[2].why
    (request,) = deploy_decision(waiting.instance).requests
    assert request.job == "deploy"
    assert "Ada Lovelace" in deploy_decision(waiting.instance).sentence
    assert not approve(waiting, **approval).success, "nothing waits any more"
    assert waiting.ledger() == entries


def reinstate(world: World, **config: str) -> dg.ExecuteInProcessResult:
    ops = {"reinstate_version": {"config": {"name": "Ada", "reason": "it erred", **config}}}
    return world.run("reinstate", run_config={"ops": ops}, raise_on_error=False)


@pytest.fixture(scope="module")
def succeeded(waiting: World) -> World:
    """A world in which version 2 took over from version 1."""
    if waiting.registry().champion() is None:
        assert approve(waiting, version="1", name="Ada", reason="read it").success
    registry = waiting.registry()
    first = registry.version("1")
    source = mlflow.MlflowClient(waiting.settings.tracking_uri).get_model_version(MODEL, "1").source
    registry.register(source, first.run_id, first.family, first.facts)
    context = dg.build_op_context()
    ledger = Ledger(open_store(waiting.settings.store_uri))
    move_alias(context, ledger, registry, "2", "A better one.")
    return waiting


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "2"}, "version 2 is the champion; versions to go back to: 1"),
        ({"version": "9"}, "version 9 was never champion; versions to go back to: 1"),
        ({"version": "1", "reason": " "}, "needs a name and a reason"),
    ],
)
def test_what_cannot_be_brought_back_leaves_the_champion(
    succeeded: World, change: dict[str, str], words: str
) -> None:
    before = succeeded.ledger()
    result = reinstate(succeeded, **change)
    (failure,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    assert words in str(failure.event_specific_data)
    assert succeeded.ledger() == before


def test_a_version_brought_back_by_name_and_reason_is_champion_and_rolled_out(
    succeeded: World,
) -> None:
    assert reinstate(succeeded, version="1").success
    champion = succeeded.registry().champion()
    assert champion is not None and champion.version == "1"
    newest = succeeded.ledger()[-1]
    assert (newest.kind, newest.who, newest.before, newest.after) == ("alias_move", "Ada", "2", "1")
    assert newest.why == "Brought back by Ada: it erred"
    (request,) = deploy_decision(succeeded.instance).requests
    assert request.job == "deploy"
    assert (
        "Rolling out version 1: Brought back by Ada" in deploy_decision(succeeded.instance).sentence
    )


BATCHES, BROKEN = 20, {"batch-0001": 0.60, "batch-0002": 0.03}


@dataclass(frozen=True)
class Damaged:
    """A world whose source has broken rows in two batches."""

    world: World
    source: Path
    whole: pd.DataFrame
    rows: dict[str, range]

    def broken(self, batch: str) -> pd.Index:
        span = self.rows[batch]
        return self.whole.index[span.start : span.start + int(BROKEN[batch] * len(span))]

    def write(self, *batches: str) -> None:
        """Writes the source with the rows of these batches broken."""
        frame = self.whole.copy()
        for batch in batches:
            frame.loc[self.broken(batch), "time_in_hospital"] = "many"
        frame.to_csv(self.source, index=False)

    def scored(self, batch: str) -> Path:
        return Path(self.world.settings.store_uri) / "batch_predictions" / f"{batch}.parquet"


@pytest.fixture(scope="module")
def damaged(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damaged]:
    folder = tmp_path_factory.mktemp("damaged")
    whole = encounters.read("synthetic", rows=16_000, seed=7)[0]
    order = whole["encounter_id"].astype(int).argsort(kind="stable")
    whole = whole.iloc[order].reset_index(drop=True)
    calendar = splits.Calendar(len(whole), BATCHES, 0)
    rows = {f"batch-000{n}": calendar.span(n) for n in (1, 2)}
    source = folder / "table.csv"
    values = {"data": str(source), "batches": BATCHES, "families": "logistic_regression"}
    with another(world, folder, **values) as own:
        made = Damaged(own, source, whole, rows)
        made.write(*BROKEN)
        assert own.run("bootstrap").success
        yield made


def ingest(damaged: Damaged, batch: str) -> dg.ExecuteInProcessResult:
    damaged.world.instance.add_dynamic_partitions("batches", [batch])
    return damaged.world.run("ingest_batch", partition_key=batch, raise_on_error=False)


def test_a_batch_with_a_few_broken_rows_is_scored_without_them(damaged: Damaged) -> None:
    assert ingest(damaged, "batch-0002").success
    scored = pd.read_parquet(damaged.scored("batch-0002"))
    ids = damaged.whole["encounter_id"].astype(int)
    broken, span = damaged.broken("batch-0002"), damaged.rows["batch-0002"]
    assert not set(scored[schema.ENCOUNTER_ID]) & set(ids[broken])
    assert set(scored[schema.ENCOUNTER_ID]) <= set(ids[span.start : span.stop])
    assert len(scored) > 0.9 * (len(span) - len(broken))
    (event,) = events(damaged.world.instance, "future_batch")
    assert event.metadata["quarantined"] == len(broken)


def test_a_batch_that_is_mostly_broken_is_held_back_and_told_to_a_person(
    damaged: Damaged,
) -> None:
    result = ingest(damaged, "batch-0001")
    assert not result.success
    assert not result.get_asset_materialization_events()
    assert not damaged.scored("batch-0001").exists()
    decision = matured_decision(damaged.world.instance, 0)
    assert decision.alert
    words = "batch-0001 is held back: 60% of its rows break the contract (at most 5% may)"
    assert words in decision.sentence
    assert "most often in time_in_hospital" in decision.sentence
    assert "refresh_data" in decision.sentence


def test_a_batch_that_was_held_back_is_scored_once_its_source_is_mended(
    damaged: Damaged,
) -> None:
    untouched = pd.read_parquet(
        Path(damaged.world.settings.store_uri) / "future_batch/batch-0002.parquet"
    )
    damaged.write("batch-0002")
    assert damaged.world.run("refresh_data").success
    assert ingest(damaged, "batch-0001").success
    scored = pd.read_parquet(damaged.scored("batch-0001"))
    mended = set(damaged.whole["encounter_id"].astype(int)[damaged.broken("batch-0001")])
    assert len(mended & set(scored[schema.ENCOUNTER_ID])) > 0.9 * len(mended)
    assert not matured_decision(damaged.world.instance, 0).alert
    assert ingest(damaged, "batch-0002").success
    again = pd.read_parquet(
        Path(damaged.world.settings.store_uri) / "future_batch/batch-0002.parquet"
    )
    pd.testing.assert_frame_equal(again, untouched)
