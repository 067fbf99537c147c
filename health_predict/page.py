"""The loop as a page to look at: one self-contained HTML file, no script, no external asset."""

from dataclasses import dataclass
from pathlib import Path

from health_predict.settings import Settings
from health_predict.story import LoopStory

_TEMPLATE = Path(__file__).with_name("page.html.j2")

# The plot's inner box, in the SVG's own units.
_WIDTH, _HEIGHT = 760.0, 200.0
_LEFT, _RIGHT, _TOP = 48.0, 16.0, 18.0


@dataclass(frozen=True)
class Point:
    """One batch in a plot: where it stands and what is written at it."""

    x: float
    y: float
    label: str
    kind: str


@dataclass(frozen=True)
class Plot:
    """One measure over the batches, with the lines it is held against."""

    title: str
    points: list[Point]
    lines: list[tuple[float, str]]
    batches: list[tuple[float, str]]
    width: float = _WIDTH + _LEFT + _RIGHT
    height: float = _HEIGHT + _TOP + 30


def write_page(told: LoopStory, settings: Settings) -> Path:
    """Writes the story to `var/loop.html` and returns the path."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    path = settings.var / "loop.html"
    path.write_text(
        template.render(told=told, plots=_plots(told), store=settings.store.resolve().as_uri()),
        encoding="utf-8",
    )
    return path


def _plots(told: LoopStory) -> list[Plot]:
    from health_predict.evaluation import CALIBRATION_BOUNDS

    drift = [b.drift.statistic for b in told.batches]
    kinds = ["alarm" if b.drift.drifted else "calm" for b in told.batches]
    threshold = max((b.drift.threshold for b in told.batches), default=0.7)
    low, high = CALIBRATION_BOUNDS
    ratios = [b.expected_observed for b in told.batches]
    outside = ["calm" if r is None or low <= r <= high else "alarm" for r in ratios]
    return [
        _plot(
            told,
            "Drift: how well batch and reference can be told apart (AUC)",
            list(drift),
            kinds,
            {"drift": threshold, "alike": 0.5},
            (0.48, max([*drift, 0.85]) + 0.02),
        ),
        _plot(
            told,
            "Discrimination: AUC of the champion of the day",
            [b.auc for b in told.batches],
            ["calm"] * len(told.batches),
            {},
            (0.55, 0.75),
        ),
        _plot(
            told,
            "Calibration: expected over observed readmissions",
            ratios,
            outside,
            {"upper bound": high, "calibrated": 1.0, "lower bound": low},
            (0.7, 1.4),
        ),
    ]


def _plot(
    told: LoopStory,
    title: str,
    values: list[float | None],
    kinds: list[str],
    lines: dict[str, float],
    span: tuple[float, float],
) -> Plot:
    known = [value for value in values if value is not None]
    low, high = min([span[0], *known]), max([span[1], *known])
    step = _WIDTH / max(1, len(values))

    def x(index: int) -> float:
        return _LEFT + step * (index + 0.5)

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (high - value) / (high - low)

    points = [
        Point(x(i), y(value), f"{value:.2f}" if high > 1 else f"{value:.3f}", kind)
        for i, (value, kind) in enumerate(zip(values, kinds, strict=True))
        if value is not None
    ]
    named = [(y(value), f"{value:.2f}") for value in lines.values()]
    names = [(x(i), b.batch.removeprefix("batch-")) for i, b in enumerate(told.batches)]
    return Plot(title, points, named, names)
