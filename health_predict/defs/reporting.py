"""Group `monitoring`: the loop report, one page of what the loop did and what came of it.

Gathers what was recorded; the one thing measured here is the first model, had it never been
retrained, on the batches that later versions scored. The page itself is `health_predict.page`.
"""

import base64
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from health_predict import evidence, page, story
from health_predict.defs.data import OWNERS
from health_predict.defs.decisions import Decision, Request
from health_predict.defs.facts import (
    REASON,
    SENTENCE,
    Event,
    arrivals,
    events,
    in_progress,
    latest,
    newest_verdict,
    runs,
)
from health_predict.defs.first_model import FirstModel, beside
from health_predict.defs.jobs import report
from health_predict.defs.resources import Gate, ReportPage, SearchBudget
from health_predict.defs.retraining import Patience
from health_predict.drift import DriftSummary
from health_predict.evidence import Followed
from health_predict.ledger import Entry, Ledger, LedgerError
from health_predict.loop_report import BatchReport, Champion, Links, LoopReport, Moved, Served
from health_predict.outcomes import Performance
from health_predict.story import BatchStory, LoopStory
from health_predict.subgroups import GroupScores
from health_predict.timeline_picture import timeline_picture
from health_predict.tracking import Registry

TOLD = (
    "drift_report",
    "batch_performance",
    "registered_model",
    "readmission_deployment",
    "rollback_drill",
)
"""Assets whose events a report tells of."""
UNTIL = "newest_event"
"""Metadata of a report: the newest event that it tells of."""
# Once a day, an hour after batches arrive by default.
_DAILY = "0 7 * * *"
# Jobs whose runs write to the ledger, and how it calls a run.
_WRITING = ("bootstrap", "retrain", "deploy", "drill")
_RUN = "dagster run "
_INPUTS = ("drift_report", "batch_performance", "future_batch", "batch_predictions")


@dg.asset(
    group_name="monitoring",
    owners=OWNERS,
    kinds={"scikitlearn", "matplotlib"},
    ins={name: dg.AssetIn(partition_mapping=dg.AllPartitionMapping()) for name in _INPUTS},
    deps=["registered_model", "readmission_deployment"],
)
def loop_report(
    context: dg.AssetExecutionContext,
    drift_report: dict[str, DriftSummary],
    batch_performance: dict[str, Performance],
    future_batch: dict[str, pd.DataFrame],
    batch_predictions: dict[str, pd.DataFrame],
    gate: Gate,
    budget: SearchBudget,
    registry: dg.ResourceParam[Registry],
    report_page: ReportPage,
) -> dg.MaterializeResult[LoopReport]:
    """What the loop did, as one page: batches, drift, decisions, versions, and what came of it.

    Beside the champion of the day stands the first model, had it never been retrained, on the same
    encounters: the difference is what the loop is worth. Each decision is told in the words in
    which it was recorded.
    """
    until = newest_told(context.instance)
    waits = Patience(report_page.rest_batches, gate.oldest_champion_days * 86_400)
    told = story.tell(context.instance, waits)
    first = _first_model(told, registry, gate, budget)
    made = LoopReport(
        made=time.time(),
        page=report_page.path,
        run_id=context.run_id,
        story=told,
        first_version=first.version if first else None,
        **_batches(
            context.instance,
            told,
            drift_report,
            beside(first, batch_performance, future_batch, batch_predictions),
        ),
        served=_served(context.instance, told),
        champion=_champion(registry),
        links=Links(report_page.dagit, report_page.mlflow),
    )
    page.write_page(made)
    context.log.info(f"{made.headline} {made.page}")
    return dg.MaterializeResult(value=made, metadata=_metadata(made, until))


def _first_model(
    told: LoopStory, registry: Registry, gate: Gate, budget: SearchBudget
) -> FirstModel | None:
    if not told.promotions:
        return None
    return FirstModel(registry, told.promotions[0].version, gate, budget)


