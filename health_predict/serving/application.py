"""What is true of every request: who may ask, how much at a time, and what each answer carries.

A plain ASGI application over one table of routes: no path has parameters, so a look-up replaces a
router, and a path that a client made up is never logged, counted or repeated. What the routes
answer is in `service`.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from health_predict import prediction_log
from health_predict.serving import instruments
from health_predict.serving.options import Options
from health_predict.serving.predictor import Predictor
from health_predict.serving.requests import Refused, refused

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

REQUEST_ID = "x-request-id"
TOKEN = "x-health-predict-token"
"""Where a token may stand where `Authorization` does not arrive: Kubernetes' proxy takes it."""

Endpoint = Callable[[Request, "State"], Awaitable[Response]]

SECURITY = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
"""Headers of every answer that does not set them itself."""

_NO_ROUTE = "unknown"
_CLIENT_GONE = 499
# A body that takes longer is a client that went to sleep: a batch of 64 MB takes that at 2 MB/s.
_BODY_SECONDS = 30.0
# Read and thrown away before a refusal, so that a client that only reads after it has written
# gets to see it.
_DISCARDED = 32 * 2**20


@dataclass(frozen=True)
class Route:
    """One path.

    Attributes:
        methods: method -> what answers it.
        guarded: whether a token is asked for and the number of requests at a time is limited.
    """

    methods: Mapping[str, Endpoint]
    guarded: bool = False


@dataclass
class State:
    """What the worker holds: None until it is loaded."""

    options: Options
    predictor: Predictor | None = None
    tracer: "Tracer | None" = None

    def loaded(self) -> Predictor:
        """Returns the predictor.

        Raises:
            Refused: it is still loading.
        """
        if self.predictor is None:
            raise refused(503, "the model is still loading", headers={"retry-after": "1"})
        return self.predictor


class Application:
    """An ASGI application.

    Attributes:
        routes: path -> route.
        state: what the worker holds.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self.routes = routes
        # Closed to everybody until the worker has read its environment.
        self.state = State(Options(tokens=frozenset()))
        self._answering = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":  # no websockets; a mounted application sees no lifespan
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        began = time.perf_counter()
        request = Request(scope, receive)
        request_id = prediction_log.request_id(request.headers.get(REQUEST_ID))
        request.state.request_id = request_id
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        route = self.routes.get(path)
        name, status, begun = path if route else _NO_ROUTE, 500, False

        async def sending(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = _headers(message["headers"], request_id)
            await send(message)

        with self._span(request, name) as span:
            try:
                response = await self._answer(request, route)
                await response(scope, receive, sending)
            except (ClientDisconnect, ConnectionError):
                if not begun:
                    # Nobody takes it, but BentoML waits for it to begin, also when it is stopped.
                    await Response(status_code=_CLIENT_GONE)(scope, receive, send)
                status = _CLIENT_GONE
            finally:
                self._note(request, request_id, name, status, time.perf_counter() - began)
                if span is not None:
                    span.set_attribute("http.response.status_code", status)

    async def _answer(self, request: Request, route: Route | None) -> Response:
        try:
            endpoint = _endpoint(request, route)
            if route is None or not route.guarded:
                return await endpoint(request, self.state)
            self.state.loaded()
            self._authorise(request)
            async with self._turn():
                return await endpoint(request, self.state)
        except Refused as refusal:
            if refusal.status != 408:  # what did not arrive is not waited for again
                await _discard(request)
            return JSONResponse({"detail": refusal.errors}, refusal.status, refusal.headers)

    def _authorise(self, request: Request) -> None:
        tokens = self.state.options.tokens
        if tokens is None:
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            token = request.headers.get(TOKEN, "")
        # Digests are compared: how long it takes tells nothing of a token.
        if hashlib.sha256(token.strip().encode()).hexdigest() not in tokens:
            raise refused(
                401,
                "a token is asked for: send the header Authorization: Bearer TOKEN",
                headers={"www-authenticate": "Bearer"},
            )

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        most = self.state.options.concurrency
        if self._answering >= most:
            raise refused(
                503,
                f"{most} requests are being answered already: try again",
                headers={"retry-after": "1"},
            )
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1

    def _note(
        self, request: Request, request_id: str, name: str, status: int, seconds: float
    ) -> None:
        predictor = self.state.predictor
        method = request.method if request.method in _METHODS else "other"
        version = predictor.facts["version"] if predictor else None
        instruments.log_access(request_id, method, name, status, seconds, version)
        if predictor:
            predictor.metrics.requested(name, status, seconds)

    def _span(self, request: Request, name: str) -> Any:
        if self.state.tracer is None:
            return contextlib.nullcontext()
        from opentelemetry.trace import SpanKind

        return self.state.tracer.start_as_current_span(
            f"{request.method if request.method in _METHODS else 'other'} {name}",
            context=instruments.trace_of(request.headers.get("traceparent")),
            kind=SpanKind.SERVER,
            attributes={
                "http.route": name,
                "health_predict.request_id": request.state.request_id,
            },
        )


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def _headers(given: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    names = {name for name, _ in given}
    ours = [header for header in SECURITY if header[0] not in names]
    return [*given, *ours, (REQUEST_ID.encode(), request_id.encode())]


def _endpoint(request: Request, route: Route | None) -> Endpoint:
    if route is None:
        raise refused(404, "there is no such path: GET /openapi.json lists them")
    method = "GET" if request.method == "HEAD" else request.method
    if method not in route.methods:
        allowed = [*route.methods, *(["HEAD"] if "GET" in route.methods else [])]
        raise refused(
            405, f"this path takes {' or '.join(allowed)}", headers={"allow": ", ".join(allowed)}
        )
    return route.methods[method]


async def body(request: Request, most: int) -> bytes:
    """Returns the body of a request.

    Raises:
        Refused: it is larger than `most` bytes, or does not arrive.
    """
    pieces = [piece async for piece in _pieces(request, most)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def keep_body(request: Request, most: int, file: IO[bytes]) -> None:
    """Writes the body of a request to a file, and goes back to its beginning.

    Raises:
        Refused: it is larger than `most` bytes, or does not arrive.
    """
    async for piece in _pieces(request, most):
        file.write(piece)
    file.flush()
    file.seek(0)


async def _pieces(request: Request, most: int) -> AsyncIterator[bytes]:
    # Told beforehand, it need not be read to be refused.
    length = request.headers.get("content-length", "0")
    read = 0
    too_large = refused(413, f"at most {most} bytes are taken here")
    if length.isascii() and length.isdigit() and int(length) > most:
        raise too_large
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                read += len(piece)
                if read > most:
                    raise too_large
                if piece:
                    yield piece
    except TimeoutError:
        raise refused(408, f"the body did not arrive within {_BODY_SECONDS:.0f} s") from None


async def _discard(request: Request) -> None:
    """Reads on where a body was refused unread, as far as is reasonable."""
    left = _DISCARDED
    # A stream that was read to its end, whoever refused it there, is a RuntimeError.
    with contextlib.suppress(TimeoutError, RuntimeError, ClientDisconnect):
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                left -= len(piece)
                if left <= 0:
                    return
