"""The champion at work: encounters in, judged probabilities out, each logged and counted.

One instance a worker. How requests are read and answered over HTTP is in `service`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from health_predict.prediction_log import PredictionLog
from health_predict.schema import Encounter
from health_predict.scorer import Scorer
from health_predict.serving import answers, batches
from health_predict.serving.instruments import Metrics
from health_predict.serving.requests import Refused, encounter


@dataclass(frozen=True, eq=False)
class Predictor:
    """Predicts with one model.

    Attributes:
        scorer: the compiled model.
        metrics: what is counted.
        log: where answers are logged, None for nowhere.
        image_digest: digest of the image this runs from, None where there is none.
    """

    scorer: Scorer
    metrics: Metrics
    log: PredictionLog | None = None
    image_digest: str | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known of the model."""
        return self.scorer.facts

    def answer(self, found: Encounter, request_id: str, explain: bool) -> dict[str, Any]:
        """Returns the answer to one encounter."""
        columns = found.columns()
        ((judged, warnings),) = self._predict([columns], request_id)
        probability = judged["probability_score"]
        return {
            **judged,
            "warnings": warnings,
            "model": answers.model_of(self.facts, self.image_digest),
            **(answers.explanation(self.scorer, columns, probability) if explain else {}),
        }

    def records(self, rows: Iterator[Any], request_id: str) -> Iterator[list[batches.Record]]:
        """Yields the records of rows, a chunk at a time.

        Args:
            rows: as a format yields them: `Fields`, or a `Refused`.
            request_id: of the batch.
        """
        number = 0
        for chunk in batches.chunks(rows):
            read = [_read(row) for row in chunk]
            good = [row.columns() for row in read if isinstance(row, Encounter)]
            judged = iter(self._predict(good, request_id)) if good else iter(())
            records = []
            for row in read:
                number += 1
                record = batches.record(number, self.facts["version"], [])
                if isinstance(row, Encounter):
                    scored, warnings = next(judged)
                    record.update(scored, warnings=warnings)
                else:
                    record["errors"] = row.errors
                records.append(record)
            yield records

    def _predict(
        self, encounters: Sequence[Mapping[str, Any]], request_id: str
    ) -> list[tuple[dict[str, Any], list[dict[str, str]]]]:
        """Scores, logs and counts encounters given by published column name."""
        probabilities, unseen = self.scorer.scored(encounters)
        version, done = self.facts["version"], []
        for columns, probability, features in zip(
            encounters, probabilities.tolist(), unseen, strict=True
        ):
            judged, warnings = answers.judged(probability, self.facts), answers.warnings(features)
            if self.log is not None:
                self.log.add(request_id, version, probability, columns)
            self.metrics.predicted(judged["risk_band"], probability, warnings)
            done.append((judged, warnings))
        return done


def _read(row: Any) -> Encounter | Refused:
    if isinstance(row, Refused):
        return row
    try:
        return encounter(row)
    except Refused as refusal:
        return refusal
