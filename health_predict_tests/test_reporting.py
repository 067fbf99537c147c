"""How a loop report comes about: the first model asked again, the ledger, the schedule."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline

from health_predict import schema
from health_predict.definitions import assemble
from health_predict.defs.facts import latest
from health_predict.defs.first_model import FirstModel, beside
from health_predict.defs.performance import _known
from health_predict.defs.reporting import (
    UNTIL,
    daily_report,
    decide_report,
    differences,
    newest_told,
    report_agrees_with_the_ledger,
)
from health_predict.defs.resources import Gate, SearchBudget
from health_predict.gate import people
from health_predict.ledger import Ledger
from health_predict.outcomes import Performance, assess
from health_predict.served import PROBABILITY, VERSION
from health_predict.settings import Settings
from health_predict.store import open_store
from health_predict.tracking import ModelVersion
from health_predict_tests import reports
from health_predict_tests.ticks import record

GATE = Gate(harm=1.0, approval=False, oldest_champion_days=60.0)
BUDGET = SearchBudget(
    trials=3, workers=1, seed=7, families=["xgboost"], seconds=None, backend="serial"
)
FACTS = {"test": {"auc": 0.65}, "threshold": 0.5, "train_rows": 2_000}


class Kept:
    """A registry that keeps fitted pipelines and remembers what was asked of it."""

    def __init__(self, versions: dict[str, Pipeline]) -> None:
        self.versions = versions
        self.loaded: list[str] = []
        self.head: str | None = None

    def version(self, number: str) -> ModelVersion:
        return ModelVersion(number, "run", "xgboost", FACTS)

    def load(self, version: ModelVersion) -> Pipeline:
        self.loaded.append(version.version)
        return self.versions[version.version]

    def ledger_head(self) -> str | None:
        return self.head


@pytest.fixture(scope="module")
def batches(cohort: pd.DataFrame) -> dict[str, pd.DataFrame]:
    later = cohort.iloc[int(len(cohort) * 0.4) :]
    half = len(later) // 2
    return {"batch-0001": later.iloc[:half].copy(), "batch-0002": later.iloc[half:].copy()}


@pytest.fixture(scope="module")
def watched(
    batches: dict[str, pd.DataFrame], pipelines: dict[str, Pipeline]
) -> dict[str, tuple[pd.DataFrame, Performance]]:
    """Batch 1 scored by version 1, batch 2 by version 2: scores and performance."""
    by = {
        "batch-0001": ("1", pipelines["logistic_regression"]),
        "batch-0002": ("2", pipelines["xgboost"]),
    }
    found = {}
    for key, (version, pipeline) in by.items():
        frame = batches[key]
        scores = frame[[*schema.IDENTIFIERS]].assign(
            **{PROBABILITY: pipeline.predict_proba(frame)[:, 1], VERSION: version}
        )
        known, _ = _known(frame, scores)
        told = assess(people(known), known[PROBABILITY].to_numpy(), gate_auc=0.65, resamples=60)
        found[key] = scores, told
    return found


@pytest.fixture
def kept(pipelines: dict[str, Pipeline]) -> Kept:
    return Kept({"1": pipelines["logistic_regression"], "2": pipelines["xgboost"]})


def followed(kept: Any, batches: Any, watched: Any, *keys: str) -> Any:
    return beside(
        FirstModel(kept, "1", GATE, BUDGET),
        {key: watched[key][1] for key in keys},
        batches,
        {key: watched[key][0] for key in watched},
    )


def test_the_first_model_is_asked_again_about_what_later_versions_scored(
    kept: Kept, batches: Any, watched: Any
) -> None:
    found = followed(kept, batches, watched, "batch-0001", "batch-0002")
    later, frame = found["batch-0002"], batches["batch-0002"]
    frame = frame[~frame[schema.INTERVENED].fillna(False).astype(bool)]
    alone = kept.versions["1"].predict_proba(frame)[:, 1]
    assert later.first == pytest.approx(alone)
    assert later.by_first.version == "1"
    assert later.by_first.auc.value == pytest.approx(roc_auc_score(frame[schema.LABEL], alone))
    ratio = alone.sum() / frame[schema.LABEL].sum()
    assert later.by_first.expected_observed.value == pytest.approx(ratio)
    own = kept.versions["2"].predict_proba(frame)[:, 1]
    assert later.by_champion.auc.value == pytest.approx(roc_auc_score(frame[schema.LABEL], own))
    assert later.retrained


def test_a_batch_that_the_first_model_scored_is_not_asked_about_again(
    kept: Kept, batches: Any, watched: Any
) -> None:
    found = followed(kept, batches, watched, "batch-0001")
    assert found["batch-0001"].by_first == found["batch-0001"].by_champion
    assert (found["batch-0001"].first == found["batch-0001"].champion).all()
    assert not found["batch-0001"].retrained
    assert kept.loaded == []


def test_encounters_somebody_acted_on_count_for_neither_model(
    kept: Kept, batches: Any, watched: Any
) -> None:
    marked = batches["batch-0002"].copy()
    marked[schema.INTERVENED] = np.arange(len(marked)) % 4 == 0
    found = followed(kept, {**batches, "batch-0002": marked}, watched, "batch-0002")
    assert len(found["batch-0002"].labels) == (~marked[schema.INTERVENED]).sum()
    assert len(found["batch-0002"].first) == len(found["batch-0002"].labels)


def test_only_arriving_batches_with_known_outcomes_are_compared(
    kept: Kept, batches: Any, watched: Any
) -> None:
    assert list(followed(kept, batches, watched, "batch-0002")) == ["batch-0002"]
    served = {"served-0001": watched["batch-0001"][1]}
    assert beside(FirstModel(kept, "1", GATE, BUDGET), served, batches, {}) == {}
    assert beside(None, {"batch-0001": watched["batch-0001"][1]}, batches, {}) == {}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(open_store(tmp_path / "store"))


def written(ledger: Ledger, told: reports.LoopReport) -> Ledger:
    """Writes what the ledger of a report's loop holds."""
    for promotion in told.story.promotions:
        ledger.append("verdict", who="run", why=promotion.reason, facts={"promoted": True})
        ledger.append("alias_move", who="run", why=promotion.reason, version=promotion.version)
    for sentence in told.story.refusals:
        ledger.append("verdict", who="run", why=sentence, facts={"promoted": False})
    for sentence in told.story.rollbacks:
        ledger.append("rollback", who="run", why=sentence, version="1")
    return ledger


