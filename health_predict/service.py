"""`POST /predict`: the champion behind a BentoML service.

The routes and what each answers. Everything learned comes from the compiled scorer in the Bento;
nothing is trained, logged to MLflow or read from the store here. What is true of every request is
in `serving.application`, how an encounter is read in `serving.requests`, how it is answered in
`serving.predictor` and `serving.batches`.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import bentoml
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from health_predict import prediction_log
from health_predict.scorer import Scorer
from health_predict.serving import batches, form, instruments, openapi
from health_predict.serving.application import Application, Route, State, body, keep_body
from health_predict.serving.instruments import Metrics
from health_predict.serving.options import AUTH, Options
from health_predict.serving.predictor import Predictor
from health_predict.serving.requests import LARGEST_BODY, parse, refused

MODEL = "readmission"
EXPLAIN = "explain"
_logger = logging.getLogger("health_predict.service")
# A batch keeps a file and a chunk in memory: more of them would only slow each other.
_MOST_BATCHES = 4
# A client that takes nothing for so long went to sleep: others wait for its turn.
_TAKEN_SECONDS = 30.0


class Arguments(BaseModel):
    """What `bentoml build --arg` may set.

    Attributes:
        model: tag of the compiled scorer in BentoML's model store.
    """

    model: str = f"{MODEL}:latest"


async def predict(request: Request, state: State) -> Response:
    """Scores one encounter."""
    explain = _explain(request)
    _media_type(request, "application/json")
    predictor = state.loaded()
    found = parse(await body(request, LARGEST_BODY))
    return JSONResponse(predictor.answer(found, request.state.request_id, explain))


_batches = asyncio.Semaphore(_MOST_BATCHES)


async def predict_batch(request: Request, state: State) -> Response:
    """Scores many encounters, row by row, in the format they came in."""
    _no_query(request)
    kind = batches.FORMATS[_media_type(request, *batches.FORMATS)]
    predictor = state.loaded()
    if _batches.locked():
        raise refused(
            503,
            f"{_MOST_BATCHES} batches are being answered already: try again",
            headers={"retry-after": "5"},
        )
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_batches)
        file = stack.enter_context(NamedTemporaryFile())  # noqa: SIM115  the stack closes it
        await keep_body(request, state.options.upload_bytes, file)
        rows = kind.rows(file, state.options.batch_rows)
        records = predictor.records(rows, request.state.request_id)
        # Closed rather than left to the collector, which would come hours later.
        pieces = stack.enter_context(contextlib.closing(kind.answer(records)))
        kept = stack.pop_all()  # until the last row is answered

    return _Streamed(kept, pieces, kind.media_type)


class _Streamed(StreamingResponse):
    """An answer that is made while it is sent, and lets go of what it was made from."""

    def __init__(
        self, kept: contextlib.AsyncExitStack, pieces: Iterator[bytes], media_type: str
    ) -> None:
        super().__init__(self._pieces(pieces), media_type=media_type)
        self._kept = kept
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            async with asyncio.timeout(_TAKEN_SECONDS):
                await send(message)

        async with self._kept:
            with contextlib.suppress(TimeoutError):
                await super().__call__(scope, receive, sending)
        if not self._ended:
            raise ClientDisconnect

    async def _pieces(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        for piece in pieces:
            if piece:
                yield piece
            await asyncio.sleep(0)  # single requests have their turn
        self._ended = True


async def health(request: Request, state: State) -> Response:
    """Says whether a model is loaded, in the words of the older API."""
    loaded = state.predictor is not None
    return JSONResponse(
        {
            "status": "healthy" if loaded else "loading",
            "model_loaded": loaded,
            "preprocessor_loaded": loaded,
            "version": state.predictor.facts["version"] if state.predictor else None,
        },
        status_code=200 if loaded else 503,
    )


async def model_info(request: Request, state: State) -> Response:
    """Tells what is known of the served model."""
    predictor = state.loaded()
    return JSONResponse({**predictor.facts, "image_digest": predictor.image_digest})


async def metrics(request: Request, state: State) -> Response:
    """Tells what was counted, as Prometheus reads it."""
    content, media_type = state.loaded().metrics.exposition()
    return Response(content, headers={"content-type": media_type})


async def description(request: Request, state: State) -> Response:
    """Describes the service as OpenAPI."""
    options = state.options
    return JSONResponse(openapi.description(options.batch_rows, options.tokens is not None))


async def page(request: Request, state: State) -> Response:
    """Shows the page for people."""
    html, policy = _page(state.loaded())
    headers = {"content-security-policy": policy}
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


@lru_cache(maxsize=1)
def _page(predictor: Predictor) -> tuple[bytes, str]:
    html = form.page(predictor.facts)
    return html, form.csp(html)


app = Application(
    {
        "/": Route({"GET": page}),
        "/predict": Route({"POST": predict}, guarded=True),
        "/predict/batch": Route({"POST": predict_batch}, guarded=True),
        "/health": Route({"GET": health}),
        "/model-info": Route({"GET": model_info}),
        "/metrics": Route({"GET": metrics}),
        "/openapi.json": Route({"GET": description}),
    }
)


def _explain(request: Request) -> bool:
    if not request.scope["query_string"]:  # as nearly always
        return False
    for name in request.query_params:
        if name != EXPLAIN:
            raise refused(422, f"the query takes {EXPLAIN} and nothing else")
    value = request.query_params.getlist(EXPLAIN) or ["false"]
    if len(value) > 1 or value[0] not in ("true", "false"):
        raise refused(422, f"{EXPLAIN} takes true or false, once")
    return value[0] == "true"


def _no_query(request: Request) -> None:
    if request.query_params:
        raise refused(422, "this path takes no query")


def _media_type(request: Request, *taken: str) -> str:
    given = request.headers.get("content-type", taken[0]).split(";")[0].strip().lower()
    if given not in taken:
        raise refused(415, f"the content-type is to be {' or '.join(taken)}")
    return given


# BentoML's own metrics, spans and access log would take paths as clients made them up, identifiers
# among them, and half a millisecond a request. Its timeout is longer than what is waited for here:
# it only ends what hangs.
@bentoml.asgi_app(app, path="/")
@bentoml.service(
    name="readmission",
    workers=1,
    traffic={"timeout": 45},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class ReadmissionService:
    """Serves the risk of readmission of one encounter."""

    model = bentoml.models.BentoModel(bentoml.use_arguments(Arguments).model)

    def __init__(self) -> None:
        instruments.log_to_stdout()
        options = Options.of_environment()
        if options.tokens is None:
            _logger.warning("Authentication is switched off by %s: everybody may ask.", AUTH)
        scorer = Scorer.load(Path(self.model.path))
        predictor = Predictor(
            scorer, Metrics(scorer.facts), prediction_log.of_environment(), options.image_digest
        )
        tracer = instruments.tracer_of_environment(scorer.facts["version"])
        app.state = State(options, predictor, tracer)
        # What is loaded stays: keeping the collector off it takes pauses out of the tail.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    def write_what_waits(self) -> None:
        """Ends the prediction log: what was answered is on disk before the worker ends."""
        predictor: Any = app.state.predictor
        if predictor.log is not None:
            predictor.log.close()
        predictor.metrics.close()
