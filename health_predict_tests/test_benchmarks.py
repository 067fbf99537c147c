"""What benchmarks leave behind, what they measure with, and that nobody's rows are mistaken.

No time is asserted: speed is what benchmarks are for.
"""

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from benchmarks import (
    hpo,
    policies,
    prequential,
    published,
    report,
    results,
    searches,
    suite,
    tables,
)
from benchmarks.watching import watch
from health_predict import encounters, loop, models, schema, search, splits
from health_predict.models import FAMILIES, Candidate


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bench"
    monkeypatch.setattr(report, "BENCH", folder)
    return folder


def test_a_new_loop_leaves_the_measurements_alone() -> None:
    assert report.BENCH.name == loop.BENCH


def test_a_run_leaves_json_and_a_page_with_machine_and_ratios_before_anything_else(
    bench: Path,
) -> None:
    run = report.Run("one", "One thing")
    run.publish({"ours to theirs": 0.5}, {"seconds_of_load": 3}, "the rest")
    kept = json.loads((bench / "one.json").read_text())
    assert kept["ratios"] == {"ours to theirs": 0.5}
    assert kept["seconds_of_load"] == 3
    assert kept["machine"]["cores"] >= 1
    assert list(kept).index("ratios") < list(kept).index("seconds_of_load")
    page = (bench / "one.md").read_text()
    assert page.startswith("# One thing")
    assert f"{kept['machine']['cores']} cores" in page
    assert kept["command"] in page
    assert page.index("| ours to theirs | 0.5 |") < page.index("the rest")
    assert not list(bench.glob("*.partial"))


def test_the_list_has_every_run_with_its_first_ratios(bench: Path) -> None:
    report.Run("one", "One thing").publish({"ours to theirs": 0.5}, {})
    report.Run("two", "Another").publish({}, {})
    (bench / "old.json").write_text("{}")
    report.write_index()
    listed = (bench / report.INDEX).read_text()
    assert "[One thing](one.md)" in listed
    assert "ours to theirs: 0.5" in listed
    assert "[Another](two.md)" in listed
    assert "[old](old.json)" in listed


def test_a_table_aligns_numbers_to_the_right_and_keeps_empty_cells() -> None:
    assert report.table(("way", "s"), [("ours", 1), ("", "")]) == (
        "| way | s |\n| --- | ---: |\n| ours | 1 |\n| | |"
    )


GRANDCHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True)
"""


def test_watching_counts_the_work_of_children_too() -> None:
    idle = watch([sys.executable, "-c", "import time; time.sleep(0.3)"])
    busy = watch([sys.executable, "-c", GRANDCHILD])
    assert busy.cpu_seconds > idle.cpu_seconds
    assert busy.processes == 2


def test_watching_sees_memory_that_is_held_and_takes_any_amount_of_output() -> None:
    held = "import time; x = bytearray(80 * 2**20); time.sleep(0.5); print('y' * 300_000)"
    watched = watch([sys.executable, "-c", held])
    assert 80 < watched.peak_mib < 400
    assert len(watched.output.strip()) == 300_000


def test_a_command_that_fails_is_not_measured() -> None:
    with pytest.raises(click.ClickException, match="ended with 3"):
        watch([sys.executable, "-c", "raise SystemExit(3)"])


def test_tables_go_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- a:x -->\nold\n<!-- /a:x -->\nafter\n")
    for _ in range(2):  # a second run finds the markers again
        report.write(document, {"a:x": "| new |"})
    assert document.read_text() == "before\n<!-- a:x -->\n| new |\n<!-- /a:x -->\nafter\n"


def test_a_missing_marker_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text("<!-- a:x -->\n<!-- /a:x -->\n")
    with pytest.raises(click.ClickException, match="a:y"):
        report.write(document, {"a:x": "new", "a:y": "new"})
    assert "new" not in document.read_text()


def test_the_document_has_a_place_for_every_table() -> None:
    text = results.DOCS.read_text()
    for kind, names in results.SHOWN.items():
        for name in names:
            assert text.count(f"<!-- {kind}:{name} -->") == 1, (kind, name)
            assert text.count(f"<!-- /{kind}:{name} -->") == 1, (kind, name)


def test_the_rows_of_the_rebuilt_benchmark_are_the_published_ones(archive: Path) -> None:
    # Two published estimators predict nothing but the commoner outcome: to the last digit their
    # accuracies are its share on the two test sides, which other rows would not have.
    raw, _ = encounters.read(str(archive), rows=0, seed=0)
    told = encounters.apply_contract(raw)[0]
    told = told[told["race"] != schema.MISSING].reset_index(drop=True)
    stayed = (told[schema.OUTCOME] == "NO").to_numpy()
    sides = published.tableshift_sides(told)
    shares = [stayed[sides[side]].mean() for side in published.TABLESHIFT_SIDES]
    assert shares == pytest.approx(published.TABLESHIFT["majority"], abs=1e-12)


def test_no_row_is_learned_from_and_judged_on_in_a_rebuilt_protocol(raw: pd.DataFrame) -> None:
    sides = published.tableshift_sides(encounters.apply_contract(raw)[0])
    places = np.concatenate(list(sides.values()))
    assert len(places) == len(set(places))


def test_what_is_not_the_published_table_is_not_compared(raw: pd.DataFrame) -> None:
    broken = raw.assign(gender="neither")
    with pytest.raises(ValueError, match="not the published table"):
        published.rebuilt(broken, 0)


@pytest.fixture(scope="module")
def batches(cohort: pd.DataFrame) -> list[prequential.Part]:
    return prequential.arriving(splits.with_side(cohort), 2_300)


def test_batches_follow_each_other_and_each_has_all_that_was_before(
    batches: list[prequential.Part], cohort: pd.DataFrame
) -> None:
    assert len(batches) == 2
    for batch in batches:
        assert len(batch.past) == int(len(cohort) * 0.2) + 2_300 * (batch.number - 1)
        assert batch.past[schema.POSITION].max() < batch.rows[schema.POSITION].min()
    assert len(batches[-1].past) + len(batches[-1].rows) == len(cohort)


def test_the_interval_of_a_figure_holds_it_and_moves_with_the_patients() -> None:
    rng = np.random.default_rng(0)
    foretold, labels = rng.uniform(size=400), np.tile([0.0, 1.0], 200)
    apart = prequential.figures(labels, foretold, np.arange(400), resamples=200)
    visits = prequential.figures(labels, foretold, np.arange(400) // 40, resamples=200)
    for name in prequential.MEASURES:
        assert apart[f"{name}_low"] <= apart[name] <= apart[f"{name}_high"]
    # Forty visits a patient: far fewer people than rows, so less is known.
    assert apart["auc"] == visits["auc"]
    assert apart["brier_low"] != visits["brier_low"]


def test_a_policy_is_what_its_name_says(
    batches: list[prequential.Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Candidate("xgboost", {**FAMILIES["xgboost"].default, "rounds": 40})
    monkeypatch.setattr(prequential, "CANDIDATE", small)
    monkeypatch.setattr(policies, "CANDIDATE", small)
    # How far chance goes is found in a tenth of the draws: every batch here is far beyond it.
    monkeypatch.setattr(policies, "chance", partial(policies.chance, draws=24))
    ran = policies.courses(batches, "any", 0)
    never, always = (ran.forecasts[name] for name in (policies.NEVER, policies.ALWAYS))
    assert (ran.trainings[policies.NEVER], ran.trainings[policies.ALWAYS]) == (0, 1)
    assert np.array_equal(never[0], always[0])
    assert not np.array_equal(never[1], always[1])
    recalibrated = ran.forecasts[policies.RECALIBRATED][1]
    assert np.array_equal(np.argsort(recalibrated), np.argsort(never[1]))
    for name in (policies.GATED, policies.REFUSED):
        (first, last), forecast = ran.decisions[name], ran.forecasts[name]
        assert first["trained"] == (ran.trainings[name] == 1)
        assert not last["trained"], "the last batch's training meets no batch"
        followed = always if first["took_over"] else never
        assert np.array_equal(forecast[1], followed[1])
    assert not ran.decisions[policies.GATED][0]["verdict"].startswith("Refused")


def test_policies_are_told_by_what_they_save_and_cost(batches: list[prequential.Part]) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.uniform(size=len(batch.labels)) for batch in batches]
    better = [0.4 * b.labels + 0.6 * n for b, n in zip(batches, noise, strict=True)]
    best = [0.6 * b.labels + 0.4 * n for b, n in zip(batches, noise, strict=True)]
    names = (policies.NEVER, policies.RECALIBRATED, policies.ALWAYS, policies.GATED)
    forecasts = dict(zip(names, (noise, noise, best, better), strict=True))
    decision = {"statistic": 0.8, "scored_by": 1, "trained": True, "took_over": False}
    ran = policies.Courses(
        forecasts={**forecasts, policies.REFUSED: noise},
        trainings={**dict.fromkeys(names, 0), policies.ALWAYS: 4, policies.GATED: 1}
        | {policies.REFUSED: 2},
        decisions={name: [decision] * 2 for name in (policies.GATED, policies.REFUSED)},
    )
    told = {**results.compared(batches, ran), "rebuilt": None}
    gated, always = (told["policies"][name] for name in (policies.GATED, policies.ALWAYS))
    assert gated["auc_less_always"]["low"] <= gated["auc_less_always"]["high"] < 0
    assert always["auc_less_always"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    ratios = results.ratios(told)
    assert ratios[f"{policies.GATED}: trainings to always"] == 0.25
    assert ratios[f"{policies.REFUSED}: AUC gained over never, to always"] == 0
    assert 0 < ratios[f"{policies.GATED}: AUC gained over never, to always"] < 1
    blocks = tables.blocks(told)
    assert set(blocks) == {"policies", "saved", "batches", "decisions"}
    for name in told["policies"]:
        assert f"| {name} |" in blocks["policies"]
        assert name in blocks["batches"]
    assert "trained 1 times in place of 4" in blocks["saved"]
    assert blocks["decisions"].count("trained, refused") == 4


WAYS: dict[str, dict[str, Any]] = {
    name: {
        **{"seconds": seconds, "cpu_seconds": 2 * seconds, "peak_mib": 100, "processes": 1},
        **{"rows": 1, "trials": 4, "best_auc": 0.7},
    }
    for name, seconds in {"ray": 10.0, "serial": 5.0, "plain": 20.0, "optuna": 8.0}.items()
}


def test_a_search_is_held_against_a_plain_loop_and_optuna_in_every_column() -> None:
    ratios = hpo.ratios({"ways": WAYS})
    assert ratios["ray to plain, seconds"] == 0.5
    assert ratios["serial to optuna, processor"] == 0.625
    assert ratios["ray to serial, memory"] == 1.0
    page = hpo.page({"ways": WAYS, "same_winner": True})
    for column in ("processor s", "peak MiB", "best AUC"):
        assert column in page


@pytest.mark.parametrize("way", ["plain", "optuna", "serial"])
def test_every_way_to_search_tries_the_defaults_and_keeps_the_best(way: str) -> None:
    found = searches.WAYS[way]("synthetic", 700, 3)
    sides = searches.sides("synthetic", 700)
    defaults = [
        search.validation_auc(
            models.fit(Candidate(family, FAMILIES[family].default), sides.train, searches.SEED),
            sides.validation,
        )
        for family in FAMILIES
    ]
    # The third of serial and Optuna may have been stopped before its last stage.
    assert min(defaults) - 0.05 < found["best_auc"] <= max(defaults) + 0.05


@pytest.mark.parametrize("name", suite.PARTS)
def test_every_part_of_the_suite_is_a_benchmark_that_takes_its_options(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    given = module.main.make_context(name, list(suite.PARTS[name]))
    assert isinstance(given, click.Context)


def test_a_part_that_fails_stops_none_after_it_and_is_named(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "PARTS", {"nowhere": (), "report": ()})
    done = CliRunner().invoke(suite.main, [])
    assert done.exit_code == 1
    assert "did not end well: nowhere" in done.output
    assert "== report" in done.output
    assert (bench / report.INDEX).exists()