@pytest.fixture
def told(tmp_path: Path) -> reports.LoopReport:
    return reports.report(12, tmp_path / "loop.html")


def test_a_report_and_the_ledger_of_its_loop_agree(ledger: Ledger, told: Any) -> None:
    assert len(told.story.promotions) > 2 and told.story.refusals
    assert differences(told.story, written(ledger, told).entries()) == []


def test_a_roll_back_that_moves_the_alias_is_no_promotion(ledger: Ledger, told: Any) -> None:
    written(ledger, told)
    story = replace(told.story, rollbacks=[*told.story.rollbacks, "Version 2 failed."])
    ledger.append("rollback", who="run", why="Version 2 failed.", version="1")
    ledger.append("alias_move", who="run", why="Version 2 failed.", version="1", after="1")
    assert differences(story, ledger.entries()) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda story: {"promotions": story.promotions[:-1]}, "promotions"),
        (lambda story: {"promotions": story.promotions[:1] * 2}, "promotions"),
        (lambda story: {"refusals": []}, "refusals"),
        (lambda story: {"refusals": [f"{why} Else." for why in story.refusals]}, "refusals"),
        (lambda story: {"rollbacks": []}, "roll-backs"),
    ],
)
def test_a_report_that_tells_another_story_is_found_out(
    ledger: Ledger, told: Any, change: Any, what: str
) -> None:
    entries = written(ledger, told).entries()
    (words,) = differences(replace(told.story, **change(told.story)), entries)
    assert f" {what}, the ledger of " in words


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as real:
        yield real


def checked(instance: dg.DagsterInstance, told: Any, kept: Kept, ledger: Ledger) -> Any:
    context = dg.build_asset_check_context(instance=instance)
    return report_agrees_with_the_ledger(context, told, registry=kept, ledger=ledger)


