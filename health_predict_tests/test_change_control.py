"""What the loop may change by itself is what it can: no more, no less, and each breach is named."""

from dataclasses import replace

import pytest
import yaml
from pydantic import ValidationError

from health_predict import features
from health_predict.change_control import FILE, ChangeControl, Design, change_control
from health_predict.models import FAMILIES
from health_predict.schema import POSITIVE_OUTCOMES

DESIGN = Design(
    label="any",
    family="xgboost",
    params=FAMILIES["xgboost"].default,
    calibration="isotonic",
    features=[*features.NUMERIC, *features.CATEGORICAL],
    train_rows=20_000,
    threshold=0.5,
    bytes=400_000,
    latency_ms=1.5,
)


def written() -> dict:
    return yaml.safe_load(FILE.read_text())


def test_the_search_spaces_are_those_that_are_written():
    spaces = {
        family: {name: (space.low, space.high) for name, space in FAMILIES[family].space.items()}
        for family in FAMILIES
    }
    assert change_control().families == spaces


def test_the_features_are_those_that_are_written():
    assert change_control().features == [*features.NUMERIC, *features.CATEGORICAL]


def test_the_labels_are_those_that_are_written():
    assert set(change_control().label) == set(POSITIVE_OUTCOMES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_a_search_space_are_no_breach(family, end):
    params = {name: getattr(space, end) for name, space in FAMILIES[family].space.items()}
    assert change_control().breaches(replace(DESIGN, family=family, params=params)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "90d"}, "label 90d is not one of any, 30d"),
        (
            {"calibration": "none"},
            "calibration none is not one of sigmoid, isotonic",
        ),
        ({"features": ["gender", "race", "ssn"]}, "feature race is not listed"),
        ({"train_rows": 499}, "encounters to learn from 499 is outside 500 to 1e+06"),
        ({"threshold": 0.95}, "threshold 0.95 is outside 0.1 to 0.9"),
        ({"threshold": float("nan")}, "threshold nan is outside 0.1 to 0.9"),
        ({"bytes": 31_000_000}, "size in bytes 3.1e+07 is outside 1 to 3e+07"),
        ({"latency_ms": 26.0}, "milliseconds for one encounter 26 is outside 0 to 25"),
        (
            {"params": {**DESIGN.params, "max_depth": 7}},
            "xgboost max_depth 7 is outside 3 to 6",
        ),
        (
            {"params": {**DESIGN.params, "gamma": 1}},
            "xgboost hyperparameter gamma is not one of rounds, learning_rate, max_depth, "
            "min_child_weight, subsample, colsample_bytree, reg_lambda",
        ),
    ],
)
def test_a_breach_is_named(change, words):
    assert change_control().breaches(DESIGN) == []
    assert words in change_control().breaches(replace(DESIGN, **change))


def test_a_family_that_is_not_listed_is_named_with_those_that_are():
    breaches = change_control().breaches(replace(DESIGN, family="svm"))
    assert "family svm is not one of logistic_regression, random_forest, xgboost" in breaches


def test_every_breach_is_named_not_the_first_alone():
    breaches = change_control().breaches(
        replace(DESIGN, label="90d", threshold=0.05, features=["ssn", "name"])
    )
    assert len(breaches) == 4


def test_a_file_that_names_something_unknown_is_refused_by_its_name():
    with pytest.raises(ValidationError, match="treshold"):
        ChangeControl.model_validate({**written(), "treshold": [0, 1]})


@pytest.mark.parametrize("name", written())
def test_a_file_that_lacks_something_is_refused_by_its_name(name):
    lacking = {key: value for key, value in written().items() if key != name}
    with pytest.raises(ValidationError, match=name):
        ChangeControl.model_validate(lacking)
