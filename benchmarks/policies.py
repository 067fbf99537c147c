"""When to train: never, always, when the loop says so, and that with the gate deciding.

The loop's decisions are its own (`detect`, `assess`, `decide_retrain`, `gate.examine`), called one
after the other without Dagster; what they are compared by is in `results`. Each training takes
XGBoost's default without a search.
"""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.prequential import CANDIDATE, Forecast, Part, learn, probabilities
from health_predict import explanations, fitting, gate, models, splits
from health_predict.compiling import compile_pipeline
from health_predict.defs.facts import Event, Run
from health_predict.defs.retraining import Patience, decide_retrain
from health_predict.drift import detect
from health_predict.evaluation import Verdict
from health_predict.fitting import Fitted
from health_predict.outcomes import assess
from health_predict.schema import INPUTS, LABEL, LabelName
from health_predict.scorer import Scorer
from health_predict.separation import chance

if TYPE_CHECKING:
    import pandas as pd

NEVER, RECALIBRATED, ALWAYS = "never", "never, recalibrated", "always"
GATED, REFUSED = "drift-gated", "drift-gated, the gate decides"
REFERENCE_ROWS = 10_000
EXPLAINED_ROWS = 200


@dataclass(frozen=True)
class Courses:
    """How each policy fares on the batches.

    Attributes:
        forecasts: policy -> what its model of the day said of each batch.
        trainings: policy -> how often it trained after the first champion.
        decisions: of the two that follow the loop, an entry a batch.
    """

    forecasts: dict[str, Forecast]
    trainings: dict[str, int]
    decisions: dict[str, list[dict[str, Any]]]


def courses(batches: list[Part], label: LabelName, seed: int) -> Courses:
    """Returns the courses of all policies.

    Args:
        batches: what arrives, in order, each with all that was before it.
        label: what is foretold.
        seed: seed of everything.
    """
    trained = [learn(batch.past, seed) for batch in batches]
    first = trained[0]
    loops = {
        GATED: Loop(batches, trained, label, seed, gated=False),
        REFUSED: Loop(batches, trained, label, seed, gated=True),
    }
    return Courses(
        forecasts={
            NEVER: [probabilities(first, batch.rows) for batch in batches],
            RECALIBRATED: [
                probabilities(recalibrated(first, batch.past), batch.rows) for batch in batches
            ],
            ALWAYS: [probabilities(m, b.rows) for m, b in zip(trained, batches, strict=True)],
            **{name: [loop.meet(batch) for batch in batches] for name, loop in loops.items()},
        },
        trainings={
            NEVER: 0,
            RECALIBRATED: 0,
            ALWAYS: len(batches) - 1,  # the last batch's training meets no batch
            **{name: len(loop.trainings) for name, loop in loops.items()},
        },
        decisions={name: loop.decisions for name, loop in loops.items()},
    )


def recalibrated(fitted: Fitted, past: "pd.DataFrame") -> Fitted:
    """Returns the model with its calibration, and nothing else, from the newest of the past."""
    newest = splits.on_side(past, "validation").tail(fitting.CALIBRATION_ROWS)
    preprocessor, calibrated = (fitted.pipeline[name] for name in ("preprocess", "classifier"))
    classifier = calibrated.estimator.estimator  # inside calibration and `FrozenEstimator`
    x = preprocessor.transform(newest).astype(np.float32)
    y = newest[LABEL].to_numpy()
    pipeline = models.pipeline(preprocessor, classifier, x, y, fitted.calibration)
    return Fitted(pipeline, fitted.calibration, fitted.thresholds)


