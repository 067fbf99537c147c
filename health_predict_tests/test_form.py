"""The page for people, as markup and in a real browser against the real service.

The tests in the browser need Debian's Chromium and its driver and say so where there are none.
"""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from health_predict import schema, service
from health_predict.serving import form
from health_predict.serving.options import Options
from health_predict.serving.predictor import Predictor
from health_predict_tests import browser
from health_predict_tests.serving import loaded

FACTS: dict[str, Any] = {
    "name": "readmission",
    "version": "3",
    "data": "synthetic cohort",
    "label": "any",
    "family": "xgboost",
    "trained_at": "2026-03-09T11:17:49+00:00",
    "train_rows": 20_429,
    "threshold": 0.5,
    "threshold_reason": "A needless intervention costs one foreseen readmission.",
    "risk_bands": {"low": 0.0, "medium": 0.3, "high": 0.6},
    "test": {
        **{"n": 2_000, "positives": 915, "auc": 0.6838, "auc_low": 0.66, "auc_high": 0.7069},
        "expected_observed": 0.8992,
    },
    "intended_use": "decision support for care after discharge; not a diagnosis",
}
"""What a registered model tells of itself; the population is added by the model at hand."""

TOKEN = "a token of the test"
NARROW_SPACE = "\u202f"


class Markup(HTMLParser):
    """Collects what a policy or a reader has to know of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.inline: dict[str, list[str]] = {"style": [], "script": []}
        self.attributes: list[tuple[str, str, str]] = []
        self.data = ""
        self.text = ""
        self._inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = "data" if ("type", "application/json") in attrs else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.inline:
            self.inline[self._inside].append(data)
        elif self._inside == "data":
            self.data += data
        else:
            self.text += data


def content(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON block of a page."""
    found: dict[str, Any] = json.loads(Markup(form.page(facts)).data)
    return found


def values(field: dict[str, Any]) -> list[str]:
    return [value for _, options in field["options"] for value, _ in options]


def test_every_input_is_asked_for_once():
    found = content(FACTS)
    asked = [name for _, members in found["groups"] for name in members]
    assert sorted(asked) == sorted(schema.INPUTS)
    assert list(found["fields"]) == list(schema.INPUTS)
    assert all(field["label"] for field in found["fields"].values())


def test_pick_lists_hold_the_published_vocabularies_and_no_more():
    fields = content(FACTS)["fields"]
    for column, vocabulary in schema.CLOSED.items():
        assert values(fields[column]) == list(vocabulary)
    tables = (schema.ADMISSION_TYPES, schema.DISCHARGE_DISPOSITIONS, schema.ADMISSION_SOURCES)
    for column, table in zip(schema.CODES, tables, strict=True):
        assert sorted(map(int, values(fields[column]))) == sorted(table)


def test_numbers_are_told_with_the_range_that_the_service_takes():
    fields = content(FACTS)["fields"]
    told = {name: (f["low"], f["high"]) for name, f in fields.items() if f["kind"] == "count"}
    assert told == schema.COUNTS
    assert all(fields[name]["unit"] for name in told)


def test_where_no_readmission_is_predicted_stands_apart_in_its_list():
    groups = dict(content(FACTS)["fields"]["discharge_disposition_id"]["options"])
    apart = {int(code) for code, _ in groups["No readmission to predict"]}
    assert apart == schema.DEATH_OR_HOSPICE


def test_the_example_is_an_encounter():
    example = content(FACTS)["example"]
    fields = {schema.field_name(name): value for name, value in example.items()}
    assert schema.Encounter(**fields).columns() == schema.EXAMPLE


def test_diagnoses_are_spelled_as_published():
    spelled = re.compile(r"V?[1-9]\d*(\.\d+)?")
    assert [code for code in form.TITLES if not spelled.fullmatch(code)] == []


def test_a_fact_cannot_end_the_block_nor_become_markup():
    hostile = "</script><script>alert(1)</script>{{ content }}"
    page = form.page({**FACTS, "threshold_reason": hostile, "data": hostile, "version": hostile})
    markup = Markup(page)
    assert "<" not in markup.data
    assert json.loads(markup.data)["facts"]["threshold_reason"] == hostile
    assert len(markup.inline["script"]) == 1
    assert hostile in markup.text


def test_a_fact_that_is_no_json_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        form.page({**FACTS, "threshold": float("nan")})


