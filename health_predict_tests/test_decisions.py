"""The pure decisions on the first champion and on roll-outs, and the sentence that says why."""

from health_predict.defs.decisions import MOST_ATTEMPTS, decide_bootstrap, decide_deploy
from health_predict.defs.facts import Event
from health_predict_tests.recorded import NOW, run


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


def promoted(version: str = "2", event_id: int = 20) -> Event:
    facts = {"version": version, "sentence": "Promoted."}
    return Event(event_id, "registered_model", None, "r", NOW, facts)


def deployed(
    wanted: str, *, rolled_back: bool = False, version: str = "", event_id: int = 30
) -> Event:
    facts = {
        "wanted": wanted,
        "version": version or wanted,
        "rolled_back": rolled_back,
        "sentence": "It was rolled out.",
    }
    return Event(event_id, "readmission_deployment", None, "d", NOW, facts)


def test_a_promotion_is_rolled_out_once() -> None:
    decision = decide_deploy(promoted(), deployed("1"), None, [])
    assert [r.run_key for r in decision.requests] == ["deploy:20:1"]
    assert not decide_deploy(promoted(), deployed("2"), None, []).requests


def test_a_version_that_was_rolled_back_is_not_rolled_out_again() -> None:
    decision = decide_deploy(promoted(), deployed("2", rolled_back=True), None, [])
    assert not decision.requests
    assert "It was rolled out." in decision.sentence


def test_one_roll_out_at_a_time() -> None:
    assert not decide_deploy(promoted(), None, None, [run("running", job="deploy")]).requests


def test_a_failed_roll_out_is_tried_three_times_then_handed_over() -> None:
    failed = run("failed", job="deploy", trigger=20)
    assert [r.attempt for r in decide_deploy(promoted(), None, None, [failed]).requests] == [2]
    assert decide_deploy(promoted(), None, None, [failed] * MOST_ATTEMPTS).alert


def test_nothing_is_rolled_out_before_a_champion_is_there() -> None:
    assert not decide_deploy(None, None, None, []).requests


def scored(version: str, event_id: int) -> Event:
    facts = {"champion_version": version}
    return Event(event_id, "batch_predictions", "batch-0004", "i", NOW, facts)


def test_a_champion_that_was_moved_by_hand_is_rolled_out_once() -> None:
    seen = scored("1", 40)
    decision = decide_deploy(promoted("2"), deployed("2"), seen, [])
    assert [r.run_key for r in decision.requests] == ["deploy:40:1"]
    assert "moved to it by hand" in decision.sentence
    assert "version 2 serves" in decision.sentence
    done = [run("succeeded", job="deploy", trigger=40)]
    settled = decide_deploy(promoted("2"), deployed("1", event_id=50), seen, done)
    assert not settled.requests
    assert "Version 1 was rolled out" in settled.sentence


def test_a_batch_scored_before_the_roll_out_moves_nothing() -> None:
    assert not decide_deploy(promoted("2"), deployed("2"), scored("1", 25), []).requests


def test_a_roll_out_of_an_older_promotion_does_not_answer_a_newer_one() -> None:
    older = [run("succeeded", job="deploy", trigger=10)]
    decision = decide_deploy(promoted("3"), deployed("2"), None, older)
    assert [r.run_key for r in decision.requests] == ["deploy:20:1"]
