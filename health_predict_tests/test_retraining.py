"""When the loop trains again and why or why not: alarms, rest, age, and a person."""

from dataclasses import replace

import pytest

from health_predict.defs.decisions import MOST_ATTEMPTS
from health_predict.defs.facts import Event
from health_predict.defs.retraining import LONGEST_WAIT_SECONDS, decide_retrain
from health_predict_tests.recorded import NOW, performance, report, run


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
    later = decide_retrain(burst, [run("succeeded", trigger=7)], [], NOW, champion="2")
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
    decision = decide_retrain(alarms, [done], [], NOW, champion="2")
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


DAY = 86_400.0


def drift(event_id: int, batch: int, statistic: float, champion: str = "1") -> Event:
    facts = {"statistic": statistic, "threshold": 0.70, "champion_version": champion}
    return report(event_id, batch, drifted=statistic > 0.70, **facts)


def foretold(event_id: int, batch: int, expected_observed: float) -> Event:
    event = performance(event_id, batch, within_bounds=0.8 <= expected_observed <= 1.25)
    facts = {"expected_observed": expected_observed, "champion_version": "1"}
    return replace(event, metadata={**event.metadata, **facts})


REFUSED = [run("succeeded", trigger=5, newest_batch=1)]
"""The training that answered event 5; the champion stayed."""


def test_a_shift_that_was_answered_rests_for_some_batches_and_says_so() -> None:
    reports = [drift(5, 1, 0.80), drift(9, 2, 0.81), drift(13, 3, 0.79)]
    decision = decide_retrain(reports, REFUSED, [], NOW, champion="1")
    assert not decision.requests
    assert "the shift of batch-0001 goes on" in decision.sentence
    assert decision.settled == 4  # the answer is read again, or the rest would be forgotten


def test_a_shift_that_outlasts_its_rest_is_trained_on_again_once() -> None:
    reports = [drift(5 + 4 * n, 1 + n, 0.80) for n in range(4)]
    (request,) = decide_retrain(reports, REFUSED, [], NOW, champion="1").requests
    assert request.trigger == 17
    answered = [run("succeeded", trigger=17, newest_batch=4), *REFUSED]
    assert not decide_retrain(reports, answered, [], NOW, champion="1").requests


@pytest.mark.parametrize(
    "reports",
    [
        pytest.param([drift(9, 2, 0.87)], id="it has grown"),
        pytest.param([drift(9, 2, 0.60), drift(13, 3, 0.80)], id="it had ended"),
    ],
)
def test_a_new_shift_does_not_rest(reports: list[Event]) -> None:
    assert decide_retrain([drift(5, 1, 0.80), *reports], REFUSED, [], NOW, champion="1").requests


def test_an_alarm_raised_while_its_champion_was_replaced_does_not_rest() -> None:
    reports = [drift(5, 1, 0.80), drift(9, 2, 0.80)]
    assert decide_retrain(reports, REFUSED, [], NOW, champion="2").requests


def test_a_statistic_just_below_the_threshold_does_not_end_a_shift() -> None:
    reports = [drift(5, 1, 0.80), drift(9, 2, 0.69), drift(13, 3, 0.72)]
    assert not decide_retrain(reports, REFUSED, [], NOW, champion="1").requests


def test_a_shift_is_as_large_as_the_largest_batch_that_was_answered() -> None:
    # The two were watched at a time, and the larger one was done first.
    reports = [drift(4, 2, 0.93), drift(5, 1, 0.80), drift(9, 3, 0.95)]
    answered = [run("succeeded", trigger=5, newest_batch=2)]
    assert not decide_retrain(reports, answered, [], NOW, champion="1").requests


def test_calibration_rests_and_wakes_by_itself() -> None:
    reports = [foretold(5, 1, 1.30), foretold(9, 2, 1.28)]
    assert not decide_retrain(reports, REFUSED, [], NOW, champion="1").requests
    assert decide_retrain(
        [*reports, foretold(13, 3, 1.45)], REFUSED, [], NOW, champion="1"
    ).requests


def test_calibration_is_said_before_drift() -> None:
    alarms = [foretold(5, 1, 1.4), drift(9, 1, 0.8)]
    sentence = decide_retrain(alarms, [], [], NOW).sentence
    assert sentence.index("performance of batch 1") < sentence.index("sentence of batch 1")


def verdict(days_old: float) -> Event:
    return Event(3, "registered_model", None, "r", 100 * DAY - days_old * DAY, {"version": "1"})


def test_an_old_champion_is_trained_again_without_a_cause() -> None:
    decision = decide_retrain([], [], [], 100 * DAY, verdict=verdict(61))
    assert [r.run_key for r in decision.requests] == ["retrain:3:1"]
    assert "61 days old, at most 60" in decision.sentence
    busy = [run("running")]
    assert not decide_retrain([], busy, [], 100 * DAY, verdict=verdict(61)).requests
    assert not decide_retrain([], [], [], 100 * DAY, verdict=verdict(59)).requests


def test_a_person_may_force_a_training_at_any_time() -> None:
    facts = {"forced_by": "Ada Lovelace", "sentence": "Forced by Ada Lovelace: new coding."}
    forced = Event(13, "training_set", None, "", NOW, facts)
    coming = run("running", job="ingest_batch", partition="batch-0002")
    reports = [drift(5, 1, 0.80), drift(9, 2, 0.80), forced]
    decision = decide_retrain(reports, REFUSED, [coming], NOW, champion="1")
    assert [r.run_key for r in decision.requests] == ["retrain:13:1"]
    assert "Ada Lovelace: new coding" in decision.sentence
    done = [run("succeeded", trigger=13), *REFUSED]
    assert not decide_retrain(reports, done, [], NOW, champion="1").requests


def test_an_alarm_from_a_clock_that_runs_ahead_is_answered() -> None:
    ahead = replace(report(5, 1, drifted=True), timestamp=NOW + 3_600)
    assert decide_retrain([ahead], [], [], NOW).requests
    coming = run("running", job="ingest_batch", partition="batch-0002")
    later = NOW + 3_600 + LONGEST_WAIT_SECONDS
    assert decide_retrain([ahead], [], [coming], later).requests


def test_an_alarm_of_served_traffic_is_answered_by_its_own_training_alone() -> None:
    alarm = replace(report(9, 1, drifted=True), partition="served-0001")
    assert decide_retrain([alarm], [run("succeeded", newest_batch=7)], [], NOW).requests
    assert not decide_retrain([alarm], [run("succeeded", trigger=9)], [], NOW).requests


def test_a_batch_that_was_watched_twice_is_answered_once() -> None:
    twice = [report(5, 1, drifted=True), report(9, 1, drifted=True)]
    (request,) = decide_retrain(twice, [], [], NOW).requests
    done = [run("succeeded", trigger=request.trigger, newest_batch=1)]
    assert not decide_retrain([*twice, report(13, 1, drifted=True)], done, [], NOW).requests
