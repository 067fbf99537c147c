"""What opens an alert and what resolves it, on a real instance, told to a real receiver."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest

from health_predict.alerts import Alert
from health_predict.defs.alerting import Cursor, alerting, look
from health_predict.defs.conditions import BY_HAND, Dagit, open_alerts
from health_predict.defs.data import BATCH_FRESH_FOR, RAW_FRESH_FOR
from health_predict.defs.facts import ATTEMPT, HELD_BACK, TRIGGER
from health_predict.settings import Settings
from health_predict_tests.receivers import SECRET, Receiver, receiving

DAGIT = Dagit("http://dagit.example.org")
FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS
STARTED = dg.DagsterRunStatus.STARTED


@dataclass
class Loop:
    """A loop on paper: what happened is recorded, and the sensors tick."""

    instance: dg.DagsterInstance
    hook: Receiver
    settings: Settings
    cursor: str | None = None

    def event(self, asset: str, partition: str | None = None, **facts: Any) -> int:
        """Records a materialisation; returns its event id."""
        facts = {"sentence": f"sentence of {asset} {partition or ''}.", **facts}
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=partition, metadata=facts)
        )
        page = self.instance.fetch_materializations(dg.AssetKey(asset), limit=1)
        return page.records[0].storage_id

    def champion(self, version: str = "1") -> int:
        return self.event("registered_model", version=version, promoted=True)

    def drift(self, batch: int, *, drifted: bool = True) -> int:
        return self.event("drift_report", f"batch-{batch:04d}", drifted=drifted)

    def verdict(self, **facts: Any) -> None:
        """Records an observation of the model: refused, or waiting."""
        facts = {"sentence": "AUC .60 is below .65.", "promoted": False, **facts}
        self.instance.report_runless_asset_event(
            dg.AssetObservation("registered_model", metadata=facts)
        )

    def run(self, job: str, status: dg.DagsterRunStatus, **tags: object) -> str:
        """Records a run; returns its id."""
        named = {"partition": "dagster/partition", "trigger": TRIGGER, "attempt": ATTEMPT}
        named["held_back"] = HELD_BACK
        run_id = str(uuid4())
        tagged = {named[name]: str(value) for name, value in tags.items()}
        self.instance.add_run(
            dg.DagsterRun(job_name=job, run_id=run_id, tags=tagged, status=status)
        )
        return run_id

    def tick(self) -> str:
        """Lets the sensor `alerts` tick; returns what it says."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = alerting(self.settings)[0](context)
        self.cursor = result.cursor
        return str(result.skip_reason)

    def news(self) -> list[str]:
        """Lets the sensor tick; returns what the receiver got from it."""
        known = len(self.hook.titles)
        self.tick()
        return self.hook.titles[known:]

    def found(self, *, later: timedelta = timedelta()) -> dict[str, Alert]:
        """Returns what is wrong so much later, by key."""
        known, _ = look(self.instance, {}, Cursor())
        known = replace(known, now=known.now + later.total_seconds())
        return {alert.key: alert for alert in open_alerts(known, DAGIT)}


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as real:
        yield real


@pytest.fixture
def loop(tmp_path: Path, instance: dg.DagsterInstance) -> Iterator[Loop]:
    instance.wipe()  # a new one would cost a second
    with receiving() as hook:
        settings = Settings(var=tmp_path, alert_webhook=hook.url)
        yield Loop(instance, hook, settings)


def test_nothing_is_told_of_an_empty_instance_nor_of_a_loop_that_goes_well(loop: Loop) -> None:
    assert "Open: nothing." in loop.tick()
    loop.event("raw_encounters")
    loop.event("future", batches=4)
    loop.champion()
    loop.event("future_batch", "batch-0001")
    loop.drift(1, drifted=False)
    loop.event("readmission_deployment", wanted="1", rolled_back=False)
    loop.run("ingest_batch", SUCCESS, partition="batch-0001")
    assert "Open: nothing." in loop.tick()
    assert loop.hook.bodies == []


def test_major_drift_is_told_until_a_retraining_answers_it(loop: Loop) -> None:
    loop.champion()
    trigger = loop.drift(3)
    run = loop.run("retrain", STARTED, trigger=trigger)
    assert loop.news() == ["Alert: Major drift"]
    text = loop.hook.bodies[0]["text"]
    assert "batch-0003: sentence of drift_report batch-0003." in text
    assert f"attempt 1, run {run[:8]}" in text
    assert f"{loop.settings.dagit_url}/runs/{run}" in text
    assert f"{loop.settings.dagit_url}/assets/drift_report?partition=batch-0003" in text
    loop.drift(4, drifted=False)
    assert loop.news() == [], "a calm batch after it answers nothing"
    loop.run("retrain", SUCCESS, trigger=trigger)
    assert loop.news() == ["Resolved: Major drift"]
    assert loop.news() == []


