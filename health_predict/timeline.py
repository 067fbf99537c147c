"""The figures over the batches: drift, the columns that moved, how well batches were foretold.

All share the place of a batch, so that one can stand above the other. Nothing is measured here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from health_predict.drawing import (
    GAP,
    LETTER,
    MARK,
    TEXT_SIZE,
    Drawing,
    Label,
    Scale,
    circle,
    figure,
    line,
    polygon,
    rectangle,
    square,
)
from health_predict.estimation import Measured

WIDE, NARROW = 860.0, 340.0
"""Widths of a figure: of a desk or a sheet of paper, and of a phone."""
_CLOSE = 9.0
"""Width of a batch below which lines beside each other would be a tangle."""


@dataclass(frozen=True)
class Timeline:
    """What the figures over the batches share, so that one stands above the other.

    Attributes:
        names: of the batches, as short as they can be.
        versions: batch before which a version took over -> the version; 0 for the first.
        width: of the figure.
    """

    names: Sequence[str]
    versions: Sequence[tuple[int, str]]
    width: float = WIDE

    left = 40.0
    right = 46.0
    top = 26.0

    @property
    def slot(self) -> float:
        """Width that a batch has."""
        return (self.width - self.left - self.right) / max(1, len(self.names))

    def x(self, index: float) -> float:
        """Returns the middle of a batch's slot."""
        return self.left + self.slot * (index + 0.5)

    @property
    def plot(self) -> float:
        """Height of a plot."""
        return 210.0 if self.width == WIDE else 170.0

    @property
    def mark(self) -> float:
        """Radius of a mark: as large as the slot allows."""
        return max(1.6, min(MARK, 0.36 * self.slot))


def drift(
    timeline: Timeline,
    statistics: Sequence[float],
    thresholds: Sequence[float],
    bounds: Sequence[float],
    decisions: Sequence[str],
) -> Drawing:
    """Returns the drift statistic of each batch, what it is held against and what was decided."""
    alarms = [value > limit for value, limit in zip(statistics, thresholds, strict=True)]
    high = max([*statistics, *thresholds]) + 0.05
    y = Scale(min([0.48, *statistics]), min(1.03, high), timeline.top + timeline.plot, timeline.top)
    found = Drawing(
        timeline.width,
        timeline.top + timeline.plot + 54,
        f"Drift statistic of {len(statistics)} batches, {min(statistics):.2f} to "
        f"{max(statistics):.2f}; {sum(alarms)} above the threshold.",
    )
    _grid(found, timeline, y)
    corners = [(timeline.x(at), y(y.low)) for at in (-0.5, len(bounds) - 0.5)]
    chance = _steps(timeline, [y(bound) for bound in bounds])
    found.draw(polygon([corners[0], *chance, corners[1]]), "chance")
    found.draw(line(_steps(timeline, [y(value) for value in thresholds])), "limit")
    _takeovers(found, timeline, y)
    found.draw(line([(timeline.x(i), y(v)) for i, v in enumerate(statistics)]), "thread")
    for index, (value, alarm) in enumerate(zip(statistics, alarms, strict=True)):
        title = f"batch {timeline.names[index]}: {value:.3f}, threshold {thresholds[index]:.2f}"
        kind = "alarm" if alarm else "calm"
        found.draw(circle(timeline.x(index), y(value), timeline.mark), kind, title)
    for index in _worth_writing(timeline, statistics):
        value, limit = statistics[index], y(thresholds[index])
        _write_value(found, timeline, index, y(value), limit, f"{value:.2f}")
    lane = y(y.low) + 18
    for index, decision in enumerate(decisions):
        title = f"batch {timeline.names[index]}: {decision.replace('_', ' ')}"
        mark = decision_mark(decision, timeline.x(index), lane, timeline.mark)
        found.draw(mark, f"decision {decision}", title)
    _batches(found, timeline, lane + 26)
    return found


