"""The compiled scorer agrees with the pipeline it was compiled from, and refuses what was changed.

The two share one definition of the derived columns; all else is written twice, so it is compared
on every row, and on rows that no hospital would send. So are the steps of an isotonic calibration,
where a difference in the last bit of a score is one in the probability.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.pipeline import Pipeline

from health_predict import features, schema
from health_predict.compiling import compile_pipeline, stress_rows
from health_predict.models import FAMILIES
from health_predict.scorer import Scorer, ScorerError
from health_predict_tests.conftest import FACTS

TOLERANCE = 1e-6


def agree(scorer: Scorer, pipeline, frame: pd.DataFrame) -> None:
    served = scorer.score(requests(frame))
    expected = pipeline.predict_proba(frame)[:, 1]
    assert np.ptp(expected) > 0.05  # a constant would agree with anything
    assert np.abs(served - expected).max() < TOLERANCE


def requests(frame: pd.DataFrame) -> list[dict]:
    return frame[list(schema.INPUTS)].to_dict("records")


def classifier_of(pipeline: Pipeline):
    """The fitted classifier inside the calibration, frozen."""
    return pipeline.named_steps["classifier"].calibrated_classifiers_[0].estimator


def raw_score(pipeline: Pipeline, frame: pd.DataFrame) -> np.ndarray:
    """What the classifier says before calibration, in the unit its parts add up in."""
    classifier = classifier_of(pipeline).estimator
    x = pipeline.named_steps["preprocess"].transform(frame)
    if hasattr(classifier, "decision_function"):
        return classifier.decision_function(x)
    if hasattr(classifier, "get_booster"):
        return classifier.predict(x, output_margin=True)
    return classifier.predict_proba(x)[:, 1]


def isotonic(pipeline: Pipeline, frame: pd.DataFrame, labels, precision=np.float64) -> Pipeline:
    """The same preprocessor and classifier, calibrated anew by isotonic regression."""
    preprocessor = pipeline.named_steps["preprocess"]
    x = preprocessor.transform(frame).astype(precision)
    calibrated = CalibratedClassifierCV(classifier_of(pipeline), method="isotonic").fit(x, labels)
    return Pipeline([("preprocess", preprocessor), ("classifier", calibrated)])


def load(pipeline: Pipeline, folder) -> Scorer:
    compile_pipeline(pipeline, FACTS, folder)
    return Scorer.load(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_with_the_pipeline_on_every_row(family, pipelines, compiled, cohort):
    agree(Scorer.load(compiled[family]), pipelines[family], cohort)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_on_unseen_levels_and_extremes(family, pipelines, compiled, cohort):
    rows = stress_rows(cohort, 10_000)
    assert len(rows) == 10_000
    assert {"?", "Never seen"} <= set(rows["medical_specialty"])
    assert set(schema.COUNTS["number_inpatient"]) <= set(rows["number_inpatient"])
    agree(Scorer.load(compiled[family]), pipelines[family], rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_scores_the_same_alone_and_among_others(family, compiled, cohort):
    rows = requests(cohort.iloc[:20])
    scorer = Scorer.load(compiled[family])
    alone = [float(scorer.score([row])[0]) for row in rows]
    assert alone == pytest.approx(scorer.score(rows).tolist(), abs=1e-9)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_isotonic_calibration_agrees_on_every_row(
    family, precision, pipelines, cohort, tmp_path
):
    known = cohort.iloc[::3]
    pipeline = isotonic(pipelines[family], known, known[schema.LABEL], precision)
    scorer = load(pipeline, tmp_path)
    agree(scorer, pipeline, cohort)
    alone = np.array([scorer.score([row])[0] for row in requests(cohort)])
    assert np.abs(alone - pipeline.predict_proba(cohort)[:, 1]).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_jump_from_0_to_1_agrees_on_both_its_sides(family, pipelines, cohort, tmp_path):
    raw = raw_score(pipelines[family], cohort)
    pipeline = isotonic(pipelines[family], cohort, raw > np.median(raw))
    assert set(np.round(pipeline.predict_proba(cohort)[:, 1], 6)) == {0.0, 1.0}
    agree(load(pipeline, tmp_path), pipeline, cohort)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_constant_calibration_agrees(family, pipelines, cohort, tmp_path):
    raw = raw_score(pipelines[family], cohort)
    falling = isotonic(pipelines[family], cohort, raw < np.median(raw))
    alike = cohort.iloc[[0] * 20]
    one_score = isotonic(pipelines[family], alike, [0] * 5 + [1] * 15)
    for name, pipeline in {"falling": falling, "one_score": one_score}.items():
        served = load(pipeline, tmp_path / name).score(requests(cohort))
        expected = pipeline.predict_proba(cohort)[:, 1]
        assert np.ptp(expected) < TOLERANCE
        assert np.abs(served - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_add_up_to_the_score_before_calibration(family, pipelines, compiled, cohort):
    some = cohort.iloc[::20]
    told = Scorer.load(compiled[family]).contributions(requests(some))
    assert told.names == [*features.NUMERIC, *features.CATEGORICAL]
    assert told.values.shape == (len(some), len(told.names))
    total = told.base + told.values.sum(axis=1)
    assert np.abs(total - raw_score(pipelines[family], some)).max() < 1e-5
    assert np.ptp(total) > 0.1


def test_contributions_are_told_in_the_unit_they_add_up_in(compiled, encounter):
    units = {
        f: Scorer.load(folder).contributions([encounter]).unit for f, folder in compiled.items()
    }
    assert units == {
        "logistic_regression": "log-odds",
        "random_forest": "probability",
        "xgboost": "log-odds",
    }


def test_the_contributions_of_a_forest_start_at_the_mean_of_the_people_it_grew_on(
    pipelines, compiled, encounter
):
    trees = classifier_of(pipelines["random_forest"]).estimator.estimators_
    mean = np.mean([tree.tree_.value[0, 0, 1] for tree in trees])
    told = Scorer.load(compiled["random_forest"]).contributions([encounter])
    assert told.base == pytest.approx(mean, abs=1e-5)


def test_a_feature_no_tree_asks_for_contributes_nothing(pipelines, compiled, cohort):
    booster = classifier_of(pipelines["xgboost"]).estimator.get_booster()
    encode = pipelines["xgboost"].named_steps["preprocess"].named_steps["encode"]
    asked = {encode.get_feature_names_out()[int(name[1:])] for name in booster.get_score()}
    told = Scorer.load(compiled["xgboost"]).contributions(requests(cohort.iloc[::20]))
    moved = {n for n, column in zip(told.names, told.values.T, strict=True) if column.any()}
    assert moved == {
        name
        for name in told.names
        if name in asked or any(column.startswith(f"{name}_") for column in asked)
    }
    assert 0 < len(moved) < len(told.names)


def test_of_a_linear_model_a_changed_level_moves_its_own_feature_only(compiled, encounter):
    scorer = Scorer.load(compiled["logistic_regression"])
    told = scorer.contributions([{**encounter, "change": level} for level in schema.CHANGES])
    moved = np.flatnonzero(told.values[0] != told.values[1])
    assert [told.names[column] for column in moved] == ["change"]
    # Two levels that count the same: what one adds the other takes.
    assert told.values[:, moved].sum() == pytest.approx(0, abs=1e-12)


def test_centred_contributions_add_up_to_the_same_scores_from_the_mean(compiled, cohort):
    told = Scorer.load(compiled["logistic_regression"]).contributions(requests(cohort.iloc[:200]))
    centred = told.centred()
    assert np.abs(centred.values.mean(axis=0)).max() < 1e-12
    assert centred.base + centred.values.sum(axis=1) == pytest.approx(
        told.base + told.values.sum(axis=1)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_without_an_encounter_there_is_nothing_to_explain(family, compiled):
    with pytest.raises(ValueError, match="no encounter"):
        Scorer.load(compiled[family]).contributions([])


def test_the_order_of_the_fields_does_not_matter(compiled, encounter):
    scorer = Scorer.load(compiled["xgboost"])
    turned = dict(reversed(encounter.items()))
    assert list(turned) != list(encounter)
    assert scorer.score([turned])[0] == scorer.score([encounter])[0]


def test_a_missing_field_is_an_error_and_not_a_zero(compiled, encounter):
    del encounter["number_inpatient"]
    with pytest.raises(KeyError, match="number_inpatient"):
        Scorer.load(compiled["xgboost"]).score([encounter])


def test_only_levels_that_were_not_learned_are_called_unseen(compiled, encounter):
    scorer = Scorer.load(compiled["logistic_regression"])
    common = {**encounter, "race": "Caucasian", "medical_specialty": "?"}
    strange = {**common, "medical_specialty": "Never seen"}
    usual, unusual = map(set, scorer.scored([common, strange])[1])
    assert not {"race", "medical_specialty"} & usual
    assert unusual - usual == {"medical_specialty"}


def test_the_facts_come_back_as_they_went_in(compiled):
    assert all(Scorer.load(folder).facts == FACTS for folder in compiled.values())


@pytest.mark.parametrize("name", ["tables.json", "trees.ubj", "nodes.npy", "facts.json"])
def test_a_changed_file_is_refused_by_name(compiled, tmp_path, name):
    folder = shutil.copytree(compiled["random_forest"], tmp_path / "scorer")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ScorerError, match=f"{name} in .* has sha256 .*build the Bento again"):
        Scorer.load(folder)


@pytest.mark.parametrize(
    "name", ["tables.json", "trees.ubj", "nodes.npy", "facts.json", "digests.json"]
)
def test_a_missing_file_is_refused_by_name(compiled, tmp_path, name):
    folder = shutil.copytree(compiled["random_forest"], tmp_path / "scorer")
    (folder / name).unlink()
    with pytest.raises(ScorerError, match=rf"{name}.*build the Bento again"):
        Scorer.load(folder)


@pytest.mark.parametrize("name", ["tables.json", "trees.ubj", "nodes.npy", "facts.json"])
def test_a_file_without_a_digest_is_refused(compiled, tmp_path, name):
    folder = shutil.copytree(compiled["random_forest"], tmp_path / "scorer")
    digests = json.loads((folder / "digests.json").read_text())
    del digests[name]
    (folder / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(ScorerError, match=name):
        Scorer.load(folder)
