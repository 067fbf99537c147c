"""A person's approval: the op that releases the challenger which passed the gate and waits."""

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
    context.log_event(
        dg.AssetMaterialization(
            "registered_model",
            metadata={
                SENTENCE: f"{why} {version.facts['verdict']}",
                PROMOTED: True,
                "approved_by": who,
                **version_metadata(version),
            },
        )
    )


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
