"""What moves a model's scores: how much each feature counts, and a picture of how.

Works on the exact contributions that `scorer` computes, told against the mean of the encounters at
hand: what nearly everyone has in common explains no difference between them. An association that a
model learned is not a cause, and nothing here says why one person is readmitted.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from health_predict.features import NUMERIC

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from health_predict.scorer import Contributions

TOP = 15
"""Features in a picture: what follows them adds little, and more could not be read."""

_BINS = 120
_INK, _FAINT, _CATEGORY = "#22272e", "#8b949e", "#a9b1ba"
_COLOURS = "viridis"  # told apart by the colour-blind and in grey


def global_importance(contributions: "Contributions") -> list[tuple[str, float]]:
    """Returns each feature with its share of all movement of the scores, largest first.

    A feature's movement is its mean |contribution|, counted from its mean over these encounters;
    the shares add up to 1.

    Raises:
        ValueError: the encounters do not differ in any contribution.
    """
    movement = abs(contributions.centred().values).mean(axis=0)
    total = float(movement.sum())
    if total == 0:
        raise ValueError(
            f"{len(contributions.values)} encounters do not differ in any contribution: "
            "importance is measured between encounters, give more of them"
        )
    shares = zip(contributions.names, (movement / total).tolist(), strict=True)
    return sorted(shares, key=lambda share: -share[1])


def summary_picture(
    contributions: "Contributions",
    values: Mapping[str, Sequence[Any]],
    *,
    title: str,
    caption: str,
    top: int = TOP,
) -> bytes:
    """Returns a PNG: one row of points a feature, one point an encounter.

    Args:
        contributions: of n encounters.
        values: feature -> its n values, as `features.derive` returns them; numbers colour the
            points by their rank among the n, levels leave them grey.
        title: model, family and version.
        caption: which encounters: how many, from which data.
        top: number of features, by importance.

    Raises:
        ValueError: the encounters do not differ in any contribution, or their number is not n.
        KeyError: a feature has no values.
    """
    from matplotlib.figure import Figure

    shares = global_importance(contributions)[:top]
    centred = contributions.centred()
    figure = Figure(figsize=(9, 1.9 + 0.36 * len(shares)), dpi=160, layout="constrained")
    axes = figure.subplots()
    width = abs(centred.values).max() / _BINS
    for row, (name, _) in enumerate(reversed(shares)):
        column = centred.values[:, centred.names.index(name)]
        if len(values[name]) != len(column):
            raise ValueError(f"{name} has {len(values[name])} values of {len(column)} encounters")
        _points(axes, column, row + _swarm(column, width), _ranks(name, values[name]))
    _label_rows(axes, shares)
    _label_axes(figure, axes, centred.unit, title, caption)
    picture = BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    return picture.getvalue()


def _ranks(name: str, values: Sequence[Any]) -> "np.ndarray | None":
    """Returns the rank of each number, the lowest 0 and the highest 1; None for levels."""
    import numpy as np

    if name not in NUMERIC:
        return None
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    middle: np.ndarray = np.cumsum(count) - count / 2
    spread = middle - middle[0]
    ranks: np.ndarray = (spread / max(1.0, spread[-1]))[place]
    return ranks


def _swarm(column: "np.ndarray", width: float) -> "np.ndarray":
    """Returns how far each point stands off its row's middle: crowded places are broad."""
    import numpy as np

    _, place, count = np.unique(np.round(column / width), return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    starts = np.cumsum(count) - count
    within = np.empty(len(column))
    within[order] = np.arange(len(column)) - np.repeat(starts, count)
    side = np.where(within % 2 == 0, 1, -1) * np.ceil(within / 2)
    reach: np.ndarray = 0.4 * np.sqrt(count / count.max())
    return side / np.maximum(1, count[place] / 2) * reach[place]


def _points(axes: "Axes", x: "np.ndarray", y: "np.ndarray", ranks: "np.ndarray | None") -> None:
    size = max(2.0, min(14.0, 9_000 / len(x)))
    points = axes.scatter(x, y, s=size, alpha=0.75, linewidths=0, color=_CATEGORY)
    if ranks is not None:
        points.set(array=ranks, cmap=_COLOURS, clim=(0, 1))


def _label_rows(axes: "Axes", shares: list[tuple[str, float]]) -> None:
    names = [f"{name}  {share:.0%}" for name, share in reversed(shares)]
    axes.set_yticks(range(len(shares)), names)
    axes.set_ylim(-0.7, len(shares) - 0.3)
    for row in range(len(shares)):
        axes.axhline(row, color="#e6e9ed", linewidth=0.8, zorder=0)


def _label_axes(figure: "Figure", axes: "Axes", unit: str, title: str, caption: str) -> None:
    from matplotlib.cm import ScalarMappable

    axes.axvline(0, color=_FAINT, linewidth=1, zorder=0)
    axes.set_xlabel(
        f"contribution to the score before calibration, {unit}\n"
        "(beside each name: its share of all movement of the scores)",
        color=_INK,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(axis="y", length=0, colors=_INK)
    axes.tick_params(axis="x", colors=_INK)
    axes.set_title(title, loc="left", pad=24, fontsize=13, color=_INK, fontweight="bold")
    axes.text(0, 1.015, caption, transform=axes.transAxes, fontsize=10, color=_FAINT)
    bar = figure.colorbar(ScalarMappable(cmap=_COLOURS), ax=axes, aspect=40, pad=0.01)
    bar.set_ticks([0, 1], labels=["low", "high"])
    bar.set_label("value among these encounters (grey: not a number)", color=_INK)
    bar.ax.tick_params(length=0, colors=_INK)
    bar.outline.set_visible(False)
