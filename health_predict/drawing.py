"""Figures as plain geometry: where each line, mark and letter stands, in the SVG's own units.

Drawn by `figures.html.j2` and coloured by `page.css`. No label is placed on another: what does not
fit is left to the table beside the figure. What is drawn is known to `timeline` and
`evidence_figures`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

TEXT_SIZE = 13.0
# Of the widest of the fonts that the page may be shown in, digits and small letters.
LETTER = 0.62 * TEXT_SIZE
"""Width of a letter, rather too large than too small."""
GAP = 4.0
"""Between a mark and its label."""
MARK = 5.0
"""Radius of a mark."""

Anchor = Literal["start", "middle", "end"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """A line, an area or a mark: SVG path data, its class, and what is said of it on pointing."""

    path: str
    kind: str
    title: str = ""


@dataclass(frozen=True)
class Label:
    """A text, `x` and `y` being the end of its baseline that `anchor` names."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    kind: str = ""

    @property
    def box(self) -> Box:
        """Left, top, right and bottom of the text, rather too large than too small."""
        width = LETTER * len(self.text)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return (left, self.y - 0.8 * TEXT_SIZE, left + width, self.y + 0.25 * TEXT_SIZE)


@dataclass
class Drawing:
    """A figure: its size, what it says to those who cannot see it, and what it is made of."""

    width: float
    height: float
    summary: str
    shapes: list[Shape] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    def draw(self, path: str, kind: str, title: str = "") -> None:
        """Adds a shape on top of the others."""
        self.shapes.append(Shape(path, kind, title))

    def write(self, *labels: Label) -> bool:
        """Adds the first of the labels that covers no other; returns whether there was one."""
        for label in labels:
            left, _, right, _ = label.box
            inside = left >= -0.5 and right <= self.width + 0.5
            if inside and not any(overlap(label.box, other.box) for other in self.labels):
                self.labels.append(label)
                return True
        return False


def overlap(one: Box, other: Box) -> bool:
    """Returns whether two boxes cover a common area."""
    across = one[0] < other[2] and other[0] < one[2]
    return across and one[1] < other[3] and other[1] < one[3]


@dataclass(frozen=True)
class Scale:
    """From values to positions: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Returns the position of a value."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Returns at most so many round values within the scale, evenly spaced."""
        steps = (m * 10.0**e for e in range(-4, 6) for m in (1.0, 2.0, 5.0))
        step = next(s for s in steps if (self.high - self.low) / s <= most - 1)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 6) for index in range(first, last + 1)]


def figure(tick: float, scale: Scale) -> str:
    """Returns a tick as it is written."""
    digits = 2 if scale.high - scale.low < 2 else 0
    return f"{tick:.{digits}f}"


def _at(x: float, y: float) -> str:
    return f"{x:.1f} {y:.1f}"


def line(points: Sequence[tuple[float, float]]) -> str:
    """Returns the path of a line through points."""
    return f"M{'L'.join(_at(*point) for point in points)}" if points else ""


def polygon(points: Sequence[tuple[float, float]]) -> str:
    """Returns the path of a closed line."""
    return f"{line(points)}Z"


def rectangle(x: float, y: float, width: float, height: float) -> str:
    """Returns the path of a rectangle, its upper left corner given."""
    return f"M{_at(x, y)}h{width:.1f}v{height:.1f}h{-width:.1f}Z"


def square(x: float, y: float, half: float) -> str:
    """Returns the path of a square, its middle given."""
    return rectangle(x - half, y - half, 2 * half, 2 * half)


def circle(x: float, y: float, r: float) -> str:
    """Returns the path of a circle, its middle given."""
    return (
        f"M{_at(x - r, y)}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0"
    )
