"""What a loop did, told from persisted facts: per batch, per decision, per second.

The same story is printed as a table, written as `var/loop.json` and shown as a page (`page`).
Nothing is measured here that a program did not record while it happened.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import dagster as dg

from health_predict.defs.facts import (
    PROMOTED,
    WAITING,
    Event,
    Run,
    events,
    latest,
    observations,
    runs,
)
from health_predict.defs.partitions import arriving
from health_predict.defs.retraining import Patience, is_alarming, is_handled, sort_out

Outcome = Literal["no_action", "promoted", "refused", "waiting", "rests", "failed", "pending"]


@dataclass(frozen=True)
class Drift:
    """The drift decision about a batch: statistic, the threshold it is held against, answer."""

    statistic: float
    threshold: float
    drifted: bool


@dataclass(frozen=True)
class BatchStory:
    """One batch: how it was found, what was decided and why, how well it was foretold."""

    batch: str
    drift: Drift
    decision: Outcome
    reason: str
    champion_version: str
    auc: float | None
    expected_observed: float | None


@dataclass(frozen=True)
class Promotion:
    """A model that took over, first or later: version, data window, the gate's sentence."""

    version: str
    window: str
    family: str
    reason: str


@dataclass(frozen=True)
class Seconds:
    """From the newest drift event that a retraining answers to the verified new version."""

    version: str
    drift_to_served: float
    parts: dict[str, float]


