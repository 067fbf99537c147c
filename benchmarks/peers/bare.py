"""The compiled scorer behind Starlette and nothing else: the limit of what the service could reach.

No validation, no log, no metrics, no model facts in the answer. Started by uvicorn; the folder of
the scorer is in the environment.
"""

import gc
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from health_predict.scorer import Scorer

MODEL = "BENCHMARK_MODEL"
"""Environment variable: what is served; here the folder that `compiling` wrote."""


async def predict(request: Request) -> JSONResponse:
    """Scores one encounter, given by published column."""
    encounter = json.loads(await request.body())
    scorer: Scorer = request.app.state.scorer
    return JSONResponse({"probability_score": float(scorer.score([encounter])[0])})


@asynccontextmanager
async def _loaded(app: Starlette) -> AsyncIterator[None]:
    app.state.scorer = Scorer.load(Path(os.environ[MODEL]))
    gc.collect()
    gc.freeze()
    yield


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])], lifespan=_loaded)