def test_drift_that_was_answered_between_two_ticks_is_told_all_the_same(loop: Loop) -> None:
    loop.champion()
    loop.tick()
    loop.run("retrain", SUCCESS, trigger=loop.drift(1))
    assert loop.news() == ["Alert: Major drift"]
    assert loop.news() == ["Resolved: Major drift"]


def test_what_was_over_before_the_first_tick_is_not_told(loop: Loop) -> None:
    loop.champion()
    loop.run("retrain", SUCCESS, trigger=loop.drift(1))
    loop.event("readmission_deployment", wanted="2", rolled_back=True)
    loop.event("readmission_deployment", wanted="3", rolled_back=False)
    loop.verdict()
    loop.champion("3")
    assert loop.news() == []


def test_a_refused_challenger_is_told_until_one_is_promoted(loop: Loop) -> None:
    loop.champion()
    loop.verdict()
    assert loop.news() == ["Alert: Challenger refused"]
    assert "AUC .60 is below .65." in loop.hook.bodies[0]["text"]
    assert loop.news() == []
    loop.champion("2")
    assert loop.news() == ["Resolved: Challenger refused"]


def test_a_challenger_that_waits_for_approval_was_not_refused(loop: Loop) -> None:
    loop.champion()
    loop.verdict(promoted=True, waiting_version="2")
    assert loop.news() == []


def test_a_refusal_and_a_promotion_between_two_ticks_are_both_heard_of(loop: Loop) -> None:
    loop.champion()
    loop.tick()
    loop.verdict()
    loop.champion("2")
    assert loop.news() == ["Alert: Challenger refused"]
    assert loop.news() == ["Resolved: Challenger refused"]


def test_a_retraining_that_failed_three_times_is_handed_to_a_person(loop: Loop) -> None:
    loop.champion()
    trigger = loop.drift(1)
    for attempt in (1, 2):
        loop.run("retrain", FAILURE, trigger=trigger, attempt=attempt)
    assert "Alert: retrain was given up" not in loop.news()
    loop.run("retrain", FAILURE, trigger=trigger, attempt=3)
    assert loop.news() == ["Alert: retrain was given up"]
    assert "retrain failed 3 times" in loop.hook.bodies[-1]["text"]
    loop.run("retrain", STARTED)
    assert loop.news() == [], "a person tries: that it works is not known yet"
    loop.run("retrain", SUCCESS, trigger=trigger)
    assert set(loop.news()) == {
        "Resolved: retrain was given up",
        "Resolved: Major drift",
        "Resolved: retrain failed",
    }


def test_a_first_champion_that_is_not_to_be_had_is_handed_to_a_person(loop: Loop) -> None:
    for _ in range(3):
        loop.run("bootstrap", FAILURE)
    assert set(loop.news()) == {"Alert: bootstrap was given up", "Alert: bootstrap failed"}
    loop.run("bootstrap", SUCCESS)
    loop.champion()
    assert set(loop.news()) == {"Resolved: bootstrap was given up", "Resolved: bootstrap failed"}


def test_a_roll_out_that_failed_three_times_is_handed_to_a_person(loop: Loop) -> None:
    trigger = loop.champion()
    for _ in range(3):
        loop.run("deploy", FAILURE, trigger=trigger)
    assert "Alert: deploy was given up" in loop.news()
    loop.run("deploy", SUCCESS, trigger=trigger)
    loop.event("readmission_deployment", wanted="1", rolled_back=False)
    assert set(loop.news()) == {"Resolved: deploy was given up", "Resolved: deploy failed"}


def test_a_release_that_was_taken_back_is_told_until_one_holds(loop: Loop) -> None:
    loop.champion()
    loop.event("readmission_deployment", wanted="2", rolled_back=True, sentence="It is silent.")
    assert loop.news() == ["Alert: Release of version 2 failed"]
    assert "It is silent." in loop.hook.bodies[0]["text"]
    assert loop.news() == []
    loop.event("readmission_deployment", wanted="3", rolled_back=False)
    assert loop.news() == ["Resolved: Release of version 2 failed"]


