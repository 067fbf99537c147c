"""The card of a version says all of it, in words, or there is no card.

The facts are those that the registry keeps with a version; the features and their importance are
of a fitted pipeline.
"""

import copy
import json
import re
from dataclasses import asdict, fields

import pytest
from click.testing import CliRunner

from health_predict import card_words, features, schema
from health_predict.card import CardError, ModelCard, card, render
from health_predict.cli import main
from health_predict.explanations import global_importance
from health_predict.scorer import Scorer
from health_predict.settings import ROOT
from health_predict.tracking import CHAMPION, MODEL
from health_predict_tests import markdown

GROUPS = [
    {
        "group": "gender: Female",
        "n": 1_080,
        "positives": 500,
        "auc": 0.671,
        "auc_low": 0.64,
        "auc_high": 0.7,
        "expected_observed": 1.04,
        "words": "AUC +0.004 (standard error 0.003)",
    },
    {
        "group": "age: [0-10)",
        "n": 7,
        "positives": 1,
        "auc": None,
        "auc_low": None,
        "auc_high": None,
        "expected_observed": None,
        "words": "too few to say",
    },
]


@pytest.fixture(scope="module")
def registered(compiled, cohort) -> dict:
    """The facts of a version, as JSON would give them back."""
    rows = cohort[list(schema.INPUTS)].iloc[:100].to_dict("records")
    told = Scorer.load(compiled["xgboost"]).contributions(rows)
    facts = {
        "name": "readmission",
        "version": "3",
        "run_id": "0f3a",
        "family": "xgboost",
        "params": {"rounds": 40, "learning_rate": 0.1},
        "data": "published encounters",
        "data_sha256": "ab12",
        "label": "any",
        "window": "initial and batches 1 to 2",
        "fingerprint": "cd34",
        "feedback": {"marked": False, "rows": 20_000, "left_out": 0},
        "train_rows": 14_000,
        "features": told.names,
        "calibration": "isotonic",
        "threshold": 0.5,
        "threshold_reason": "A needless intervention costs 1 foreseen readmission.",
        "risk_bands": {"low": 0.0, "medium": 0.3333, "high": 0.6667},
        "test": {
            "n": 2_000,
            "positives": 920,
            "auc": 0.672,
            "auc_low": 0.648,
            "auc_high": 0.695,
            "brier": 0.2213,
            "expected_observed": 1.03,
            "slope": 0.97,
            "net_benefit": 0.1412,
        },
        "intervals": {
            "brier": [0.2101, 0.2325],
            "expected_observed": [0.96, 1.11],
            "slope": [0.81, 1.13],
            "net_benefit": [0.1198, 0.1621],
        },
        "groups": GROUPS,
        "importance": global_importance(told),
        "trigger": "drift in batch-002: 0.73 against 0.70",
        "verdict": "Promoted on 2,000 held-out encounters: AUC +0.012 [+0.004, +0.020].",
        "git_revision": "3734c1a",
        "dagster_run_id": "77e1",
        "trained_at": "2026-01-02T03:04:05+00:00",
        "intended_use": "decision support for care after discharge; not a diagnosis",
    }
    return json.loads(json.dumps(facts))


KEYS = [
    *("name", "version", "run_id", "family", "params", "data", "data_sha256", "label", "window"),
    *("fingerprint", "train_rows", "features", "calibration", "threshold", "threshold_reason"),
    *("risk_bands", "test", "groups", "importance", "trigger", "verdict", "git_revision"),
    *("dagster_run_id", "trained_at", "intended_use", "feedback", "intervals"),
]
MEASURES = [
    *("n", "positives", "auc", "auc_low", "auc_high", "brier", "expected_observed", "slope"),
    "net_benefit",
]


@pytest.fixture
def facts(registered) -> dict:
    return copy.deepcopy(registered)


def test_no_field_of_a_card_is_empty(facts):
    told = card(facts)
    for field in fields(ModelCard):
        if field.name != "synthetic":
            assert getattr(told, field.name) not in (None, "", [], {}), field.name


def test_the_keys_tested_here_are_all_there_are(facts):
    assert set(KEYS) == set(facts)
    assert set(MEASURES) == set(facts["test"])


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_fact_is_named(facts, key):
    del facts[key]
    with pytest.raises(CardError, match=f"'{key}"):
        card(facts)


