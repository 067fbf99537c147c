"""How the notebooks measure and draw: figures with intervals, captions and one look.

Every figure says what data it was made from. What is measured and what it means stands in the
notebooks; how a notebook becomes a page, in `render`.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import BytesIO
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib import rc_context
from matplotlib.figure import Figure

from health_predict import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#22272e", "#8b949e"
BLUE, RED, GREEN = "#0072b2", "#d55e00", "#009e73"
"""Okabe and Ito's: told apart by the colour-blind."""

RESAMPLES = 400

_LOOK: dict[Any, Any] = {
    **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color"], INK),
    **{"axes.edgecolor": FAINT, "axes.titlelocation": "left", "axes.titlesize": 11},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"axes.grid": True, "grid.color": "#e6e9ed", "axes.axisbelow": True, "font.size": 10},
}

Measured = tuple[float, float, float]
"""A figure with the ends of its 95 % interval."""


def measured(
    measure: Callable[..., np.ndarray], *columns: np.ndarray, patients: np.ndarray
) -> Measured:
    """Returns a measure with its interval, resampled by patient.

    Args:
        measure: takes the columns and weights (r, n), returns (r,), as those of `metrics` do.
        columns: (n,) each.
        patients: patient of each row (n,).
    """
    drawn = metrics.by_patient(patients, seed=0, resamples=RESAMPLES)
    plain = float(measure(*columns, metrics.plain(columns[0]))[0])
    return plain, *metrics.interval(measure(*columns, drawn))


def share(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean of values (n,) under weightings (r, n), as a measure does."""
    mean: np.ndarray = weights @ values / weights.sum(axis=1)
    return mean


def figures(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray
) -> dict[str, Measured]:
    """Returns what a forecast is worth, measure by measure."""
    columns = (labels.astype(float), probabilities)
    return {
        name: measured(measure, *columns, patients=patients)
        for name, measure in (
            ("AUC", metrics.auc),
            ("Brier score", metrics.brier),
            ("expected/observed", metrics.expected_observed),
            ("calibration slope", metrics.calibration_slope),
        )
    }


def words(figure: Measured, digits: int = 3) -> str:
    """Returns a figure with its interval."""
    value, low, high = figure
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(figure: Measured, digits: int = 3) -> str:
    """Returns a difference with its interval, signs shown."""
    value, low, high = (f"{round(number, digits) + 0.0:+.{digits}f}" for number in figure)
    return f"{value} [{low}, {high}]"


def say(text: str) -> None:
    """Shows a paragraph whose figures were computed."""
    display(Markdown(text))


def table(frame: pd.DataFrame) -> None:
    """Shows a small table without its index."""
    display(HTML(frame.to_html(index=False, border=0, justify="left")))


class Gallery:
    """The figures of one notebook, numbered.

    Args:
        made_from: the data they are made from, a sentence that every caption ends with.
    """

    def __init__(self, made_from: str) -> None:
        self.made_from = made_from
        self._numbers = count(1)

    @contextmanager
    def figure(
        self,
        title: str,
        caption: str,
        *panels: int,
        height: float,
        ratios: Sequence[float] | None = None,
    ) -> "Iterator[tuple[Figure, list[Axes]]]":
        """Yields a figure and its panels to draw into, and shows it once that is done.

        Args:
            title: what is to be seen.
            caption: what is drawn.
            panels: rows and columns of panels; one panel if not given.
            height: inches; the width is that of the page.
            ratios: heights of the rows, all alike if not given.
        """
        rows, columns = panels or (1, 1)
        with rc_context(_LOOK):
            figure = Figure(figsize=(9, height), layout="constrained")
            figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
            grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
            yield figure, list(grid.flat)
            picture = BytesIO()
            figure.savefig(picture, format="png", dpi=160, facecolor="white")
        source = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
        image = f'<img alt="{escape(title)}. {escape(caption)}" src="{source}">'
        told = f"<b>Figure {next(self._numbers)}.</b> {escape(caption)} <em>{self.made_from}</em>"
        display(HTML(f"<figure>{image}<figcaption>{told}</figcaption></figure>"))


def band(axes: "Axes", places: Sequence[int], figures: Sequence[Measured], colour: str) -> None:
    """Draws figures as a line with its interval as a band."""
    middle, low, high = np.array(figures).T
    axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(places, middle, color=colour, marker="o", markersize=4)


def bars(
    axes: "Axes", places: Sequence[float] | np.ndarray, figures: Sequence[Measured], colour: str
) -> None:
    """Draws figures as points with their intervals, one a row."""
    middle, low, high = np.array(figures).T
    axes.hlines(places, low, high, color=colour, linewidth=2, alpha=0.45)
    axes.plot(middle, places, "o", color=colour, markersize=5)


def legend(axes: "Axes", colours: dict[str, str], place: Any) -> None:
    """Says what the colours of points mean; the place is named as matplotlib does."""
    for meaning, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=meaning)
    axes.legend(loc=place)


def percent(value: float, _: object = None) -> str:
    """Returns a share as axes are labelled."""
    return f"{value:.0%}"
