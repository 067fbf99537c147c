"""The published names, their groups, and the input model agree with one another."""

import typing

import pytest
from pydantic import ValidationError

from health_predict import schema
from health_predict.schema import Encounter


def spelled(encounter: dict) -> dict:
    return {schema.field_name(column): value for column, value in encounter.items()}


def test_there_are_50_published_columns_and_47_of_them_are_inputs():
    assert len(schema.COLUMNS) == len(set(schema.COLUMNS)) == 50
    assert len(schema.INPUTS) == 47
    assert not {*schema.IDENTIFIERS, schema.OUTCOME} & set(schema.INPUTS)


def test_every_input_belongs_to_exactly_one_group():
    groups = [*schema.CODES, *schema.COUNTS, *schema.CLOSED, *schema.OPEN]
    assert sorted(groups) == sorted(schema.INPUTS)


def test_the_input_model_has_the_inputs_in_published_order():
    assert list(Encounter.model_fields) == [schema.field_name(c) for c in schema.INPUTS]


def test_the_input_model_allows_exactly_the_closed_vocabularies():
    for column, levels in schema.CLOSED.items():
        annotation = Encounter.model_fields[schema.field_name(column)].annotation
        assert typing.get_args(annotation) == levels, column


def test_death_and_hospice_are_what_the_code_table_says():
    outside = {
        code
        for code, words in schema.DISCHARGE_DISPOSITIONS.items()
        if "expired" in words.lower() or "hospice" in words.lower()
    }
    assert outside == schema.DEATH_OR_HOSPICE
    assert schema.ADMISSION_SOURCES[schema.EMERGENCY_ROOM] == "Emergency Room"


def test_both_labels_count_a_part_of_the_published_outcomes():
    assert set(typing.get_args(schema.LabelName)) == set(schema.POSITIVE_OUTCOMES)
    assert schema.POSITIVE_OUTCOMES["30d"] < schema.POSITIVE_OUTCOMES["any"]
    assert schema.POSITIVE_OUTCOMES["any"] == set(schema.OUTCOMES) - {"NO"}


def test_an_encounter_comes_back_by_published_name(encounter):
    assert Encounter.model_validate(spelled(encounter)).columns() == encounter
    assert list(Encounter.model_validate(spelled(encounter)).columns()) == list(schema.INPUTS)


@pytest.mark.parametrize("missing", [None, ""])
@pytest.mark.parametrize("column", schema.OPEN)
def test_a_missing_text_becomes_the_published_mark(encounter, column, missing):
    read = Encounter.model_validate(spelled({**encounter, column: missing}))
    assert read.columns()[column] == schema.MISSING


def test_only_the_weight_may_be_left_out(encounter):
    for column in schema.INPUTS:
        rest = spelled({c: v for c, v in encounter.items() if c != column})
        if column == "weight":
            assert Encounter.model_validate(rest).weight == schema.MISSING
        else:
            with pytest.raises(ValidationError, match="Field required"):
                Encounter.model_validate(rest)


@pytest.mark.parametrize("column", schema.COUNTS)
def test_counts_are_accepted_to_the_ends_of_their_range_and_not_beyond(encounter, column):
    low, high = schema.COUNTS[column]
    for value in (low, high):
        assert Encounter.model_validate(spelled({**encounter, column: value}))
    for value in (low - 1, high + 1):
        with pytest.raises(ValidationError):
            Encounter.model_validate(spelled({**encounter, column: value}))


def test_an_encounter_cannot_be_changed(encounter):
    read = Encounter.model_validate(spelled(encounter))
    with pytest.raises(ValidationError, match="frozen"):
        read.race = "Other"
