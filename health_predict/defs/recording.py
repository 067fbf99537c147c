"""How what happened is written down: the ledger of models, and what a person asks for."""

from typing import Any

import dagster as dg

from health_predict.defs.facts import FORCED, REASON, SENTENCE
from health_predict.ledger import Entry, Kind, Ledger
from health_predict.tracking import Registry


def record(
    context: Any,
    ledger: Ledger,
    registry: Registry,
    kind: Kind,
    why: str,
    *,
    who: str = "",
    **what: Any,
) -> Entry:
    """Appends an entry and remembers its digest in the registry, where a cut tail is missed.

    Args:
        context: of the asset or op.
        ledger: where to.
        registry: remembers the newest digest.
        kind: what happened.
        why: the reason, a sentence.
        who: a person; empty: the Dagster run.
        what: version, facts, alias before and after.

    Raises:
        LedgerError: the ledger was changed: nothing is chained to what cannot be trusted.
    """
    ledger.verify(anchor=registry.ledger_head())
    entry = ledger.append(kind, who=who or f"dagster run {context.run_id[:8]}", why=why, **what)
    registry.remember_ledger_head(entry.digest)
    return entry


def trigger(context: Any) -> str:
    """Returns why a run was started, in words."""
    reason: str = context.run.tags.get(REASON, "Started by hand.")
    return reason


def champion_before(registry: Registry) -> str | None:
    """Returns the version behind the alias `champion`, None if there is none yet."""
    champion = registry.champion()
    return champion.version if champion else None


def move_alias(
    context: Any, ledger: Ledger, registry: Registry, version: str, why: str, who: str = ""
) -> None:
    """Makes a version the champion, and says so in the ledger."""
    before = champion_before(registry)
    registry.promote(version)
    record(
        context,
        ledger,
        registry,
        "alias_move",
        why,
        who=who,
        version=version,
        before=before,
        after=version,
    )


def force_retrain(instance: dg.DagsterInstance, by: str, why: str) -> None:
    """Asks for a retraining by name and reason; the sensor `retrain_on_drift` answers it.

    Args:
        instance: where the sensor will find it.
        by: who asks.
        why: the reason.

    Raises:
        ValueError: name or reason is empty.
    """
    if not (by.strip() and why.strip()):
        raise ValueError("a retraining is forced by somebody for a reason: give both")
    facts = {FORCED: by.strip(), SENTENCE: f"Forced by {by.strip()}: {why.strip()}"}
    instance.report_runless_asset_event(dg.AssetObservation("training_set", metadata=facts))


def latest_metadata(instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
    """Returns the metadata of an asset's newest materialisation, as plain values.

    Raises:
        dagster.Failure: it was never materialised.
    """
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    if event is None or event.asset_materialization is None:
        raise dg.Failure(f"{asset} was never materialised: run the job bootstrap first")
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}
