"""The figures of what outcomes prove: reliability, decision curve, intervals of groups.

Nothing is measured here: that is `evidence`.
"""

from collections.abc import Sequence

from health_predict.drawing import (
    MARK,
    TEXT_SIZE,
    Drawing,
    Label,
    Scale,
    circle,
    figure,
    line,
    square,
)
from health_predict.estimation import Measured
from health_predict.evidence import Bin, NetBenefit

WIDTH = 420.0
"""Of a figure that stands beside another."""


def reliability(champion: Sequence[Bin], first: Sequence[Bin]) -> Drawing:
    """Returns observed shares over foretold probabilities, by tenths of risk."""
    ends = [e for b in (*champion, *first) for e in (b.predicted, b.observed.low, b.observed.high)]
    low, high = max(0.0, min(ends) - 0.04), min(1.0, max(ends) + 0.04)
    found, x, y = _square_plot(
        (low, high),
        (low, high),
        "foretold risk",
        "share readmitted",
        f"Reliability of {sum(b.n for b in champion):,} encounters in {len(champion)} groups.",
    )
    found.draw(line([(x(low), y(low)), (x(high), y(high))]), "limit")
    found.draw(line([(x(b.predicted), y(b.observed.value)) for b in first]), "thread never")
    for b in first:
        found.draw(square(x(b.predicted), y(b.observed.value), 4), "first", _words(b))
    for b in champion:
        at = x(b.predicted)
        found.draw(line([(at, y(b.observed.low)), (at, y(b.observed.high))]), "whisker")
    found.draw(line([(x(b.predicted), y(b.observed.value)) for b in champion]), "thread")
    for b in champion:
        found.draw(circle(x(b.predicted), y(b.observed.value), MARK), "champion", _words(b))
    return found


def _words(b: Bin) -> str:
    return f"{b.n:,} encounters: {b.predicted:.1%} foretold, {b.observed.value:.1%} observed"


def decision_curve(benefits: Sequence[NetBenefit], threshold: float | None) -> Drawing:
    """Returns the net benefit over thresholds: of both models, of acting always and never."""
    best = max(max(b.champion, b.first, b.everyone) for b in benefits)
    low, high = -0.25 * max(best, 1.0), 1.08 * max(best, 1.0)
    span = (benefits[0].threshold, benefits[-1].threshold)
    found, x, y = _square_plot(
        span,
        (low, high),
        "threshold",
        "net benefit per 100",
        "Net benefit of acting on the champion's risk, on the first model's, always, and never.",
    )
    found.draw(line([(x(span[0]), y(0)), (x(span[1]), y(0))]), "nobody")

    def curve(name: str, kind: str) -> None:
        points = [(b.threshold, getattr(b, name)) for b in benefits]
        inside = [(x(t), y(value)) for t, value in points if value >= low]
        found.draw(line(inside), kind)

    curve("everyone", "everyone")
    curve("first", "thread never")
    curve("champion", "thread strong")
    if threshold is not None and span[0] <= threshold <= span[1]:
        at = x(threshold)
        found.draw(line([(at, y(low)), (at, y(high))]), "takeover")
        text = f"set to {threshold:.2f}"
        above = y(high) + TEXT_SIZE
        found.write(Label(at + 5, above, text), Label(at - 5, above, text, "end"))
    return found


def intervals(rows: Sequence[Measured], overall: float, width: float = 150.0) -> list[Drawing]:
    """Returns each value and its interval on a scale that all share.

    Args:
        rows: what is drawn.
        overall: the value of everybody, drawn in each row.
        width: of a row.
    """
    low, high = min([overall, *(r.low for r in rows)]), max([overall, *(r.high for r in rows)])
    x = Scale(low - 0.01, high + 0.01, 4, width - 4)

    def drawn(row: Measured) -> Drawing:
        found = Drawing(width, 18, row.words())
        found.draw(line([(x(overall), 0), (x(overall), 18)]), "limit")
        found.draw(line([(x(row.low), 9), (x(row.high), 9)]), "whisker")
        found.draw(circle(x(row.value), 9, 4), "champion", row.words())
        return found

    return [drawn(row) for row in rows]


def _square_plot(
    across: tuple[float, float], up: tuple[float, float], below: str, beside: str, summary: str
) -> tuple[Drawing, Scale, Scale]:
    left, right, top, bottom = 44.0, 14.0, 30.0, WIDTH - 66.0
    found = Drawing(WIDTH, WIDTH - 20, summary)
    x, y = Scale(*across, left, WIDTH - right), Scale(*up, bottom, top)
    found.write(Label(0, 12, beside, kind="soft"))
    for tick in y.ticks(6):
        found.draw(line([(left, y(tick)), (WIDTH - right, y(tick))]), "grid")
        found.write(Label(left - 7, y(tick) + 4.5, figure(tick, y), "end", "soft"))
    for tick in x.ticks(6):
        found.write(Label(x(tick), bottom + 20, figure(tick, x), "middle", "soft"))
    found.write(Label(WIDTH - right, bottom + 40, below, "end", "soft"))
    return found, x, y