def series(
    timeline: Timeline,
    name: str,
    champion: Sequence[Measured | None],
    first: Sequence[float | None],
    band: tuple[float, float] | None = None,
    digits: int = 2,
) -> Drawing:
    """Returns a measure of each batch, of the champion of the day and of the first model.

    Args:
        timeline: the batches.
        name: the measure.
        champion: of the champion; None where it is not known.
        first: of the first model, likewise.
        band: where the measure should be.
        digits: behind the point.
    """
    known = [m for m in champion if m] + [Measured(v, v, v) for v in first if v is not None]
    ends = [*(m.low for m in known), *(m.high for m in known), *(band or ())]
    pad = 0.06 * (max(ends) - min(ends)) or 0.05
    bottom = timeline.top + timeline.plot
    y = Scale(min(ends) - pad, max(ends) + pad, bottom, timeline.top)
    values = [m.value for m in champion if m]
    found = Drawing(
        timeline.width,
        bottom + 26,
        f"{name} of {len(values)} batches: the champion of the day {min(values):.{digits}f} to "
        f"{max(values):.{digits}f}.",
    )
    _grid(found, timeline, y)
    if band:
        left, width = timeline.left, timeline.width - timeline.left - timeline.right
        found.draw(rectangle(left, y(band[1]), width, y(band[0]) - y(band[1])), "band")
    _takeovers(found, timeline, y)
    _intervals(found, timeline, y, champion)
    points = [None if value is None else y(value) for value in first]
    found.draw(_gapped(timeline, points), "thread never")
    for index, (point, value) in enumerate(zip(points, first, strict=True)):
        own = champion[index]
        # Where the first model is the champion, one mark says it.
        if point is not None and value is not None and (own is None or own.value != value):
            title = f"batch {timeline.names[index]}: {value:.{digits}f} never retrained"
            found.draw(square(timeline.x(index), point, 0.8 * timeline.mark), "first", title)
    found.draw(_gapped(timeline, [None if m is None else y(m.value) for m in champion]), "thread")
    for index, measured in enumerate(champion):
        if measured:
            outside = band is not None and not band[0] <= measured.value <= band[1]
            title = f"batch {timeline.names[index]}: {measured.words(digits)}"
            mark = circle(timeline.x(index), y(measured.value), timeline.mark)
            found.draw(mark, "alarm" if outside else "champion", title)
    _end_labels(found, timeline, y, values[-1], [v for v in first if v is not None], digits)
    _batches(found, timeline, bottom + 20)
    return found


def strips(timeline: Timeline, rows: Sequence[tuple[str, str, Sequence[float | None]]]) -> Drawing:
    """Returns how far columns moved: one strip a column, one cell a batch.

    Args:
        timeline: the batches.
        rows: name of a column, what is said of it, and its index in each batch; None where it
            did not move.
    """
    pitch, height = 44.0, 20.0
    found = Drawing(
        timeline.width,
        pitch * len(rows) + 26,
        f"Population stability index of {len(rows)} columns: {', '.join(row[0] for row in rows)}.",
    )
    for place, (column, said, values) in enumerate(rows):
        top = pitch * place + 18
        found.write(Label(timeline.left, top - 5, column, kind="name"))
        found.write(Label(timeline.width, top - 5, said, "end", "soft"))
        for index, value in enumerate(values):
            x, inset = timeline.x(index) - timeline.slot / 2, min(1.0, 0.08 * timeline.slot)
            cell = rectangle(x + inset, top, timeline.slot - 2 * inset, height)
            title = "" if value is None else f"{column}, batch {timeline.names[index]}: {value:.2f}"
            found.draw(cell, f"cell shade{shade(value)}", title)
            if value is not None and timeline.slot >= 40:
                kind = "inverse" if shade(value) > 2 else ""
                found.write(Label(timeline.x(index), top + 14.5, f"{value:.2f}", "middle", kind))
    _batches(found, timeline, pitch * len(rows) + 20)
    return found


def shade(psi: float | None) -> int:
    """Returns how dark an index is drawn: 0 did not move, 1 below .1, 2 below .25, 3 below .5."""
    return 0 if psi is None else 1 + sum(psi >= bound for bound in (0.10, 0.25, 0.50))


def decision_mark(decision: str, x: float, y: float, r: float) -> str:
    """Returns the path of the mark of a decision: a shape each, so that colour is not needed."""
    if decision == "promoted":
        return polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)])
    if decision == "refused":
        return f"{line([(x - r, y - r), (x + r, y + r)])}{line([(x - r, y + r), (x + r, y - r)])}"
    if decision == "rests":
        return line([(x - r, y), (x + r, y)])
    if decision in ("waiting", "failed"):
        return square(x, y, 0.9 * r)
    return circle(x, y, r if decision == "pending" else 0.4 * r)