def _batches(
    instance: dg.DagsterInstance,
    told: LoopStory,
    summaries: Mapping[str, DriftSummary],
    followed: Mapping[str, Followed],
) -> dict[str, Any]:
    """Returns what a report tells of the batches, and of all of them together."""
    arrived = arrivals(instance)
    watched = {event.partition: event.metadata for event in events(instance, "drift_report")}
    everybody = list(followed.values())
    labels, champion, first = (
        np.concatenate([getattr(batch, name) for batch in everybody]) if everybody else np.array([])
        for name in ("labels", "champion", "first")
    )
    return {
        "batches": [
            _batch(
                batch,
                watched[batch.batch],
                arrived.get(batch.batch),
                summaries.get(batch.batch),
                followed.get(batch.batch),
            )
            for batch in told.batches
        ],
        "gain": evidence.gain(everybody),
        "champion_bins": evidence.reliability(labels, champion),
        "first_bins": evidence.reliability(labels, first),
        "benefits": evidence.decision_curve(labels, champion, first),
    }


def _batch(
    told: BatchStory,
    facts: Mapping[str, Any],
    arrived: float | None,
    summary: DriftSummary | None,
    followed: Followed | None,
) -> BatchReport:
    # Where its value was removed from the store, the event log is still told.
    moved = [c for c in summary.columns if c.moved] if summary else []
    return BatchReport(
        told=told,
        arrived=arrived,
        chance_bound=facts["chance_bound"],
        false_alarm_rate=facts["false_alarm_rate"],
        moved=[Moved(c.column, c.psi, c.weight, c.words) for c in moved],
        champion=followed.by_champion if followed else None,
        first=followed.by_first if followed else None,
        evidently=str(facts.get("evidently_report", "")),
    )


def _served(instance: dg.DagsterInstance, told: LoopStory) -> list[Served]:
    """Returns the versions that answered, in order: a release that failed changed nothing."""
    promoted = {promotion.version: promotion for promotion in told.promotions}
    images = {e.metadata["version"]: e.metadata for e in events(instance, "readmission_image")}
    found: list[Served] = []
    for event in events(instance, "readmission_deployment"):
        version = event.metadata.get("version")
        if version is None or (found and found[-1].version == version):
            continue
        if found:
            found[-1] = replace(found[-1], until=event.timestamp)
        promotion = promoted.get(version)
        found.append(
            Served(
                version=version,
                since=event.timestamp,
                until=None,
                family=promotion.family if promotion else "not recorded",
                window=promotion.window if promotion else "not recorded",
                image=str(images.get(version, {}).get("reference", "not recorded")),
                record=str(event.metadata.get("record", "")),
            )
        )
    return found


def _champion(registry: Registry) -> Champion | None:
    version = registry.champion()
    if version is None:
        return None
    facts = version.facts
    return Champion(
        version=version.version,
        family=version.family,
        run_id=version.run_id,
        threshold=facts["threshold"],
        threshold_reason=facts["threshold_reason"],
        held_out=facts["test"]["n"],
        auc=facts["test"]["auc"],
        groups=[GroupScores(**group) for group in facts["groups"]],
        importance=[(name, share) for name, share in facts["importance"]],
    )


def _metadata(made: LoopReport, until: Event | None) -> dict[str, Any]:
    """Returns what Dagit shows of a report."""
    gain = made.gain
    picture = base64.b64encode(timeline_picture(made)).decode()
    return {
        SENTENCE: made.headline,
        "worth": made.worth,
        "page": dg.MetadataValue.url(Path(made.page).as_uri()),
        "timeline": dg.MetadataValue.md(f"![The batches](data:image/png;base64,{picture})"),
        "batches": len(made.batches),
        "promotions": len(made.story.promotions),
        "refusals": len(made.story.refusals),
        "rollbacks": len(made.story.rollbacks),
        **({"auc": gain.auc, "auc_never_retrained": gain.first_auc} if gain else {}),
        UNTIL: until.id if until else 0,
    }


