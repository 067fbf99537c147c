"""One search, on one process or on Ray: the same trials, the same fates, the same winner."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from threadpoolctl import threadpool_limits

from health_predict import fitting, models, splits
from health_predict.models import FAMILIES, STAGES, Candidate
from health_predict.search import (
    RUNGS,
    Proposals,
    SearchData,
    SearchError,
    SearchResult,
    Trial,
    fate,
    search_serially,
    validation_auc,
)
from health_predict.tuning import search

TRIALS, SEED = 9, 7


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def data(cohort) -> SearchData:
    """The first 2,000 encounters of the cohort."""
    snapshot = splits.with_side(cohort.head(2_000))
    preprocessor = fitting.fit_preprocessor(snapshot)
    return SearchData(
        *(fitting.sample(snapshot, preprocessor, side) for side in ("train", "validation"))
    )


@pytest.fixture(scope="module")
def serial(data) -> SearchResult:
    return search_serially(data, trials=TRIALS, seed=SEED)


@pytest.fixture(scope="module")
def large(data) -> SearchResult:
    return search_serially(data, trials=15, seed=SEED)


def timeless(result: SearchResult) -> tuple[list[Trial], Trial]:
    """Returns what a search found without how long it took."""
    return [replace(trial, seconds=0) for trial in result.trials], replace(result.winner, seconds=0)


def test_one_process_finds_the_same_twice_and_another_seed_tries_others(data, serial):
    assert timeless(search_serially(data, trials=TRIALS, seed=SEED)) == timeless(serial)
    other = search_serially(data, trials=TRIALS, seed=SEED + 1)
    assert [t.params for t in other.trials] != [t.params for t in serial.trials]


def test_ray_finds_what_one_process_finds(data, serial):
    assert timeless(search(data, trials=TRIALS, seed=SEED, workers=2)) == timeless(serial)


def test_the_backend_serial_is_the_search_in_this_process(data):
    said: list[str] = []
    found = search(data, trials=3, seed=SEED, backend="serial", say=said.append)
    assert timeless(found) == timeless(search_serially(data, trials=3, seed=SEED))
    assert said == [trial.words for trial in found.trials]
    assert found.start_seconds == 0


def test_a_search_begins_with_the_default_of_each_family_and_then_takes_turns(serial):
    assert {t.family: t.params for t in serial.trials[:3]} == {
        name: family.default for name, family in FAMILIES.items()
    }
    families = [trial.family for trial in serial.trials]
    assert families[:3] == families[3:6] == families[6:9]
    assert [trial.number for trial in serial.trials] == list(range(TRIALS))


def test_every_value_that_is_tried_lies_in_its_range(large):
    for trial in large.trials:
        space = FAMILIES[trial.family].space
        assert trial.params.keys() == space.keys()
        for name, value in trial.params.items():
            assert space[name].low <= value <= space[name].high * (1 + 1e-9), name


def test_a_family_does_not_try_the_same_twice(large):
    tried = [(trial.family, tuple(trial.params.items())) for trial in large.trials]
    assert len(set(tried)) == len(tried)


def test_halving_stops_what_falls_behind_at_a_rung_and_the_rest_run_in_full(large):
    halved = [trial for trial in large.trials if trial.fate == "halved"]
    full = [trial for trial in large.trials if trial.fate == "full"]
    assert halved
    assert full
    assert {len(trial.curve) for trial in halved} <= set(RUNGS)
    assert {len(trial.curve) for trial in full} == {STAGES}
    assert len(halved) + len(full) == 15


def test_a_trial_that_is_stopped_lay_behind_one_of_its_family_before_it(large):
    for trial in large.trials:
        if trial.fate == "halved":
            rung = len(trial.curve)
            before = [
                other.curve[rung - 1]
                for other in large.trials[: trial.number]
                if other.family == trial.family and len(other.curve) >= rung
            ]
            assert trial.auc < max(before)


def test_the_winner_is_the_best_of_those_that_ran_in_full(large):
    assert large.winner.auc == max(t.auc for t in large.trials if t.fate == "full")
    assert large.candidate == Candidate(large.winner.family, large.winner.params)


def test_the_winners_curve_ends_where_its_refit_stands(data, serial):
    refitted = models.fit(serial.candidate, data.train, SEED)
    assert validation_auc(refitted, data.validation) == pytest.approx(serial.winner.auc, abs=1e-9)


def test_the_order_in_which_trials_end_changes_nothing_that_is_proposed():
    """A generation is proposed from those before the last one, whoever was faster."""

    def asked(order: list[int]) -> list[Candidate]:
        proposals = Proposals(12, SEED, list(FAMILIES))
        handed_out = []
        for _ in range(4):
            generation = [proposals.next() for _ in range(3)]
            for i in order:
                one = generation[i]
                value = 0.6 + 0.01 * (one.number % 5)
                proposals.end(one.trial([value] * STAGES, "full", 1.0))
            handed_out += [(one.candidate, one.bars) for one in generation]
        return handed_out

    assert asked([0, 1, 2]) == asked([2, 0, 1])


def test_a_candidate_waits_for_the_generation_before_the_last_one_and_no_other():
    proposals = Proposals(12, SEED, list(FAMILIES))
    first = [proposals.next() for _ in range(6)]
    assert all(first)
    assert proposals.next() is None
    for one in first[:3]:
        proposals.end(one.trial([0.6] * STAGES, "full", 1.0))
    assert proposals.next().number == 6


def test_one_family_may_be_searched_alone(data):
    found = search_serially(data, trials=4, seed=SEED, families=["logistic_regression"])
    assert [trial.family for trial in found.trials] == ["logistic_regression"] * 4
    assert len({trial.params["C"] for trial in found.trials}) == 4


@pytest.mark.parametrize(
    ("families", "words"), [(["xgboost", "svm"], "svm cannot"), ([], "no family cannot")]
)
@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_a_family_that_is_unknown_is_refused_with_those_that_are_known(
    data, families, words, backend
):
    known = "the families are logistic_regression, random_forest, xgboost"
    with pytest.raises(SearchError, match=f"{words} be searched; {known}"):
        search(data, trials=3, seed=SEED, families=families, backend=backend)


def test_a_search_without_time_is_an_error_that_names_the_budget(data):
    with pytest.raises(SearchError, match=r"0 trials was fitted.*HEALTH_PREDICT_SEARCH_SECONDS"):
        search_serially(data, trials=3, seed=SEED, seconds=0)


def test_what_is_left_when_the_time_is_over_is_out_of_time():
    past, ahead = 0.0, float("inf")
    assert fate([0.6], {}, past) == "out of time"
    assert fate([0.6], {}, ahead) is None
    assert fate([0.6], {1: 0.61}, past) == "halved"
    assert fate([0.6] * STAGES, {}, past) == "full"
    assert fate([0.7, 0.6], {1: 0.61}, ahead) is None, "a bar is asked at its own rung only"


def test_a_search_that_runs_out_of_time_gives_the_best_of_what_it_has(data):
    import time

    began = time.monotonic()
    search_serially(data, trials=1, seed=SEED, families=["xgboost"])
    found = search_serially(
        data, trials=400, seed=SEED, families=["xgboost"], seconds=4 * (time.monotonic() - began)
    )
    assert 1 <= len(found.trials) < 400
    assert found.winner.fate == "full"
    assert all(trial.fate != "out of time" for trial in found.trials[:-1])


def test_no_label_of_the_validation_side_reaches_an_estimator(data):
    flipped = SearchData(data.train, replace(data.validation, y=1 - data.validation.y))
    one, other = (search_serially(d, trials=3, seed=SEED).trials for d in (data, flipped))
    for trial, mirrored in zip(one, other, strict=True):
        shared = min(len(trial.curve), len(mirrored.curve))
        assert trial.curve[:shared] == pytest.approx([1 - auc for auc in mirrored.curve[:shared]])
