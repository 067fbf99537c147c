"""The table of settings is what the code reads: every name, every default, nothing else."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from health_predict import settings_table
from health_predict.cli import main
from health_predict.settings import ROOT, Settings
from health_predict.settings_table import GROUPS, KINDS, OTHERS, PREFIX, UNITS, known, variables

PAGE = ROOT / "docs" / "settings.md"
_NAME = re.compile(rf"\b{PREFIX}[A-Z0-9_]*[A-Z0-9]\b")
# Read in Python by `os.environ`, outside of what `Settings` is: the table has to have these too.
_READ = re.compile(r"""environ(?:\.get\(|\[)\s*["']([A-Z][A-Z0-9_]+)["']""")


def files() -> Iterator[Path]:
    """Yields every file of the repository, those that are not committed yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not in a git checkout: nobody can tell what belongs to the repository")
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            yield ROOT / name


def used() -> dict[str, set[str]]:
    """Returns each name with our prefix that occurs anywhere, and where."""
    found: dict[str, set[str]] = {}
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for name in _NAME.findall(text):
            found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_the_page_is_what_the_code_makes() -> None:
    made = CliRunner().invoke(main, ["settings", "--markdown"])
    assert made.exit_code == 0
    assert made.output == settings_table.markdown()
    command = "health-predict settings --markdown > docs/settings.md"
    assert PAGE.read_text() == made.output, f"run {command}"


def test_every_name_that_is_used_anywhere_is_in_the_table() -> None:
    # Tests name what must not be known, and beginnings of names.
    elsewhere = {
        name: {place for place in places if not place.startswith("health_predict_tests/")}
        for name, places in used().items()
    }
    unknown = {name: places for name, places in elsewhere.items() if places and name not in known()}
    assert f"{PREFIX}DATA" in elsewhere
    assert unknown == {}


def test_no_name_is_in_the_table_that_nothing_uses() -> None:
    elsewhere = {
        name
        for name, places in used().items()
        if places - {"docs/settings.md", "health_predict/settings_table.py"}
    }
    fields = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    ours = {name for name in known() if name.startswith(PREFIX)}
    assert ours - fields - elsewhere == set()


def test_what_python_reads_from_the_environment_is_in_the_table() -> None:
    read = {
        name
        for path in (ROOT / "health_predict").rglob("*.py")
        for name in _READ.findall(path.read_text())
    }
    listed = known() | set(_LISTED)
    assert "RAY_ADDRESS" in read
    assert read - listed == set()


_LISTED = {
    "DOCKER_CONFIG": "named with REGISTRY_AUTH_FILE",
    "XDG_RUNTIME_DIR": "set by the session",
    "HOME": "set by the session",
}
"""What is read and is no setting of ours, with the reason."""


def test_every_field_is_in_one_group_with_its_unit_or_kind() -> None:
    fields = [name for group in GROUPS.values() for name in group]
    assert sorted(fields) == sorted(Settings.model_fields)
    assert not set(UNITS) & set(KINDS)
    for group in variables().values():
        for variable in group:
            assert variable.does.endswith("."), variable
            assert variable.takes or variable in OTHERS["Internal"], variable


def test_bounds_and_choices_are_those_of_the_fields() -> None:
    takes = {each.name: each.takes for group in variables().values() for each in group}
    assert takes[f"{PREFIX}ROWS"] == "rows, from 2000"
    assert takes[f"{PREFIX}MAJOR_DRIFT"] == "AUC, from 0.5 to 1"
    assert takes[f"{PREFIX}FALSE_ALARM_RATE"] == "share of batches, above 0, below 0.5"
    assert takes[f"{PREFIX}SEARCH_SECONDS"] == "seconds, above 0"
    assert takes[f"{PREFIX}DEPLOYMENT"] == "`local`, `host`, `kubernetes`"
    assert takes[f"{PREFIX}APPROVAL"] == "`true`, `false`"
    assert "secret" in takes[f"{PREFIX}POSTGRES"]


def test_a_default_is_told_as_it_would_be_written() -> None:
    defaults = {each.name: each.default for group in variables().values() for each in group}
    assert defaults[f"{PREFIX}VAR"] == "var"
    assert defaults[f"{PREFIX}APPROVAL"] == "false"
    assert defaults[f"{PREFIX}CADENCE"] == "0 6 * * *"
    assert defaults[f"{PREFIX}STORE"] == ""
    assert defaults[f"{PREFIX}SERVICE_BATCH_ROWS"] == "10000"


def test_the_page_does_not_depend_on_the_environment() -> None:
    runner = CliRunner(env={f"{PREFIX}PORT": "1234", f"{PREFIX}VAR": "/elsewhere"})
    assert runner.invoke(main, ["settings", "--markdown"]).output == settings_table.markdown()