def test_the_policy_allows_what_is_inline_by_its_hash_and_nothing_else():
    page = form.page(FACTS)
    markup, policy = Markup(page), form.csp(page)
    for tag, bodies in markup.inline.items():
        digests = [hashlib.sha256(body.encode()).digest() for body in bodies]
        allowed = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
        assert f"{tag}-src {allowed};" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_needs_nothing_from_elsewhere_and_no_attribute_that_the_policy_forbids():
    attributes = Markup(form.page(FACTS)).attributes
    assert [a for _, a, _ in attributes if a == "style" or a.startswith("on")] == []
    links = {value for _, name, value in attributes if name in ("src", "href", "action")}
    relative = {link for link in links if not link.startswith(("data:", "#"))}
    assert relative == {"model-info", "openapi.json"}


def test_the_facts_are_told_in_words():
    text = " ".join(Markup(form.page(FACTS)).text.split())
    for words in (
        "0.684AUC, 95 % interval 0.660 to 0.707",
        "in 68 of 100 pairs",
        "For every 100 readmissions that happened it expected 90.",
        "915 of them led to a readmission",
        "Trained on 9 March 2026 from 20,429 encounters.",
        "Decision support, not a diagnosis.",
        "how likely is any later readmission?",
    ):
        assert words in text


@pytest.mark.parametrize(("data", "warned"), [("synthetic cohort", True), ("UCI 296", False)])
def test_a_model_of_made_up_encounters_is_announced(data, warned):
    page = form.page({**FACTS, "data": data})
    assert (b'id="synthetic" hidden' not in page) is warned


def test_a_model_that_tells_nothing_of_itself_has_a_page():
    markup = Markup(form.page({}))
    assert json.loads(markup.data)["facts"] == {}
    assert "how likely is a readmission?" in " ".join(markup.text.split())


# In the browser: the app under test comes from one fixture, `site`.


