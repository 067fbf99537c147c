"""What a pipeline is compiled to, what cannot be compiled, and what the result costs to serve.

That the compiled model scores as the pipeline does is asked in `test_scorer`.
"""

import json
import shutil
import tempfile

import numpy as np
import pytest

from health_predict import models, schema
from health_predict.compiling import compile_pipeline, footprint
from health_predict.models import FAMILIES
from health_predict.scorer import ScorerError
from health_predict_tests.conftest import FACTS


def test_no_scorer_is_compiled_over_an_older_one(pipelines, compiled, tmp_path):
    folder = shutil.copytree(compiled["xgboost"], tmp_path / "scorer")
    with pytest.raises(ScorerError, match="holds files already"):
        compile_pipeline(pipelines["logistic_regression"], FACTS, folder)


def test_a_family_without_a_compiled_form_is_refused_by_name(pipelines, cohort, tmp_path):
    from sklearn.naive_bayes import GaussianNB

    preprocessor = pipelines["xgboost"].named_steps["preprocess"]
    x, y = preprocessor.transform(cohort), cohort[schema.LABEL].to_numpy()
    other = models.pipeline(preprocessor, GaussianNB().fit(x, y), x, y)
    with pytest.raises(ScorerError, match="no compiled form of GaussianNB"):
        compile_pipeline(other, FACTS, tmp_path / "scorer")


def test_a_calibration_without_a_compiled_form_is_refused_by_name(pipelines, cohort, tmp_path):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.pipeline import Pipeline

    preprocessor, sigmoid = pipelines["xgboost"].named_steps.values()
    warmed = CalibratedClassifierCV(sigmoid.estimator, method="temperature")
    warmed.fit(preprocessor.transform(cohort), cohort[schema.LABEL].to_numpy())
    other = Pipeline([("preprocess", preprocessor), ("classifier", warmed)])
    with pytest.raises(ScorerError, match="no compiled form of _TemperatureScaling"):
        compile_pipeline(other, FACTS, tmp_path / "scorer")


def test_nothing_that_runs_when_read_is_written(compiled):
    for folder in compiled.values():
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".ubj", ".npy"}
        assert json.loads((folder / "tables.json").read_text())["width"] > 20
        for path in folder.glob("*.npy"):
            assert len(np.load(path, allow_pickle=False)) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_footprint_is_the_size_of_the_files_and_the_time_of_one_encounter(
    family, pipelines, compiled, encounter
):
    measured = footprint(pipelines[family], FACTS, [encounter])
    assert measured.bytes == sum(path.stat().st_size for path in compiled[family].iterdir())
    assert measured.latency_ms > 0


def test_measuring_the_footprint_leaves_nothing_behind(pipelines, encounter, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    footprint(pipelines["random_forest"], FACTS, [encounter])
    assert list(tmp_path.iterdir()) == []


def test_without_an_encounter_there_is_no_latency(pipelines):
    with pytest.raises(ValueError, match="no encounter"):
        footprint(pipelines["logistic_regression"], FACTS, [])
