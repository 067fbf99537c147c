"""Which batches arrive, are ingested again, and are scored: the pure decisions."""

import pytest

from health_predict.defs.decisions import MOST_ATTEMPTS
from health_predict.defs.facts import Run
from health_predict.defs.ingestion import (
    GRACE_SECONDS,
    decide_arrival,
    decide_matured,
    decide_unfinished,
)
from health_predict_tests.recorded import NOW, run


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
    assert request.run_key == "ingest_batch:batch-0001:batch_performance:2"


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


def test_a_batch_whose_ingestion_failed_is_asked_for_again_whole() -> None:
    failed = run("failed", job="ingest_batch", partition="batch-0002")
    decision, _ = decide_unfinished(["batch-0001", "batch-0002"], ["batch-0001"], [failed], {}, NOW)
    (request,) = decision.requests
    assert (request.partition, request.attempt, request.assets) == ("batch-0002", 2, ())
    assert "batch-0002: ingestion failed" in decision.sentence


def test_asking_again_for_a_batch_and_for_its_score_are_two_runs() -> None:
    failed = run("failed", job="ingest_batch", partition="batch-0001")
    (whole,) = decide_unfinished(["batch-0001"], [], [failed], {}, NOW)[0].requests
    (score,) = decide_matured({"batch-0001": NOW - 100}, [], [failed], 60, NOW).requests
    assert whole.run_key != score.run_key


def test_a_batch_that_was_announced_and_never_started_is_made_up_for_after_a_while() -> None:
    decision, idle = decide_unfinished(["batch-0001"], [], [], {}, NOW)
    assert not decision.requests  # the schedule may be about to start it
    assert idle == {"batch-0001": NOW}
    later = NOW + GRACE_SECONDS
    decision, _ = decide_unfinished(["batch-0001"], [], [], idle, later)
    assert [r.run_key for r in decision.requests] == ["ingest_batch:batch-0001:1"]
    assert "never ingested" in decision.sentence


def test_a_clock_that_was_set_back_does_not_lengthen_the_wait() -> None:
    _, idle = decide_unfinished(["batch-0001"], [], [], {"batch-0001": NOW + 5_000}, NOW)
    assert idle == {"batch-0001": NOW}


@pytest.mark.parametrize("batch", ["held back", "given up", "running", "served"])
def test_what_is_not_tried_again_by_itself_is_not_asked_for(batch: str) -> None:
    failed = run("failed", job="ingest_batch", partition="batch-0001")
    runs = {
        "held back": [held_back()],
        "given up": [failed] * MOST_ATTEMPTS,
        "running": [run("running", job="ingest_batch", partition="batch-0001"), failed],
        "served": [run("failed", job="ingest_batch", partition="served-0001")],
    }[batch]
    key = "served-0001" if batch == "served" else "batch-0001"
    assert not decide_unfinished([key], [], runs, {}, NOW)[0].requests
