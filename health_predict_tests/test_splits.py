"""Past, future, batches; and a patient's side, the same for all time."""

import numpy as np
import pandas as pd
import pytest

from health_predict import schema, splits


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
    parts = [splits.with_side(part(cohort)) for part in (splits.initial, splits.future)]
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


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 99, 1000])
def test_initial_and_future_are_the_whole_in_order(rows):
    frame = pd.DataFrame({"n": np.arange(rows)})
    first, rest = splits.initial(frame), splits.future(frame)
    assert [*first["n"], *rest["n"]] == list(range(rows))
    assert len(first) == int(rows * 0.2)
    assert list(rest.index) == list(range(len(rest)))


@pytest.mark.parametrize(("rows", "size"), [(1000, 250), (1000, 300), (100, 300), (999, 1)])
def test_the_batches_are_the_future_in_order(rows, size):
    frame = pd.DataFrame({"n": np.arange(rows)})
    count = splits.batch_count(rows, size)
    batches = [splits.batch(frame, k, size) for k in range(1, count + 1)]
    assert pd.concat(batches)["n"].tolist() == list(range(rows))
    assert all(len(b) == size for b in batches[:-1])
    assert count == 1 or size <= len(batches[-1]) < 2 * size


@pytest.mark.parametrize("number", [-1, 0, 4])
def test_a_batch_that_does_not_exist_is_refused_by_number(number):
    frame = pd.DataFrame({"n": np.arange(30)})
    with pytest.raises(ValueError, match=f"no batch {number}: the future holds 3 of 10 rows"):
        splits.batch(frame, number, 10)
