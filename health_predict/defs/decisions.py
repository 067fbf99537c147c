"""What the loop does next and why: pure functions from persisted facts to a request.

No Dagster instance is read here and nothing is launched; `automation` does both. Each decision
carries its sentence, whether something is requested or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from health_predict.defs.facts import Event, Run

MOST_ATTEMPTS = 3


@dataclass(frozen=True)
class Request:
    """A run to start.

    Attributes:
        job: which job.
        trigger: id of the event it answers; 0 where there is none.
        attempt: 1 for the first.
        partition: of which batch, if any.
        assets: which assets of the job, all if empty.
    """

    job: str
    trigger: int = 0
    attempt: int = 1
    partition: str | None = None
    assets: tuple[str, ...] = ()

    @property
    def run_key(self) -> str:
        """The same for the same event and attempt, whenever it is asked for."""
        event = str(self.trigger or "")
        parts = (self.job, self.partition, *self.assets, event, str(self.attempt))
        return ":".join(part for part in parts if part)


@dataclass(frozen=True)
class Decision:
    """What to start, if anything, and why.

    Attributes:
        sentence: the reason in words.
        requests: runs to start.
        settled: newest event id that needs no further thought, None to keep the one before.
        alert: whether a person has to act.
    """

    sentence: str
    requests: tuple[Request, ...] = ()
    settled: int | None = None
    alert: bool = False


def decide_bootstrap(runs: Sequence[Run], waiting: str = "") -> Decision:
    """Decides whether to train the first champion, given that there is none.

    Args:
        runs: runs of `bootstrap`, newest first.
        waiting: what is said of a challenger that waits for approval; empty if none does.
    """
    if waiting:
        return Decision(waiting)
    if any(run.state == "running" for run in runs):
        return Decision("The first champion is being trained.")
    failures = [run for run in runs if run.state == "failed"]
    if len(failures) >= MOST_ATTEMPTS:
        return given_up("bootstrap", failures)
    if any(run.state == "succeeded" for run in runs):
        return Decision(
            "The first challenger was refused and there is no champion: read why in the check "
            "challenger_beats_champion, mend the data and run bootstrap again.",
            alert=True,
        )
    again = f", attempt {len(failures) + 1}" if failures else ""
    return Decision(
        f"There is no champion yet: training the first one{again}.",
        (Request("bootstrap", attempt=len(failures) + 1),),
    )


def why(event: Event) -> str:
    """Returns what an event says of itself."""
    return str(event.metadata.get("sentence", "no reason was recorded"))


def given_up(job: str, failures: Sequence[Run]) -> Decision:
    """Returns the decision not to try a job again, which a person has to."""
    return Decision(
        f"{job} failed {len(failures)} times (newest run {failures[0].run_id[:8]}): not tried "
        f"again by itself. Read the run's log, mend the cause and launch {job} by hand.",
        alert=True,
    )


def decide_deploy(
    promoted: Event | None, deployed: Event | None, scored: Event | None, runs: Sequence[Run]
) -> Decision:
    """Decides whether to roll the champion out.

    Args:
        promoted: the newest promotion, None if there was none.
        deployed: the newest roll-out that ended, rolled back or not.
        scored: the newest scores of a batch, which name the champion of that moment.
        runs: runs of `deploy`, newest first.
    """
    if promoted is None:
        return Decision("There is no champion to roll out yet.")
    version, trigger, cause = promoted.metadata["version"], promoted.id, why(promoted)
    answered = any(
        run.state == "succeeded" and run.trigger is not None and run.trigger >= promoted.id
        for run in runs
    )
    if deployed is not None and (answered or deployed.metadata["wanted"] == version):
        if scored is None or not _moved_by_hand(scored, deployed):
            return Decision(
                f"Version {deployed.metadata['wanted']} was rolled out. {why(deployed)}"
            )
        version, trigger = scored.metadata["champion_version"], scored.id
        cause = (
            f"the alias champion was moved to it by hand, as {scored.partition} was scored by it "
            f"and version {deployed.metadata.get('version')} serves."
        )
    if any(run.state == "running" for run in runs):
        return Decision(f"Version {version} waits: a roll-out is under way.")
    failures = [run for run in runs if run.trigger == trigger and run.state == "failed"]
    if len(failures) >= MOST_ATTEMPTS:
        return given_up("deploy", failures)
    attempt = len(failures) + 1
    again = f" Attempt {attempt} of {MOST_ATTEMPTS}." if failures else ""
    return Decision(
        f"Rolling out version {version}: {cause}{again}",
        (Request("deploy", trigger=trigger, attempt=attempt),),
    )


def _moved_by_hand(scored: Event, deployed: Event) -> bool:
    """Returns whether a batch was scored, after a roll-out, by a version that does not serve."""
    seen, serves = scored.metadata.get("champion_version"), deployed.metadata.get("version")
    return scored.id > deployed.id and seen is not None and seen != serves
