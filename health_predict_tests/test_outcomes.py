"""A batch with known outcomes is measured with doubt, and a changed world is told from chance."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from health_predict import metrics
from health_predict.evaluation import CALIBRATION_BOUNDS, score
from health_predict.outcomes import (
    LARGEST_AUC_LOSS,
    Concept,
    Performance,
    assess,
    concept_drift,
)
from health_predict.subgroups import SMALLEST_CLASS, SMALLEST_GROUP, People

ROWS = 1_500
MEASURES = ("auc", "brier", "expected_observed", "slope", "net_benefit")


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def world(
    seed: int = 0, rows: int = ROWS, shift: float = 0.0, factor: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns outcomes (n,), and the probabilities (n,) of a model that knew a world without shift.

    Args:
        seed: of the draw.
        rows: n.
        shift: by how much the log-odds of everybody moved since.
        factor: how much of the difference between people is left.
    """
    rng = np.random.default_rng(seed)
    z = 0.8 * rng.normal(size=rows)
    labels = rng.random(rows) < sigmoid(factor * z + shift)
    return labels.astype(float), sigmoid(z)


def crowd(labels: np.ndarray, patients: np.ndarray | None = None) -> People:
    rows = np.arange(len(labels))
    groups = {"race": np.where(rows % 10, "many", "few"), "gender": np.where(rows % 2, "F", "M")}
    return People(labels, rows if patients is None else patients, groups)


def assessed(labels: np.ndarray, told: np.ndarray, **arguments) -> Performance:
    return assess(crowd(labels), told, **{"gate_auc": 0.68, "resamples": 200, **arguments})


def concept(labels: np.ndarray, told: np.ndarray, calibrated_on: int | None = None) -> Concept:
    found = concept_drift(
        labels, told, metrics.by_patient(np.arange(len(labels)), 0, 200), calibrated_on
    )
    assert found is not None
    return found


def test_the_figures_are_those_of_the_gate_each_with_an_interval_that_holds_it():
    labels, told = world()
    found = assess(crowd(labels), told, gate_auc=0.68, threshold=0.4, harm=0.5, seed=3)
    same = score(labels, told, np.arange(ROWS), threshold=0.4, harm=0.5, seed=3)
    for name in MEASURES:
        figure = getattr(found, name)
        assert figure.value == pytest.approx(getattr(same, name)), name
        assert figure.low < figure.value < figure.high, name
    assert (found.auc.low, found.auc.high) == pytest.approx((same.auc_low, same.auc_high))
    assert (found.n, found.positives) == (same.n, same.positives)


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    labels, told = world(99, 200_000)
    everyone = metrics.plain(labels)
    truth = {
        "auc": metrics.auc(labels, told, everyone)[0],
        "brier": metrics.brier(labels, told, everyone)[0],
        "expected_observed": 1.0,
        "slope": 1.0,
        "net_benefit": metrics.net_benefit(labels, told >= 0.5, everyone, 1.0)[0],
    }
    kept = dict.fromkeys(MEASURES, 0)
    for seed in range(80):
        found = assessed(*world(seed, 400), seed=seed)
        for name in MEASURES:
            figure = getattr(found, name)
            kept[name] += figure.low <= truth[name] <= figure.high
    assert min(kept.values()) >= 68  # 95 % of 80 is 76; fewer than 68 come once in 2,000


def test_visits_of_one_patient_count_as_one():
    labels, told = (np.repeat(values, 4) for values in world(rows=400))
    visits = np.repeat(np.arange(400), 4)
    arguments = {"gate_auc": 0.68, "resamples": 300}
    by_patient = assess(crowd(labels, visits), told, **arguments)
    by_row = assess(crowd(labels), told, **arguments)
    for name in MEASURES:
        one, other = getattr(by_patient, name), getattr(by_row, name)
        assert one.value == other.value
        assert one.high - one.low > 1.6 * (other.high - other.low)  # 2, less noise
    assert by_patient.concept.p_value > by_row.concept.p_value


def test_where_nothing_changed_concept_drift_is_found_as_seldom_as_stated():
    p_values = np.array([concept(*world(seed, 400)).p_value for seed in range(200)])
    assert (p_values < 0.01).sum() <= 7  # 1 % of 200 is 2; more than 7 come once in 1,000
    assert 2 <= (p_values < 0.05).sum() <= 20


def test_the_chance_in_the_calibration_of_a_model_is_not_taken_for_drift():
    from sklearn.linear_model import LogisticRegression

    alarms = {None: 0, 150: 0}
    for seed in range(60):
        seen, known = world(5_000 + seed, 150)
        labels, told = world(seed, 1_000)
        learned = LogisticRegression(C=np.inf).fit(metrics.log_odds(known)[:, None], seen)
        told = learned.predict_proba(metrics.log_odds(told)[:, None])[:, 1]
        for calibrated_on in alarms:
            alarms[calibrated_on] += concept(labels, told, calibrated_on).drifted
    assert alarms[150] <= 4  # 1 % of 60 is less than 1; more than 4 come once in 2,000
    assert alarms[None] > 18


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_a_rate_that_moved_given_the_score_is_found_and_called_so(shift):
    found = [concept(*world(seed, 1_000, shift=shift)) for seed in range(30)]
    assert sum(one.drifted for one in found) >= 28
    assert sum(one.rate_moved for one in found) >= 28
    assert sum(one.ranking_changed for one in found) <= 6
    assert all(np.sign(one.intercept.value) == np.sign(shift) for one in found)
    assert found[0].sentence.startswith("Outcomes no longer follow the score (p ")
    more = "more" if shift > 0 else "fewer"
    assert f"the rate moved, {more} readmissions than the score says" in found[0].sentence