@dataclass(frozen=True)
class LoopStory:
    """All that a loop did.

    Attributes:
        data: what the figures were made on; names the synthetic cohort as such.
        source: the setting `HEALTH_PREDICT_DATA`.
        batches: one entry a batch, in order of arrival.
        promotions: the champions, in order; the first one first.
        refusals: the gate's sentences on challengers it refused.
        rollbacks: sentences of roll-outs that were taken back, in a drill or in earnest.
        champion_version: the newest champion.
        served_version: the version that answers, asked of the service.
        predict_response: its answer to one encounter.
        seconds: durations; `total` is the whole loop.
    """

    data: str
    source: str
    batches: list[BatchStory]
    promotions: list[Promotion]
    refusals: list[str]
    rollbacks: list[str]
    champion_version: str | None
    served_version: str | None = None
    predict_response: dict[str, Any] | None = None
    seconds: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the story as JSON values."""
        return asdict(self)

    def shortfalls(self, expected_batches: int) -> list[str]:
        """Returns what is missing for the loop to have turned, in words; empty if it has."""
        open_ = [b.batch for b in self.batches if b.decision == "pending"]
        checks = {
            f"{len(self.batches)} of {expected_batches} batches were handled": (
                len(self.batches) < expected_batches
            ),
            f"no decision was reached on {', '.join(open_)}": bool(open_),
            "no batch drifted": not any(b.drift.drifted for b in self.batches),
            "no retraining was promoted": len(self.promotions) < 2,
            f"version {self.served_version} answers, the champion is {self.champion_version}": (
                self.served_version is None or self.served_version != self.champion_version
            ),
            "no bad release was rolled back": not self.rollbacks,
            "the service did not answer /predict": self.predict_response is None,
        }
        return [words for words, missing in checks.items() if missing]


def tell(instance: dg.DagsterInstance, waits: Patience | None = None) -> LoopStory:
    """Returns the story so far.

    Args:
        instance: holds the facts.
        waits: what the loop waits for; None: the default.
    """
    raw = latest(instance, "raw_encounters")
    champions = events(instance, "registered_model")
    observed = observations(instance, "registered_model")
    refused = [event for event in observed if WAITING not in event.metadata]
    deployments = events(instance, "readmission_deployment")
    retrains = runs(instance, "retrain")
    performance = {e.partition: e for e in events(instance, "batch_performance")}
    reports = {e.partition: e for e in events(instance, "drift_report") if e.partition}
    resting = _resting([*reports.values(), *performance.values()], retrains, champions, waits)
    return LoopStory(
        data=raw.metadata["caption"] if raw else "",
        source=raw.metadata["source"] if raw else "",
        batches=[
            _batch(reports[key], performance.get(key), retrains, [*champions, *observed], resting)
            for key in arriving(reports)
        ],
        promotions=[
            Promotion(
                version=event.metadata["version"],
                window=event.metadata["window"],
                family=event.metadata["family"],
                reason=event.metadata["sentence"],
            )
            for event in champions
        ],
        refusals=[event.metadata["sentence"] for event in refused],
        rollbacks=[
            event.metadata["sentence"]
            for event in [*deployments, *events(instance, "rollback_drill")]
            if event.metadata["rolled_back"]
        ],
        champion_version=champions[-1].metadata["version"] if champions else None,
        seconds={
            "retrains": [
                asdict(seconds)
                for run in reversed(retrains)
                if (seconds := _seconds(instance, run, champions, deployments)) is not None
            ]
        },
    )


def _resting(
    reports: Sequence[Event],
    retrains: Sequence[Run],
    champions: Sequence[Event],
    waits: Patience | None,
) -> set[int]:
    """Returns the ids of the alarms that rest on the answer to an earlier one."""
    in_office = champions[-1].metadata["version"] if champions else None
    ordered = sorted(reports, key=lambda event: event.id)
    patience = waits or Patience()
    standing = sort_out(ordered, retrains, patience.rest_batches, in_office)
    return {alarm.id for alarm in standing.resting}


def _batch(
    report: Event,
    performance: Event | None,
    retrains: Sequence[Run],
    verdicts: Sequence[Event],
    resting: Collection[int],
) -> BatchStory:
    alarms = [e for e in (report, performance) if e is not None and is_alarming(e)]
    outcome, reason = _outcome(alarms, report, retrains, verdicts, resting)
    facts = report.metadata
    scores = performance.metadata if performance else {}
    return BatchStory(
        batch=report.partition or "",
        drift=Drift(facts["statistic"], facts["threshold"], facts["drifted"]),
        decision=outcome,
        reason=reason,
        champion_version=facts["champion_version"],
        auc=scores.get("auc"),
        expected_observed=scores.get("expected_observed"),
    )


def _outcome(
    alarms: Sequence[Event],
    report: Event,
    retrains: Sequence[Run],
    verdicts: Sequence[Event],
    resting: Collection[int],
) -> tuple[Outcome, str]:
    if not alarms:
        return "no_action", f"{report.metadata['sentence']} No action."
    why = " ".join(alarm.metadata["sentence"] for alarm in alarms)
    answers = [run for run in reversed(retrains) if is_handled(alarms[-1], [run])]
    if not answers and all(alarm.id in resting for alarm in alarms):
        return "rests", f"{why} It rests: the same shift was trained on, and no one took over."
    if not answers:
        failed = any(run.state == "failed" for run in retrains)
        return ("failed" if failed else "pending"), why
    for event in verdicts:
        if event.run_id == answers[0].run_id:
            return _verdict(event), f"{why} {event.metadata['sentence']}"
    return "failed", why


def _verdict(event: Event) -> Outcome:
    if event.metadata[PROMOTED] and WAITING in event.metadata:
        return "waiting"
    return "promoted" if event.metadata[PROMOTED] else "refused"


def _seconds(
    instance: dg.DagsterInstance,
    retrain: Run,
    champions: Sequence[Event],
    deployments: Sequence[Event],
) -> Seconds | None:
    """Returns where the seconds went between a drift event and the new version serving."""
    promotion = next((e for e in champions if e.run_id == retrain.run_id), None)
    deployment = promotion and next(
        (d for d in deployments if d.metadata["wanted"] == promotion.metadata["version"]), None
    )
    trigger = next(
        (e for e in _alarms(instance) if e.id == retrain.trigger),
        None,
    )
    if promotion is None or deployment is None or trigger is None:
        return None
    parts = {"until the sensor asks": retrain.created - trigger.timestamp}
    parts |= _run_parts(instance, retrain.run_id, "retrain")
    parts["until the deploy sensor asks"] = _created(instance, deployment.run_id) - _ended(
        instance, retrain.run_id
    )
    parts |= _run_parts(instance, deployment.run_id, "deploy")
    return Seconds(
        promotion.metadata["version"],
        round(deployment.timestamp - trigger.timestamp, 1),
        {name: round(value, 1) for name, value in parts.items()},
    )


def _alarms(instance: dg.DagsterInstance) -> list[Event]:
    return [*events(instance, "drift_report"), *events(instance, "batch_performance")]


def _run_parts(instance: dg.DagsterInstance, run_id: str, name: str) -> dict[str, float]:
    steps = [s for s in instance.get_run_step_stats(run_id) if s.start_time and s.end_time]
    first = min(s.start_time for s in steps if s.start_time)
    parts = {f"{name}: queue, process, imports": first - _created(instance, run_id)}
    for step in sorted(steps, key=lambda s: s.start_time or 0):
        parts[f"{name}: {step.step_key}"] = (step.end_time or 0) - (step.start_time or 0)
    return parts


def _created(instance: dg.DagsterInstance, run_id: str) -> float:
    record = instance.get_run_record_by_id(run_id)
    assert record is not None  # its id was read from the event log
    return record.create_timestamp.timestamp()


def _ended(instance: dg.DagsterInstance, run_id: str) -> float:
    record = instance.get_run_record_by_id(run_id)
    assert record is not None  # its id was read from the event log
    return record.end_time or 0.0
