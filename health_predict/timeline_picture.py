"""The batches as a small picture for Dagit: drift above, below it how well they were foretold."""

from io import BytesIO
from typing import TYPE_CHECKING

from health_predict.loop_report import LoopReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SOFT, _ACCENT, _ALARM, _NEVER = "#1b2026", "#5f6873", "#0b6b7f", "#c2410c", "#79818c"
_MOST_TICKS = 12


def timeline_picture(report: LoopReport) -> bytes:
    """Returns a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=110, layout="constrained", facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True)
    _drift(above, report)
    _auc(below, report)
    if not report.batches:
        _say(above, "no batch has arrived yet")
    if not any(batch.champion for batch in report.batches):
        _say(below, "no outcome is known yet")
    for axes in (above, below):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_NEVER)
        axes.tick_params(colors=_SOFT, length=0)
        axes.grid(axis="y", color="#edebe5")
        axes.set_axisbelow(True)
    places = range(len(report.batches))
    step = max(1, -(-len(places) // _MOST_TICKS))
    names = [batch.told.batch.removeprefix("batch-") for batch in report.batches]
    below.set_xticks(places[::step], names[::step])
    below.set_xlim(-0.6, max(1, len(places)) - 0.4)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _say(axes: "Axes", words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=_SOFT)
    axes.set_yticks([])


def _drift(axes: "Axes", report: LoopReport) -> None:
    axes.set_title("Drift statistic (AUC), its threshold dashed", loc="left", color=_INK)
    for index, batch in enumerate(report.batches):
        drift = batch.told.drift
        axes.plot(index, drift.statistic, "o", color=_ALARM if drift.drifted else _ACCENT)
        axes.hlines(drift.threshold, index - 0.5, index + 0.5, colors=_INK, linestyles="dashed")


def _auc(axes: "Axes", report: LoopReport) -> None:
    axes.set_title(
        "AUC of the champion of the day (dots), of the first model never retrained (squares)",
        loc="left",
        color=_INK,
    )
    for index, batch in enumerate(report.batches):
        if batch.first and batch.first.auc:
            axes.plot(index, batch.first.auc.value, "s", color=_NEVER, fillstyle="none")
        if batch.champion and batch.champion.auc:
            told = batch.champion.auc
            axes.vlines(index, told.low, told.high, colors=_ACCENT, alpha=0.6)
            axes.plot(index, told.value, "o", color=_ACCENT)