def test_the_check_holds_and_fails_with_the_ledger(
    instance: dg.DagsterInstance, told: Any, kept: Kept, ledger: Ledger
) -> None:
    written(ledger, told)
    assert checked(instance, told, kept, ledger).passed
    ledger.append("rollback", who="run", why="Nobody told of this one.", version="1")
    found = checked(instance, told, kept, ledger)
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert "1 roll-backs, the ledger of 2" in found.metadata["sentence"].value


def test_what_a_run_that_has_not_ended_wrote_is_not_compared_yet(
    instance: dg.DagsterInstance, told: Any, kept: Kept, ledger: Ledger
) -> None:
    written(ledger, told)
    run = instance.create_run_for_job(_nothing, status=dg.DagsterRunStatus.STARTED)
    who = f"dagster run {run.run_id[:8]}"
    ledger.append("verdict", who=who, why="Refused just now.", facts={"promoted": False})
    assert checked(instance, told, kept, ledger).passed
    instance.report_run_failed(run)
    assert not checked(instance, told, kept, ledger).passed


@dg.job(name="retrain")
def _nothing() -> None:
    """A job of the name, for a run that stands where it is put."""


def test_a_ledger_whose_end_was_cut_off_fails_the_check(
    instance: dg.DagsterInstance, told: Any, kept: Kept, ledger: Ledger
) -> None:
    written(ledger, told)
    kept.head = "f" * 64
    found = checked(instance, told, kept, ledger)
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert "is missing" in found.metadata["sentence"].value


def ticked(instance: dg.DagsterInstance) -> Any:
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=datetime.now(UTC)
    )
    return daily_report(context)


def test_without_a_verdict_there_is_nothing_to_report(instance: dg.DagsterInstance) -> None:
    answer = ticked(instance)
    assert isinstance(answer, dg.SkipReason)
    assert "no model was judged" in str(answer.skip_message)


def test_a_report_is_made_once_for_all_that_happened_and_again_for_what_comes_next(
    instance: dg.DagsterInstance,
) -> None:
    record(instance, "registered_model", version="1", sentence="Promoted.")
    record(instance, "drift_report", "batch-0001", sentence="Major drift.")
    answer = ticked(instance)
    assert isinstance(answer, dg.RunRequest)
    assert "drift_report batch-0001" in answer.tags["health_predict/reason"]
    newest = newest_told(instance)
    assert newest is not None
    record(instance, "loop_report", **{UNTIL: newest.id, "sentence": "Reported."})
    skipped = ticked(instance)
    assert isinstance(skipped, dg.SkipReason)
    assert "Nothing happened" in str(skipped.skip_message)
    record(instance, "batch_performance", "batch-0001", sentence="Foretold.")
    assert isinstance(ticked(instance), dg.RunRequest)


def test_what_came_while_a_report_was_made_is_not_taken_for_told(
    instance: dg.DagsterInstance,
) -> None:
    record(instance, "registered_model", version="1", sentence="Promoted.")
    before = newest_told(instance)
    record(instance, "rollback_drill", sentence="Drill.")
    assert before is not None
    record(instance, "loop_report", **{UNTIL: before.id, "sentence": "Reported."})
    assert decide_report(newest_told(instance), latest(instance, "loop_report")).requests


def test_a_refusal_is_news(instance: dg.DagsterInstance) -> None:
    record(instance, "registered_model", version="1", sentence="Promoted.")
    told = newest_told(instance)
    instance.report_runless_asset_event(
        dg.AssetObservation("registered_model", metadata={"sentence": "Refused."})
    )
    newest = newest_told(instance)
    assert told is not None and newest is not None and newest.id > told.id


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("", "http://127.0.0.1:5000"),
        ("postgresql://user:secret@db/mlflow", "http://127.0.0.1:5000"),
        ("https://user:secret@mlflow.example.org/ml/", "https://mlflow.example.org/ml"),
    ],
)
def test_links_to_mlflow_hold_no_secret(tmp_path: Path, uri: str, page: str) -> None:
    settings = Settings(var=tmp_path, mlflow_tracking_uri=uri)
    resource: Any = assemble(settings).resources["report_page"]
    assert resource.mlflow == page
    assert "secret" not in str(resource)
