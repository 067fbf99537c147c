"""The facts of the loop report, and the sentences that begin it.

They are gathered in `defs.reporting`, shown by `page`. Whatever stands
here was recorded when it happened or measured by `evidence` on known outcomes.
"""

from dataclasses import dataclass

from health_predict.evidence import Bin, Foretold, Gain, NetBenefit
from health_predict.story import BatchStory, LoopStory
from health_predict.subgroups import GroupScores

_NUMBERS = (
    *("none", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)


@dataclass(frozen=True)
class Moved:
    """A column of a batch that moved beyond chance, by more than the smallest effect.

    Attributes:
        column: the published column.
        psi: population stability index.
        weight: share of the movement of the champion's scores that is due to it.
        words: how it moved.
    """

    column: str
    psi: float
    weight: float
    words: str


@dataclass(frozen=True)
class BatchReport:
    """One batch.

    Attributes:
        told: how it was found and what was decided.
        arrived: when, epoch seconds; None if that was not recorded.
        chance_bound: how far chance alone takes the drift statistic.
        false_alarm_rate: share of undrifted batches that lie beyond it.
        moved: the columns that moved, those that matter most first.
        champion: how the champion of the day foretold it; None before outcomes are known.
        first: how the first model would have, never retrained.
        evidently: address of Evidently's report, empty if there is none.
    """

    told: BatchStory
    arrived: float | None
    chance_bound: float
    false_alarm_rate: float
    moved: list[Moved]
    champion: Foretold | None
    first: Foretold | None
    evidently: str


@dataclass(frozen=True)
class Served:
    """A version that answered `/predict`.

    Attributes:
        version: the version.
        since: when it was verified to answer, epoch seconds.
        until: when the next one was; None while it answers.
        family: model family.
        window: encounters it learned from.
        image: what runs it, by digest.
        record: where the release record is.
    """

    version: str
    since: float
    until: float | None
    family: str
    window: str
    image: str
    record: str


@dataclass(frozen=True)
class Champion:
    """The model in office, as it was registered.

    Attributes:
        version: the version.
        family: model family.
        run_id: its MLflow run.
        threshold: probability from which it asks for an intervention.
        threshold_reason: why that one.
        held_out: people of the gate.
        auc: on them.
        groups: the same, group by group.
        importance: feature, and its share of all movement of the scores, largest first.
    """

    version: str
    family: str
    run_id: str
    threshold: float
    threshold_reason: str
    held_out: int
    auc: float
    groups: list[GroupScores]
    importance: list[tuple[str, float]]


@dataclass(frozen=True)
class Links:
    """Where to look further; addresses without a slash at their end."""

    dagit: str
    mlflow: str


@dataclass(frozen=True)
class LoopReport:
    """All that the page shows.

    Attributes:
        made: when, epoch seconds.
        page: file that the page was written to.
        run_id: the Dagster run that made it.
        story: what the loop did.
        first_version: the first champion, None before there was one.
        batches: one entry a batch, in order of arrival.
        gain: what retraining was worth; None if no later version scored a batch yet.
        champion_bins: how often what the champions of the day foretold came.
        first_bins: the same of the first model on the same encounters.
        benefits: the decision curve of both, on the same encounters.
        served: the versions that answered, in order.
        champion: the model in office.
        links: where to look further.
    """

    made: float
    page: str
    run_id: str
    story: LoopStory
    first_version: str | None
    batches: list[BatchReport]
    gain: Gain | None
    champion_bins: list[Bin]
    first_bins: list[Bin]
    benefits: list[NetBenefit]
    served: list[Served]
    champion: Champion | None
    links: Links

    @property
    def headline(self) -> str:
        """What the loop did, in one sentence."""
        story = self.story
        if not story.promotions:
            return "There is no champion yet, so nothing could be watched."
        if not story.batches:
            return "The first champion is in office and waits for its first batch."
        count, drifted = len(story.batches), sum(b.drift.drifted for b in story.batches)
        which = "all" if count == drifted > 1 else "it" if count == drifted else _some(drifted)
        found = f"{_count(count, 'batch', 'batches')} arrived and {which} drifted"
        return _sentence(f"{found}; {self._answered}.")

    @property
    def _answered(self) -> str:
        # One that a person brought back is no challenger.
        promoted = len({promotion.version for promotion in self.story.promotions}) - 1
        refused = len(self.story.refusals)
        trained = promoted + refused
        if not trained:
            return "the loop did not have to retrain"
        retrained = f"the loop retrained {_times(trained)}"
        if not (promoted and refused):
            end = "took over" if promoted else "was refused"
            return f"{retrained} and {'the' if trained == 1 else 'each'} challenger {end}"
        challengers = _count(promoted, "challenger", "challengers")
        were = "was" if refused == 1 else "were"
        return f"{retrained}: {challengers} took over, {_some(refused)} {were} refused"

    @property
    def taken_back(self) -> str:
        """How many releases were rolled back, in one sentence."""
        count = len(self.story.rollbacks)
        if not count:
            return "No release had to be taken back."
        drills = sum(sentence.startswith("Drill") for sentence in self.story.rollbacks)
        by_drill = {0: "", count: " in a drill"}.get(drills, f", {_some(drills)} in a drill")
        was = "was" if count == 1 else "were"
        return _sentence(f"{_count(count, 'release', 'releases')} {was} taken back{by_drill}.")

    @property
    def answering(self) -> str:
        """Which version answers, in one sentence."""
        if not self.served:
            return "Nothing was rolled out yet."
        return f"Version {self.served[-1].version} answers."

    @property
    def worth(self) -> str:
        """What retraining was worth, in one sentence."""
        if self.gain is None:
            return (
                "What retraining is worth shows once a later version has scored a batch whose "
                "outcomes are known."
            )
        gain, difference = self.gain, self.gain.difference
        scored = _count(gain.batches, "batch", "batches")
        verdict = (
            "which may be chance"
            if difference.low <= 0 <= difference.high
            else "which is beyond chance"
        )
        return (
            f"On the {scored} that a retrained model scored ({gain.encounters:,} encounters), its "
            f"AUC was {gain.auc:.3f}; the first model, never retrained, would have had "
            f"{gain.first_auc:.3f}: a difference of {difference.value:+.3f} "
            f"[{difference.low:+.3f}, {difference.high:+.3f}], {verdict}."
        )


def _count(number: int, one: str, many: str) -> str:
    return f"{_some(number)} {one if number == 1 else many}"


def _some(number: int) -> str:
    """Returns a number in words, digits beyond twelve."""
    return _NUMBERS[number] if number < len(_NUMBERS) else f"{number:,}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{_some(number)} times")