@dataclass
class Loop:
    """The loop without Dagster: a champion, the events it raised, the trainings that answered.

    Attributes:
        batches: what arrives, in order.
        trained: what is learned from all that was before each batch.
        label: what is foretold.
        seed: seed of everything.
        gated: whether a challenger has to pass the gate.
        version: the version in office.
        events: drift reports and performances so far.
        runs: trainings so far, newest first.
        trainings: batches after which it trained.
        decisions: one entry a batch.
    """

    batches: list[Part]
    trained: list[Fitted]
    label: LabelName
    seed: int
    gated: bool
    version: int = 1
    events: list[Event] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    trainings: list[int] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._take_office(0, self._examine(0, None).challenger.auc)

    def meet(self, batch: Part) -> np.ndarray:
        """Returns what the champion says of a batch, and lets the loop decide what follows."""
        foretold, scored_by = probabilities(self.champion, batch.rows), self.version
        self._watch(batch, foretold)
        decision = decide_retrain(
            self.events, self.runs, [], 0.0, champion=str(self.version), patience=Patience()
        )
        verdict = ""
        for request in decision.requests:
            verdict = self._train(batch, request.trigger)
        newest = {event.asset: event.metadata for event in self.events[-2:]}
        self.decisions.append(
            {
                "batch": batch.number,
                "scored_by": scored_by,
                "statistic": newest["drift_report"]["statistic"],
                "expected_observed": newest["batch_performance"]["expected_observed"],
                "trained": self.trainings[-1:] == [batch.number],
                "took_over": self.version != scored_by,
                "decision": decision.sentence,
                "verdict": verdict,
            }
        )
        return foretold

    def _watch(self, batch: Part, foretold: np.ndarray) -> None:
        drift = detect(
            self._reference,
            batch.rows,
            self._chance,
            probabilities=(self._before, foretold),
            flagged_from=self.champion.thresholds.value,
            importance=self._importance,
            seed=self.seed,
        )
        performance = assess(
            gate.people(batch.rows),
            foretold,
            gate_auc=self._gate_auc,
            threshold=self.champion.thresholds.value,
            calibrated_on=fitting.CALIBRATION_ROWS,
            seed=self.seed,
        )
        ratio = performance.expected_observed
        self._record(
            "drift_report",
            batch,
            drifted=drift.drifted,
            statistic=drift.statistic,
            threshold=drift.threshold,
            sentence=drift.sentence,
        )
        self._record(
            "batch_performance",
            batch,
            within_bounds=performance.within_bounds,
            expected_observed=ratio.value if ratio else None,
            sentence=performance.sentence,
        )

    def _record(self, asset: str, batch: Part, **facts: Any) -> None:
        facts["champion_version"] = str(self.version)
        key = f"batch-{batch.number:04d}"
        self.events.append(Event(len(self.events) + 1, asset, key, "", 0.0, facts))

    def _train(self, batch: Part, trigger: int) -> str:
        if batch.number == len(self.batches):
            return "There is no further batch to meet."
        verdict = self._examine(batch.number, self.champion)
        self.runs.insert(0, Run("", "retrain", "succeeded", trigger, 1, batch.number, 0.0))
        self.trainings.append(batch.number)
        if verdict.promoted or not self.gated:
            self.version += 1
            self._take_office(batch.number, verdict.challenger.auc)
        return verdict.sentence if self.gated else "Takes over."

    def _examine(self, place: int, champion: Fitted | None) -> Verdict:
        """Returns the gate's verdict on what was learned before the batch at this place."""
        in_office = (
            gate.Champion(champion.pipeline, champion.thresholds.value) if champion else None
        )
        return gate.examine(
            self.batches[place].past,
            CANDIDATE,
            self.trained[place],
            in_office,
            label=self.label,
            harm=1.0,
            seed=self.seed,
        ).verdict

    def _take_office(self, place: int, gate_auc: float) -> None:
        window = self.batches[place].past
        self.champion, self._gate_auc = self.trained[place], gate_auc
        self._reference = window.tail(REFERENCE_ROWS)
        self._before = self.champion.pipeline.predict_proba(self._reference)[:, 1]
        self._importance = importance(self.champion, window)
        self._chance = chance(self._reference, len(self.batches[0].rows), seed=self.seed)


def importance(fitted: Fitted, window: "pd.DataFrame") -> dict[str, float]:
    """Returns feature -> share of the movement of the scores, on the newest held-out people."""
    with TemporaryDirectory() as folder:
        compile_pipeline(fitted.pipeline, {}, Path(folder))
        rows = gate.held_out(window).tail(EXPLAINED_ROWS)[[*INPUTS]]
        explained = Scorer.load(Path(folder)).contributions(rows.to_dict("records"))
    return dict(explanations.global_importance(explained))
