"""The service with a model in it, for tests that talk to the application without a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from health_predict import service
from health_predict.prediction_log import PredictionLog
from health_predict.scorer import Scorer
from health_predict.serving.application import State
from health_predict.serving.instruments import Metrics
from health_predict.serving.options import Options
from health_predict.serving.predictor import Predictor

OPEN_TO_ALL = Options(tokens=None)


@contextmanager
def loaded(
    folder: Path, log: PredictionLog | None = None, options: Options = OPEN_TO_ALL
) -> Iterator[Predictor]:
    """Puts a compiled model into the application, as a worker does when it starts."""
    before = service.app.state
    scorer = Scorer.load(folder)
    predictor = Predictor(scorer, Metrics(scorer.facts), log, options.image_digest)
    service.app.state = State(options, predictor)
    yield predictor
    service.app.state = before
