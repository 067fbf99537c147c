"""The rooms of the house: who may import whom, what is heavy, and that importing does nothing.

Each module is imported in a fresh interpreter, where `sys.modules` tells what came with it.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import health_predict

PACKAGE = Path(health_predict.__file__).parent

PURE = (
    "store",
    "download",
    "schema",
    "synthetic",
    "synthetic_profile",
    "encounters",
    "splits",
    "features",
    "metrics",
    "subgroups",
    "thresholds",
    "models",
    "fitting",
    "change_control",
    "evaluation",
    "estimation",
    "outcomes",
    "evidence",
    "drawing",
    "timeline",
    "evidence_figures",
    "ledger",
    "search",
    "ray_link",
    "tuning",
    "experiments",
    "tracking",
    "separation",
    "column_drift",
    "drift",
    "evidently_report",
    "scorer",
    "compiling",
    "explanations",
    "card_words",
    "card",
    "gate",
    "prediction_log",
    "serving.options",
    "serving.requests",
    "serving.messages",
    "serving.answers",
    "serving.batches",
    "serving.instruments",
    "serving.predictor",
    "serving.application",
    "serving.openapi",
    "serving.form",
    "service",
    "served",
    "manifests",
    "settings",
    "alerts",
    "channels",
    "verification",
    "backend",
    "supervisor",
    "engines",
    "images",
    "sbom",
    "containers",
    "registry_credentials",
    "registry_http",
    "oci_registry",
    "ecr",
    "cluster_link",
    "server_side_apply",
    "workloads",
    "rollout",
    "service_proxy",
    "cluster",
    "release",
    "release_records",
    "bundling",
    "local_platform",
    "shadow",
    "kubernetes_platform",
    "drill",
    "processes",
    "settings_table",
    "doctoring.finding",
    "doctoring.shown",
    "doctoring.web",
    "doctoring.postgres",
    "doctoring.versions",
    "doctoring.variables",
    "doctoring.folder",
    "doctoring.ports",
    "doctoring.models",
    "doctoring.stores",
    "doctoring.service",
    "doctoring.cluster",
)
"""The pure half, in order: each module may import only those before it."""

SERVING = {name for name in PURE if name.startswith("serving.")}

DAGSTER = (
    *("definitions", "cli", "graph_check", "loop", "page", "story", "terminal"),
    *("loop_report", "panels", "timeline_picture"),
    *("doctoring.orchestrator", "doctoring.rounds", "doctoring.ticking"),
)
"""Beside `defs`, what may know Dagster and import `defs`: assembly, command line, telling."""

HEAVY = {
    "dagster",
    "ray",
    "mlflow",
    "evidently",
    "kubernetes",
    "bentoml",
    "matplotlib",
    "xgboost",
    "sklearn",
    "pandas",
    "pandera",
}
HEAVY_ALLOWED = {
    "service": {"bentoml"},  # BentoML finds its service by decorators
    # Imported by nobody else before a synthetic table is drawn, which is a table of pandas.
    "synthetic": {"pandas"},
    "synthetic_profile": {"pandas"},
}
ONLY_IN = {
    "ray": {"ray_link", "tuning"},
    "mlflow": {"experiments", "tracking"},
    "dagster_mlflow": {"experiments"},
    "evidently": {"evidently_report"},
    "kubernetes": {"cluster_link"},
}
ABOVE_EXACTLY = {
    "schema": set(),
    "settings": {"schema"},
    "scorer": {"schema", "features"},
    "compiling": {"schema", "features", "scorer"},
    "explanations": {"schema", "features"},
    "card": {"schema", "features", "card_words"},
    "prediction_log": {"schema"},
    "service": {"schema", "features", "scorer", "prediction_log", *SERVING},
}

PROBE = """
import json, os, sys
sys.dont_write_bytecode = True
{code}
with open(os.environ["REPORT"], "w") as report:
    json.dump(sorted(sys.modules), report)
