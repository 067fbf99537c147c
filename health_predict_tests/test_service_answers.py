"""Why a score is what it is: the parts of an explanation add up to it, and are the model's own.

What is told is compared with what each library says of the fitted model itself, and of a small
forest with Shapley's sum written out. The scorer's part in it is held to account in `test_scorer`.
"""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from starlette.testclient import TestClient

from health_predict import compiling, features, models, schema, service
from health_predict.models import FAMILIES
from health_predict.serving.answers import UNSEEN
from health_predict_tests.conftest import FACTS
from health_predict_tests.serving import loaded

ROWS = 60
LEAST = 1e-6
"""Probabilities are told as log-odds from this one on."""

FIELDS = {
    **{f"log_{kind}": f"number_{kind}" for kind in ("inpatient", "emergency", "outpatient")},
    **{f"{diagnosis}_number": diagnosis for diagnosis in schema.DIAGNOSES},
    **{"diag_1_block": "diag_1", "age_years": "age"},
    **dict.fromkeys(("medications_changed", "medications_taken"), "medications"),
}
"""The field a feature is told under, where its name is another."""


@pytest.fixture(scope="module")
def rows(cohort) -> list[dict[str, Any]]:
    frame = cohort.iloc[:: len(cohort) // ROWS]
    return json.loads(frame[[*schema.INPUTS]].to_json(orient="records"))


@pytest.fixture(scope="module")
def frame(cohort):
    """The cohort's rows behind `rows`."""
    return cohort.iloc[:: len(cohort) // ROWS]


def ask(encounter: dict[str, Any], query: str = "?explain=true") -> dict[str, Any]:
    answer = TestClient(service.app).post(f"/predict{query}", json=encounter)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def told(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with loaded(folder):
        return [ask(row) for row in rows]


@pytest.fixture(scope="module")
def explained(compiled, rows) -> dict[str, list[dict[str, Any]]]:
    """Each family's explained answers to `rows`."""
    return {family: told(compiled[family], rows) for family in FAMILIES}


def by_field(answer: dict[str, Any], key: str = "log_odds") -> dict[str, Any]:
    return {part["field"]: part[key] for part in answer["contributions"]}


def log_odds(probability: float) -> float:
    kept = min(max(probability, LEAST), 1 - LEAST)
    return math.log(kept / (1 - kept))


def grouped(values: np.ndarray, pipeline) -> list[dict[str, float]]:
    """Returns columns of the matrix (n, k) added up by field."""
    places = features.columns(pipeline.named_steps["preprocess"])
    found = []
    for row in values:
        fields: dict[str, float] = {}
        for feature, columns in places.items():
            field = FIELDS.get(feature, feature)
            fields[field] = fields.get(field, 0.0) + float(row[columns].sum())
        found.append(fields)
    return found


def classifier_of(pipeline) -> Any:
    return pipeline.named_steps["classifier"].calibrated_classifiers_[0].estimator.estimator


@pytest.mark.parametrize("family", FAMILIES)
def test_baseline_contributions_and_calibration_add_up_to_the_log_odds_of_the_score(
    family, explained
):
    for answer in explained[family]:
        parts = answer["log_odds"]
        added = sum(by_field(answer).values())
        assert parts["contributions"] == pytest.approx(added, abs=1e-9)
        total = parts["baseline"] + added + parts["calibration"]
        assert total == pytest.approx(parts["total"], abs=1e-6)
        assert total == pytest.approx(log_odds(answer["probability_score"]), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_explanation_is_of_the_score_the_pipeline_gives(family, explained, pipelines, frame):
    expected = pipelines[family].predict_proba(frame)[:, 1]
    totals = [answer["log_odds"]["total"] for answer in explained[family]]
    assert np.ptp(totals) > 0.3
    assert 1 / (1 + np.exp(-np.array(totals))) == pytest.approx(expected, abs=1e-6)


def test_of_boosted_trees_it_is_what_xgboost_says_itself(explained, pipelines, frame):
    from xgboost import DMatrix

    pipeline = pipelines["xgboost"]
    x = pipeline.named_steps["preprocess"].transform(frame).astype(np.float32)
    booster = classifier_of(pipeline).get_booster()
    said = booster.predict(DMatrix(x), pred_contribs=True).astype(np.float64)
    fields = grouped(said[:, :-1], pipeline)
    for answer, expected, base in zip(explained["xgboost"], fields, said[:, -1], strict=True):
        assert by_field(answer) == pytest.approx(expected, abs=1e-6)
        assert answer["log_odds"]["baseline"] == pytest.approx(base, abs=1e-6)


def test_of_a_linear_model_it_is_weight_times_distance_from_the_average_person(
    explained, pipelines, frame
):
    pipeline = pipelines["logistic_regression"]
    x = pipeline.named_steps["preprocess"].transform(frame)
    weights = classifier_of(pipeline).coef_[0]
    average = np.zeros(x.shape[1])
    for feature, columns in features.columns(pipeline.named_steps["preprocess"]).items():
        if feature in features.CATEGORICAL:  # every level alike; numbers are 0 on average
            average[columns] = 1 / len(columns)
    base = average @ weights + classifier_of(pipeline).intercept_[0]
    fields = grouped((x - average) * weights, pipeline)
    for answer, expected in zip(explained["logistic_regression"], fields, strict=True):
        assert by_field(answer) == pytest.approx(expected, abs=1e-6)
        assert answer["log_odds"]["baseline"] == pytest.approx(base, abs=1e-6)


@pytest.fixture(scope="module")
def small_forest(pipelines, cohort):
    """A pipeline with a forest of few enough splits to write Shapley's sum out."""
    preprocessor = pipelines["random_forest"].named_steps["preprocess"]
    x, y = preprocessor.transform(cohort).astype(np.float32), cohort[schema.LABEL].to_numpy()
    forest = RandomForestClassifier(5, max_depth=3, max_features=0.3, random_state=3)
    return models.pipeline(preprocessor, forest.fit(x[::2], y[::2]), x[1::2], y[1::2])


def expected_value(tree: Any, row: np.ndarray, known: frozenset[int], node: int = 0) -> float:
    """Returns what a tree expects of whom only some columns are known.

    Source: Lundberg et al. 2020, "From local explanations to global understanding with explainable
    AI for trees", algorithm 1: at a split on an unknown column everyone the tree grew on goes on.
    """
    left, right = int(tree.children_left[node]), int(tree.children_right[node])
    if left < 0:
        return float(tree.value[node, 0, 1])
    if int(tree.feature[node]) in known:
        goes_left = row[tree.feature[node]] <= tree.threshold[node]
        return expected_value(tree, row, known, left if goes_left else right)
    people = tree.weighted_n_node_samples
    sides = sum(people[side] * expected_value(tree, row, known, side) for side in (left, right))
    return float(sides / people[node])


def shapley(tree: Any, row: np.ndarray) -> np.ndarray:
    """Returns Shapley's sum over all sets of a tree's columns (k,), written out."""
    found = np.zeros(len(row))
    players = sorted({int(column) for column in tree.feature if column >= 0})
    for player in players:
        others = [column for column in players if column != player]
        for size in range(len(players)):
            share = 1 / (len(players) * math.comb(len(players) - 1, size))
            for known in map(frozenset, combinations(others, size)):
                gain = expected_value(tree, row, known | {player})
                found[player] += share * (gain - expected_value(tree, row, known))
    return found


def test_of_a_forest_it_is_shapleys_sum_told_as_log_odds_by_one_factor(
    small_forest, rows, frame, tmp_path
):
    compiling.compile_pipeline(small_forest, FACTS, tmp_path)
    x = small_forest.named_steps["preprocess"].transform(frame).astype(np.float32)
    trees = [one.tree_ for one in classifier_of(small_forest).estimators_]
    mean = float(np.mean([tree.value[0, 0, 1] for tree in trees]))
    added = np.array([np.mean([shapley(tree, row) for tree in trees], axis=0) for row in x])
    fields = grouped(added, small_forest)
    answers = told(tmp_path, rows)
    assert np.ptp(added.sum(axis=1)) > 0.1
    for answer, total, expected in zip(answers, mean + added.sum(axis=1), fields, strict=True):
        baseline = answer["log_odds"]["baseline"]
        assert baseline == pytest.approx(log_odds(mean), abs=1e-5)
        factor = (log_odds(total) - log_odds(mean)) / (total - mean)
        stretched = {field: factor * value for field, value in expected.items()}
        assert by_field(answer) == pytest.approx(stretched, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_comes_first_and_every_field_once(family, explained):
    modelled = {FIELDS.get(name, name) for name in (*features.NUMERIC, *features.CATEGORICAL)}
    for answer in explained[family]:
        sizes = [abs(part["log_odds"]) for part in answer["contributions"]]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] > sizes[-1]
        fields = [part["field"] for part in answer["contributions"]]
        assert sorted(fields) == sorted(modelled)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_effect_says_what_the_number_says(family, explained):
    parts = [part for answer in explained[family] for part in answer["contributions"]]
    for part in parts:
        if abs(part["log_odds"]) < 0.005:
            assert part["effect"] == "hardly matters"
        else:
            direction = "raises" if part["log_odds"] > 0 else "lowers"
            odds = math.exp(part["log_odds"])
            assert part["effect"] == f"{direction} the risk: odds x {odds:.2f}"
    assert {part["effect"].split()[0] for part in parts} == {"hardly", "raises", "lowers"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_same_with_and_without_its_explanation(family, compiled, explained, rows):
    with loaded(compiled[family]):
        plain, also_plain = ask(rows[0], ""), ask(rows[0], "?explain=false")
    explanation = {"contributions", "log_odds"}
    assert plain == also_plain
    assert not explanation & plain.keys()
    assert plain == {k: v for k, v in explained[family][0].items() if k not in explanation}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("column", "value"),
    [("race", "Other"), ("race", None), ("race", "Never seen"), ("num_lab_procedures", 99)],
)
def test_what_the_model_does_not_use_changes_nothing(family, compiled, encounter, column, value):
    assert column not in features.MODELLED
    with loaded(compiled[family]):
        before, after = ask(encounter), ask({**encounter, column: value})
    assert before == after
    assert column not in by_field(before)


def test_what_the_model_uses_moves_its_own_field_of_a_linear_model_only(compiled, encounter):
    with loaded(compiled["logistic_regression"]):
        few, many = (by_field(ask({**encounter, "number_inpatient": n})) for n in (0, 5))
    assert {field for field in few if few[field] != many[field]} == {"number_inpatient"}
    assert few["number_inpatient"] < many["number_inpatient"]


def values_of(folder: Path, encounter: dict[str, Any], **changes: Any) -> dict[str, str]:
    with loaded(folder):
        return by_field(ask({**encounter, **changes}), "value")


def test_codes_are_told_in_the_words_of_the_published_tables(compiled, encounter):
    said = values_of(
        compiled["xgboost"],
        encounter,
        **{"admission_type_id": 3, "admission_source_id": 7, "discharge_disposition_id": 6},
    )
    assert said["admission_type_id"] == "3: Elective"
    assert said["admission_source_id"] == "7: Emergency Room"
    home = "6: Discharged/transferred to home with home health service"
    assert said["discharge_disposition_id"] == home


def test_a_code_that_is_in_no_table_is_said_to_be_in_none(compiled, encounter):
    said = values_of(compiled["xgboost"], encounter, admission_type_id=998)
    assert said["admission_type_id"] == "998: not in the published table"


@pytest.mark.parametrize("missing", [None, "?", ""])
def test_what_is_missing_is_said_to_be_missing_and_counted(compiled, encounter, missing):
    known = dict.fromkeys(("weight", "payer_code", "medical_specialty", *schema.DIAGNOSES), "1")
    said = values_of(compiled["xgboost"], encounter, **known)
    assert said["missing_fields"] == "nothing missing"
    assert said["payer_code"] == "1"
    changes = {**known, "payer_code": missing, "diag_3": missing}
    said = values_of(compiled["xgboost"], encounter, **changes)
    assert said["payer_code"] == said["diag_3"] == "not recorded"
    assert said["missing_fields"] == "payer_code, diag_3"


def test_drugs_are_told_together_by_name_and_dose(compiled, encounter):
    none = dict.fromkeys(schema.MEDICATIONS, "No")
    said = values_of(compiled["xgboost"], encounter, **none)
    assert said["medications"] == "none given"
    given = {**none, "insulin": "Up", "glyburide-metformin": "Steady"}
    said = values_of(compiled["xgboost"], encounter, **given)
    assert said["medications"] == "insulin Up, glyburide-metformin Steady"
    assert not {*schema.MEDICATIONS} & said.keys()


def test_every_field_is_told_by_what_it_is(explained):
    labels = by_field(explained["xgboost"][0], "label")
    assert labels["number_inpatient"] == "Inpatient stays in the year before"
    assert labels["medications"] == "The 23 diabetes drugs together"
    assert len({*labels.values()}) == len(labels)
    assert all(label and not label.endswith(".") for label in labels.values())


def test_numbers_are_told_as_they_were_sent(compiled, encounter):
    said = values_of(compiled["xgboost"], encounter, number_inpatient=12, time_in_hospital=3)
    assert (said["number_inpatient"], said["time_in_hospital"]) == ("12", "3")
    assert said["age"] == encounter["age"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_probability_of_0_or_1_has_log_odds_that_can_be_shown(
    family, pipelines, cohort, rows, tmp_path
):
    pipeline = pipelines[family]
    preprocessor = pipeline.named_steps["preprocess"]
    x = preprocessor.transform(cohort).astype(np.float32)
    raw = classifier_of(pipeline).predict_proba(x)[:, 1]
    steep = models.pipeline(
        preprocessor, classifier_of(pipeline), x, raw > np.median(raw), "isotonic"
    )
    compiling.compile_pipeline(steep, FACTS, tmp_path)
    answers = told(tmp_path, rows)
    # To the last bits: interpolated between two scores that are as good as one.
    assert {round(answer["probability_score"], 9) for answer in answers} == {0.0, 1.0}
    for answer in answers:
        parts = answer["log_odds"]
        assert abs(parts["total"]) == pytest.approx(log_odds(1.0), abs=1e-3)
        assert parts["baseline"] + parts["contributions"] + parts["calibration"] == pytest.approx(
            parts["total"], abs=1e-6
        )


def test_unusual_levels_are_warned_of_under_the_field_that_was_sent(compiled, encounter):
    usual = {**encounter, "medical_specialty": "?", "diag_1": "428", "payer_code": "?"}
    with loaded(compiled["xgboost"]):
        before = ask(usual)["warnings"]
        after = ask({**usual, "diag_1": "E999.9", "payer_code": "ZZ"})["warnings"]
    fresh = [warning for warning in after if warning not in before]
    assert sorted(warning["field"] for warning in fresh) == ["diag_1", "payer_code"]
    assert {warning["message"] for warning in after} == {UNSEEN}
