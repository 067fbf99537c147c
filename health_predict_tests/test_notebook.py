"""The notebook becomes a page: on the synthetic cohort, and on the published one where it is.

It is rendered as `make eda` does, in a process of its own with a home directory that has to stay
empty.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from health_predict import encounters, schema
from health_predict.settings import ROOT
from health_predict_tests.conftest import archive_path

NOTEBOOK = ROOT / "notebooks" / "01_eda_baseline.py"
ROWS = 4_000
SECONDS = 1_800


@dataclass(frozen=True)
class Rendered:
    """A page, and what was left behind when it was made."""

    done: subprocess.CompletedProcess[str]
    page: str
    raw: pd.DataFrame
    caption: str
    home: Path


class Words(HTMLParser):
    """What a reader sees of a page: text, without style; figures with their texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.pictures: list[str] = []
        self.captions: list[str] = []
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attributes)["alt"] or "")
        if tag in ("style", "figcaption"):
            self._inside.append(tag)
            self.captions += [""] if tag == "figcaption" else []

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside == ["figcaption"]:
            self.captions[-1] += data
        if "style" not in self._inside:
            self.text.append(data)


def run(folder: Path, *options: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Renders in a process of its own, with a home and a state folder of its own."""
    home = folder / "home"
    home.mkdir(parents=True)
    foreign = ("HEALTH_PREDICT_", "JUPYTER", "IPYTHON", "XDG_", "MPL")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    what = ("-c", code) if code else ("-m", "notebooks.render", "--to", str(folder), *options)
    return subprocess.run(
        [sys.executable, *what],
        cwd=ROOT,
        env={**inherited, "HOME": str(home), "HEALTH_PREDICT_VAR": str(folder / "var")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture(scope="module", params=["synthetic", "published"])
def rendered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rendered]:
    folder = tmp_path_factory.mktemp("eda")
    data = "synthetic" if request.param == "synthetic" else str(archive_path())
    done = run(folder, "--data", data, "--rows", str(ROWS))
    assert done.returncode == 0, done.stdout + done.stderr
    raw, source = encounters.read(data, rows=ROWS, seed=7)
    page = (folder / f"{NOTEBOOK.stem}.html").read_text()
    yield Rendered(done, page, raw, source.caption, folder / "home")


def test_it_says_where_the_page_is_and_nothing_else(rendered: Rendered) -> None:
    assert re.fullmatch(rf"\S+{NOTEBOOK.stem}\.html\n", rendered.done.stdout)
    assert rendered.done.stderr == ""


def test_no_cell_failed_or_warned_and_no_figure_is_missing_in_a_sentence(
    rendered: Rendered,
) -> None:
    assert "output_error" not in rendered.page
    assert "output_stderr" not in rendered.page
    words = " ".join(Words(rendered.page).text)
    assert "Traceback" not in words
    assert not re.search(r"\bnan\b", words)


def test_every_figure_is_there_with_its_caption_and_the_name_of_the_data(
    rendered: Rendered,
) -> None:
    drawn = NOTEBOOK.read_text().count("with gallery.figure(")
    seen = Words(rendered.page)
    assert len(seen.pictures) == len(seen.captions) == drawn >= 8
    assert rendered.page.count("data:image/png;base64,") == drawn
    for number, (picture, caption) in enumerate(
        zip(seen.pictures, seen.captions, strict=True), start=1
    ):
        assert caption.startswith(f"Figure {number}. ")
        assert len(picture) > 40
        assert rendered.caption in caption.lower()


def test_the_synthetic_cohort_is_called_synthetic_and_the_published_one_is_not(
    rendered: Rendered,
) -> None:
    words = " ".join(Words(rendered.page).text)
    warned = "No row describes a real encounter" in words
    assert warned == (rendered.caption == "synthetic cohort")


def test_the_figures_are_those_of_the_data(rendered: Rendered) -> None:
    accepted, quarantined = encounters.apply_contract(rendered.raw)
    cohort = encounters.cohort(accepted, "any")
    words = " ".join(" ".join(Words(rendered.page).text).split())
    for told in (
        f"the source {len(rendered.raw):,}",
        f"in quarantine {len(quarantined):,}",
        f"the cohort {len(cohort):,}",
        f"followed by a readmission {cohort[schema.LABEL].sum():,}",
        f"The cohort has {cohort[schema.PATIENT].nunique():,} patients",
    ):
        assert told in words


def test_no_identifier_is_on_the_page(rendered: Rendered) -> None:
    shown = set(re.findall(r"\d{4,}", " ".join(Words(rendered.page).text)))
    for identifier in schema.IDENTIFIERS:
        assert not shown & set(rendered.raw[identifier])


def test_the_page_loads_nothing_and_runs_nothing(rendered: Rendered) -> None:
    page = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", rendered.page)
    assert "<script" not in page
    assert "://" not in page
    assert "@import" not in page


def test_nothing_is_written_to_the_home_directory(rendered: Rendered) -> None:
    assert list(rendered.home.rglob("*")) == []


def test_a_source_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    done = run(tmp_path, "--data", "/nowhere/encounters.csv")
    assert done.returncode != 0
    assert "no file at '/nowhere/encounters.csv'" in done.stderr
    assert "HEALTH_PREDICT_DATA" in done.stderr
    assert not list(tmp_path.glob("*.html"))


def test_a_cell_that_fails_makes_no_page(tmp_path: Path) -> None:
    notebook = tmp_path / "broken.py"
    notebook.write_text("# %% [markdown]\n# # Title\n\n# %%\n[][1]\n")
    code = (
        "from pathlib import Path\nfrom notebooks.render import render\n"
        f"render(Path({str(notebook)!r}), Path({str(tmp_path)!r}))"
    )
    done = run(tmp_path, code=code)
    assert done.returncode != 0
    assert "IndexError" in done.stderr
    assert not list(tmp_path.glob("*.html"))


def test_make_eda_renders_it() -> None:
    told = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.ready", "eda", "DATA=uci", "ROWS=2345"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert '-m notebooks.render --data "uci" --rows 2345' in told.stdout