"""


@cache
def fresh(code: str) -> tuple[set[str], str, list[str]]:
    """Runs code in a fresh interpreter: the modules loaded, what it printed, the files it made."""
    with TemporaryDirectory() as folder, TemporaryDirectory() as report:
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(code=code)],
            cwd=folder,
            env={
                **{k: v for k, v in os.environ.items() if k != "BENTOML_HOME"},
                "PYTHONPATH": str(PACKAGE.parent),
                "HOME": folder,
                "TMPDIR": folder,
                "HEALTH_PREDICT_VAR": f"{folder}/var",
                "REPORT": f"{report}/modules.json",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        modules = set(json.loads(Path(report, "modules.json").read_text()))
        files = [str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()]
    return modules, done.stdout + done.stderr, files


def ours(modules: set[str]) -> set[str]:
    """Returns our modules among dotted names, those of names imported from them."""
    inside = {m.removeprefix("health_predict.") for m in modules if m.startswith("health_predict.")}
    known = (*PURE, *DAGSTER, "defs")
    return {name for name in known for m in inside if m == name or m.startswith(f"{name}.")}


def heavy(modules: set[str]) -> set[str]:
    return HEAVY & {module.split(".")[0] for module in modules}


def sources() -> Iterator[tuple[str, Path]]:
    """Yields every module of the package by its dotted name inside the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imported(path: Path) -> set[str]:
    """Returns the dotted names a source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports by relative name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_its_place():
    names = {name for name, _ in sources() if not name.startswith("defs.")}
    assert names - {"__init__", "doctoring.__init__", "serving.__init__"} == {*PURE, *DAGSTER}


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_loads_only_modules_above_it_and_no_dagster(module):
    modules, _, _ = fresh(f"import health_predict.{module}")
    above = set(PURE[: PURE.index(module)])
    assert ours(modules) - {module} <= ABOVE_EXACTLY.get(module, above)
    assert "dagster" not in heavy(modules)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_loads_no_heavy_package(module):
    modules, _, _ = fresh(f"import health_predict.{module}")
    assert heavy(modules) <= HEAVY_ALLOWED.get(module, set())


@pytest.mark.parametrize("module", PURE)
def test_to_import_a_pure_module_prints_nothing_and_writes_nothing(module):
    _, output, files = fresh(f"import health_predict.{module}")
    assert output == ""
    assert files == []


def test_to_import_what_knows_dagster_prints_nothing_and_writes_nothing():
    names = [name for name, _ in sources() if name in DAGSTER or name.startswith("defs.")]
    names = [name.removesuffix(".__init__") for name in names]
    # That a feature is in preview Dagster says as a warning, which is not output of ours.
    silent = "import warnings; warnings.simplefilter('ignore')\n"
    _, output, files = fresh(silent + "\n".join(f"import health_predict.{name}" for name in names))
    assert "defs.training" in names
    assert output == ""
    assert files == []


def test_a_pure_module_names_none_but_modules_above_it_anywhere():
    for name, path in sources():
        if name not in PURE:
            continue
        named = ours({module for module in imported(path) if module.startswith("health_predict")})
        # Itself: what another node imports to hand back that node's own.
        assert named <= set(PURE[: PURE.index(name) + 1]), name


def test_definitions_assemble_without_what_only_a_step_needs():
    modules, _, files = fresh(
        "from health_predict.definitions import assemble\n"
        "from health_predict.settings import Settings\n"
        "assemble(Settings())"
    )
    heavy_steps = {"mlflow", "ray", "evidently", "bentoml", "xgboost", "kubernetes"}
    assert not heavy(modules) & heavy_steps
    assert {"dagster", "health_predict.defs.training"} <= modules
    assert files == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_dependency_is_named_in_its_one_module(package):
    naming = {
        name
        for name, path in sources()
        if any(module.split(".")[0] == package for module in imported(path))
    }
    assert naming <= ONLY_IN[package]


def test_the_pure_half_does_not_name_dagster_or_defs():
    for name, path in sources():
        if name in PURE:
            names = imported(path)
            assert not any(module.split(".")[0] == "dagster" for module in names), name
            assert not any(module.startswith("health_predict.defs") for module in names), name


def test_the_package_files_stay_empty():
    files = list(PACKAGE.rglob("__init__.py"))
    assert len(files) == 4
    assert all(path.read_text() == "" for path in files)