class Gate:
    """An ASGI application that can keep one request waiting.

    Attributes:
        keep: the next request to `/predict` waits until this is unset; the one after does not.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.keep = False
        self.kept = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.keep and not self.kept and scope["path"] == "/predict":
            self.kept += 1
            while self.keep:
                await asyncio.sleep(0.01)
        await self._app(scope, receive, send)


@dataclass(frozen=True)
class Site:
    """The service with a page, as a browser finds it.

    Attributes:
        server: what it runs on.
        gate: what stands before the service.
        predictor: the model inside.
    """

    server: browser.Server
    gate: Gate
    predictor: Predictor

    def risk(self, **changes: Any) -> float:
        """Returns the score of the example encounter with some values changed."""
        return float(self.predictor.scorer.score([{**schema.EXAMPLE, **changes}])[0])


@pytest.fixture(scope="module")
def site(compiled: dict[str, Path], cohort: Any) -> Iterator[Site]:
    with loaded(compiled["xgboost"]) as predictor:
        scores = predictor.scorer.score(cohort[list(schema.INPUTS)].to_dict("records"))
        quantiles = np.quantile(scores, np.linspace(0, 1, 21)).tolist()
        told = {**FACTS, "population": {"n": len(scores), "quantiles": quantiles}}
        predictor.scorer.facts.update(told)
        gate = Gate(service.app)
        server = browser.Server(gate)
        server.start()
        yield Site(server, gate, predictor)
        server.stop()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


class Page:
    """The page as somebody uses it."""

    def __init__(self, driver: Chrome, origin: str) -> None:
        self.driver = driver
        self.origin = origin

    def open(self, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        browser.screen(self.driver, width, height, scheme)
        self.driver.get(f"{self.origin}/")

    def find(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def field(self, column: str) -> WebElement:
        return self.find(f"f-{schema.field_name(column)}")

    def enter(self, column: str, value: str) -> None:
        """Changes a field as a hand does."""
        field = self.field(column)
        if field.tag_name == "select":  # by its words: the driver's own way leaves `input` out
            options = {o.get_attribute("value"): o.text for o in Select(field).options}
            field.send_keys(options[value])
            return
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value or Keys.DELETE)

    def ask(self) -> None:
        self.find("ask").click()

    def estimate(self) -> str:
        """Asks for an estimate and returns it."""
        self.ask()
        self.until(lambda: self.text("risk"))
        return self.text("risk")

    # One script each: between two questions the page may have drawn the element anew.
    def text(self, name: str) -> str:
        script = "return document.getElementById(arguments[0])?.textContent ?? ''"
        return str(self.driver.execute_script(script, name))

    def shown(self, name: str) -> str:
        script = (
            "const found = document.getElementById(arguments[0]);"
            "return found?.checkVisibility() ? found.innerText.trim() : ''"
        )
        return str(self.driver.execute_script(script, name))

    def until(self, true: Callable[[], Any], seconds: float = 20) -> None:
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: true())

    def focused(self) -> str:
        return str(self.driver.switch_to.active_element.get_attribute("id"))

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, name: str) -> None:
        """Presses Tab until the named element has the focus; fails if it never gets it."""
        for _ in range(120):
            if self.focused() == name:
                return
            self.press(Keys.TAB)
        raise AssertionError(f"{name} is not reached by Tab")

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)


@pytest.fixture
def page(driver: Chrome, site: Site) -> Iterator[Page]:
    """The page, opened; afterwards nothing it did may have offended its policy or left home."""
    opened = Page(driver, site.server.origin)
    opened.open()
    yield opened
    unexpected = [m for m in browser.console(driver) if "Failed to load resource" not in m]
    assert unexpected == []
    assert {url for url in browser.asked(driver) if not url.startswith(opened.origin)} == set()


def percent(share: float) -> str:
    return f"{100 * share:.0f}{NARROW_SPACE}%"


def test_the_default_encounter_is_scored(page, site):
    risk = site.risk()
    assert page.estimate() == percent(risk)
    band = next(b for b, low in reversed(FACTS["risk_bands"].items()) if risk >= low)
    assert f"{band} risk" in page.shown("figure")
    assert f"about {100 * risk:.0f} to be followed by any later readmission" in page.shown("answer")
    assert "threshold of 50" in page.shown("answer")


def test_a_screen_reader_hears_the_estimate(page, site):
    status = page.find("said")
    assert status.get_attribute("role") == "status"
    assert status.get_attribute("aria-live") == "polite"
    assert page.text("said") == ""
    page.estimate()
    assert page.text("said").startswith(f"Risk {percent(site.risk())}, ")


def test_the_picture_shows_where_among_a_hundred_people_it_lies(page, site):
    page.estimate()
    quantiles = site.predictor.facts["population"]["quantiles"]
    people = np.interp((np.arange(100) + 0.5) / 100, np.linspace(0, 1, 21), quantiles)
    lower = int((people < site.risk()).sum())
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#people .dot")) == 100
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#people .dot.below")) == lower
    assert f"Higher than {lower} of 100 people" in page.shown("answer")


def test_what_pushes_the_estimate_adds_up_to_it(page, site):
    page.estimate()
    page.run("document.querySelectorAll('#answer details').forEach(d => d.open = true)")
    shown = page.driver.find_elements(By.CSS_SELECTOR, ".factors tbody .num")
    odds = [float(cell.text.rpartition(NARROW_SPACE)[2]) for cell in shown]
    rows = page.driver.find_elements(By.CSS_SELECTOR, "#sums tbody tr")
    cells = [row.find_elements(By.TAG_NAME, "td") for row in rows]
    steps = [float(number.text.replace("\u2212", "-")) for number, _ in cells]
    baseline, factors, calibration, total = steps
    assert np.log(odds).sum() == pytest.approx(factors, abs=0.005 * len(odds))
    assert baseline + factors + calibration == pytest.approx(total, abs=0.016)
    assert cells[-1][1].text == percent(site.risk())


def test_a_factor_leads_to_its_field(page):
    page.estimate()
    link = page.driver.find_element(By.CSS_SELECTOR, ".factors a[href='#f-number_inpatient']")
    page.driver.execute_script("arguments[0].click()", link)
    assert page.focused() == "f-number_inpatient"


def test_a_bad_value_is_explained_at_its_field(page):
    page.enter("number_inpatient", "-3")
    page.ask()
    field = page.field("number_inpatient")
    page.until(lambda: field.get_attribute("aria-invalid") == "true")
    assert "greater than or equal to 0" in page.shown("f-number_inpatient-error")
    assert "f-number_inpatient-error" in (field.get_attribute("aria-describedby") or "").split()
    assert page.focused() == "f-number_inpatient"
    assert "One entry is missing or wrong" in page.shown("failure")
    assert page.text("risk") == ""


def test_a_corrected_value_is_no_longer_complained_of(page, site):
    page.enter("number_inpatient", "-3")
    page.ask()
    page.until(lambda: page.shown("failure"))
    page.enter("number_inpatient", "4")
    assert page.estimate() == percent(site.risk(number_inpatient=4))
    assert page.shown("failure") == page.shown("f-number_inpatient-error") == ""
    assert page.field("number_inpatient").get_attribute("aria-invalid") is None


def test_what_is_missing_is_asked_for_and_the_first_is_in_focus(page):
    page.find("fill-empty").click()
    page.ask()
    page.until(lambda: page.shown("failure"))
    missing = page.driver.find_elements(By.CSS_SELECTOR, "[aria-invalid]")
    open_text = {"race", "weight", "payer_code", "medical_specialty", *schema.DIAGNOSES}
    asked = set(schema.INPUTS) - open_text - set(schema.MEDICATIONS)
    assert {str(f.get_attribute("name")) for f in missing} == asked
    assert page.focused() == "f-age"


def test_an_encounter_outside_the_cohort_is_refused_at_the_field_that_says_so(page):
    page.enter("discharge_disposition_id", "11")
    page.ask()
    page.until(lambda: page.shown("f-discharge_disposition_id-error"))
    assert "outside the cohort" in page.shown("f-discharge_disposition_id-error")


def test_an_unreachable_service_is_said_and_tried_again_with_the_entries_kept(page, site):
    page.enter("number_inpatient", "5")
    site.server.stop()
    try:
        page.ask()
        page.until(lambda: "cannot be reached" in page.shown("failure"))
        assert page.field("number_inpatient").get_property("value") == "5"
    finally:
        site.server.start()
    page.find("retry").click()
    page.until(lambda: page.text("risk"))
    assert page.text("risk") == percent(site.risk(number_inpatient=5))
    assert page.shown("failure") == ""


def test_an_estimate_that_no_longer_fits_the_entries_is_marked(page, site):
    before = page.estimate()
    site.server.stop()
    try:
        page.enter("number_inpatient", "9")
        page.until(lambda: "cannot be reached" in page.shown("failure"))
        assert "the estimate of the entries before" in page.shown("failure")
        assert page.text("risk") == before
        assert page.find("result").get_attribute("data-stale") is not None
    finally:
        site.server.start()


@contextmanager
def options(changed: Options) -> Iterator[None]:
    before = service.app.state.options
    service.app.state.options = changed
    yield
    service.app.state.options = before


def test_a_service_that_still_loads_is_said_and_tried_again(page, site):
    service.app.state.predictor = None
    try:
        page.ask()
        page.until(lambda: "still loading" in page.shown("failure"))
        assert "Try again in 1 s." in page.shown("failure")
    finally:
        service.app.state.predictor = site.predictor
    page.find("retry").click()
    page.until(lambda: page.text("risk"))


def test_a_token_is_asked_for_and_kept_nowhere(page, site):
    tokens = frozenset({hashlib.sha256(TOKEN.encode()).hexdigest()})
    with options(replace(service.app.state.options, tokens=tokens)):
        page.ask()
        page.until(lambda: page.focused() == "token")
        page.press("wrong", Keys.ENTER)
        page.until(lambda: "did not accept this token" in page.shown("failure"))
        page.press(TOKEN, Keys.ENTER)
        page.until(lambda: page.text("risk") == percent(site.risk()))
        assert not page.find("sign-in").is_displayed()
        assert page.find("token").get_property("value") == ""
        assert stored(page) == [0, 0, 0, ""]
        page.open()
        page.ask()
        page.until(lambda: page.focused() == "token")


def stored(page: Page) -> list[Any]:
    """Returns how much the page has put into the browser: stores, databases, cookies."""
    found: list[Any] = page.driver.execute_async_script(
        "const done = arguments[0]; indexedDB.databases().then((known) =>"
        " done([localStorage.length, sessionStorage.length, known.length, document.cookie]))"
    )
    return found


def test_nothing_is_stored_in_the_browser(page):
    page.estimate()
    page.enter("number_inpatient", "6")
    page.until(lambda: page.find("what-if").is_displayed())
    assert stored(page) == [0, 0, 0, ""]
    page.driver.refresh()
    assert page.field("number_inpatient").get_property("value") == "2"


def test_the_page_asks_for_itself_and_for_estimates_and_nothing_else(page):
    browser.asked(page.driver)
    page.open()
    page.estimate()
    assert browser.asked(page.driver) == [f"{page.origin}/", f"{page.origin}/predict?explain=true"]
    assert browser.console(page.driver) == []


def test_a_broken_policy_would_be_noticed(driver, site):
    opened = Page(driver, site.server.origin)
    opened.open()
    opened.run("document.body.setAttribute('style', 'color: red')")
    assert any("Content Security Policy" in message for message in browser.console(driver))


def test_a_changed_field_shows_what_the_estimate_would_become(page, site):
    before, after = site.risk(), site.risk(number_inpatient=0)
    page.estimate()
    page.enter("number_inpatient", "0")
    page.until(lambda: page.find("what-if").is_displayed())
    assert page.text("risk") == percent(after)
    assert page.text("comparison") == f"Was {percent(before)}, now {percent(after)}"
    points = f"{100 * (after - before):+.1f}".replace("-", "\u2212")
    assert page.text("points") == f"({points} points)"
    assert page.text("changes") == "Inpatient stays: 2 \u2192 0"


def test_changes_are_undone(page, site):
    before = page.estimate()
    page.enter("number_inpatient", "0")
    page.enter("insulin", "No")
    page.until(lambda: "Insulin" in page.text("changes"))
    page.find("reset").click()
    assert page.text("risk") == before
    assert page.field("number_inpatient").get_property("value") == "2"
    assert page.field("insulin").get_property("value") == "Up"
    assert not page.find("what-if").is_displayed()


def test_changes_can_become_what_is_compared_with(page, site):
    page.estimate()
    page.enter("number_inpatient", "0")
    page.until(lambda: page.find("what-if").is_displayed())
    page.find("keep").click()
    assert not page.find("what-if").is_displayed()
    page.enter("number_inpatient", "7")
    page.until(lambda: page.find("what-if").is_displayed())
    assert page.text("changes") == "Inpatient stays: 0 \u2192 7"
    assert page.text("comparison").startswith(f"Was {percent(site.risk(number_inpatient=0))}")


def test_an_answer_that_comes_late_is_not_shown(page, site):
    page.estimate()
    site.gate.kept, site.gate.keep = 0, True
    try:
        page.enter("number_inpatient", "9")
        page.until(lambda: site.gate.kept)
        page.enter("number_inpatient", "0")
        page.until(lambda: page.text("risk") == percent(site.risk(number_inpatient=0)))
    finally:
        site.gate.keep = False
    page.run("window.settled = false; setTimeout(() => window.settled = true, 300)")
    page.until(lambda: page.run("return window.settled"))
    assert page.text("changes") == "Inpatient stays: 2 \u2192 0"


def test_a_level_that_the_model_does_not_know_is_named(page):
    page.enter("medical_specialty", "Wizardry")
    page.estimate()
    assert "Specialty: a level that was rare or unknown" in page.shown("warnings")


def test_what_somebody_types_is_never_read_as_markup(page):
    page.estimate()
    page.enter("medical_specialty", "<img src=x>")
    page.until(lambda: "<img src=x>" in page.text("changes"))
    assert page.driver.find_elements(By.TAG_NAME, "img") == []


def test_a_diagnosis_is_named_as_it_is_typed(page):
    for code, named in (("486", "Pneumonia"), ("250.03", "type 1"), ("823", "Injury")):
        page.enter("diag_2", code)
        assert named in page.shown("f-diag_2-hint")


def test_drugs_that_contradict_their_sum_are_pointed_out(page):
    page.enter("insulin", "No")
    page.until(lambda: page.shown("f-diabetesMed-hint") == "the drugs below say: no")
    page.enter("diabetesMed", "No")
    page.until(lambda: page.shown("f-diabetesMed-hint") == "")


def test_folded_drugs_are_counted_and_come_into_sight_on_paper(page):
    assert page.shown("drugs-count") == "21 more drugs, none given"
    assert not page.field("glipizide").is_displayed()
    page.find("drugs-count").click()
    page.enter("glipizide", "Steady")
    page.until(lambda: page.shown("drugs-count") == "21 more drugs, 1 given")
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.shown("drugs-count") == "20 more drugs, none given"
    inside = "return document.getElementById('drugs').contains(arguments[0])"
    assert page.driver.execute_script(inside, page.field("glipizide"))


def test_a_keyboard_is_enough(page, site):
    page.tab_to("f-number_inpatient")
    page.press(Keys.CONTROL, "a", Keys.NULL, "4", Keys.ENTER)
    page.until(lambda: page.text("risk") == percent(site.risk(number_inpatient=4)))
    page.tab_to("f-number_emergency")
    page.press(Keys.ARROW_UP)
    page.until(lambda: page.find("what-if").is_displayed())
    page.tab_to("reset")
    page.press(Keys.ENTER)
    page.until(lambda: not page.find("what-if").is_displayed())
    assert page.focused() == "result"
    page.press(Keys.TAB)
    assert page.run("return document.activeElement.closest('#result') !== null")


def test_the_first_stop_of_a_keyboard_leads_past_the_form(page):
    page.press(Keys.TAB)
    skip = page.driver.switch_to.active_element
    assert skip.text == "Skip to the estimate"
    page.press(Keys.ENTER)
    assert page.focused() == "result"
    page.press(Keys.TAB)
    assert page.focused() == "ask"


def test_everything_that_takes_a_hand_has_a_name(page):
    page.estimate()
    page.find("drugs-count").click()
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"textbox", "combobox", "spinbutton", "button", "link", "ComboBoxSelect", "img"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in roles
    ]
    assert len(named) > len(schema.INPUTS)
    assert [one for one in named if not one[1].strip()] == []
    groups = [node for node in tree if node.get("role", {}).get("value") == "group"]
    names = {node["name"]["value"] for node in groups if node.get("name")}
    assert set(form.GROUPS) <= names


CONTRAST = """
const channel = (c) => { c /= 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4 };
const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
function ground(node) {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
}
return [...document.querySelectorAll('p, label, legend, h1, h2, h3, th, td, dt, dd, li, a, button,'
    + 'summary, select, input, .figure b, .cards b')]
  .filter((node) => node.checkVisibility() && node.getClientRects().length)
  .map((node) => {
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), node.outerHTML.slice(0, 80)];
  }).filter(([contrast]) => contrast < 4.5);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(page, scheme):
    page.open(scheme=scheme)
    page.enter("medical_specialty", "Wizardry")
    page.estimate()
    page.enter("number_inpatient", "-1")
    page.until(lambda: page.shown("f-number_inpatient-error"))
    assert page.run(CONTRAST) == []
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) is (scheme == "dark")


