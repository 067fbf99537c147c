"""The loop report as people see it: its sentences, its figures, and its page in a real browser."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from selenium.webdriver import Chrome

from health_predict import evidence_figures, timeline
from health_predict.drawing import Drawing, Scale, overlap
from health_predict.estimation import Measured
from health_predict.loop_report import LoopReport
from health_predict.page import href, render, write_page
from health_predict.panels import auc, benefit, columns, decisions, drift, ratio, reliability
from health_predict.story import Promotion
from health_predict.timeline import NARROW, WIDE, Timeline
from health_predict.timeline_picture import timeline_picture
from health_predict_tests import browser
from health_predict_tests.reports import nothing, report

COUNTS = (1, 2, 5, 6, 20, 60)
PANELS = (drift, columns, auc, ratio, reliability, benefit)
DEAD_ENDS = {"meta", "br", "wbr", "path"}


class Markup(HTMLParser):
    """What a page consists of: text, headings, attributes, figures with their labels."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.styles = ""
        self._inside: list[str] = []
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in DEAD_ENDS:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in DEAD_ENDS:
            assert self._inside.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            self.styles += data
        else:
            self.text += data


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "loop.html"


def promoted(made: LoopReport, *versions: str) -> LoopReport:
    told = [Promotion(version, "initial", "xgboost", f"Why {version}.") for version in versions]
    return replace(made, story=replace(made.story, promotions=told, refusals=[]))


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (0, "The first champion is in office and waits for its first batch."),
        (1, "One batch arrived and it drifted; the loop retrained once and the challenger took "),
        (
            3,
            "Three batches arrived and two drifted; the loop retrained twice: one challenger took ",
        ),
        (20, "20 batches arrived and ten drifted; the loop retrained seven times: four "),
    ],
)
def test_the_headline_says_what_the_loop_did(page: Path, count: int, sentence: str) -> None:
    assert report(count, page).headline.startswith(sentence)


def test_a_loop_without_a_champion_says_so(page: Path) -> None:
    made = nothing(page)
    assert made.headline == "There is no champion yet, so nothing could be watched."
    assert made.answering == "Nothing was rolled out yet."


def test_a_version_that_was_brought_back_is_no_challenger_that_took_over(page: Path) -> None:
    made = promoted(report(2, page), "1", "2", "1")
    assert made.headline.endswith("the loop retrained once and the challenger took over.")
    assert [entry.words for entry in decisions(made) if entry.subject == "version 1"] == [
        "first champion",
        "brought back",
    ]


@pytest.mark.parametrize(
    ("rollbacks", "sentence"),
    [
        ([], "No release had to be taken back."),
        (["Drill: a."], "One release was taken back in a drill."),
        (["a.", "b."], "Two releases were taken back."),
        (["a.", "Drill: b."], "Two releases were taken back, one in a drill."),
    ],
)
def test_what_was_taken_back_is_told_with_drills_named(
    page: Path, rollbacks: list[str], sentence: str
) -> None:
    made = report(2, page)
    assert replace(made, story=replace(made.story, rollbacks=rollbacks)).taken_back == sentence


def test_a_difference_that_may_be_chance_is_called_so(page: Path) -> None:
    made = report(6, page)
    assert made.gain is not None
    assert made.worth.endswith("a difference of +0.012 [+0.004, +0.020], which is beyond chance.")
    unsure = replace(made.gain, difference=Measured(0.012, -0.004, 0.02))
    assert replace(made, gain=unsure).worth.endswith("[-0.004, +0.020], which may be chance.")
    assert "once a later version has scored" in replace(made, gain=None).worth


def test_a_report_is_kept_and_read_as_it_was(page: Path) -> None:
    kept = TypeAdapter(LoopReport)
    made = report(6, page)
    assert kept.validate_json(kept.dump_json(made)) == made