def test_a_ranking_that_changed_given_the_score_is_found_and_called_so():
    found = [concept(*world(seed, 1_000, factor=0.3)) for seed in range(30)]
    assert sum(one.drifted for one in found) >= 28
    assert sum(one.ranking_changed for one in found) >= 28
    assert sum(one.rate_moved for one in found) <= 6
    assert "the ranking changed, people differ less than the score says" in found[0].sentence


def test_a_world_that_did_not_change_is_called_so_with_numbers():
    sentence = concept(*world()).sentence
    assert sentence.startswith("Outcomes follow the score as far as chance allows (p ")
    assert "intercept " in sentence
    assert "slope " in sentence


@pytest.mark.parametrize("drifted", [False, True])
def test_where_drift_is_found_one_of_its_two_parts_is_named(drifted):
    for seed in range(20):
        found = concept(*world(seed, 600, shift=0.25 * drifted, factor=1 - 0.35 * drifted))
        assert (found.rate_moved or found.ranking_changed) == found.drifted


def test_calibration_is_said_first_and_within_bounds_nothing_is_alarming():
    found = assessed(*world())
    assert found.within_bounds is True
    assert found.sentence.startswith("Expected/observed ")
    assert "within 0.80 to 1.25; AUC 0.7" in found.sentence
    assert "the gate's was 0.680" in found.sentence
    assert "on 1,500 encounters." in found.sentence


def test_a_batch_foretold_too_low_is_outside_of_the_bounds():
    labels, told = world()
    found = assessed(labels, 0.7 * told)
    assert (found.calibrated, found.ranks_as_before, found.within_bounds) == (False, True, False)
    assert "outside 0.80 to 1.25" in found.sentence
    assert "Outcomes no longer follow the score" in found.sentence
    assert CALIBRATION_BOUNDS == (0.8, 1.25)


def test_a_batch_ranked_worse_than_before_the_gate_beyond_doubt_is_outside_of_the_bounds():
    labels, told = world()
    fine = assessed(labels, told)
    high = fine.auc.high
    kept = replace(fine, gate_auc=high + LARGEST_AUC_LOSS - 0.001)
    lost = replace(fine, gate_auc=high + LARGEST_AUC_LOSS + 0.001)
    assert (kept.within_bounds, lost.within_bounds, lost.calibrated) == (True, False, True)
    assert "no more than 0.03 is lost for certain" in kept.sentence
    assert ", more than 0.03 is lost for certain" in lost.sentence


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_batch_with_one_outcome_only_is_not_scored_and_says_so(outcome):
    _, told = world(rows=300)
    found = assessed(np.full(300, outcome), told, left_out=2)
    assert {getattr(found, name) for name in (*MEASURES, "concept", "within_bounds")} == {None}
    assert found.sentence.startswith(
        f"Not scored: 300 encounters with {int(300 * outcome)} readmissions, both outcomes"
    )
    assert "2 on whom somebody acted after the score are left out" in found.sentence


def test_a_batch_of_nobody_is_not_scored_and_says_so():
    found = assessed(np.array([]), np.array([]))
    assert (
        found.sentence == "Not scored: 0 encounters with 0 readmissions, both outcomes are needed."
    )
    assert found.rate is None


def test_scores_that_are_not_numbers_are_not_scored_and_counted():
    labels, told = world()
    found = assessed(labels, np.where(np.arange(ROWS) < 3, np.nan, told))
    assert found.within_bounds is None
    assert found.sentence.startswith("Not scored: 3 of 1,500 scores are not numbers")


@pytest.mark.parametrize("rows, positives", [(SMALLEST_GROUP - 1, 90), (600, SMALLEST_CLASS - 1)])
def test_of_too_few_people_figures_are_told_and_nothing_follows(rows, positives):
    _, told = world(rows=rows)
    labels = (np.arange(rows) < positives).astype(float)
    found = assessed(labels, told)
    assert found.expected_observed is not None
    assert (found.within_bounds, found.concept) == (None, None)
    assert "nothing follows from it" in found.sentence
    assert f"with {positives} readmissions are too few" in found.sentence


def test_every_group_is_told_and_too_small_ones_are_said_to_be_so():
    found = {group.group: group for group in assessed(*world()).groups}
    assert set(found) == {"race: few", "race: many", "gender: F", "gender: M"}
    assert found["race: few"].words == "too few to say"
    assert found["race: many"].expected_observed == pytest.approx(1, abs=0.1)


def test_a_group_that_is_ranked_by_coin_is_named_in_the_sentence():
    labels, told = world(rows=3_000)
    women = np.arange(3_000) % 2 == 1
    told[women] = np.random.default_rng(1).permutation(told[women])
    assert "Ranked below 0.55 beyond doubt: gender: F AUC 0.5" in assessed(labels, told).sentence


def test_a_forecast_that_is_the_same_for_everybody_has_no_slope_and_no_concept():
    labels, _ = world()
    found = assessed(labels, np.full(ROWS, 0.5))
    assert (found.concept, found.auc.value) == (None, 0.5)
    assert found.calibrated


def test_what_is_kept_is_read_back_the_same():
    kept = TypeAdapter(Performance)
    for found in (assessed(*world()), assessed(np.zeros(300), world(rows=300)[1])):
        assert kept.validate_json(kept.dump_json(found)) == found