def _intervals(
    found: Drawing, timeline: Timeline, y: Scale, champion: Sequence[Measured | None]
) -> None:
    """Draws the interval of each batch; where they stand too close, one ribbon of them all."""
    known = [(timeline.x(index), m) for index, m in enumerate(champion) if m]
    if timeline.slot < _CLOSE:
        above = [(x, y(m.high)) for x, m in known]
        below = [(x, y(m.low)) for x, m in reversed(known)]
        found.draw(polygon([*above, *below]), "ribbon")
        return
    for x, m in known:
        found.draw(line([(x, y(m.low)), (x, y(m.high))]), "whisker")


def _grid(found: Drawing, timeline: Timeline, y: Scale) -> None:
    for tick in y.ticks(7):
        found.draw(
            line([(timeline.left, y(tick)), (timeline.width - timeline.right, y(tick))]), "grid"
        )
        found.write(Label(timeline.left - 7, y(tick) + 4.5, figure(tick, y), "end", "soft"))


def _takeovers(found: Drawing, timeline: Timeline, y: Scale) -> None:
    for before, version in timeline.versions:
        x = timeline.x(before - 0.5)
        if before:
            found.draw(line([(x, timeline.top - 8), (x, y(y.low))]), "takeover", version)
        found.write(Label(x + (5 if before else 0), timeline.top - 11, version, kind="version"))


def _batches(found: Drawing, timeline: Timeline, baseline: float) -> None:
    found.write(Label(0, baseline, "batch", kind="soft"))
    widest = max((len(name) for name in timeline.names), default=1) * LETTER + 2 * GAP
    steps = (m * 10**e for e in range(6) for m in (1, 2, 5))
    step = next(s for s in steps if s * timeline.slot >= widest)
    first = 0 if step <= 2 else step - 1  # 1, 3, 5 or 10, 20, 30
    for index in range(first, len(timeline.names), step):
        found.write(Label(timeline.x(index), baseline, timeline.names[index], "middle", "soft"))


def _worth_writing(timeline: Timeline, values: Sequence[float]) -> Iterable[int]:
    """Returns which values are written at their marks: all, or the largest and the last."""
    if timeline.slot >= 4 * LETTER + 2 * GAP:
        return range(len(values))
    return dict.fromkeys((values.index(max(values)), len(values) - 1))


def _write_value(
    found: Drawing, timeline: Timeline, index: int, y: float, limit: float, text: str
) -> None:
    """Writes a value above its mark, or below it where it would stand on the limit's line."""
    x, off = timeline.x(index), timeline.mark + GAP
    above = Label(x, y - off, text, "middle", "value")
    below = Label(x, y + off + 0.75 * TEXT_SIZE, text, "middle", "value")
    crossed = above.box[1] < limit < above.box[3]
    found.write(*((below, above) if crossed else (above, below)))


def _end_labels(
    found: Drawing,
    timeline: Timeline,
    y: Scale,
    champion: float,
    first: Sequence[float],
    digits: int,
) -> None:
    """Writes the last value of each line at the right, the first model's moved out of the way."""
    x, line = timeline.width - timeline.right + 6, TEXT_SIZE + 2
    at = y(champion) + 4.5
    found.write(Label(x, at, f"{champion:.{digits}f}", kind="champion-value"))
    if first and first[-1] != champion:
        text, own = f"{first[-1]:.{digits}f}", y(first[-1]) + 4.5
        aside = [at + line, at - line] if own >= at else [at - line, at + line]
        found.write(*(Label(x, place, text, kind="never-value") for place in (own, *aside)))


def _steps(timeline: Timeline, heights: Sequence[float]) -> list[tuple[float, float]]:
    """Returns the points of a line that is level within each batch."""
    return [
        (timeline.x(index + side), height)
        for index, height in enumerate(heights)
        for side in (-0.5, 0.5)
    ]


def _gapped(timeline: Timeline, heights: Sequence[float | None]) -> str:
    """Returns a line through what is known; what is not known interrupts it."""
    parts: list[list[tuple[float, float]]] = [[]]
    for index, height in enumerate(heights):
        if height is None:
            parts.append([])
        else:
            parts[-1].append((timeline.x(index), height))
    return "".join(line(part) for part in parts)