@pytest.mark.parametrize("blank", [None, "", "  ", float("nan"), [], {}])
@pytest.mark.parametrize("key", KEYS)
def test_an_empty_fact_is_named(facts, key, blank):
    facts[key] = blank
    with pytest.raises(CardError, match=f"'{key}"):
        card(facts)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_missing_measure_is_named(facts, measure):
    del facts["test"][measure]
    with pytest.raises(CardError, match=f"'test.{measure}'"):
        card(facts)
    facts["test"][measure] = float("nan")
    with pytest.raises(CardError, match=f"'test.{measure}' is empty"):
        card(facts)


@pytest.mark.parametrize(
    "key", ["group", "n", "positives", "words", "auc_low", "expected_observed"]
)
def test_a_missing_fact_of_a_group_is_named(facts, key):
    del facts["groups"][0][key]
    with pytest.raises(CardError, match=f"'groups.0.{key}'"):
        card(facts)


def test_zero_is_a_figure_and_not_a_blank(facts):
    facts["test"]["net_benefit"] = 0.0
    assert card(facts).performance.net_benefit == 0.0


@pytest.mark.parametrize(
    ("key", "value"), [("label", "60d"), ("calibration", "guess"), ("features", ["shoe_size"])]
)
def test_what_nobody_has_words_for_is_refused(facts, key, value):
    facts[key] = value
    with pytest.raises(CardError, match=f"'{key}'"):
        card(facts)


def test_every_modelled_feature_has_words():
    names = [*features.NUMERIC, *features.CATEGORICAL, *schema.INPUTS]
    undocumented = [n for n in names if not card_words.feature(n) and n not in schema.IDENTIFIERS]
    assert undocumented == []


def test_a_coded_feature_is_told_without_its_thirty_codes():
    told = card_words.feature("discharge_disposition_id")
    assert told == "Where the patient went; code of the published table."


def test_every_label_has_words(facts):
    assert set(card_words.LABELS) == set(schema.POSITIVE_OUTCOMES)
    facts["label"] = "30d"
    assert card(facts).label == (
        "a readmission within 30 days (`label` is 1 where `readmitted` is `<30`)"
    )


def test_a_group_with_too_few_people_has_no_figure(facts):
    female, children = card(facts).subgroups
    assert female.auc == "0.671 [0.640, 0.700]"
    assert children.auc == "too few to say"


def test_a_synthetic_cohort_is_called_synthetic_before_anything_else(facts):
    facts["data"] = "synthetic cohort"
    lines = [line for line in render(card(facts)).splitlines() if line]
    assert lines[0] == "# Model card: readmission, version 3"
    assert lines[1].startswith("> **Synthetic data.**")
    facts["data"] = "published encounters"
    assert "ynthetic" not in render(card(facts))


def test_the_page_tells_every_figure_and_every_word(facts):
    page = render(card(facts))
    for words in [
        "0.672 [0.648, 0.695]",
        "2,000 encounters, 920 readmissions",
        "14,000 encounters",
        "low from 0, medium from 0.3333, high from 0.6667",
        "drift in batch-002",
        "`learning_rate` 0.1",
        facts["verdict"],
        facts["threshold_reason"],
        facts["importance"][0][0],
        card_words.UNMARKED,
        card_words.MISSING_DATA,
        *card_words.OUT_OF_SCOPE,
        *card_words.LIMITATIONS,
        *(facts[key] for key in ("data_sha256", "fingerprint", "git_revision", "run_id")),
        *(f"`{name}`" for name in facts["features"]),
    ]:
        assert words in page


def test_the_card_says_that_changed_care_is_not_marked(facts):
    assert card(facts).feedback.startswith("The source has no field `intervened`: ")


def test_the_card_says_how_many_were_left_out_because_a_prediction_changed_their_care(facts):
    facts["feedback"] = {"marked": True, "rows": 20_000, "left_out": 1_234}
    told = card(facts).feedback
    assert told.startswith("1,234 of 20,000 rows are marked, left out of training and judging")
    assert told in render(card(facts))


def test_a_source_that_marks_nobody_is_not_one_that_cannot_mark(facts):
    facts["feedback"] = {"marked": True, "rows": 20_000, "left_out": 0}
    assert card(facts).feedback.startswith("0 of 20,000 rows are marked")


@pytest.mark.parametrize("key", ["marked", "rows", "left_out"])
def test_a_missing_fact_of_the_feedback_is_named(facts, key):
    facts["feedback"]["marked"] = True
    del facts["feedback"][key]
    with pytest.raises(CardError, match=f"'feedback.{key}'"):
        card(facts)


def test_a_bar_or_a_new_line_in_a_fact_does_not_break_the_tables(facts):
    facts["trigger"] = "a|b\nc"
    tables = [line for line in render(card(facts)).splitlines() if line.startswith("|")]
    assert "| Trained because | a\\|b c |" in tables
    assert all(line.endswith("|") for line in tables)


