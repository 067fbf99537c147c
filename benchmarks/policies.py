"""What it saves to train only when the loop decides to, and what it costs: the natural run.

All later encounters arrive in batches. Four policies meet them: the first champion for ever; a
training after every batch; one when the loop decides so, from drift report, performance and
`decide_retrain`; and the same with the gate, which refuses some, and the rest that follows. Called
one after the other without Dagster; each trains XGBoost's default without a search. Writes
`var/bench/policies.json` with every decision and its sentence.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from benchmarks.loop import machine
from benchmarks.prequential import Forecast, Part, Resampled, cohort, figures, keep
from health_predict import explanations, fitting, gate, metrics, splits
from health_predict.compiling import compile_pipeline
from health_predict.defs.facts import Event, Run
from health_predict.defs.retraining import Patience, decide_retrain
from health_predict.drift import detect
from health_predict.evaluation import Verdict
from health_predict.fitting import Fitted
from health_predict.models import FAMILIES, Candidate
from health_predict.outcomes import assess
from health_predict.schema import INPUTS
from health_predict.scorer import Scorer
from health_predict.separation import chance
from health_predict.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 400
REFERENCE_ROWS = 10_000
EXPLAINED_ROWS = 200
CANDIDATE = Candidate("xgboost", FAMILIES["xgboost"].default)


@click.command(help=__doc__)
@click.option("--data", default=lambda: Settings().data, help="As HEALTH_PREDICT_DATA.")
@click.option("--batch-rows", default=5_000, type=click.IntRange(200))
@click.option("--seed", default=lambda: Settings().seed, type=int)
def main(data: str, batch_rows: int, seed: int) -> None:
    """Runs the benchmark."""
    began = time.monotonic()
    people, source = cohort(data, "any")
    batches = list(arriving(people, batch_rows))
    trained = [learn(batch.past, seed) for batch in batches]
    loops = {
        "when the loop decides": Loop(batches, trained, seed, gated=False),
        "when the loop decides, gated": Loop(batches, trained, seed, gated=True),
    }
    forecasts: dict[str, Forecast] = {
        "never": [probabilities(trained[0], batch) for batch in batches],
        "every batch": [probabilities(m, b) for m, b in zip(trained, batches, strict=True)],
        **{name: [loop.meet(batch) for batch in batches] for name, loop in loops.items()},
    }
    resampled = Resampled(batches, RESAMPLES)
    every = resampled.mean_auc(forecasts["every batch"])
    trainings = {
        "never": 0,
        "every batch": len(batches) - 1,  # the last batch's training meets no batch
        **{name: len(loop.trainings) for name, loop in loops.items()},
    }
    result: dict[str, Any] = {
        "machine": machine(),
        "data": source.caption,
        "sha256": source.sha256,
        "seed": seed,
        "batch_rows": batch_rows,
        "batches": len(batches),
        "policies": {
            name: {
                "trainings": trainings[name],
                **compared(batches, forecast, resampled.mean_auc(forecast) - every),
            }
            for name, forecast in forecasts.items()
        },
        "decisions": {name: loop.decisions for name, loop in loops.items()},
    }
    result["seconds"] = round(time.monotonic() - began, 1)
    path = keep(result, "policies")
    sys.stdout.write(f"{tables(result)}\n\n{result['seconds']} s, written to {path}\n")


def arriving(people: "pd.DataFrame", batch_rows: int) -> Iterator[Part]:
    """Yields the batches of the later 80 %, each with all that was before it."""
    calendar = splits.Calendar(len(people), batches=0, batch_rows=batch_rows)
    for number in range(1, calendar.count + 1):
        span = calendar.span(number)
        yield Part(number, people.iloc[: span.start], people.iloc[span.start : span.stop])


def learn(past: "pd.DataFrame", seed: int) -> Fitted:
    """Returns what is learned from all encounters of the past."""
    return fitting.learn(past, fitting.fit_preprocessor(past), CANDIDATE, seed=seed)


def probabilities(fitted: Fitted, batch: Part) -> np.ndarray:
    """Returns the probability of readmission of each encounter of a batch (n,)."""
    foretold: np.ndarray = fitted.pipeline.predict_proba(batch.rows)[:, 1]
    return foretold


@dataclass
class Loop:
    """The loop without Dagster: a champion, the events it raised, the trainings that answered.

    Attributes:
        batches: what arrives, in order.
        trained: what is learned from all that was before each batch.
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
        foretold = probabilities(self.champion, batch)
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
                "scored_by": newest["drift_report"]["champion_version"],
                "statistic": newest["drift_report"]["statistic"],
                "expected_observed": newest["batch_performance"]["expected_observed"],
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
            label="any",
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


def compared(batches: list[Part], forecast: Forecast, less_every: np.ndarray) -> dict[str, Any]:
    """Returns the figures of one policy, its mean AUC also less that of training every batch."""
    each = [
        figures(batch.labels, foretold, batch.patients, resamples=RESAMPLES)
        for batch, foretold in zip(batches, forecast, strict=True)
    ]
    low, high = metrics.interval(less_every[1:])
    return {
        "auc_less_every_batch": {"mean": float(less_every[0]), "low": low, "high": high},
        "mean_auc": float(np.mean([row["auc"] for row in each])),
        "mean_brier": float(np.mean([row["brier"] for row in each])),
        "mean_miscalibration": float(np.mean([abs(r["expected_observed"] - 1) for r in each])),
        "batches": each,
    }


def tables(result: dict[str, Any]) -> str:
    """Returns the figures as Markdown: the policies, then each decision with its sentence."""
    lines = [
        f"\n{result['batches']} batches of {result['batch_rows']:,} {result['data']}; AUC with "
        "95 % intervals resampled by patient\n",
        "| trained | trainings | mean AUC less every batch | mean AUC "
        "| mean abs(E/O - 1) | Brier |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in result["policies"].items():
        less = row["auc_less_every_batch"]
        lines.append(
            f"| {name} | {row['trainings']} "
            f"| {less['mean']:+.4f} [{less['low']:+.4f}, {less['high']:+.4f}] "
            f"| {row['mean_auc']:.4f} | {row['mean_miscalibration']:.3f} "
            f"| {row['mean_brier']:.4f} |"
        )
    for name, decisions in result["decisions"].items():
        lines += [
            f"\nTrained {name}:\n",
            "| batch | by | drift | E/O | decision |",
            "| ---: | ---: | ---: | ---: | --- |",
        ]
        for d in decisions:
            said = f"{d['decision']} {d['verdict']}".replace("|", "/")
            lines.append(
                f"| {d['batch']} | v{d['scored_by']} | {d['statistic']:.3f} "
                f"| {d['expected_observed']:.2f} | {said} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
