"""`POST /predict`: the champion behind a BentoML service.

Reads one encounter, refuses what is not one, scores it and says which model answered. Everything
learned comes from the compiled scorer in the Bento; nothing is trained, logged to MLflow or read
from the store here. Answers never repeat what a client sent, so no identifier can come back; a
request id does where it cannot be one. What was answered goes to the prediction log.
"""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bentoml
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from health_predict import prediction_log
from health_predict.prediction_log import PredictionLog
from health_predict.schema import COLUMNS, DEATH_OR_HOSPICE, Encounter, field_name
from health_predict.scorer import Scorer

MODEL = "readmission"
REQUEST_ID = "x-request-id"
LARGEST_BODY = 64 * 1024
"""Bytes of a request: an encounter takes about 1.3 kB."""


class Arguments(BaseModel):
    """What `bentoml build --arg` may set.

    Attributes:
        model: tag of the compiled scorer in BentoML's model store.
    """

    model: str = f"{MODEL}:latest"


class Refused(Exception):
    """A request that is not answered with a score.

    Attributes:
        status: HTTP status.
        errors: one entry a field: its name (or None) and what is asked of it.
    """

    def __init__(self, status: int, errors: list[dict[str, str | None]]) -> None:
        super().__init__(status)
        self.status = status
        self.errors = errors


def _refused(status: int, message: str, field: str | None = None) -> Refused:
    return Refused(status, [{"field": field, "message": message}])


async def predict(request: Request) -> Response:
    """Scores one encounter."""
    request_id = prediction_log.request_id(request.headers.get(REQUEST_ID))
    request.state.request_id = request_id
    scorer = _scorer(request)
    encounter = parse(await _body(request))
    columns = encounter.columns()
    probability = float(scorer.score([columns])[0])
    facts = scorer.facts
    log: PredictionLog | None = getattr(request.app.state, "predictions", None)
    if log is not None:
        log.add(request_id, facts["version"], probability, columns)
    return JSONResponse(
        {
            "prediction": int(probability >= facts["threshold"]),
            "probability_score": probability,
            "risk_band": risk_band(probability, facts["risk_bands"]),
            "warnings": [
                f"{name}: a level that was rare or unknown where the model learned"
                for name in scorer.unseen(columns)
            ],
            "model": {key: facts[key] for key in ("name", "version", "run_id", "data")},
        },
        headers={REQUEST_ID: request_id},
    )


async def health(request: Request) -> Response:
    """Says whether a model is loaded, in the words of the older API."""
    scorer: Scorer | None = getattr(request.app.state, "scorer", None)
    loaded = scorer is not None
    return JSONResponse(
        {
            "status": "healthy" if loaded else "loading",
            "model_loaded": loaded,
            "preprocessor_loaded": loaded,
            "version": scorer.facts["version"] if scorer else None,
        },
        status_code=200 if loaded else 503,
    )


async def model_info(request: Request) -> Response:
    """Tells what is known of the served model."""
    return JSONResponse(_scorer(request).facts)


def parse(body: bytes) -> Encounter:
    """Returns the encounter of a request body.

    Raises:
        Refused: the body is not one encounter of the cohort; the reasons name fields and allowed
            values, never what was sent.
    """
    try:
        encounter = Encounter.model_validate(_decode(body))
    except ValidationError as error:
        raise Refused(422, [_entry(e) for e in error.errors(include_input=False)]) from None
    if encounter.discharge_disposition_id in DEATH_OR_HOSPICE:
        raise _refused(
            422,
            "outside the cohort: after a death or a discharge to hospice "
            f"(codes {sorted(DEATH_OR_HOSPICE)}) no readmission is predicted",
            "discharge_disposition_id",
        )
    return encounter


def risk_band(probability: float, bands: Mapping[str, float]) -> str:
    """Returns the band of a probability; `bands` maps each name to its lower end, ascending."""
    return [name for name, low in bands.items() if probability >= low][-1]


def _decode(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, object_pairs_hook=_spelled_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _refused(422, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise _refused(422, "the body is not one JSON object with the fields of an encounter")
    return value


def _spelled_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        name = field_name(key)
        if name in fields:
            raise _refused(422, "given twice", name if name in _NAMES else None)
        fields[name] = value
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON


_NAMES = {field_name(column) for column in COLUMNS}


def _entry(error: Any) -> dict[str, str | None]:
    name = str(error["loc"][0]) if error["loc"] else None
    if error["type"] == "extra_forbidden":
        return {
            # A name that was made up may itself be an identifier: only published ones come back.
            "field": name if name in _NAMES else None,
            "message": "not a field of an encounter; identifiers and outcomes are not accepted",
        }
    return {"field": name, "message": error["msg"]}


async def _body(request: Request) -> bytes:
    media_type = request.headers.get("content-type", "application/json").split(";")[0]
    if media_type.strip().lower() != "application/json":
        raise _refused(415, "send the encounter as application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise _refused(413, f"an encounter takes at most {LARGEST_BODY} bytes")
    return bytes(body)


def _scorer(request: Request) -> Scorer:
    scorer: Scorer | None = getattr(request.app.state, "scorer", None)
    if scorer is None:
        raise _refused(503, "the model is still loading")
    return scorer


async def _answer_refusal(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    request_id = getattr(request.state, "request_id", None)
    headers = {REQUEST_ID: request_id} if request_id else None
    return JSONResponse({"detail": refused.errors}, refused.status, headers)


app = Starlette(
    routes=[
        Route("/predict", predict, methods=["POST"]),
        Route("/health", health),
        Route("/model-info", model_info),
    ],
    exception_handlers={Refused: _answer_refusal},
)


@bentoml.asgi_app(app, path="/")
@bentoml.service(name="readmission", workers=1, traffic={"timeout": 10})
class ReadmissionService:
    """Serves the risk of readmission of one encounter."""

    model = bentoml.models.BentoModel(bentoml.use_arguments(Arguments).model)

    def __init__(self) -> None:
        app.state.scorer = Scorer.load(Path(self.model.path))
        app.state.predictions = prediction_log.of_environment()
        # What is loaded stays: keeping the collector off it takes pauses out of the tail.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    def write_what_waits(self) -> None:
        """Ends the prediction log: what was answered is on disk before the worker ends."""
        log: PredictionLog | None = app.state.predictions
        if log is not None:
            log.close()