@dg.asset_check(asset=loop_report)
def report_agrees_with_the_ledger(
    context: dg.AssetCheckExecutionContext,
    loop_report: LoopReport,
    registry: dg.ResourceParam[Registry],
    ledger: dg.ResourceParam[Ledger],
) -> dg.AssetCheckResult:
    """Promotions, refusals and roll-backs of the report are those of the ledger, word for word.

    The report is made from Dagster's event log, the ledger was written beside it; its chain is
    verified first. What a run that has not ended wrote there is not compared yet.
    """
    try:
        ledger.verify(registry.ledger_head())
        entries = ledger.entries()
    except LedgerError as error:
        return dg.AssetCheckResult(
            passed=False, severity=dg.AssetCheckSeverity.ERROR, metadata={SENTENCE: str(error)}
        )
    busy = {run.run_id[:8] for run in in_progress(runs(context.instance, *_WRITING))}
    ended = [entry for entry in entries if entry.who.removeprefix(_RUN) not in busy]
    missing = differences(loop_report.story, ended)
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            SENTENCE: " ".join(missing) or f"All {len(ended)} entries of the ledger agree.",
            "ledger_entries": len(entries),
        },
    )


def differences(told: LoopStory, entries: Sequence[Entry]) -> list[str]:
    """Returns where a story and the ledger disagree, in words; empty if they do not."""
    rollbacks = [entry for entry in entries if entry.kind == "rollback"]
    taken_back = {(entry.version, entry.why) for entry in rollbacks}
    # A roll-back that moves the alias says so twice, and is no promotion.
    moves = [
        entry
        for entry in entries
        if entry.kind == "alias_move" and (entry.version, entry.why) not in taken_back
    ]
    refused = [e for e in entries if e.kind == "verdict" and not e.facts.get("promoted")]
    pairs: dict[str, tuple[list[str], Sequence[str | None]]] = {
        "promotions": ([p.version for p in told.promotions], [e.version for e in moves]),
        "refusals": (told.refusals, [e.why for e in refused]),
        "roll-backs": (told.rollbacks, [e.why for e in rollbacks]),
    }
    return [
        f"The report tells of {len(here)} {what}, the ledger of {len(there)}: they are not the "
        "same. Compare the page with `health-predict ledger`; an event may have been wiped."
        for what, (here, there) in pairs.items()
        if Counter(here) != Counter(there)
    ]


def newest_told(instance: dg.DagsterInstance) -> Event | None:
    """Returns the newest event that a report would tell of, None if there is none."""
    found = [*(latest(instance, asset) for asset in TOLD), newest_verdict(instance)]
    return max((event for event in found if event), key=lambda event: event.id, default=None)


def decide_report(newest: Event | None, made: Event | None) -> Decision:
    """Decides whether to make a report.

    Args:
        newest: the newest event that it would tell of, None if there is none.
        made: the newest report, None if there was none.
    """
    if newest is None:
        return Decision("There is nothing to report yet: no model was judged.")
    if made is not None and made.metadata.get(UNTIL, 0) >= newest.id:
        return Decision("Nothing happened since the newest report.")
    what = f"{newest.asset} {newest.partition or ''}".strip()
    return Decision(f"There is news since the newest report: {what}.", (Request("report"),))


@dg.schedule(
    job=report,
    cron_schedule=_DAILY,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Makes the loop report anew once a day, if anything happened.",
)
def daily_report(context: dg.ScheduleEvaluationContext) -> Any:
    """Asks for a report, or says why none is needed."""
    decision = decide_report(newest_told(context.instance), latest(context.instance, "loop_report"))
    context.log.info(decision.sentence)
    if not decision.requests:
        return dg.SkipReason(decision.sentence)
    return dg.RunRequest(tags={REASON: decision.sentence})


ASSETS = [loop_report]
CHECKS = [report_agrees_with_the_ledger]
SCHEDULES = [daily_report]