@pytest.mark.parametrize(
    "asset, age", [("raw_encounters", RAW_FRESH_FOR), ("future_batch", BATCH_FRESH_FOR)]
)
def test_data_are_stale_once_older_than_their_freshness_policy_allows(
    loop: Loop, asset: str, age: timedelta
) -> None:
    loop.event(asset, "batch-0001" if asset == "future_batch" else None)
    key, minute = f"stale data/{asset}", timedelta(minutes=1)
    assert key not in loop.found(later=age - minute)
    alert = loop.found(later=age + minute)[key]
    assert str(age.days) in alert.what
    loop.event(asset, "batch-0002" if asset == "future_batch" else None)
    assert key not in loop.found(later=age - minute)


def test_batches_that_never_began_to_arrive_are_missed_too(loop: Loop) -> None:
    loop.event("future", batches=2)
    alert = loop.found(later=BATCH_FRESH_FOR + timedelta(minutes=1))["stale data/future_batch"]
    assert "arriving_batches" in alert.todo


def test_served_traffic_does_not_stand_for_batches_that_do_not_arrive(loop: Loop) -> None:
    loop.event("future_batch", "served-0001")
    assert "stale data/future_batch" not in loop.found(later=timedelta(days=400))
    loop.event("future", batches=2)
    loop.event("future_batch", "served-0002")
    assert "stale data/future_batch" in loop.found(later=BATCH_FRESH_FOR * 2)


def test_a_source_whose_batches_have_all_arrived_asks_for_newer_data(loop: Loop) -> None:
    loop.event("future", batches=2)
    loop.event("future_batch", "batch-0002")
    alert = loop.found(later=BATCH_FRESH_FOR * 2)["stale data/future_batch"]
    assert "HEALTH_PREDICT_DATA" in alert.todo


def test_a_batch_over_the_quarantine_limit_is_told_until_a_run_of_it_ends_well(loop: Loop) -> None:
    words = "batch-0002 is held back: 9% of its rows break the contract."
    loop.run("ingest_batch", FAILURE, partition="batch-0002", held_back=words)
    loop.run("ingest_batch", SUCCESS, partition="batch-0003")
    assert loop.news() == ["Alert: batch-0002 is held back"], "and not as a failed run besides"
    assert words in loop.hook.bodies[0]["text"]
    loop.run(BY_HAND, STARTED, partition="batch-0002")
    assert loop.news() == []
    loop.run(BY_HAND, SUCCESS, partition="batch-0002")
    assert loop.news() == ["Resolved: batch-0002 is held back"]


def test_a_failed_run_is_told_per_batch_until_that_batch_has_a_run_that_ends_well(
    loop: Loop,
) -> None:
    run = loop.run("ingest_batch", FAILURE, partition="batch-0001")
    assert loop.news() == ["Alert: ingest_batch of batch-0001 failed"]
    assert f"/runs/{run}" in loop.hook.bodies[0]["text"]
    loop.run("ingest_batch", SUCCESS, partition="batch-0002")
    assert loop.news() == []
    loop.run("ingest_batch", SUCCESS, partition="batch-0001")
    assert loop.news() == ["Resolved: ingest_batch of batch-0001 failed"]


def test_a_batch_whose_ingestion_keeps_failing_is_handed_to_a_person(loop: Loop) -> None:
    for _ in range(3):
        loop.run("ingest_batch", FAILURE, partition="batch-0001")
    assert "Alert: batch-0001 was given up" in loop.news()
    loop.run("ingest_batch", SUCCESS, partition="batch-0001")
    assert "Resolved: batch-0001 was given up" in loop.news()


def test_a_failure_behind_many_newer_runs_is_not_taken_for_mended(loop: Loop) -> None:
    for _ in range(3):
        loop.run("ingest_batch", FAILURE, partition="batch-0001")
    opened = {"ingest_batch of batch-0001 failed", "batch-0001 was given up"}
    assert set(loop.news()) == {f"Alert: {title}" for title in opened}
    for number in range(2, 53):
        loop.run("ingest_batch", SUCCESS, partition=f"batch-{number:04d}")
    assert loop.news() == []
    loop.run(BY_HAND, SUCCESS, partition="batch-0001")
    for number in range(2, 53):
        loop.run(BY_HAND, SUCCESS, partition=f"batch-{number:04d}")
    assert set(loop.news()) == {f"Resolved: {title}" for title in opened}


