"""`POST /predict` scores one encounter, refuses what is none, and repeats nothing it was sent."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from health_predict import prediction_log, schema, service
from health_predict.prediction_log import PredictionLog
from health_predict.serving import answers
from health_predict.serving.requests import LARGEST_BODY
from health_predict_tests.conftest import FACTS
from health_predict_tests.serving import loaded

SECRET = 987654321987
"""An identifier a client sends by mistake."""


@pytest.fixture
def client(compiled) -> Iterator[TestClient]:
    with loaded(compiled["xgboost"]):
        yield TestClient(service.app)


@pytest.fixture
def unloaded() -> TestClient:
    assert service.app.state.predictor is None
    return TestClient(service.app)


def post(client: TestClient, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, (bytes, str)) else json.dumps(body)
    return client.post(
        "/predict", content=content, headers={"content-type": "application/json", **headers}
    )


def with_raw(encounter: dict[str, Any], column: str, text: str) -> str:
    """Returns the body with a value written as is, which json.dumps would not write."""
    return json.dumps({**encounter, column: "@"}).replace('"@"', text)


def refused(answer: Any, *fields: str | None, status: int = 422) -> str:
    """Asserts that exactly these fields were refused; returns the messages."""
    assert answer.status_code == status, answer.text
    errors = answer.json()["detail"]
    assert all(set(error) == {"field", "message"} for error in errors)
    assert sorted(str(e["field"]) for e in errors) == sorted(map(str, fields))
    return "; ".join(error["message"] for error in errors)


def test_an_encounter_is_scored_as_the_pipeline_scores_it(client, encounter, pipelines, cohort):
    answer = post(client, encounter)
    assert answer.status_code == 200
    expected = pipelines["xgboost"].predict_proba(cohort.iloc[:1])[0, 1]
    body = answer.json()
    assert body["probability_score"] == pytest.approx(expected, abs=1e-6)
    assert body["prediction"] == int(expected >= FACTS["threshold"])
    assert body["risk_band"] in FACTS["risk_bands"]
    assert body["model"] == {
        **{key: FACTS[key] for key in ("name", "version", "run_id", "data", "git_revision")},
        "data_fingerprint": FACTS["fingerprint"],
        "bento_tag": None,
        "image_digest": None,
    }


@pytest.mark.parametrize(
    ("probability", "band"),
    [(0.0, "low"), (0.29, "low"), (0.3, "medium"), (0.59, "medium"), (0.6, "high"), (1.0, "high")],
)
def test_a_band_begins_at_its_lower_end(probability, band):
    assert answers.risk_band(probability, FACTS["risk_bands"]) == band


def test_hyphen_and_underscore_spell_the_same_field(client, encounter):
    spelled = {schema.field_name(column): value for column, value in encounter.items()}
    assert set(spelled) != set(encounter)
    assert post(client, spelled).json() == post(client, encounter).json()


def test_null_and_question_mark_are_the_same_missing_text(client, encounter):
    answers = [post(client, {**encounter, "race": value}) for value in (None, "?", "")]
    assert [a.status_code for a in answers] == [200, 200, 200]
    assert answers[0].json() == answers[1].json() == answers[2].json()


def test_a_missing_field_is_named(client, encounter):
    del encounter["insulin"], encounter["age"]
    assert "Field required" in refused(post(client, encounter), "insulin", "age")


@pytest.mark.parametrize("value", [True, 3.0, 3.5, "3", None, [3], {"n": 3}])
@pytest.mark.parametrize("column", ["time_in_hospital", "admission_type_id"])
def test_only_a_whole_number_is_a_count_or_a_code(client, encounter, column, value):
    refused(post(client, {**encounter, column: value}), column)


@pytest.mark.parametrize("value", [3, True, 1.5, ["Caucasian"], {"race": "?"}])
def test_only_a_text_is_a_text(client, encounter, value):
    refused(post(client, {**encounter, "race": value}), "race")


@pytest.mark.parametrize(
    ("column", "value"),
    [("gender", "female"), ("age", "[15-25)"), ("insulin", "Sideways"), ("A1Cresult", None)],
)
def test_a_value_outside_a_closed_vocabulary_is_refused_with_what_is_allowed(
    client, encounter, column, value
):
    answer = post(client, {**encounter, column: value})
    words = refused(answer, column)
    assert all(f"'{level}'" in words for level in schema.CLOSED[column])
    assert value is None or str(value) not in answer.text


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("time_in_hospital", 0),
        ("time_in_hospital", 15),
        ("number_inpatient", -1),
        ("admission_source_id", 1000),
    ],
)
def test_a_number_outside_its_range_is_refused(client, encounter, column, value):
    refused(post(client, {**encounter, column: value}), column)


def test_a_level_that_was_never_learned_is_scored_with_a_warning(client, encounter):
    usual = {**encounter, "medical_specialty": "?"}
    before = post(client, usual).json()["warnings"]
    answer = post(client, {**usual, "medical_specialty": "Xenobiology"})
    assert answer.status_code == 200
    (warning,) = [one for one in answer.json()["warnings"] if one not in before]
    assert warning["field"] == "medical_specialty"
    assert "Xenobiology" not in answer.text


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "\u0663", "'; drop table"])
def test_a_diagnosis_of_any_text_is_scored(client, encounter, text):
    answer = post(client, {**encounter, "diag_1": text})
    assert 0 < answer.json()["probability_score"] < 1


def test_an_unknown_field_is_refused_and_neither_name_nor_value_comes_back(client, encounter):
    answer = post(client, {**encounter, f"ssn-{SECRET}": "Jane Roe"})
    assert "not a field of an encounter" in refused(answer, None)
    assert str(SECRET) not in answer.text
    assert "ssn" not in answer.text
    assert "Jane" not in answer.text


@pytest.mark.parametrize("column", [*schema.IDENTIFIERS, schema.OUTCOME])
def test_identifiers_and_outcomes_are_refused(client, encounter, column):
    answer = post(client, {**encounter, column: SECRET})
    assert "identifiers and outcomes are not accepted" in refused(answer, column)
    assert str(SECRET) not in answer.text


@pytest.mark.parametrize("column", schema.INPUTS)
def test_an_identifier_in_the_wrong_field_does_not_come_back(client, encounter, column):
    for value in (SECRET, str(SECRET), [SECRET], {str(SECRET): SECRET}):
        answer = post(client, {**encounter, column: value})
        seen = answer.text + str(answer.headers)
        if answer.status_code == 200:  # an open vocabulary takes any text
            assert column in schema.OPEN
            seen = seen.replace(str(answer.json()["probability_score"]), "")
        assert str(SECRET) not in seen


def test_a_field_given_twice_is_refused(client, encounter):
    body = json.dumps(encounter)[:-1] + ', "race": "Other"}'
    assert refused(post(client, body), "race") == "given twice"


def test_a_field_given_in_both_spellings_is_refused(client, encounter):
    body = {**encounter, "glyburide_metformin": "No"}
    assert refused(post(client, body), "glyburide-metformin") == "given twice"


def test_an_unknown_field_given_twice_is_not_named(client, encounter):
    body = json.dumps(encounter)[:-1] + f', "{SECRET}": 1, "{SECRET}": 2}}'
    answer = post(client, body)
    assert refused(answer, None) == "given twice"
    assert str(SECRET) not in answer.text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_json_has_no_number_for_is_refused(client, encounter, number):
    body = with_raw(encounter, "num_procedures", number)
    assert refused(post(client, body), None) == "the body is not JSON"


@pytest.mark.parametrize("number", ["1e999", "9" * 400, "-" + "9" * 400])
def test_a_huge_number_is_refused_by_field(client, encounter, number):
    refused(post(client, with_raw(encounter, "num_procedures", number)), "num_procedures")


def test_a_number_too_long_to_read_is_refused(client, encounter):
    refused(post(client, with_raw(encounter, "num_procedures", "9" * 5_000)), None)


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"\xff\xfe{", b'{"race": "\xe9"}', b"[" * 60_000, b'{"a":' * 10_000],
    ids=["empty", "blank", "cut off", "no utf-8", "latin-1", "deep list", "deep object"],
)
def test_what_is_not_json_is_refused(client, body):
    assert refused(post(client, body), None) == "the body is not JSON"


@pytest.mark.parametrize("body", ["[]", "[{}]", "null", "3", '"text"', "true"])
def test_what_is_not_one_object_is_refused(client, body):
    assert "not one JSON object" in refused(post(client, body), None)


def test_a_deeply_nested_value_is_refused_by_field(client, encounter):
    refused(post(client, with_raw(encounter, "race", "[" * 200 + "]" * 200)), "race")


@pytest.mark.parametrize("text", ["\\ud800", "a\\u0000b", "a\\nb", "\\u007f", "x" * 81])
def test_a_text_that_is_no_text_is_refused(client, encounter, text):
    refused(post(client, with_raw(encounter, "race", f'"{text}"')), "race")


def test_half_a_character_as_a_name_is_refused(client, encounter):
    refused(post(client, json.dumps(encounter)[:-1] + ', "\\ud800": 1}'), None)


def test_a_body_beyond_the_limit_is_refused(client, encounter):
    answer = post(client, json.dumps(encounter) + " " * LARGEST_BODY)
    assert str(LARGEST_BODY) in refused(answer, None, status=413)


def test_a_body_at_the_limit_is_read(client, encounter):
    body = json.dumps(encounter)
    assert post(client, body + " " * (LARGEST_BODY - len(body))).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data", ""])
def test_another_media_type_is_refused(client, encounter, kind):
    answer = post(client, encounter, **{"content-type": kind})
    assert "application/json" in refused(answer, None, status=415)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_json_however_it_is_written(client, encounter, kind):
    assert post(client, encounter, **{"content-type": kind}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_only_post_predicts(client, method):
    answer = client.request(method, "/predict")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    refused(answer, None, status=405)


def test_another_path_is_not_found(client, encounter):
    refused(client.post("/predicts", json=encounter), None, status=404)


@pytest.mark.parametrize("code", sorted(schema.DEATH_OR_HOSPICE))
def test_after_death_or_hospice_nothing_is_predicted(client, encounter, code):
    answer = post(client, {**encounter, "discharge_disposition_id": code})
    words = refused(answer, "discharge_disposition_id")
    assert "outside the cohort" in words
    assert "hospice" in words


def test_an_encounter_without_a_score_says_nothing_of_a_score(client, encounter):
    answer = post(client, {**encounter, "discharge_disposition_id": 11})
    assert "probability" not in answer.text


def test_nothing_is_answered_before_the_model_is_loaded(unloaded, encounter):
    answer = post(unloaded, encounter)
    assert refused(answer, None, status=503) == "the model is still loading"
    assert refused(unloaded.get("/model-info"), None, status=503)


def test_health_is_red_until_the_model_is_loaded(unloaded):
    answer = unloaded.get("/health")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "loading",
        "model_loaded": False,
        "preprocessor_loaded": False,
        "version": None,
    }


def test_health_is_green_and_names_the_version_once_it_is(client):
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "healthy",
        "model_loaded": True,
        "preprocessor_loaded": True,
        "version": FACTS["version"],
    }


def test_model_info_tells_the_facts(client):
    assert client.get("/model-info").json() == {**FACTS, "image_digest": None}


Logged = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def logged(compiled, tmp_path: Path) -> Iterator[Logged]:
    """Gives the service a prediction log; call it to end the log and get its rows."""
    log = PredictionLog(tmp_path / "predictions")

    def rows() -> list[dict[str, Any]]:
        log.close()
        return prediction_log.read(log.folder, {}, 1_000).rows

    with loaded(compiled["xgboost"], log=log):
        yield rows
    log.close()


def test_an_answer_is_logged_with_its_request_id_version_score_and_inputs(
    client, encounter, logged
):
    answer = post(client, encounter, **{"x-request-id": "trace-7"})
    assert answer.headers["x-request-id"] == "trace-7"
    (row,) = logged()
    assert row["request_id"] == "trace-7"
    assert row["model_version"] == FACTS["version"] == answer.json()["model"]["version"]
    assert row["probability_score"] == answer.json()["probability_score"]
    assert {column: row[column] for column in schema.INPUTS} == encounter


def test_a_request_without_an_id_is_given_one(client, encounter, logged):
    answers = [post(client, encounter) for _ in range(2)]
    given = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(given)) == 2
    assert [row["request_id"] for row in logged()] == given


def test_an_identifier_sent_as_request_id_is_neither_logged_nor_sent_back(
    client, encounter, logged
):
    answer = post(client, encounter, **{"x-request-id": f"patient-{SECRET}"})
    assert str(SECRET) not in str(answer.headers)
    assert str(SECRET) not in str(logged())


def test_what_is_refused_is_not_logged_and_has_its_request_id(client, encounter, logged):
    refusals = [
        post(client, body, **{"x-request-id": "trace-8"})
        for body in (
            {**encounter, "age": "[15-25)"},
            {**encounter, schema.PATIENT: SECRET},
            {**encounter, "discharge_disposition_id": 11},
            "not JSON",
        )
    ]
    assert [answer.status_code for answer in refusals] == [422] * 4
    assert {answer.headers["x-request-id"] for answer in refusals} == {"trace-8"}
    assert logged() == []


def test_a_log_that_cannot_be_written_does_not_keep_an_answer_back(
    client, encounter, logged, tmp_path
):
    (tmp_path / "predictions").write_text("a file stands where the folder should")
    assert post(client, encounter).status_code == 200
    assert logged() == []
