"""Evidently's report: small, whole in itself, without identifiers, and readable in a browser."""

import re
import shutil
import subprocess
import warnings

import numpy as np
import pandas as pd
import pytest

from health_predict import features, schema
from health_predict.evidently_report import PROBABILITY, ReportFacts, write_report


@pytest.fixture(scope="module")
def sides(cohort: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A reference, and a batch of emergency admissions."""
    moved = {"admission_source_id": schema.EMERGENCY_ROOM, "admission_type_id": 1}
    return cohort.iloc[:3_000], cohort.iloc[3_000:5_000].assign(**moved)


@pytest.fixture(scope="module")
def scores(sides: tuple[pd.DataFrame, pd.DataFrame]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [0.2 * side[schema.LABEL].to_numpy() + 0.7 * rng.random(len(side)) for side in sides]


@pytest.fixture(scope="module")
def full(sides, scores, tmp_path_factory) -> ReportFacts:
    """A report with everything in it."""
    return write_report(
        *sides,
        tmp_path_factory.mktemp("drift_reports") / "batch-3",
        reference_probabilities=scores[0],
        batch_probabilities=scores[1],
        threshold=0.45,
        with_labels=True,
    )


def figure(page: str, caption: str) -> str:
    """Returns the one figure of the page with that caption."""
    found = [f for f in page.split("<figure")[1:] if f"<figcaption>{caption}" in f]
    assert len(found) == 1, caption
    return found[0].split("</figure>")[0]


def test_the_report_stays_small_with_all_that_it_can_hold(full):
    assert full.path.name == "report.html"
    assert full.bytes == full.path.stat().st_size < 300_000


def test_the_page_loads_nothing_and_runs_nothing(full):
    page = full.path.read_text()
    assert not re.search(r"<(script|link|iframe|img|object|base)\b|\bsrc=|url\(|@import", page)
    assert "http:" not in page and "https:" not in page


def test_the_report_shows_what_moved_and_what_did_not(full):
    page = full.path.read_text()
    assert 1 / len(features.MODELLED) <= full.drifted_share < 0.6
    assert "drifted" in figure(page, "admission_source_id ")
    assert "7 Emergency Room" in figure(page, "admission_source_id ")
    assert "drifted" not in figure(page, "gender ")
    shown = {column for column in features.MODELLED if f"<figcaption>{column} " in page}
    assert shown | set(full.unvarying) == {*features.MODELLED}
    assert f"<figcaption>{PROBABILITY} " in page
    assert page.index("<figcaption>admission_source_id ") < page.index("<figcaption>gender ")


def test_the_share_counts_the_columns_that_are_called_drifted(full):
    page = full.path.read_text()
    tested = len(features.MODELLED) + 1 - len(full.unvarying)
    assert full.drifted_share == pytest.approx(page.count('<figure class="drifted"') / tested)


def test_no_identifier_and_no_column_beside_the_modelled_ones_is_shown(full, sides):
    page = full.path.read_text()
    assert not any(name in page for name in schema.IDENTIFIERS)
    assert not any(f"<figcaption>{name} " in page for name in ("race", "position", "label"))
    numbers = set(re.findall(r"\d{5,}", page))
    for side in sides:
        for column in schema.IDENTIFIERS:
            assert not numbers & set(side[column].astype(str))


def test_outcomes_are_judged_on_all_rows_whose_care_no_prediction_changed(sides, scores, tmp_path):
    reference, batch = sides
    batch = batch.assign(**{schema.INTERVENED: np.arange(len(batch)) < 300})
    facts = write_report(
        reference,
        batch,
        tmp_path,
        batch_probabilities=scores[1],
        threshold=0.45,
        with_labels=True,
    )
    page = facts.path.read_text()
    foretold = scores[1][300:] >= 0.45
    happened = batch[schema.LABEL].to_numpy()[300:] == 1
    cells = re.findall(r"<td>(.+?)</td>", figure(page, "Confusion Matrix"))
    assert cells == [
        "0",
        str((~happened & ~foretold).sum()),
        str((~happened & foretold).sum()),
        "1",
        str((happened & ~foretold).sum()),
        str((happened & foretold).sum()),
    ]
    assert "Left out: 300 whose care" in page
    assert "ROC Curve" in page and "<polyline" in page


def test_before_outcomes_are_known_nothing_is_judged(sides, scores, tmp_path):
    facts = write_report(
        *sides, tmp_path, reference_probabilities=scores[0], batch_probabilities=scores[1]
    )
    page = facts.path.read_text()
    assert "ClassificationPreset" not in page and "Confusion Matrix" not in page
    assert f"<figcaption>{PROBABILITY} " in page


def test_outcomes_that_are_all_alike_are_said_to_be(sides, scores, tmp_path):
    batch = sides[1].assign(**{schema.LABEL: 0})
    facts = write_report(
        sides[0],
        batch,
        tmp_path,
        batch_probabilities=scores[1],
        threshold=0.5,
        with_labels=True,
    )
    assert "All outcomes are alike" in facts.path.read_text()


def test_columns_without_variation_or_values_are_named_and_make_no_noise(sides, tmp_path):
    reference, batch = sides
    rng = np.random.default_rng(0)
    reference = reference.assign(time_in_hospital=3, insulin="No")
    batch = batch.assign(
        time_in_hospital=3,
        insulin="No",
        num_procedures=np.nan,
        num_medications=batch["num_medications"].where(rng.random(len(batch)) < 0.5),
        payer_code=batch["payer_code"].where(rng.random(len(batch)) < 0.5),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        warnings.simplefilter("always", UserWarning)
        facts = write_report(reference, batch, tmp_path)
    assert not [w for w in caught if issubclass(w.category, RuntimeWarning | UserWarning)]
    page = facts.path.read_text()
    assert {"time_in_hospital", "insulin", "num_procedures"} <= set(facts.unvarying)
    assert "payer_code" not in facts.unvarying and "num_medications" not in facts.unvarying
    assert all(column in page for column in facts.unvarying)
    assert not any(f"<figcaption>{column} " in page for column in facts.unvarying)


def test_two_sides_of_equal_rows_have_no_drifted_column(sides, tmp_path):
    same = sides[0].iloc[[0] * 200]
    facts = write_report(same.iloc[:100], same.iloc[100:], tmp_path)
    assert facts.drifted_share == 0
    assert set(facts.unvarying) == set(features.MODELLED)


def test_a_small_batch_is_measured_like_a_large_one(cohort, tmp_path):
    """With p-values, to which Evidently changes at 1,000 rows, the furthest moved came last."""
    reference, batch = cohort.iloc[:600], cohort.iloc[600:900].assign(insulin="Up")
    page = write_report(reference, batch, tmp_path).path.read_text()
    assert "drifted" in figure(page, "insulin ")
    assert page.index("<figcaption>insulin ") < page.index("<figcaption>gender ")


def test_text_from_the_table_cannot_become_part_of_the_page(sides, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    page = write_report(sides[0], sides[1].assign(payer_code=evil), tmp_path).path.read_text()
    assert "&lt;img src=x" in page and "<img" not in page


def test_equal_seeds_write_equal_pages(sides, tmp_path):
    pages = [
        write_report(*sides, tmp_path / str(n) / "b", seed=4).path.read_bytes() for n in range(2)
    ]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("missing", ["scores", "threshold"])
def test_outcomes_without_scores_or_threshold_are_an_error(sides, scores, tmp_path, missing):
    given = {"batch_probabilities": scores[1], "threshold": 0.5}
    del given["batch_probabilities" if missing == "scores" else missing]
    with pytest.raises(ValueError, match="needs the scores of the batch and a threshold"):
        write_report(*sides, tmp_path, with_labels=True, **given)


def test_scores_of_other_rows_are_an_error(sides, scores, tmp_path):
    n = len(sides[1])
    with pytest.raises(ValueError, match=f"{n - 1} scores for {n} rows"):
        write_report(*sides, tmp_path, batch_probabilities=scores[1][1:])


def test_a_browser_shows_columns_and_pictures(full):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on the path: the page is not opened in a browser")
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"),
        *(f"--user-data-dir={full.path.parent / 'browser'}", "--dump-dom", full.path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    pictures = done.stdout.count("<svg")
    tested = len(features.MODELLED) + 1 - len(full.unvarying)
    assert pictures == tested + 2  # and two curves
    assert all(column in done.stdout for column in features.MODELLED)
