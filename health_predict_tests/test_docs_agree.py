"""The pages on architecture and change control say what the code says, no more and no less."""

import re
import tomllib

import numpy as np
import pytest
import yaml

from health_predict import change_control, evaluation, fitting, gate, subgroups
from health_predict.definitions import assemble
from health_predict.settings import ROOT, Settings
from health_predict.subgroups import Contender, People
from health_predict_tests.markdown import quoted, read, table
from health_predict_tests.test_layering import DAGSTER, PURE

ARCHITECTURE = ROOT / "docs" / "architecture.md"
CHANGE_CONTROL = ROOT / "docs" / "change-control.md"
FUTURE = ROOT / "docs" / "future.md"

# As it is written: a bound read as a number may come back in another spelling.
WRITTEN = yaml.load(change_control.FILE.read_text(), Loader=yaml.BaseLoader)


def test_every_module_has_its_room() -> None:
    rooms = [quoted(modules) for _, modules in table(ARCHITECTURE, "room", "modules")]
    named = {name for room in rooms for name in room if not name.endswith("/")}
    assert named == {name.split(".")[-1] for name in (*PURE, *DAGSTER)}


def test_every_dependency_has_its_reason_and_no_other() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *declared["project"]["dependencies"],
        *(
            name
            for extra in declared["project"]["optional-dependencies"].values()
            for name in extra
        ),
        *(name for group in declared["dependency-groups"].values() for name in group),
    ]
    told = [
        *table(ARCHITECTURE, "package", "what for", "rejected, and why"),
        *table(ARCHITECTURE, "package", "what for"),
    ]
    names = [re.split(r"[^\w-]", name)[0] for name in wanted]
    assert sorted(name for row in told for name in quoted(row[0])) == sorted(names)
    assert [row[0] for row in told if not row[1]] == []


def test_every_invariant_is_held_by_a_test_or_a_check_that_exists() -> None:
    graph = assemble(Settings()).get_repository_def().asset_graph
    checks = {key.name for key in graph.asset_check_keys}
    for invariant, held_by in table(ARCHITECTURE, "invariant", "held by"):
        named = quoted(held_by)
        assert any(name.startswith("test_") for name in named), invariant
        # That the tests exist is asked of every page.
        assert {name for name in named if not name.startswith("test_")} <= checks, invariant


def test_the_groups_are_named_in_the_order_of_the_loop() -> None:
    graph = assemble(Settings()).get_repository_def().asset_graph
    groups = {str(graph.get(key).group_name) for key in graph.get_all_asset_keys()}
    text = ARCHITECTURE.read_text().split("Their groups, in the order the eye meets them:")[1]
    assert set(quoted(text.split(".")[0])) == groups


def test_every_bound_of_a_hyperparameter_is_the_one_the_gate_reads() -> None:
    told = [
        [quoted(cell)[0] for cell in row]
        for row in table(CHANGE_CONTROL, "family", "hyperparameter", "from", "to")
    ]
    assert told == [
        [family, name, low, high]
        for family, space in WRITTEN["families"].items()
        for name, (low, high) in space.items()
    ]


def test_every_other_bound_is_the_one_the_gate_reads() -> None:
    ranges = {
        quoted(what)[0]: [quoted(low)[0], quoted(high)[0]]
        for what, low, high, _ in table(CHANGE_CONTROL, "what", "from", "to", "unit")
    }
    lists = {quoted(what)[0]: quoted(of) for what, of in table(CHANGE_CONTROL, "what", "one of")}
    section = next(s for s in read(CHANGE_CONTROL).sections if s.title == "Features")
    lists["features"] = [code.text for code in section.codes]
    assert {**ranges, **lists} == {k: v for k, v in WRITTEN.items() if k != "families"}


def test_every_number_of_the_gate_is_the_one_it_decides_by() -> None:
    told = {
        quoted(clause)[0]: [float(number) for number in quoted(bound)]
        for clause, _, bound in table(CHANGE_CONTROL, "clause", "asks", "bound")
    }
    assert told == {
        "better_in_auc_or_brier": [evaluation.BETTER_CONFIDENCE],
        "auc_not_worse": [evaluation.NON_INFERIORITY_AUC],
        "brier_not_worse": [evaluation.NON_INFERIORITY_BRIER],
        "net_benefit_not_worse": [evaluation.NON_INFERIORITY_BENEFIT],
        "calibrated_within_bounds": list(evaluation.CHALLENGER_CALIBRATION),
        "slope_within_bounds": list(evaluation.SLOPE_BOUNDS),
        "no_group_harmed": [subgroups.GROUP_ALPHA],
        "auc_is_plausible": [evaluation.CEILING_AUC],
        "auc_above_floor": [evaluation.FLOOR_AUC],
        "inside_change_control": [],
    }


def test_every_clause_of_the_gate_is_on_the_page() -> None:
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.1, 0.9, 600)
    labels = (rng.random(600) < chances).astype(float)
    people = People(labels, np.arange(600), {"gender": np.full(600, "Female")})
    asked = {
        clause.name
        for champion in (None, Contender(chances))
        for clause in evaluation.judge(people, Contender(chances), champion).clauses
    }
    told = {quoted(row[0])[0] for row in table(CHANGE_CONTROL, "clause", "asks", "bound")}
    assert told == asked


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (gate.PEOPLE, "The newest {:,} encounters of the test side"),
        (fitting.CALIBRATION_ROWS, "expected over observed on the newest {:,}"),
        (subgroups.SMALLEST_GROUP, "fewer than {} encounters or"),
        (subgroups.SMALLEST_CLASS, "or {} of either outcome"),
    ],
)
def test_the_numbers_in_its_sentences_are_those_of_the_code(number: int, words: str) -> None:
    assert words.format(number) in " ".join(CHANGE_CONTROL.read_text().split())


def test_what_is_left_undone_comes_with_its_reason() -> None:
    points = re.findall(r"^- \*\*.+?(?=^- |^#|\Z)", FUTURE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(points) > 15
    assert [point for point in points if len(point.split()) < 7] == []


def test_the_jobs_of_the_protocol_exist() -> None:
    jobs = {job.name for job in assemble(Settings()).get_repository_def().get_all_jobs()}
    named = re.findall(r"\bjob `(\w+)`", CHANGE_CONTROL.read_text())
    assert set(named) <= jobs
    assert {"retrain", "deploy", "approve"} <= set(named)
