"""What a person decides: the ops that release a waiting challenger, and bring a version back.

Each is done by name and reason. Rolling the version out is left to the sensor that follows the
champion.
"""

import dagster as dg

from health_predict.defs.dossier import version_metadata
from health_predict.defs.facts import PROMOTED, SENTENCE
from health_predict.defs.recording import champion_before, move_alias, record
from health_predict.ledger import Ledger
from health_predict.tracking import ModelVersion, Registry


class Approval(dg.Config):
    """A person's approval of the version that waits.

    Attributes:
        version: the version, as the observation of `registered_model` names it.
        name: who approves.
        reason: why.
    """

    version: str
    name: str
    reason: str


class Reinstatement(dg.Config):
    """A person's decision to go back to a version that was champion before.

    Attributes:
        version: the version.
        name: who decides.
        reason: why.
    """

    version: str
    name: str
    reason: str


@dg.op(out=dg.Out(dg.Nothing))
def release_challenger(
    context: dg.OpExecutionContext,
    config: Approval,
    registry: dg.ResourceParam[Registry],
    ledger: dg.ResourceParam[Ledger],
) -> None:
    """Makes the version that waits the champion, in the name of a person."""
    version = approved(config, registry)
    why = f"Approved by {config.name.strip()}: {config.reason.strip()}"
    who = config.name.strip()
    record(context, ledger, registry, "approval", why, who=who, version=version.version)
    move_alias(context, ledger, registry, version.version, why, who)
    _announce(context, version, f"{why} {version.facts['verdict']}", approved_by=who)


@dg.op(out=dg.Out(dg.Nothing))
def reinstate_version(
    context: dg.OpExecutionContext,
    config: Reinstatement,
    registry: dg.ResourceParam[Registry],
    ledger: dg.ResourceParam[Ledger],
) -> None:
    """Makes a version that was champion before the champion again, in the name of a person."""
    version = reinstated(config, registry, ledger)
    why = f"Brought back by {config.name.strip()}: {config.reason.strip()}"
    move_alias(context, ledger, registry, version.version, why, config.name.strip())
    _announce(context, version, why, brought_back_by=config.name.strip())


def _announce(context: dg.OpExecutionContext, version: ModelVersion, why: str, **who: str) -> None:
    metadata = {SENTENCE: why, PROMOTED: True, **who, **version_metadata(version)}
    context.log_event(dg.AssetMaterialization("registered_model", metadata=metadata))


def approved(approval: Approval, registry: Registry) -> ModelVersion:
    """Returns the version that an approval releases.

    Raises:
        dagster.Failure: name or reason are blank, the version does not wait, or the champion it
            was judged against is no longer the champion.
    """
    if not approval.name.strip() or not approval.reason.strip():
        raise dg.Failure("an approval needs a name and a reason", allow_retries=False)
    waiting = registry.challenger()
    if waiting is None or waiting.version != approval.version:
        stands = f"version {waiting.version} does" if waiting else "none does"
        raise dg.Failure(
            f"version {approval.version} does not wait for approval, {stands}", allow_retries=False
        )
    judged, now = waiting.facts["champion_before"], champion_before(registry)
    if judged != now:
        raise dg.Failure(
            f"version {waiting.version} was judged against champion {judged}, which is {now} by "
            "now: run the job retrain to have a challenger judged against it",
            allow_retries=False,
        )
    return waiting


def reinstated(wanted: Reinstatement, registry: Registry, ledger: Ledger) -> ModelVersion:
    """Returns the version that is brought back.

    Raises:
        dagster.Failure: name or reason are blank, or the version was never champion, or is.
    """
    if not wanted.name.strip() or not wanted.reason.strip():
        raise dg.Failure("to bring a version back needs a name and a reason", allow_retries=False)
    held = list(dict.fromkeys(e.after for e in ledger.entries() if e.kind == "alias_move"))
    now = champion_before(registry)
    if wanted.version == now or wanted.version not in held:
        stands = "is the champion" if wanted.version == now else "was never champion"
        others = ", ".join(str(one) for one in held if one != now) or "none"
        raise dg.Failure(
            f"version {wanted.version} {stands}; versions to go back to: {others}",
            allow_retries=False,
        )
    return registry.version(wanted.version)
