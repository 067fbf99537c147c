"""Derived columns mean the same for a row and for a table, and the preprocessor pools rare levels.

A difference between the two would be a difference between what is judged and what is served.
"""

import numpy as np
import pandas as pd
import pytest

from health_predict import features, schema


def test_a_row_and_a_table_are_derived_alike(cohort):
    frame = features.derive(cohort)
    rows = [features.derive_one(row) for row in cohort.to_dict("records")]
    assert list(frame.columns) == [*features.NUMERIC, *features.CATEGORICAL]
    for name in frame:
        assert [row[name] for row in rows] == frame[name].tolist(), name


def test_deriving_drops_no_row_and_keeps_the_index(cohort):
    part = cohort.iloc[7:500:3]
    assert features.derive(part).index.equals(part.index)


def test_modelled_columns_suffice_to_derive_every_feature(cohort, encounter):
    alone = cohort[list(features.MODELLED)]
    pd.testing.assert_frame_equal(features.derive(alone), features.derive(cohort))
    derived = features.derive_one({c: encounter[c] for c in features.MODELLED})
    assert {*features.NUMERIC, *features.CATEGORICAL} <= set(derived)


def test_no_identifier_and_no_outcome_is_modelled():
    assert set(features.MODELLED) <= set(schema.INPUTS)


@pytest.mark.parametrize(
    ("code", "block"),
    [("250", "250"), ("250.83", "250"), ("8", "8"), ("V57", "V57"), ("E909", "E909"), ("?", "?")],
)
def test_a_diagnosis_belongs_to_the_block_before_its_point(code, block):
    assert features.icd9_block(code) == block


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "9" * 80, "-7", "1000"])
def test_what_only_a_parser_takes_for_a_number_is_no_diagnosis_number(text):
    assert features.icd9_number(text) == features.UNNUMBERED


def test_a_diagnosis_number_keeps_its_decimals():
    assert features.icd9_number("250.83") == 250.83
    assert features.icd9_number("V57") == features.UNNUMBERED


def test_medications_are_counted_by_what_was_done_with_them():
    dosages = ["No", "Steady", "Up", "Down", "Up"]
    assert features.changed_medications(*dosages) == 3
    assert features.taken_medications(*dosages) == 4


def test_what_was_not_recorded_is_counted():
    assert features.missing_fields("?", "250", "?", "MC") == 2
    table = [np.array(column, dtype=object) for column in (["?", "1"], ["?", "?"])]
    assert features.missing_fields(*table).tolist() == [2, 1]


def test_every_feature_has_columns_of_its_own_in_the_matrix(cohort):
    fitted = features.preprocessor().fit(cohort)
    names = fitted.named_steps["encode"].get_feature_names_out()
    found = features.columns(fitted)
    assert list(found) == [*features.NUMERIC, *features.CATEGORICAL]
    assert [i for columns in found.values() for i in columns] == list(range(len(names)))
    for feature, columns in found.items():
        assert all(names[i].startswith(feature) for i in columns), feature


def test_ages_are_the_middle_of_their_band():
    assert [features.age_midpoint(band) for band in schema.AGES] == list(range(5, 105, 10))


def test_the_matrix_has_a_finite_column_a_feature_name(cohort):
    fitted = features.preprocessor().fit(cohort)
    matrix = fitted.transform(cohort)
    names = fitted.named_steps["encode"].get_feature_names_out()
    assert matrix.shape == (len(cohort), len(names))
    assert np.isfinite(matrix).all()


def test_numbers_are_standardised_by_what_was_learned(cohort):
    fitted = features.preprocessor().fit(cohort)
    numbers = fitted.transform(cohort)[:, : len(features.NUMERIC)]
    assert np.allclose(numbers.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(numbers.std(axis=0), 1, atol=1e-5)


def test_rare_and_unseen_levels_share_one_column(cohort):
    learned = cohort.copy()
    learned["payer_code"] = "MC"
    learned.loc[:9, "payer_code"] = "Few"
    fitted = features.preprocessor().fit(learned)
    names = list(fitted.named_steps["encode"].get_feature_names_out())
    asked = learned.iloc[:3].assign(payer_code=["Few", "Never seen", "MC"])
    column = fitted.transform(asked)[:, names.index("payer_code_infrequent_sklearn")]
    assert column.tolist() == [1, 1, 0]


def test_an_unseen_level_has_no_column_where_none_was_pooled(cohort):
    learned = cohort.assign(payer_code="MC")
    fitted = features.preprocessor().fit(learned)
    names = list(fitted.named_steps["encode"].get_feature_names_out())
    assert [n for n in names if n.startswith("payer_code")] == ["payer_code_MC"]
    asked = learned.iloc[:2].assign(payer_code=["Never seen", "MC"])
    assert fitted.transform(asked)[:, names.index("payer_code_MC")].tolist() == [0, 1]