@pytest.mark.parametrize("count", COUNTS)
def test_every_fact_of_the_story_stands_on_the_page(page: Path, count: int) -> None:
    made = report(count, page)
    found = Markup(render(made))
    story = made.story
    facts = [
        made.headline,
        made.worth,
        made.taken_back,
        made.answering,
        *(batch.batch for batch in story.batches),
        *(batch.reason for batch in story.batches),
        *(f"{batch.drift.statistic:.3f}" for batch in story.batches),
        *(f"{batch.auc:.3f} [" for batch in story.batches if batch.auc is not None),
        *(f"{b.expected_observed:.2f} [" for b in story.batches if b.expected_observed is not None),
        *(promotion.window for promotion in story.promotions),
        *(promotion.family.replace("_", " ") for promotion in story.promotions),
        *(promotion.reason for promotion in story.promotions),
        *story.refusals,
        *story.rollbacks,
        *(words.words for batch in made.batches for words in batch.moved),
        "race: Caucasian",
        "0.620 [0.580, 0.650]",
        "worse off",
        "age: [0-10) (3)",
        "log_inpatient",
        "readmission:1@sha256:7d2b5e75c661",
        "s3://kept/releases/release-1.json",
        *(f"From drift to version {entry['version']}" for entry in story.seconds["retrains"]),
    ]
    missing = [fact for fact in facts if " ".join(fact.split()) not in found.text]
    assert not missing


def test_synthetic_data_are_called_so_at_once_and_published_data_are_not(page: Path) -> None:
    made = report(2, page)
    text = Markup(render(made)).text
    assert text.index("No row describes a real encounter.") < text.index("What arrived")
    real = replace(made.story, data="published encounters", source="uci")
    text = Markup(render(replace(made, story=real))).text
    assert "Published encounters. uci." in text
    assert "describes a real encounter" not in text


@pytest.mark.parametrize("count", [0, 6])
def test_the_page_stands_alone(page: Path, count: int) -> None:
    found = Markup(render(report(count, page)))
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
    addresses = [(tag, name) for tag, name, _ in found.attributes if name in ("src", "href")]
    assert set(addresses) <= {("a", "href")}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert "url(" not in found.styles
    assert "@import" not in found.styles


def test_what_was_recorded_is_text_and_never_markup(page: Path) -> None:
    made = report(1, page)
    wicked = '<script>alert("x")</script>'
    told = [replace(batch, reason=wicked) for batch in made.story.batches]
    batches = [
        replace(b, told=t, evidently="javascript:alert(1)")
        for b, t in zip(made.batches, told, strict=True)
    ]
    story = replace(made.story, batches=told, rollbacks=[wicked], data=wicked)
    found = Markup(render(replace(made, story=story, batches=batches)))
    assert "script" not in found.tags
    assert found.text.count(wicked) >= 3
    assert not [value for _, name, value in found.attributes if value.startswith("javascript")]


@pytest.mark.parametrize(
    ("made", "empty"),
    [
        (lambda page: nothing(page), 11),
        (lambda page: report(0, page), 7),
        (lambda page: report(3, page, outcomes=False), 4),
        (lambda page: report(3, page), 0),
    ],
    ids=["nothing", "no batch", "no outcome", "all"],
)
def test_what_cannot_be_shown_yet_says_why(
    page: Path, made: Callable[[Path], LoopReport], empty: int
) -> None:
    found = Markup(render(made(page)))
    reasons = [value for _, name, value in found.attributes if (name, value) == ("class", "empty")]
    assert len(reasons) == empty
    assert found.text.count(" yet") >= empty


def test_every_figure_says_what_it_shows_and_has_its_table(page: Path) -> None:
    made = report(6, page)
    for panel in PANELS:
        shown = panel(made)
        assert shown.title and shown.reading and shown.legend
        assert all(drawing.summary for drawing in shown.drawings.values())
        assert shown.rows
        assert {len(row) for row in shown.rows} == {len(shown.head)}
    for panel in (drift, columns, auc, ratio):
        assert len(panel(made).rows) == 6
    labels = [value for tag, name, value in Markup(render(made)).attributes if name == "aria-label"]
    assert len(labels) == 2 * 4 + 2 + 2, "two widths of four, two, and an interval a group"
    assert all(labels)


def test_the_legend_names_what_is_drawn_and_nothing_else(page: Path) -> None:
    one = drift(report(1, page))
    assert one.legend.keys() == {
        *("alarm", "limit", "chance", "takeover", "decision promoted"),
    }
    assert "decision rests" in drift(report(20, page)).legend


