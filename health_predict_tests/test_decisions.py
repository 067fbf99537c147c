"""The pure decisions: what the loop does next, and the sentence that says why."""

from dataclasses import replace
from typing import Any

import pytest

from health_predict.defs.decisions import (
    LONGEST_WAIT_SECONDS,
    MOST_ATTEMPTS,
    decide_arrival,
    decide_bootstrap,
    decide_deploy,
    decide_matured,
    decide_retrain,
)
from health_predict.defs.facts import Event, Run

NOW = 10_000.0


def report(event_id: int, batch: int, *, drifted: bool, **facts: Any) -> Event:
    return Event(
        id=event_id,
        asset="drift_report",
        partition=f"batch-{batch:04d}",
        run_id=f"ingest-{batch}",
        timestamp=NOW - 10,
        metadata={"drifted": drifted, "sentence": f"sentence of batch {batch}.", **facts},
    )


def performance(event_id: int, batch: int, *, within_bounds: bool) -> Event:
    metadata = {"within_bounds": within_bounds, "sentence": f"performance of batch {batch}."}
    return replace(
        report(event_id, batch, drifted=False), asset="batch_performance", metadata=metadata
    )


def run(
    state: Any,
    *,
    job: str = "retrain",
    trigger: int | None = None,
    newest_batch: int | None = None,
    partition: str | None = None,
    held_back: str = "",
) -> Run:
    return Run(
        *("0123456789", job, state, trigger, 1, newest_batch, NOW),
        partition=partition,
        held_back=held_back,
    )


def test_the_first_champion_is_trained_without_being_asked() -> None:
    decision = decide_bootstrap([])
    assert [r.job for r in decision.requests] == ["bootstrap"]
    assert "no champion yet" in decision.sentence


def test_a_failed_bootstrap_is_tried_again_under_a_new_run_key() -> None:
    first = decide_bootstrap([]).requests[0]
    second = decide_bootstrap([run("failed", job="bootstrap")]).requests[0]
    assert first.run_key != second.run_key


def test_a_bootstrap_that_keeps_failing_is_handed_to_a_person() -> None:
    decision = decide_bootstrap([run("failed", job="bootstrap")] * MOST_ATTEMPTS)
    assert decision.alert
    assert not decision.requests


def test_a_first_challenger_that_was_refused_is_not_trained_for_ever() -> None:
    decision = decide_bootstrap([run("succeeded", job="bootstrap")])
    assert decision.alert
    assert not decision.requests


def test_a_calm_batch_is_settled_without_a_request() -> None:
    decision = decide_retrain([report(5, 1, drifted=False)], [], [], NOW)
    assert not decision.requests
    assert decision.settled == 5
    assert "nothing that calls for a retraining" in decision.sentence


def test_a_drifted_batch_requests_one_retraining_and_says_why() -> None:
    decision = decide_retrain([report(5, 1, drifted=True)], [], [], NOW)
    assert [r.run_key for r in decision.requests] == ["retrain:5:1"]
    assert "sentence of batch 1" in decision.sentence
    assert decision.settled is None, "an open alarm must be seen again by the next tick"


def test_three_batches_between_two_ticks_lose_none_and_train_once() -> None:
    burst = [
        report(5, 1, drifted=False),
        report(6, 2, drifted=True),
        report(7, 3, drifted=False),
    ]
    decision = decide_retrain(burst, [], [], NOW)
    assert [r.trigger for r in decision.requests] == [6]
    assert "batch-0002" in decision.sentence


def test_several_drifted_batches_are_answered_by_one_retraining() -> None:
    burst = [report(5, 1, drifted=True), report(7, 2, drifted=True)]
    decision = decide_retrain(burst, [], [], NOW)
    assert [r.trigger for r in decision.requests] == [7]
    later = decide_retrain(burst, [run("succeeded", trigger=7)], [], NOW)
    assert not later.requests
    assert later.settled == 7


def test_broken_calibration_alone_requests_a_retraining() -> None:
    alarms = [report(5, 1, drifted=False), performance(6, 1, within_bounds=False)]
    decision = decide_retrain(alarms, [], [], NOW)
    assert [r.trigger for r in decision.requests] == [6]
    assert "performance of batch 1" in decision.sentence


def test_a_running_retraining_holds_the_next_one_back() -> None:
    decision = decide_retrain([report(9, 2, drifted=True)], [run("running", trigger=5)], [], NOW)
    assert not decision.requests
    assert decision.settled is None