@pytest.mark.parametrize("width", [320, 360, 700, 1000])
def test_nothing_has_to_be_scrolled_sideways(page, width):
    def overflow() -> int:
        found: int = page.run("return document.documentElement.scrollWidth - innerWidth")
        return found

    page.open(width=width, height=740)
    assert overflow() <= 0
    page.enter("medical_specialty", "Wizardry" * 9)
    page.estimate()
    page.enter("number_inpatient", "0")
    page.until(lambda: page.find("what-if").is_displayed())
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert overflow() <= 0
    page.enter("number_inpatient", "-1")
    page.until(lambda: page.shown("failure"))
    assert overflow() <= 0


def test_on_a_phone_the_estimate_follows_the_reader(page, site):
    page.open(width=360, height=740)
    assert not page.find("bar").is_displayed()
    page.estimate()
    page.enter("number_inpatient", "0")
    page.until(lambda: "was" in page.shown("bar"))
    assert page.shown("bar").startswith(percent(site.risk(number_inpatient=0)))
    assert f"was {percent(site.risk())}" in page.shown("bar")


def test_a_model_without_a_population_is_still_shown(page, site):
    kept = {name: site.predictor.scorer.facts.pop(name) for name in ("population", "test")}
    service._page.cache_clear()
    try:
        page.open()
        assert page.estimate() == percent(site.risk())
        assert "hold no population" in page.shown("answer")
    finally:
        site.predictor.scorer.facts.update(kept)
        service._page.cache_clear()


def test_a_model_that_changed_since_the_page_was_opened_is_pointed_out(page, site):
    site.predictor.scorer.facts["version"] = "4"
    try:
        page.estimate()
        assert "Version 4 answered, this page tells of version 3" in page.shown("answer")
    finally:
        site.predictor.scorer.facts["version"] = "3"
