"""What the page of the loop report consists of: figures, tables, and decisions in order.

What cannot be shown yet says why. Where a line stands is known to `timeline` and
`evidence_figures`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from health_predict import evidence_figures, timeline
from health_predict.drawing import Drawing
from health_predict.estimation import Measured
from health_predict.evaluation import CALIBRATION_BOUNDS
from health_predict.evidence import Bin, Foretold
from health_predict.loop_report import BatchReport, Links, LoopReport
from health_predict.subgroups import GroupScores
from health_predict.timeline import NARROW, WIDE, Timeline

_MOST_COLUMNS = 8
"""Columns whose movement is drawn: what follows them moved the scores least."""
_MOST_FEATURES = 10
_NO_OUTCOMES = (
    "No outcome is known yet. A batch is scored once its outcomes are; until then there is "
    "nothing to hold a forecast against."
)

DECISIONS = {
    "promoted": "retrained, promoted",
    "refused": "retrained, refused",
    "waiting": "waits for approval",
    "rests": "same shift, rests",
    "failed": "retraining failed",
    "pending": "not decided yet",
    "no_action": "no action",
}
"""Outcome of a batch -> its words."""

Row = Sequence[str]


@dataclass(frozen=True)
class Panel:
    """A figure with what is needed to read it.

    Attributes:
        title: what it shows.
        reading: how to read it.
        drawings: class -> drawing; more than one for more than one width of the screen.
        words: kind of mark -> what it stands for.
        head: of the table that says the same.
        rows: of it.
        empty: why there is nothing to draw, in words.
    """

    title: str
    reading: str = ""
    drawings: dict[str, Drawing] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    head: Row = ()
    rows: Sequence[Row] = ()
    empty: str = ""

    @property
    def legend(self) -> dict[str, str]:
        """The marks that are drawn, with their words."""
        drawn = {shape.kind for drawing in self.drawings.values() for shape in drawing.shapes}
        return {kind: words for kind, words in self.words.items() if kind in drawn}


@dataclass(frozen=True)
class Entry:
    """A decision: what it was, about what, and its sentence as it was recorded."""

    kind: str
    words: str
    subject: str
    sentence: str
    links: Sequence[tuple[str, str]] = ()


def moment(seconds: float | None) -> str:
    """Returns epoch seconds as people read them, UTC."""
    if seconds is None:
        return "not recorded"
    return f"{datetime.fromtimestamp(seconds, UTC):%-d %b %Y, %H:%M}"


def _short(batch: str) -> str:
    """Returns the name of a batch as an axis shows it."""
    return batch.removeprefix("batch-").lstrip("0") or batch


def _both(report: LoopReport, draw: Callable[[Timeline], Drawing]) -> dict[str, Drawing]:
    """Returns a figure over the batches for both widths."""
    names = [_short(batch.told.batch) for batch in report.batches]
    scored = [batch.told.champion_version for batch in report.batches]
    if report.champion:
        scored.append(report.champion.version)
    versions = [
        (index, f"v{version}")
        for index, version in enumerate(scored)
        if index == 0 or version != scored[index - 1]
    ]
    return {
        "wide": draw(Timeline(names, versions, WIDE)),
        "narrow": draw(Timeline(names, versions, NARROW)),
    }


def drift(report: LoopReport) -> Panel:
    """Returns the drift statistic over the batches, and what was decided."""
    title = "How far each batch lies from what the champion learned from"
    if not report.batches:
        return Panel(title, empty="No batch has arrived yet. They come by schedule.")
    told = [batch.told for batch in report.batches]
    rate = report.batches[-1].false_alarm_rate
    return Panel(
        title,
        "The drift statistic is how well a small model tells batch and reference apart (AUC): 0.5 "
        "is not at all, 1 is always. Above the dashed line a batch calls for a retraining. In the "
        f"shaded area it is within chance: {100 * rate:g}\xa0% of undrifted batches lie above it.",
        _both(
            report,
            lambda axis: timeline.drift(
                axis,
                [batch.drift.statistic for batch in told],
                [batch.drift.threshold for batch in told],
                [batch.chance_bound for batch in report.batches],
                [batch.decision for batch in told],
            ),
        ),
        {
            **{"alarm": "drifted", "calm": "did not"},
            **{"limit": "threshold", "chance": "within chance", "takeover": "a version takes over"},
            **{f"decision {kind}": words for kind, words in DECISIONS.items()},
        },
        ("batch", "arrived, UTC", "statistic", "threshold", "chance up to", "decision"),
        [
            (
                *(b.told.batch, moment(b.arrived), f"{b.told.drift.statistic:.3f}"),
                *(f"{b.told.drift.threshold:.2f}", f"{b.chance_bound:.3f}"),
                DECISIONS[b.told.decision],
            )
            for b in report.batches
        ],
    )


def columns(report: LoopReport) -> Panel:
    """Returns which columns moved, batch by batch."""
    title = "The columns that moved"
    largest: dict[str, float] = {}
    weights: dict[str, float] = {}
    for batch in report.batches:
        for moved in batch.moved:
            score = moved.psi * (moved.weight + 0.001)  # of two without weight, the further moved
            largest[moved.column] = max(largest.get(moved.column, 0.0), score)
            weights[moved.column] = moved.weight
    if not largest:
        reason = "No column moved beyond chance." if report.batches else "No batch has arrived yet."
        return Panel(title, empty=reason)
    psi = [{moved.column: moved.psi for moved in batch.moved} for batch in report.batches]
    ordered = sorted(largest, key=lambda column: -largest[column])
    shown = ordered[:_MOST_COLUMNS]
    rows = [
        (
            column,
            f"weighs {100 * weights[column]:.0f}\xa0%",
            [moved.get(column) for moved in psi],
        )
        for column in shown
    ]
    left = len(ordered) - len(shown)
    more = f" {left} more moved and matter less." if left else ""
    return Panel(
        title,
        "Population stability index of each column, those first that moved furthest and weigh most "
        f"in the champion's scores. An empty cell did not move beyond chance.{more}",
        _both(report, lambda axis: timeline.strips(axis, rows)),
        {
            **{"cell shade1": "below 0.10", "cell shade2": "from 0.10"},
            **{"cell shade3": "from 0.25, large", "cell shade4": "from 0.50"},
        },
        ("batch", "columns that moved, and how"),
        [
            (b.told.batch, "; ".join(moved.words for moved in b.moved) or "none")
            for b in report.batches
        ],
    )


def auc(report: LoopReport) -> Panel:
    """Returns how well the batches were foretold, in AUC."""
    return _measure(
        report,
        "How well readmissions were foretold",
        "AUC of each batch once its outcomes were known: 0.5 is chance, 1 perfect. Lines up and "
        "down are 95\xa0% intervals, resampled by patient.",
        "auc",
        None,
        3,
    )


def ratio(report: LoopReport) -> Panel:
    """Returns expected over observed readmissions of the batches."""
    low, high = CALIBRATION_BOUNDS
    return _measure(
        report,
        "Whether as many came as were foretold",
        "Expected over observed readmissions: 1 is as foretold, above it fewer came. Outside of "
        f"{low:.2f} to {high:.2f} a batch calls for a retraining.",
        "expected_observed",
        CALIBRATION_BOUNDS,
        2,
    )


def _measure(
    report: LoopReport,
    title: str,
    reading: str,
    name: str,
    band: tuple[float, float] | None,
    digits: int,
) -> Panel:
    champion = [getattr(b.champion, name) if b.champion else None for b in report.batches]
    first = [getattr(b.first, name) if b.first else None for b in report.batches]
    if not any(champion):
        return Panel(title, empty=_NO_OUTCOMES)
    points = [measured.value if measured else None for measured in first]
    same = all(b.first is None or b.first == b.champion for b in report.batches)
    only = f" Version {report.first_version} scored all of them: both are the same." if same else ""
    return Panel(
        title,
        reading + only,
        _both(
            report,
            lambda axis: timeline.series(axis, title, champion, points, band, digits),
        ),
        {
            "champion": "champion of the day",
            "first": f"version {report.first_version}, never retrained",
            **{"alarm": "out of bounds", "band": "within bounds"},
        },
        ("batch", "encounters", "readmitted", "scored by", "champion", "never retrained"),
        [_measured_row(b, name, digits) for b in report.batches],
    )


def _measured_row(batch: BatchReport, name: str, digits: int) -> Row:
    def words(foretold: Foretold | None) -> str:
        measured = getattr(foretold, name) if foretold else None
        return measured.words(digits) if measured else "not known"

    known = batch.champion
    return (
        batch.told.batch,
        f"{known.n:,}" if known else "not known",
        f"{known.positives:,}" if known else "not known",
        f"v{batch.told.champion_version}",
        words(known),
        words(batch.first),
    )


def reliability(report: LoopReport) -> Panel:
    """Returns how often what was foretold came, by tenths of risk."""
    title = "Does the risk come true?"
    if not report.champion_bins:
        return Panel(title, empty=_NO_OUTCOMES)
    sizes = sorted(b.n for b in report.champion_bins)
    return Panel(
        title,
        f"{sum(sizes):,} encounters by tenths of risk, {sizes[0]:,} to {sizes[-1]:,} each, scored "
        "by the champion of the day before their outcomes were known. On the dashed line as many "
        "were readmitted as foretold.",
        {"": evidence_figures.reliability(report.champion_bins, report.first_bins)},
        {
            "champion": "champion of the day",
            "first": f"version {report.first_version}, never retrained",
        },
        ("model", "encounters", "foretold", "observed, with its 95\xa0% interval"),
        [
            *(_bin_row("champion", b) for b in report.champion_bins),
            *(_bin_row("never retrained", b) for b in report.first_bins),
        ],
    )


def _bin_row(model: str, b: Bin) -> Row:
    return (model, f"{b.n:,}", f"{b.predicted:.3f}", b.observed.words())


def benefit(report: LoopReport) -> Panel:
    """Returns the decision curve."""
    title = "Does it pay to act on it?"
    if not report.benefits:
        return Panel(title, empty=_NO_OUTCOMES)
    threshold = report.champion.threshold if report.champion else None
    return Panel(
        title,
        "Foreseen readmissions per 100 encounters, less what needless interventions cost, over the "
        "risk from which one acts. A model is of use where it lies above acting always and never.",
        {"": evidence_figures.decision_curve(report.benefits, threshold)},
        {
            "thread strong": "champion of the day",
            "thread never": f"version {report.first_version}, never retrained",
            "everyone": "act always",
            "nobody": "act never",
        },
        ("threshold", "champion", "never retrained", "act always"),
        [
            tuple(f"{v:.2f}" for v in (b.threshold, b.champion, b.first, b.everyone))
            for b in report.benefits[::5]
        ],
    )


def decisions(report: LoopReport) -> list[Entry]:
    """Returns every decision but to do nothing: promotions, refusals, what rests, roll-backs."""
    story = report.story
    batches = [b for b in report.batches if b.told.decision != "no_action"]
    told = " ".join(b.told.reason for b in batches)
    # What a person forced, approved or brought back, and what age called for, answers no batch.
    promotions = [
        Entry("promoted", _took_over(report, place), f"version {p.version}", p.reason)
        for place, p in enumerate(story.promotions)
        if place == 0 or p.reason not in told
    ]
    refusals = [
        Entry("refused", "refused", "a challenger", sentence)
        for sentence in story.refusals
        if sentence not in told
    ]
    taken_back = [
        Entry("failed", "drill, rolled back" if drill else "rolled back", "a release", sentence)
        for sentence in story.rollbacks
        for drill in [sentence.startswith("Drill")]
    ]
    answers = [_entry(batch, report.links) for batch in batches]
    return [*promotions[:1], *answers, *promotions[1:], *refusals, *taken_back]


def _took_over(report: LoopReport, place: int) -> str:
    before = [promotion.version for promotion in report.story.promotions[:place]]
    if not before:
        return "first champion"
    return "brought back" if report.story.promotions[place].version in before else "promoted"


def calm(report: LoopReport) -> list[Entry]:
    """Returns the batches that called for nothing."""
    return [_entry(b, report.links) for b in report.batches if b.told.decision == "no_action"]


def _entry(batch: BatchReport, links: Links) -> Entry:
    told = batch.told
    dagit = f"{links.dagit}/assets/drift_report?partition={told.batch}"
    found = [("Evidently report", batch.evidently), ("in Dagit", dagit)]
    return Entry(told.decision, DECISIONS[told.decision], told.batch, told.reason, found)


def groups(report: LoopReport) -> list[tuple[GroupScores, Drawing]]:
    """Returns the groups of the gate's people of whom something can be said, their AUC drawn."""
    if report.champion is None:
        return []
    told = {g: interval for g in report.champion.groups if (interval := _interval(g))}
    drawn = evidence_figures.intervals(list(told.values()), report.champion.auc)
    return list(zip(told, drawn, strict=True))


def small_groups(report: LoopReport) -> list[GroupScores]:
    """Returns the groups that are too small to say anything of."""
    return [g for g in report.champion.groups if not _interval(g)] if report.champion else []


def _interval(group: GroupScores) -> Measured | None:
    if group.auc is None or group.auc_low is None or group.auc_high is None:
        return None
    return Measured(group.auc, group.auc_low, group.auc_high)


def features(report: LoopReport) -> list[tuple[str, float]]:
    """Returns the features that move the champion's scores most, each with its share."""
    return report.champion.importance[:_MOST_FEATURES] if report.champion else []


def tag(image: str) -> str:
    """Returns an image's reference with as much of its digest as tells it from others."""
    name, at, digest = image.partition("@sha256:")
    return f"{name}{at}{digest[:12]}" if digest else image
