"""The compiled scorer agrees with the pipeline it was compiled from, and refuses what was changed.

The two share one definition of the derived columns; all else is written twice, so it is compared
on every row, and on rows that no hospital would send.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from health_predict import schema
from health_predict.models import FAMILIES
from health_predict.scorer import Scorer, ScorerError, compile_pipeline
from health_predict_tests.conftest import FACTS

TOLERANCE = 1e-6


def agree(scorer: Scorer, pipeline, frame: pd.DataFrame) -> None:
    served = scorer.score(frame[list(schema.INPUTS)].to_dict("records"))
    expected = pipeline.predict_proba(frame)[:, 1]
    assert np.ptp(expected) > 0.05  # a constant would agree with anything
    assert np.abs(served - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_with_the_pipeline_on_every_row(family, pipelines, compiled, cohort):
    agree(Scorer.load(compiled[family]), pipelines[family], cohort)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_on_unseen_levels_and_extremes(family, pipelines, compiled, cohort):
    rng = np.random.default_rng(1)
    odd = cohort.iloc[:500].copy()
    for column, ends in schema.COUNTS.items():
        odd[column] = rng.choice(ends, len(odd))
    for column in schema.CODES:
        odd[column] = rng.choice([1, 7, 999], len(odd))
    texts = ["?", "Never seen", "E999", "V00", "250.99", "nan", "inf", "1e400", "-7", "x" * 80]
    for column in schema.OPEN:
        odd[column] = rng.choice(texts, len(odd))
    for column, levels in schema.CLOSED.items():
        odd[column] = rng.choice(levels, len(odd))
    agree(Scorer.load(compiled[family]), pipelines[family], odd)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_scores_the_same_alone_and_among_others(family, compiled, cohort):
    rows = cohort[list(schema.INPUTS)].iloc[:20].to_dict("records")
    scorer = Scorer.load(compiled[family])
    alone = [float(scorer.score([row])[0]) for row in rows]
    assert alone == pytest.approx(scorer.score(rows).tolist(), abs=1e-9)


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
    assert not {"race", "medical_specialty"} & set(scorer.unseen(common))
    strange = {**common, "medical_specialty": "Never seen"}
    assert set(scorer.unseen(strange)) - set(scorer.unseen(common)) == {"medical_specialty"}


def test_the_facts_come_back_as_they_went_in(compiled):
    assert all(Scorer.load(folder).facts == FACTS for folder in compiled.values())


@pytest.mark.parametrize("name", ["tables.json", "trees.ubj", "facts.json"])
def test_a_changed_file_is_refused_by_name(compiled, tmp_path, name):
    folder = shutil.copytree(compiled["xgboost"], tmp_path / "scorer")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ScorerError, match=f"{name} in .* has sha256 .*build the Bento again"):
        Scorer.load(folder)


@pytest.mark.parametrize("name", ["tables.json", "trees.ubj", "facts.json", "digests.json"])
def test_a_missing_file_is_refused_by_name(compiled, tmp_path, name):
    folder = shutil.copytree(compiled["random_forest"], tmp_path / "scorer")
    (folder / name).unlink()
    with pytest.raises(ScorerError, match=rf"{name}.*build the Bento again"):
        Scorer.load(folder)


@pytest.mark.parametrize("name", ["tables.json", "facts.json"])
def test_a_file_without_a_digest_is_refused(compiled, tmp_path, name):
    folder = shutil.copytree(compiled["logistic_regression"], tmp_path / "scorer")
    digests = json.loads((folder / "digests.json").read_text())
    del digests[name]
    (folder / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(ScorerError, match=name):
        Scorer.load(folder)


def test_no_scorer_is_compiled_over_an_older_one(pipelines, compiled, tmp_path):
    folder = shutil.copytree(compiled["xgboost"], tmp_path / "scorer")
    with pytest.raises(ScorerError, match="holds files already"):
        compile_pipeline(pipelines["logistic_regression"], FACTS, folder)


def test_a_family_without_a_compiled_form_is_refused_by_name(pipelines, cohort, tmp_path):
    from sklearn.naive_bayes import GaussianNB

    from health_predict import models

    preprocessor = pipelines["xgboost"].named_steps["preprocess"]
    x, y = preprocessor.transform(cohort), cohort[schema.LABEL].to_numpy()
    other = models.pipeline(preprocessor, GaussianNB().fit(x, y), x, y)
    with pytest.raises(ScorerError, match="no compiled form of GaussianNB"):
        compile_pipeline(other, FACTS, tmp_path / "scorer")


def test_nothing_that_runs_when_read_is_written(compiled):
    for folder in compiled.values():
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".ubj"}
        assert json.loads((folder / "tables.json").read_text())["width"] > 20
