"""Past, future, batches; and a patient's side, the same for all time."""

import numpy as np
import pandas as pd
import pytest

from health_predict import encounters, schema, splits
from health_predict.splits import Calendar


def test_sides_are_what_they_have_always_been():
    # Models in the registry were trained by these: a change here is a leak, not a refactoring.
    letters = {"T": "train", "V": "validation", "E": "test"}
    known = [letters[letter] for letter in "TTTTTTETTTTTTTVTETTV"]
    assert splits.side(np.arange(1, 21)).tolist() == known


def test_a_side_depends_on_the_patient_alone(cohort):
    whole = splits.side(cohort[schema.PATIENT])
    shuffled = cohort.sample(frac=0.3, random_state=1)
    assert (splits.side(shuffled[schema.PATIENT]) == whole[shuffled.index]).all()


def test_no_patient_is_on_two_sides_in_past_and_future_together(cohort):
    now = Calendar(6_000, 4, 0).initial_rows
    spans = (range(now), range(now, 6_000))
    parts = [splits.with_side(splits.within(cohort, span)) for span in spans]
    assert sum(map(len, parts)) == len(cohort)
    sides = pd.concat(parts).groupby(schema.PATIENT)[schema.SIDE].nunique()
    repeated = cohort[schema.PATIENT].value_counts()
    assert (repeated > 1).any()
    assert (sides == 1).all()


def test_the_shares_of_the_sides_are_70_15_15():
    sides, counts = np.unique(splits.side(np.arange(20_000)), return_counts=True)
    shares = dict(zip(sides.tolist(), counts / 20_000, strict=True))
    assert shares == pytest.approx(splits.SIDES, abs=0.012)


def test_with_side_leaves_the_frame_it_was_given_alone(cohort):
    before = list(cohort.columns)
    assert schema.SIDE in splits.with_side(cohort)
    assert list(cohort.columns) == before


@pytest.mark.parametrize(
    ("rows", "batches", "size"),
    [(1000, 0, 250), (1000, 0, 300), (100, 0, 300), (999, 0, 1), (1000, 7, 250), (1000, 1, 9)],
)
def test_the_initial_rows_and_the_batches_are_the_whole_in_order(rows, batches, size):
    calendar = Calendar(rows, batches, size)
    spans = [calendar.span(k) for k in range(1, calendar.count + 1)]
    assert calendar.initial_rows == int(rows * 0.2)
    whole = [*range(calendar.initial_rows), *(position for span in spans for position in span)]
    assert whole == list(range(rows))
    assert all(len(span) == calendar.rows_a_batch for span in spans[:-1])
    assert calendar.count == 1 or len(spans[-1]) < 2 * calendar.rows_a_batch


def test_a_number_of_batches_outranks_their_size():
    assert Calendar(1000, 8, 300).count == 8
    assert Calendar(1000, 0, 300).count == 2


@pytest.mark.parametrize("number", [-1, 0, 4])
def test_a_batch_that_does_not_exist_is_refused_by_number(number):
    with pytest.raises(ValueError, match=f"no batch {number}: the future holds 3 of 8 rows"):
        Calendar(30, 3, 0).span(number)


def test_a_span_holds_the_rows_at_its_positions_in_order_and_no_other():
    frame = pd.DataFrame({schema.POSITION: [7, 2, 5, 4, 9]}, index=list("abcde"))
    inside = splits.within(frame, range(4, 9))
    assert inside[schema.POSITION].tolist() == [4, 5, 7]
    assert list(inside.index) == [0, 1, 2]


def test_a_row_that_breaks_moves_no_other_row_to_another_batch(raw):
    calendar = Calendar(len(raw), 6, 0)
    broken = raw.copy()
    broken.loc[broken.index[1_500:1_600], "gender"] = "X"  # in the first batch, of 800 rows

    def batches(table):
        cohort = encounters.cohort(encounters.apply_contract(table)[0], "any")
        return [splits.within(cohort, calendar.span(k)) for k in range(1, 7)]

    whole, damaged = batches(raw), batches(broken)
    assert len(damaged[0]) < len(whole[0])
    for before, after in zip(whole[1:], damaged[1:], strict=True):
        pd.testing.assert_frame_equal(before, after)
