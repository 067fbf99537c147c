"""The benchmark of what grows with the rows: its worlds, its slopes, its place in the document."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import scaling
from benchmarks.report import table
from health_predict import encounters, schema, splits


@pytest.fixture(scope="module")
def small(raw: pd.DataFrame) -> pd.DataFrame:
    return raw.head(2_000)


@pytest.fixture(scope="module")
def tenfold(small: pd.DataFrame) -> pd.DataFrame:
    return scaling.resampled(small, 10, seed=3)


def test_a_world_has_so_many_times_the_rows_and_patients_and_breaks_no_contract(small, tenfold):
    assert len(tenfold) == pytest.approx(10 * len(small), rel=0.05)
    assert tenfold[schema.PATIENT].nunique() == 10 * small[schema.PATIENT].nunique()
    assert tenfold[schema.ENCOUNTER_ID].is_unique
    accepted, quarantined = encounters.apply_contract(tenfold)
    assert len(accepted) == len(tenfold)
    assert quarantined.empty


def test_a_drawn_patient_is_a_new_one_with_the_visits_of_one_old_one(small, tenfold):
    assert not set(tenfold[schema.PATIENT]) & set(small[schema.PATIENT])
    inputs = ["race", "gender", "diag_1", "num_medications", "readmitted"]
    old = {tuple(map(tuple, visits)) for visits in _visits(small, inputs)}
    new = [tuple(map(tuple, visits)) for visits in _visits(tenfold, inputs)]
    assert len(new) == tenfold[schema.PATIENT].nunique()
    assert set(new) <= old


def _visits(frame: pd.DataFrame, columns: list[str]) -> list[np.ndarray]:
    arrived = frame.assign(n=frame[schema.ENCOUNTER_ID].astype(int)).sort_values("n")
    return [one[columns].to_numpy() for _, one in arrived.groupby(schema.PATIENT)]


def test_sides_hold_and_have_their_shares(tenfold):
    sided = splits.with_side(tenfold)
    assert sided.groupby(schema.PATIENT)[schema.SIDE].nunique().max() == 1
    patients = sided.drop_duplicates(schema.PATIENT)[schema.SIDE].value_counts(normalize=True)
    assert patients.to_dict() == pytest.approx(splits.SIDES, abs=0.02)


def test_order_of_arrival_is_about_as_it_was(small, tenfold):
    arrived = [
        frame.assign(n=frame[schema.ENCOUNTER_ID].astype(int)).sort_values("n")["payer_code"]
        for frame in (small, tenfold)
    ]
    # The payer becomes known in the course of the file.
    missing = [[(half == "?").mean() for half in np.array_split(column, 2)] for column in arrived]
    assert missing[1] == pytest.approx(missing[0], abs=0.05)


def test_an_exponent_is_the_slope_of_the_logarithms():
    rows = [8_000, 80_000, 800_000]
    assert scaling.exponent(rows, [n**1.5 for n in rows]) == pytest.approx(1.5)
    assert scaling.exponent(rows, [3.0, 3.0, 3.0]) == pytest.approx(0.0)
    assert scaling.exponent(rows[:1], [1.0]) is None
    assert scaling.exponent(rows, [0.0, 0.0, 1.0]) is None
    taken = {
        1: {"seconds": 1.0, "peak_mib": 110.0},
        10: {"seconds": 2.0, "peak_mib": 200.0},
        100: {"seconds": 20.0, "peak_mib": 1100.0},
    }
    found = scaling.exponents(dict(zip(taken, rows, strict=True)), taken, floor=100.0)
    assert found["seconds_of_the_last_two"] == pytest.approx(1.0)
    assert found["memory"] == pytest.approx(1.0)
    taken[100] = {"failed": "more than 9.0 GiB"}
    found = scaling.exponents(dict(zip(taken, rows, strict=True)), taken, floor=100.0)
    assert found["seconds"] == pytest.approx(np.log10(2))


def test_a_step_is_measured_in_a_process_of_its_own_and_one_that_takes_too_much_is_named(
    small, tmp_path
):
    small.to_parquet(tmp_path / "raw.parquet", index=False)
    name = "contract and cohort"
    found = scaling.measured(name, tmp_path, gib=4, cpu_seconds=120)
    assert found["seconds"] > 0
    assert found["peak_mib"] > 50
    assert (tmp_path / "cohort.parquet").exists()
    assert scaling.measured(name, tmp_path, gib=4, cpu_seconds=1) == {"failed": "more than 1 s"}
    alone = scaling.measured("training set, sides", tmp_path / "absent", gib=4, cpu_seconds=60)
    assert alone == {"failed": "not reached"}
    # More rows than a process fits that may take little more than its imports.
    wide = scaling.resampled(small, 20, seed=0)
    wide.to_parquet(tmp_path / "raw.parquet", index=False)
    starved = scaling.measured(name, tmp_path, gib=0.3, cpu_seconds=120)
    assert starved == {"failed": "more than 0.3 GiB"}


def test_the_table_of_the_document_is_the_one_that_is_written(tmp_path):
    text = scaling.DOCS.read_text()
    begin, end = f"<!-- {scaling.BLOCK} -->", f"<!-- /{scaling.BLOCK} -->"
    assert text.count(begin) == text.count(end) == 1
    shown = text[text.index(begin) + len(begin) : text.index(end)].strip().splitlines()
    [default] = [option for option in scaling.main.params if option.name == "factors"]
    factors = [int(factor) for factor in str(default.default).split(",")]
    head = table(scaling.header(factors), []).splitlines()
    at = shown.index(head[0])
    assert shown[at : at + 2] == head
    named = [line.split("|")[1].strip() for line in shown[at + 2 :]]
    assert named in ([], list(scaling.STEPS))


def test_a_page_shows_every_step_and_says_of_what_failed_why():
    cell = {"seconds": 1.0, "peak_mib": 200.0}
    failed = {"failed": "more than 1.0 GiB"}
    none = {"seconds": None, "seconds_of_the_last_two": None, "memory": None}
    result = {
        "rows": {"1": 100, "10": 1_000},
        "steps": {
            name: {"taken": {"1": cell, "10": failed}, "exponents": none} for name in scaling.STEPS
        },
    }
    lines = scaling.page(result).splitlines()
    assert lines[:2] == table(scaling.header([1, 10]), []).splitlines()
    assert len(lines) == 2 + len(scaling.STEPS)
    assert all(line.count("more than 1.0 GiB") == 2 and " 1.00 |" in line for line in lines[2:])


def test_every_step_says_in_its_name_what_the_document_says_of_it():
    text = Path(scaling.DOCS).read_text()
    for word in ("contract and cohort", "training set, sides", "preprocessor, matrices", "gate"):
        assert f"| {word} |" in text