def test_a_card_is_plain_values(facts):
    assert json.loads(json.dumps(asdict(card(facts))))["performance"]["n"] == 2_000


@pytest.mark.parametrize("measure", ["brier", "expected_observed", "slope", "net_benefit"])
def test_a_measure_without_its_interval_is_named(facts, measure):
    facts["intervals"][measure] = None
    with pytest.raises(CardError, match=f"'intervals.{measure}"):
        card(facts)


def test_every_measure_has_its_interval_on_the_page(facts):
    page = render(card(facts))
    for words in [
        "0.2213 [0.2101, 0.2325]",
        "1.03 [0.96, 1.11]",
        "0.97 [0.81, 1.13]",
        "0.1412 [0.1198, 0.1621]",
        "| gender: Female | 1,080 | 500 | 0.671 [0.640, 0.700] | 1.04 |",
        "| age: [0-10) | 7 | 1 | too few to say | too few to say |",
    ]:
        assert words in page


def test_each_item_of_tripod_ai_is_answered_and_every_section_it_names_is_there(facts, tmp_path):
    page = tmp_path / "card.md"
    page.write_text(render(card(facts)))
    titles = " ".join(section.title for section in markdown.read(page).sections)
    answered = markdown.table(page, "Item", "Here, or why not")
    assert [row[0].split()[0] for row in answered] == [str(number) for number in range(1, 28)]
    for _, words in answered:
        for name in re.findall(r"\*(?!\*)([^*]+)\*", words):
            if name not in ("Missing data", "Trained because"):  # a paragraph and a row
                assert name in titles, name


def empty_places(path) -> list[str]:
    """Returns the sections without content and the cells without a value of a card."""
    page = markdown.read(path)
    said = [s for s in page.sections if s.title and not (s.prose or s.cells or s.codes)]
    cells = [
        line
        for line in path.read_text().splitlines()
        if re.search(r"\|\s*(?:None|nan|\[\]|\{\})?\s*\|", line)
    ]
    return [section.title for section in said] + cells


def test_the_card_in_the_docs_has_every_section_and_no_empty_place(facts, tmp_path):
    expected = tmp_path / "card.md"
    expected.write_text(render(card({**facts, "data": "synthetic cohort"})))
    written = ROOT / "docs" / "model-card.md"
    titles = [section.title for section in markdown.read(written).sections]
    wanted = [section.title for section in markdown.read(expected).sections]
    # How many predictors there are, and which version it is, is that of the champion.
    assert [re.sub(r"\d+", "", title) for title in titles] == [
        re.sub(r"\d+", "", title) for title in wanted
    ]
    assert empty_places(written) == []
    assert "> **Synthetic data.**" in written.read_text()


@pytest.mark.parametrize("blank", ["| Family |  |", "| Family | None |", "| Family | nan |"])
def test_an_empty_place_would_be_found(facts, tmp_path, blank):
    page = tmp_path / "card.md"
    page.write_text(render(card(facts)).replace("| Family | xgboost |", blank))
    assert empty_places(page) == [blank]


@pytest.fixture
def registry(facts, tmp_path, monkeypatch):
    """A state folder whose MLflow knows one champion."""
    from mlflow import MlflowClient

    monkeypatch.setenv("HEALTH_PREDICT_VAR", str(tmp_path))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}", f"sqlite:///{tmp_path}/mlflow.db")
    client.create_registered_model(MODEL)
    tags = {"family": facts["family"], "facts": json.dumps(facts)}
    version = client.create_model_version(MODEL, source=tmp_path.as_uri(), tags=tags)
    client.set_registered_model_alias(MODEL, CHAMPION, version.version)
    return client


def test_the_command_prints_the_card_of_the_champion(facts, registry):
    told = CliRunner().invoke(main, ["card"])
    assert told.exit_code == 0, told.output
    assert told.output == render(card(facts))


def test_a_version_that_was_registered_with_too_little_is_named_by_the_command(facts, registry):
    del facts["intervals"]
    registry.set_model_version_tag(MODEL, "1", "facts", json.dumps(facts))
    told = CliRunner().invoke(main, ["card"])
    assert told.exit_code == 1
    assert "the facts have no 'intervals" in told.output


def test_without_a_champion_the_command_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HEALTH_PREDICT_VAR", str(tmp_path))
    told = CliRunner().invoke(main, ["card"])
    assert told.exit_code == 1
    assert "make demo" in told.output
    assert list(tmp_path.iterdir()) == []
