"""What the command line tells of the loop and asks of it, on a real instance."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from health_predict import loop, processes, story
from health_predict.alerts import Alert, Outbox
from health_predict.cli import main
from health_predict.defs.decisions import Decision
from health_predict.defs.facts import observations
from health_predict.settings import Settings
from health_predict.store import open_store
from health_predict.terminal import status_lines
from health_predict_tests.ticks import record

LINES = 10


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as real:
        yield real


def lines(instance: dg.DagsterInstance, settings: Settings) -> dict[str, str]:
    found = status_lines(instance, story.tell(instance), settings)
    assert len(found) == LINES
    assert not any("\n" in words for words in found.values())
    return found


def test_an_empty_state_says_what_it_waits_for(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    told = lines(instance, Settings(var=tmp_path))
    assert told["champion"] == "none yet"
    assert "training the first one" in told["training"]
    assert told["alerts"] == "none open"


def test_a_state_is_told_with_what_was_decided_and_why(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    settings = Settings(var=tmp_path)
    record(instance, "raw_encounters", source="synthetic", caption="synthetic cohort")
    champion = {"version": "1", "window": "initial", "family": "xgboost", "promoted": True}
    record(instance, "registered_model", **champion, sentence="Promoted on 500 encounters.")
    drift = {"statistic": 0.8, "threshold": 0.7, "drifted": True, "champion_version": "1"}
    record(instance, "future_batch", "batch-0001")
    record(instance, "drift_report", "batch-0001", **drift, sentence="Major drift: by codes.")
    outcome = {"auc": 0.66, "expected_observed": 1.1, "within_bounds": True}
    record(instance, "batch_performance", "batch-0001", **outcome, sentence="E/O 1.10.")
    alert = Alert("drift", "Major drift of batch-0001", 0.0, "what", "did", "do", ())
    Outbox(open_store(settings.store_uri), []).settle([alert], among=())
    told = lines(instance, settings)
    assert told["data"] == "synthetic (synthetic cohort)"
    assert told["champion"] == "version 1 (xgboost, initial)"
    assert told["gate"] == "Promoted on 500 encounters."
    assert told["batches"] == "1 watched, 1 with known outcomes"
    assert told["drift"].startswith("batch-0001: Major drift: by codes.")
    assert told["foretold"] == "batch-0001: E/O 1.10."
    assert told["training"].startswith("Retraining for batch-0001: Major drift")
    assert "Rolling out version 1" in told["roll-out"]
    assert told["alerts"] == "Major drift of batch-0001"


def test_a_retraining_is_forced_from_the_command_line_by_name_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTH_PREDICT_VAR", str(tmp_path / "var"))
    command = ["retrain", "--by", "Ada Lovelace", "--why", "new coding"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "run `make demo` or `make dev`" in refused.output
    home = processes.dagster_home(Settings())
    assert CliRunner().invoke(main, command).exit_code == 0
    with dg.DagsterInstance.from_config(str(home)) as kept:
        (event,) = observations(kept, "training_set")
    assert event.metadata["sentence"] == "Forced by Ada Lovelace: new coding"
    empty = CliRunner().invoke(main, [*command[:-1], " "])
    assert empty.exit_code == 2
    assert "for a reason" in empty.output


def test_a_roll_out_that_a_sensor_starts_while_the_loop_looks_is_awaited(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(var=tmp_path, batches=0)
    verdict = {"version": "1", "window": "initial", "family": "xgboost", "promoted": True}
    record(instance, "registered_model", **verdict, sentence="Promoted.")
    record(instance, "readmission_deployment", wanted="1", version="1", sentence="It answers.")
    assert loop._state(instance, settings).finished
    asked = loop.deploy_decision

    def sensor_comes_first(of: dg.DagsterInstance) -> Decision:
        record(of, "registered_model", **{**verdict, "version": "2"}, sentence="Promoted.")
        (request,) = asked(of).requests
        tags = {"health_predict/trigger": str(request.trigger)}
        run = dg.DagsterRun(job_name="deploy", tags=tags, status=dg.DagsterRunStatus.STARTED)
        of.add_run(run)
        return asked(of)

    monkeypatch.setattr(loop, "deploy_decision", sensor_comes_first)
    state = loop._state(instance, settings)
    assert not state.finished
    assert "deploy" in state.sentence
