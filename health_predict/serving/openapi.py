"""The service described as OpenAPI 3.1: every field with its unit, range or vocabulary.

Made from the types that requests are validated with, so it cannot say anything else. Nothing is
validated here.
"""

import csv
import io
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from health_predict.schema import (
    COUNTS,
    DEATH_OR_HOSPICE,
    EXAMPLE,
    INPUTS,
    Encounter,
    field_name,
)
from health_predict.serving import batches
from health_predict.serving.application import REQUEST_ID, TOKEN
from health_predict.serving.messages import Answer, Facts, Health, Record, Refusal
from health_predict.serving.requests import LARGEST_BODY

_REASONS = {
    401: "No token, or none that may ask.",
    405: "Another method.",
    408: "The body did not arrive.",
    413: "Larger than is taken here.",
    415: "Another content type.",
    422: "Not an encounter of the cohort: one reason a field.",
    503: "The model is still loading, or too many ask at a time: try again after `Retry-After`.",
}


def _header(words: str) -> dict[str, Any]:
    return {"description": words, "required": True, "schema": {"type": "string"}}


_HEADERS = {
    REQUEST_ID: _header("The id that was sent if it can be no person's number, else a new one.")
}
_FURTHER_HEADERS = {
    401: {"WWW-Authenticate": _header("How to ask.")},
    405: {"Allow": _header("The methods that are taken here.")},
    503: {"Retry-After": _header("Seconds.")},
}
_TOKENS = {
    "token": {"type": "http", "scheme": "bearer"},
    "forwarded_token": {
        **{"type": "apiKey", "in": "header", "name": TOKEN},
        "description": "The same token, where `Authorization` does not arrive.",
    },
}


def description(batch_rows: int, guarded: bool) -> dict[str, Any]:
    """Returns the description.

    Args:
        batch_rows: most encounters of a JSON batch.
        guarded: whether a token is asked for.
    """
    security: list[dict[str, list[str]]] = [{name: []} for name in _TOKENS] if guarded else []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Readmission risk",
            "version": "1",
            "description": "Probability that an encounter of a diabetes patient is followed by a "
            "readmission. Decision support for care after discharge; not a diagnosis. Beside these "
            "paths BentoML answers `/livez` and `/readyz`, and 400 to what is not HTTP.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/predict": {"post": {**_predict(), "security": security}},
            "/predict/batch": {"post": {**_batch(batch_rows), "security": security}},
            "/health": {"get": _health()},
            "/model-info": {
                "get": _get(
                    "model_info",
                    "What is known of the served model",
                    _json("The facts.", _ref("Facts")),
                )
            },
            "/metrics": {
                "get": _get("metrics", "What was counted, for Prometheus", _text("text/plain"))
            },
            "/openapi.json": {
                "get": _get("openapi", "This description", _json("OpenAPI.", {"type": "object"}))
            },
            "/": {"get": _get("page", "The page for people", _text("text/html"))},
        },
        "components": {
            "schemas": _schemas(),
            **({"securitySchemes": _TOKENS} if guarded else {}),
        },
    }


def _predict() -> dict[str, Any]:
    return {
        "operationId": "predict",
        "summary": "The risk of one encounter",
        "parameters": [
            {
                **{"name": "explain", "in": "query", "required": False},
                "description": "Whether to say what each field adds to the score.",
                "schema": {"type": "string", "enum": ["true", "false"], "default": "false"},
            }
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {LARGEST_BODY} bytes.",
            "content": {"application/json": {"schema": _ref("Encounter"), "example": EXAMPLE}},
        },
        "responses": _responses(
            _json("The answer", _ref("Answer")), 401, 405, 408, 413, 415, 422, 503
        ),
    }


def _batch(batch_rows: int) -> dict[str, Any]:
    rows = {
        "type": "array",
        "items": {},
        "maxItems": batch_rows,
        "description": "Each is to be an `Encounter`; one that is not comes back with its reasons.",
    }
    records = {"type": "array", "items": _ref("Record")}
    answered = {
        "description": "A record a row, in the format that was sent: "
        f"{', '.join(batches.COLUMNS)}.",
        "headers": _HEADERS,
        "content": {
            "application/json": {"schema": records},
            **{kind: {"schema": {"type": "string"}} for kind in _TABLES},
        },
    }
    return {
        "operationId": "predict_batch",
        "summary": "The risk of many encounters",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": rows, "example": [EXAMPLE]},
                batches.Csv.media_type: {
                    "schema": {"type": "string", "description": _COLUMNS, "minLength": 1},
                    "example": _csv_example(),
                },
                batches.Parquet.media_type: {
                    "schema": {"type": "string", "format": "binary", "description": _COLUMNS}
                },
            },
        },
        "responses": _responses(answered, 401, 405, 408, 413, 415, 422, 503),
    }


_COLUMNS = "A column of each field, by published name, in any order; a row of each encounter."
_TABLES = (batches.Csv.media_type, batches.Parquet.media_type)


def _csv_example() -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([EXAMPLE, EXAMPLE.values()])
    return text.getvalue()


def _health() -> dict[str, Any]:
    loading = _json("The model is still loading.", _ref("Health"))
    described = _get("health", "Whether a model is loaded", _json("It is.", _ref("Health")))
    described["responses"]["503"] = loading
    return described


def _get(name: str, summary: str, answered: dict[str, Any]) -> dict[str, Any]:
    reasons = (405, 503)
    return {
        "operationId": name,
        "summary": summary,
        "responses": _responses(answered, *reasons),
    }


def _responses(answered: dict[str, Any], *refusals: int) -> dict[str, Any]:
    found = {"200": answered}
    for status in refusals:
        refusal = _json(_REASONS[status], _ref("Refusal"))
        refusal["headers"] = {**_HEADERS, **_FURTHER_HEADERS.get(status, {})}
        found[str(status)] = refusal
    return found


def _json(words: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "description": words,
        "headers": _HEADERS,
        "content": {"application/json": {"schema": schema}},
    }


def _text(media_type: str) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string"}}}
    return {"description": "Text.", "headers": _HEADERS, "content": content}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas() -> dict[str, Any]:
    models = [(model, "serialization") for model in (Answer, Facts, Health, Record, Refusal)]
    _, made = models_json_schema(
        models,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    return {**made["$defs"], "Encounter": encounter_schema()}


def encounter_schema() -> dict[str, Any]:
    """Returns the JSON schema of a request: fields as published, in published order."""
    made = Encounter.model_json_schema()
    fields = {column: dict(made["properties"][field_name(column)]) for column in INPUTS}
    for column, field in fields.items():
        field.pop("title", None)
        if column not in COUNTS and field.get("type") == "string" and "enum" not in field:
            del field["minLength"]  # empty and null both stand for a missing text
            field.update(type=["string", "null"], pattern=r"^[^\x00-\x1f\x7f]*$")
    fields["discharge_disposition_id"]["not"] = {"enum": sorted(DEATH_OR_HOSPICE)}
    required = {field_name(name) for name in made["required"]}
    return {
        "type": "object",
        "description": f"{made['description']} Whole numbers are written without a fraction: 3, "
        "neither 3.0 nor 3e0.",
        "properties": fields,
        "required": [column for column in INPUTS if field_name(column) in required],
        "additionalProperties": False,
    }