def test_a_batch_that_drifts_during_a_retraining_is_answered_by_the_next() -> None:
    alarms = [report(5, 1, drifted=True), report(9, 2, drifted=True)]
    done = run("succeeded", trigger=5, newest_batch=1)
    decision = decide_retrain(alarms, [done], [], NOW)
    assert [r.trigger for r in decision.requests] == [9]


def test_a_batch_that_the_retraining_learned_from_needs_no_other() -> None:
    alarms = [report(5, 1, drifted=True), report(9, 2, drifted=True)]
    done = run("succeeded", trigger=5, newest_batch=2)
    assert not decide_retrain(alarms, [done], [], NOW).requests


def test_a_retraining_by_hand_answers_what_it_learned_from() -> None:
    by_hand = run("succeeded", trigger=None, newest_batch=1)
    assert not decide_retrain([report(5, 1, drifted=True)], [by_hand], [], NOW).requests
    assert decide_retrain([report(9, 2, drifted=True)], [by_hand], [], NOW).requests


def test_a_failed_retrain_is_requested_again() -> None:
    alarms = [report(5, 1, drifted=True)]
    decision = decide_retrain(alarms, [run("failed", trigger=5)], [], NOW)
    assert [r.run_key for r in decision.requests] == ["retrain:5:2"]
    assert "Attempt 2 of 3" in decision.sentence


def test_a_retrain_that_failed_three_times_is_handed_to_a_person() -> None:
    alarms = [report(5, 1, drifted=True)]
    decision = decide_retrain(alarms, [run("failed", trigger=5)] * MOST_ATTEMPTS, [], NOW)
    assert decision.alert
    assert not decision.requests
    assert "by hand" in decision.sentence


def test_a_new_alarm_after_three_failures_is_tried_afresh() -> None:
    alarms = [report(5, 1, drifted=True), report(9, 2, drifted=True)]
    decision = decide_retrain(alarms, [run("failed", trigger=5)] * MOST_ATTEMPTS, [], NOW)
    assert [r.run_key for r in decision.requests] == ["retrain:9:1"]


def test_a_retraining_waits_for_the_batches_that_are_arriving() -> None:
    coming = run("running", job="ingest_batch", partition="batch-0002")
    decision = decide_retrain([report(5, 1, drifted=True)], [], [coming], NOW)
    assert not decision.requests
    assert "batch-0002" in decision.sentence


def test_a_batch_that_hangs_does_not_hold_the_loop_up_for_ever() -> None:
    coming = run("running", job="ingest_batch", partition="batch-0002")
    decision = decide_retrain(
        [report(5, 1, drifted=True)], [], [coming], NOW + LONGEST_WAIT_SECONDS
    )
    assert decision.requests


def promoted(version: str = "2", event_id: int = 20) -> Event:
    facts = {"version": version, "sentence": "Promoted."}
    return Event(event_id, "registered_model", None, "r", NOW, facts)


def deployed(wanted: str, *, rolled_back: bool = False) -> Event:
    facts = {"wanted": wanted, "rolled_back": rolled_back, "sentence": "It was rolled out."}
    return Event(30, "readmission_deployment", None, "d", NOW, facts)


def test_a_promotion_is_rolled_out_once() -> None:
    decision = decide_deploy(promoted(), deployed("1"), [])
    assert [r.run_key for r in decision.requests] == ["deploy:20:1"]
    assert not decide_deploy(promoted(), deployed("2"), []).requests


def test_a_version_that_was_rolled_back_is_not_rolled_out_again() -> None:
    decision = decide_deploy(promoted(), deployed("2", rolled_back=True), [])
    assert not decision.requests
    assert "It was rolled out." in decision.sentence


def test_one_roll_out_at_a_time() -> None:
    assert not decide_deploy(promoted(), None, [run("running", job="deploy")]).requests


def test_a_failed_roll_out_is_tried_three_times_then_handed_over() -> None:
    failed = run("failed", job="deploy", trigger=20)
    assert [r.attempt for r in decide_deploy(promoted(), None, [failed]).requests] == [2]
    assert decide_deploy(promoted(), None, [failed] * MOST_ATTEMPTS).alert


def test_nothing_is_rolled_out_before_a_champion_is_there() -> None:
    assert not decide_deploy(None, None, []).requests


def test_no_batch_arrives_before_a_champion_can_score_it() -> None:
    assert decide_arrival([], 6, served=False, at_a_time=2)[1] == ()
    assert decide_arrival([], None, served=True, at_a_time=2)[1] == ()