def test_no_more_than_the_newest_reports_are_read(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("health_predict.defs.alerting._NEWEST", 4)
    loop.champion()
    for batch in range(1, 9):
        loop.drift(batch, drifted=batch in (2, 6))
    known, cursor = look(loop.instance, {}, Cursor())
    assert [r.partition for r in known.reports] == [f"batch-000{n}" for n in (5, 6, 7, 8)]
    assert [a.key for a in open_alerts(known, DAGIT)] == ["major drift"]
    assert cursor.settled == 0, "an open alarm must be seen again"


def test_without_a_channel_nothing_is_read_or_kept_and_the_settings_are_named(
    loop: Loop, tmp_path: Path
) -> None:
    loop.run("retrain", FAILURE)
    settings = Settings(var=tmp_path / "silent")
    alerts, run_failures = alerting(settings)
    said = alerts(dg.build_sensor_context(instance=loop.instance))
    assert "HEALTH_PREDICT_ALERT_WEBHOOK" in said.skip_message
    assert "HEALTH_PREDICT_ALERT_SMTP" in said.skip_message
    assert not settings.var.exists()
    assert run_failures.default_status is dg.DefaultSensorStatus.RUNNING


def failing(name: str) -> dg.JobDefinition:
    @dg.op
    def breaks(context: dg.OpExecutionContext) -> None:
        if "mended" not in context.run.tags:
            raise ValueError("patient 12345 has no age")

    @dg.job(name=name)
    def job() -> None:
        breaks()

    return job


def fail(loop: Loop, job: str, **tags: str) -> dg.RunFailureSensorContext:
    """Runs a job that fails; returns what Dagster tells the sensor about it."""
    result = failing(job).execute_in_process(
        instance=loop.instance, raise_on_error=False, tags=tags
    )
    assert not result.success
    return dg.build_run_status_sensor_context(
        sensor_name="run_failures",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=loop.instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()


def test_a_run_that_fails_is_told_at_once_and_only_once(loop: Loop) -> None:
    _, run_failures = alerting(loop.settings)
    loop.tick()
    context = fail(loop, "retrain")
    assert "Sent: Alert: retrain failed by webhook." in run_failures(context).skip_message
    assert "told" in run_failures(context).skip_message
    assert loop.hook.titles == ["Alert: retrain failed"]
    assert "12345" not in json.dumps(loop.hook.bodies), "an error may quote data"
    assert loop.news() == [], "the other sensor finds the same"
    failing("retrain").execute_in_process(instance=loop.instance, tags={"mended": "yes"})
    assert loop.news() == ["Resolved: retrain failed"]


def test_the_failure_sensor_resolves_nothing_that_another_found(loop: Loop) -> None:
    loop.champion()
    loop.verdict()
    loop.tick()
    _, run_failures = alerting(loop.settings)
    run_failures(fail(loop, "deploy"))
    assert loop.hook.titles == ["Alert: Challenger refused", "Alert: deploy failed"]


def test_a_failure_that_is_over_by_the_time_it_is_heard_of_is_not_told(loop: Loop) -> None:
    _, run_failures = alerting(loop.settings)
    late = fail(loop, "retrain")
    failing("retrain").execute_in_process(instance=loop.instance, tags={"mended": "yes"})
    assert "over already" in run_failures(late).skip_message
    assert loop.hook.titles == []


def test_a_batch_that_is_held_back_is_told_as_such_by_the_failure_sensor(loop: Loop) -> None:
    _, run_failures = alerting(loop.settings)
    tags = {"dagster/partition": "batch-0002", HELD_BACK: "batch-0002 is held back: 9 %."}
    run_failures(fail(loop, "ingest_batch", **tags))
    assert loop.hook.titles == ["Alert: batch-0002 is held back"]


def test_a_channel_that_is_down_fails_no_tick_and_is_caught_up_with(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.champion()
    loop.verdict()
    loop.hook.status = 503
    said = loop.tick()
    assert "Not sent, to be tried again: Alert: Challenger refused" in said
    assert "it answered 503" in said
    loop.hook.status = 200
    loop.hook.bodies.clear()
    assert loop.news() == ["Alert: Challenger refused"]
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert any("503" in words for words in warnings)
    assert SECRET not in said + caplog.text


def test_a_tick_imports_nothing_heavy() -> None:
    code = (
        "import sys, dagster as dg\n"
        "from health_predict.defs.alerting import alerting\n"
        "from health_predict.settings import Settings\n"
        "sensor = alerting(Settings(alert_webhook='http://127.0.0.1:9/x', var=sys.argv[1]))[0]\n"
        "with dg.DagsterInstance.ephemeral() as i:\n"
        "    sensor(dg.build_sensor_context(instance=i))\n"
        "heavy = {'ray', 'mlflow', 'evidently', 'bentoml', 'xgboost', 'kubernetes', 'sklearn'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "/tmp/nothing-is-written-here"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