def drawings(made: LoopReport) -> Iterator[Drawing]:
    for panel in PANELS:
        yield from panel(made).drawings.values()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", COUNTS)
def test_no_label_covers_another_or_leaves_the_figure(page: Path, count: int, seed: int) -> None:
    for drawing in drawings(report(count, page, seed=seed)):
        assert drawing.labels
        for one, other in combinations(drawing.labels, 2):
            assert not overlap(one.box, other.box), (one, other)
        for label in drawing.labels:
            left, top, right, bottom = label.box
            assert -1 <= left <= right <= drawing.width + 1, label
            assert 0 <= top <= bottom <= drawing.height, label


def test_labels_that_are_as_close_as_can_be_are_kept_apart() -> None:
    axis = Timeline(["1", "2"], [(0, "v1"), (1, "v2"), (2, "v3")], NARROW)
    told = [Measured(0.66, 0.6599, 0.6601)] * 2
    drawn = timeline.series(axis, "AUC", told, [0.66, 0.66005], None, 3)
    values = [label for label in drawn.labels if label.kind.endswith("-value")]
    assert [label.text for label in values] == ["0.660", "0.660"]
    assert not overlap(values[0].box, values[1].box)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_marks_stand_where_the_values_are(width: float) -> None:
    axis = Timeline(["1", "2", "3"], [(0, "v1")], width)
    drawn = timeline.drift(axis, [0.6, 0.9, 0.7], [0.7] * 3, [0.52] * 3, ["no_action"] * 3)
    marks = [shape for shape in drawn.shapes if shape.kind in ("alarm", "calm")]
    assert [mark.kind for mark in marks] == ["calm", "alarm", "calm"]
    heights = [float(mark.path.split()[1].partition("a")[0]) for mark in marks]
    assert heights[1] < heights[2] < heights[0], "the larger, the higher"
    assert (heights[0] - heights[2]) * 2 == pytest.approx(heights[2] - heights[1], abs=0.3)


def test_a_value_is_not_written_on_the_threshold() -> None:
    axis = Timeline(["1", "2"], [], WIDE)
    drawn = timeline.drift(axis, [0.66, 0.9], [0.7] * 2, [0.52] * 2, ["no_action"] * 2)
    (limit,) = [shape for shape in drawn.shapes if shape.kind == "limit"]
    height = float(limit.path.split()[1].partition("L")[0])
    values = [label for label in drawn.labels if label.kind == "value"]
    assert [label.text for label in values] == ["0.66", "0.90"]
    assert all(not top < height < bottom for _, top, _, bottom in (v.box for v in values))


def test_the_days_that_are_named_are_evenly_spaced_however_many_there_are() -> None:
    for count in (12, 20, 60, 365):
        names = [str(number + 1) for number in range(count)]
        drawn = timeline.strips(Timeline(names, [], NARROW), [("age", "", [None] * count)])
        shown = [int(label.text) for label in drawn.labels if label.text.isdigit()]
        assert len(shown) >= 3
        assert len({b - a for a, b in pairwise(shown)}) == 1


def test_what_is_not_known_interrupts_the_line() -> None:
    axis = Timeline(["1", "2", "3"], [], WIDE)
    known = Measured(0.66, 0.64, 0.68)
    drawn = timeline.series(axis, "AUC", [known, None, known], [None] * 3)
    (thread,) = [shape for shape in drawn.shapes if shape.kind == "thread"]
    assert thread.path.count("M") == 2
    assert sum(shape.kind == "champion" for shape in drawn.shapes) == 2


def test_a_decision_has_a_shape_of_its_own() -> None:
    kinds = ("promoted", "refused", "rests", "pending", "no_action", "waiting")
    assert len({timeline.decision_mark(kind, 10, 10, 5) for kind in kinds}) == len(kinds)