def test_batches_arrive_in_order_so_many_at_a_time() -> None:
    decision, fresh = decide_arrival(["batch-0001"], 4, served=True, at_a_time=2)
    assert fresh == ("batch-0002", "batch-0003")
    assert [r.partition for r in decision.requests] == list(fresh)


def test_batches_wait_for_what_the_loop_is_busy_with_and_say_so() -> None:
    decision, fresh = decide_arrival([], 4, served=True, at_a_time=2, unrest="retrain under way.")
    assert fresh == ()
    assert "retrain under way" in decision.sentence


def test_the_end_of_the_future_is_a_named_skip() -> None:
    decision, fresh = decide_arrival(["batch-0001", "batch-0002"], 2, served=True, at_a_time=2)
    assert not fresh
    assert "future is over" in decision.sentence


def test_a_batch_is_scored_when_its_outcomes_are_known() -> None:
    arrived = {"batch-0001": NOW - 100, "batch-0002": NOW - 10}
    decision = decide_matured(arrived, [], [], delay=60, now=NOW)
    assert [r.partition for r in decision.requests] == ["batch-0001"]
    assert decision.requests[0].assets == ("batch_performance",)


@pytest.mark.parametrize("scored, busy", [(["batch-0001"], []), ([], ["batch-0001"])])
def test_a_batch_is_not_scored_twice(scored: list[str], busy: list[str]) -> None:
    runs = [run("running", job="ingest_batch", partition=key) for key in busy]
    decision = decide_matured({"batch-0001": NOW - 100}, scored, runs, delay=60, now=NOW)
    assert not decision.requests


def test_scoring_that_failed_is_asked_for_again_under_a_new_run_key() -> None:
    failed = run("failed", job="ingest_batch", partition="batch-0001")
    (request,) = decide_matured({"batch-0001": NOW - 100}, [], [failed], 60, NOW).requests
    assert request.run_key == "ingest_batch:batch-0001:2"


def test_a_batch_that_keeps_failing_is_handed_to_a_person_and_the_others_go_on() -> None:
    failed = run("failed", job="ingest_batch", partition="batch-0001")
    arrived = {"batch-0001": NOW - 100, "batch-0002": NOW - 100}
    decision = decide_matured(arrived, [], [failed] * MOST_ATTEMPTS, 60, NOW)
    assert decision.alert
    assert "batch-0001" in decision.sentence
    assert [r.partition for r in decision.requests] == ["batch-0002"]


def test_a_batch_that_was_mended_by_hand_raises_no_alert() -> None:
    failed = run("failed", job="ingest_batch", partition="batch-0001")
    mended = run("succeeded", job="ingest_batch", partition="batch-0001")
    decision = decide_matured({"batch-0001": NOW}, ["batch-0001"], [mended, *[failed] * 3], 0, NOW)
    assert not decision.alert


def held_back(state: str = "failed", batch: str = "batch-0002") -> Run:
    words = f"{batch} is held back: 60% of its rows break the contract."
    return run(state, job="ingest_batch", partition=batch, held_back=words)


def test_a_batch_that_is_held_back_is_told_to_a_person_and_the_others_go_on() -> None:
    decision = decide_matured({"batch-0001": NOW - 100}, [], [held_back()], 60, NOW)
    assert decision.alert
    assert decision.sentence == held_back().held_back
    assert [r.partition for r in decision.requests] == ["batch-0001"]


def test_a_batch_that_was_held_back_and_then_arrived_raises_no_alert() -> None:
    runs = [run("succeeded", job="ingest_batch", partition="batch-0002"), held_back()]
    decision = decide_matured({"batch-0002": NOW}, ["batch-0002"], runs, 0, NOW)
    assert not decision.alert


def test_a_batch_that_is_held_back_again_and_again_is_still_told_by_its_reason() -> None:
    decision = decide_matured({}, [], [held_back()] * MOST_ATTEMPTS, 0, NOW)
    assert decision.alert
    assert decision.sentence == held_back().held_back


def test_a_run_that_took_its_tags_from_one_held_back_and_succeeded_raises_no_alert() -> None:
    runs = [held_back("succeeded"), held_back()]
    decision = decide_matured({"batch-0002": NOW}, ["batch-0002"], runs, 0, NOW)
    assert not decision.alert


def test_the_wait_for_outcomes_is_said_in_seconds() -> None:
    decision = decide_matured({"batch-0001": NOW - 10}, [], [], delay=60, now=NOW)
    assert "50 s" in decision.sentence
