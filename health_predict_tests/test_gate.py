"""A challenger comes before the judge with held-out people, its design, its size and its speed."""

from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from health_predict import change_control, features, fitting, gate, schema, splits
from health_predict.models import FAMILIES, Candidate
from health_predict_tests.conftest import SMALL

CANDIDATE = Candidate("logistic_regression", SMALL["logistic_regression"])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def snapshot(cohort):
    return splits.with_side(cohort)


@pytest.fixture(scope="module")
def fitted(snapshot) -> fitting.Fitted:
    return fitting.learn(snapshot, fitting.fit_preprocessor(snapshot), CANDIDATE, seed=3)


@pytest.fixture(scope="module")
def first(snapshot, fitted) -> gate.Examination:
    return examine(snapshot, fitted)


def examine(snapshot, fitted, champion=None, candidate=CANDIDATE) -> gate.Examination:
    return gate.examine(snapshot, candidate, fitted, champion, label="any", harm=1.0, seed=3)


def broken(examination: gate.Examination) -> set[str]:
    return {clause.name for clause in examination.verdict.clauses if not clause.holds}


def test_the_held_out_are_the_newest_of_the_test_side(snapshot):
    frame = gate.held_out(snapshot)
    test = snapshot[snapshot[schema.SIDE] == "test"]
    assert set(frame[schema.SIDE]) == {"test"}
    assert list(frame.index) == list(test.index[-gate.PEOPLE :])


def test_no_more_are_held_out_than_are_of_the_same_months(snapshot):
    many = snapshot.assign(**{schema.SIDE: "test"})
    assert len(gate.held_out(many)) == gate.PEOPLE
    assert gate.held_out(many)[schema.POSITION].max() == many[schema.POSITION].max()


def test_the_people_are_grouped_by_what_may_not_be_harmed(snapshot):
    people = gate.people(gate.held_out(snapshot))
    assert set(people.groups) == {"race", "gender", "age"}
    assert "race" not in {*features.NUMERIC, *features.CATEGORICAL}
    assert (people.groups["race"] == gate.held_out(snapshot)["race"].to_numpy()).all()


def test_a_first_champion_is_examined_on_the_held_out_people(snapshot, fitted, first):
    from sklearn.metrics import roc_auc_score

    frame = gate.held_out(snapshot)
    told = fitted.pipeline.predict_proba(frame)[:, 1]
    assert first.verdict.champion is None
    assert first.verdict.challenger.n == len(frame)
    assert first.verdict.challenger.auc == pytest.approx(roc_auc_score(frame[schema.LABEL], told))
    assert {group.group.split(":")[0] for group in first.verdict.groups} == set(gate.GROUPS)


def test_a_design_says_what_a_challenger_is_made_of(snapshot, fitted, first):
    design = first.design
    assert (design.label, design.family, design.params) == ("any", *vars(CANDIDATE).values())
    assert design.features == [*features.NUMERIC, *features.CATEGORICAL]
    assert design.train_rows == (snapshot[schema.SIDE] == "train").sum()
    assert design.threshold == fitted.thresholds.value
    assert design.bytes > 1_000
    assert design.latency_ms > 0


def test_what_the_search_finds_is_within_change_control(first):
    assert change_control.change_control().breaches(first.design) == []
    assert "inside_change_control" not in broken(first)


def test_a_feature_that_is_not_listed_is_a_breach(snapshot, monkeypatch):
    monkeypatch.setattr(features, "NUMERIC", (*features.NUMERIC, "num_lab_procedures"))
    preprocessor = fitting.fit_preprocessor(snapshot)
    wider = fitting.learn(snapshot, preprocessor, CANDIDATE, seed=3)
    found = examine(snapshot, wider)
    assert "inside_change_control" in broken(found)
    assert not found.verdict.promoted
    assert "feature num_lab_procedures is not listed" in found.verdict.sentence


def test_hyperparameters_that_nobody_wrote_down_are_a_breach(snapshot, fitted):
    beyond = Candidate("logistic_regression", {"C": 50.0})
    found = examine(snapshot, fitted, candidate=beyond)
    assert "logistic_regression C 50 is outside 0.001 to 1" in found.verdict.sentence


def test_a_champion_is_scored_on_the_same_people_with_its_own_threshold(snapshot, fitted):
    champion = gate.Champion(fitted.pipeline, 0.97)
    verdict = examine(snapshot, fitted, champion).verdict
    assert not verdict.promoted
    assert verdict.champion.auc == verdict.challenger.auc
    assert verdict.champion.net_benefit < verdict.challenger.net_benefit
    assert "no better than the champion" in verdict.sentence


def test_a_challenger_that_learned_shuffled_labels_is_refused(snapshot, fitted):
    shuffled = snapshot.copy()
    for side in ("train", "validation"):
        rows = shuffled[schema.SIDE] == side
        labels = shuffled.loc[rows, schema.LABEL].to_numpy()
        shuffled.loc[rows, schema.LABEL] = np.random.default_rng(0).permutation(labels)
    learned = fitting.learn(shuffled, fitting.fit_preprocessor(shuffled), CANDIDATE, seed=3)
    found = examine(snapshot, learned, gate.Champion(fitted.pipeline, fitted.thresholds.value))
    assert not found.verdict.promoted
    assert {"better_in_auc_or_brier", "auc_not_worse"} <= broken(found)


def test_broken_clauses_come_first_in_the_table(snapshot, fitted):
    verdict = examine(snapshot, fitted, gate.Champion(fitted.pipeline, 0.5)).verdict
    rows = gate.clauses(verdict)
    assert [row["clause"] for row in rows if not row["holds"]] == [rows[0]["clause"]]
    assert {row["clause"] for row in rows} == {clause.name for clause in verdict.clauses}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_fits_within_the_footprint_that_is_written(snapshot, family):
    candidate = Candidate(family, FAMILIES[family].default)
    learned = fitting.learn(snapshot, fitting.fit_preprocessor(snapshot), candidate, seed=3)
    found = examine(snapshot, learned, candidate=candidate)
    assert change_control.change_control().breaches(found.design) == []