def test_an_outcome_outside_of_the_bounds_is_marked() -> None:
    axis = Timeline(["1", "2"], [], WIDE)
    told = [Measured(1.0, 0.9, 1.1), Measured(1.4, 1.3, 1.5)]
    drawn = timeline.series(axis, "ratio", told, [None, None], (0.8, 1.25))
    kinds = [shape.kind for shape in drawn.shapes if shape.kind in ("champion", "alarm")]
    assert kinds == ["champion", "alarm"]


@pytest.mark.parametrize(("low", "high"), [(0.48, 0.99), (0.61, 0.712), (0.0, 45.0), (1.0, 1.001)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks(6)
    assert 1 <= len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_intervals_of_groups_share_their_scale() -> None:
    one, other = evidence_figures.intervals(
        [Measured(0.6, 0.55, 0.65), Measured(0.7, 0.65, 0.75)], 0.66
    )
    assert one.shapes[0] == other.shapes[0], "the line of everybody"
    assert one.shapes[-1].path != other.shapes[-1].path


def test_what_lies_beside_the_page_is_linked_by_its_way_from_there() -> None:
    folder = Path("/data/var")
    assert href("file:///data/var/store/a%20b/report.html", folder) == "store/a%20b/report.html"
    assert href("/data/var/store/release.json", folder) == "store/release.json"
    assert href("/elsewhere/release.json", folder) == "file:///elsewhere/release.json"
    assert href("https://example.org/x", folder) == "https://example.org/x"
    for address in ("s3://bucket/key", "javascript:alert(1)", "relative.json", ""):
        assert href(address, folder) == ""


def test_the_page_is_written_whole_over_an_older_one(page: Path) -> None:
    write_page(report(6, page))
    write_page(report(1, page))
    assert "One batch arrived" in page.read_text()
    assert [path.name for path in page.parent.iterdir()] == [page.name]


@pytest.mark.parametrize("count", [0, 1, 60])
def test_the_small_picture_is_one_whatever_there_is_to_show(page: Path, count: int) -> None:
    assert timeline_picture(report(count, page)).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


COVERED = """
const boxes = text => text.getBoundingClientRect();
return [...document.querySelectorAll('svg')].filter(svg => svg.getClientRects().length)
  .flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')];
    return texts.flatMap((one, at) => texts.slice(at + 1).filter(other => {
      const [a, b] = [boxes(one), boxes(other)];
      // A line's box is higher than its letters: what touches by less does not meet.
      return Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.3 * a.height;
    }).map(other => `${one.textContent} on ${other.textContent}`));
  });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 700, 360])
@pytest.mark.parametrize("count", [0, 1, 6, 60])
def test_in_a_browser_nothing_is_covered_cut_off_or_asked_for(
    chrome: Chrome, tmp_path: Path, count: int, width: int, scheme: str
) -> None:
    page = tmp_path / "loop.html"
    write_page(report(count, page))
    browser.screen(chrome, width, 900, scheme)
    browser.asked(chrome)  # what a test before this one asked for
    chrome.get(page.as_uri())
    assert chrome.execute_script(COVERED) == []
    sizes: Any = chrome.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert sizes[0] <= sizes[1]
    assert browser.console(chrome) == []
    assert set(browser.asked(chrome)) == {page.as_uri()}
    assert chrome.title.startswith("Loop report: ")


def test_a_phone_is_shown_figures_of_its_own(chrome: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "loop.html"
    write_page(report(6, page))
    seen = "return [...document.querySelectorAll('svg[viewBox]')].filter(s => s.clientWidth > 0)"
    for width, kind in ((1280, "wide"), (360, "narrow")):
        browser.screen(chrome, width, 900)
        chrome.get(page.as_uri())
        kinds = chrome.execute_script(f"{seen}.map(s => s.getAttribute('class'))")
        assert kinds.count(kind) == 4
        assert {"wide", "narrow"} & set(kinds) == {kind}


def test_colours_follow_the_reader_and_paper_is_white(chrome: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "loop.html"
    write_page(report(2, page))
    ground = "return getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        browser.screen(chrome, 1280, 900, scheme)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        chrome.get(page.as_uri())
        seen.append(chrome.execute_script(ground))
    assert len(set(seen)) == 3
    assert seen[2] == "rgb(255, 255, 255)"
