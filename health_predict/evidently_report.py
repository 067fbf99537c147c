"""Evidently's report about one batch, as one small page that needs nothing beside it.

Evidently computes which columns moved and how well the scores foretold the outcomes; the page shows
its figures as HTML and SVG, without a script. Evidently's own page brings 3.5 MB of JavaScript, and
stays blank wherever that cannot be loaded. What counts as drift is decided in `drift`, how good a
model is in `evaluation`, neither of them here. The only module that imports evidently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from health_predict.encounters import untouched
from health_predict.features import MODELLED
from health_predict.schema import (
    ADMISSION_SOURCES,
    ADMISSION_TYPES,
    DISCHARGE_DISPOSITIONS,
    LABEL,
    MISSING,
)

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY = "probability"
"""How the champion's score is called beside the modelled columns."""

ROWS = 2_000
"""Sampled rows of each side: the distances below hardly move beyond."""

# One measure for batches of every size: left to itself Evidently changes from distances to
# p-values where the reference has at most 1,000 rows, and flags a third of undrifted columns.
_METHODS = {"num_method": "wasserstein", "cat_method": "jensenshannon"}

_LEVELS = 10
"""Levels drawn of a categorical column; a code with hundreds of them would fill the page."""

_CODE_WORDS: Mapping[str, Mapping[int, str]] = {
    "admission_type_id": ADMISSION_TYPES,
    "discharge_disposition_id": DISCHARGE_DISPOSITIONS,
    "admission_source_id": ADMISSION_SOURCES,
}
_POINTS = 200
_TEMPLATE = Path(__file__).with_name("evidently_report.html.j2")


@dataclass(frozen=True)
class ReportFacts:
    """What is known of a written report.

    Attributes:
        path: the HTML file.
        drifted_share: share of the tested columns that Evidently calls drifted; shown, never
            decided on.
        bytes: size of the file.
        unvarying: columns that hold one value or none on both sides; named, not tested.
    """

    path: Path
    drifted_share: float
    bytes: int
    unvarying: tuple[str, ...]


@dataclass(frozen=True)
class Moved:
    """One tested column.

    Attributes:
        column: its name.
        numeric: whether `bars` are bins of a number, in their order, or levels.
        distance: Evidently's drift score.
        drifted: whether Evidently calls it drifted.
        bars: label, percent of the reference, percent of the batch.
    """

    column: str
    numeric: bool
    distance: float
    drifted: bool
    bars: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Table:
    """A table of the classification preset."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Curve:
    """A curve of the classification preset, in the unit square."""

    title: str
    x: str
    y: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Judged:
    """What the classification preset says of the batch.

    Attributes:
        rows: encounters judged.
        intervened: encounters left out because their care was changed by a prediction.
        threshold: probability from which the prediction is 1.
        parts: tables and curves in Evidently's order; none where all outcomes are alike.
    """

    rows: int
    intervened: int
    threshold: float
    parts: list[Table | Curve]


def write_report(
    reference: "pd.DataFrame",
    batch: "pd.DataFrame",
    folder: Path,
    *,
    reference_probabilities: np.ndarray | None = None,
    batch_probabilities: np.ndarray | None = None,
    threshold: float | None = None,
    with_labels: bool = False,
    seed: int = 0,
) -> ReportFacts:
    """Writes `report.html` about one batch: data drift, and classification where it is known.

    Args:
        reference: rows of the champion's training window (m rows, published columns).
        batch: what arrived (n rows, published columns). Of both at most 2,000 sampled rows are
            compared.
        folder: where the page goes, made if absent; its name is the page's title.
        reference_probabilities: the champion's scores of the reference (m,), or None.
        batch_probabilities: the champion's scores of the batch (n,), or None. Where both are given
            they are compared like a column.
        threshold: probability from which the prediction is 1.
        with_labels: whether the outcomes of the batch are known. Then the batch gets Evidently's
            classification preset, on all its rows but those marked `intervened`; the reference
            does not, for the champion learned from it.
        seed: seed of the sample.

    Raises:
        ValueError: scores and rows differ in number, or outcomes come without scores or threshold.
    """
    columns = [*MODELLED]
    sides = {
        "reference": _scored(reference, reference_probabilities),
        "batch": _scored(batch, batch_probabilities),
    }
    if all(PROBABILITY in side for side in sides.values()):
        columns.append(PROBABILITY)
    shown = {
        name: _shown(side.sample(min(len(side), ROWS), random_state=seed)[columns])
        for name, side in sides.items()
    }
    unvarying = _unvarying(shown["reference"], shown["batch"])
    moved = _moved(shown["reference"], shown["batch"], [c for c in columns if c not in unvarying])
    page = _page(
        title=folder.name,
        rows={name: len(side) for name, side in shown.items()},
        moved=moved,
        unvarying=unvarying,
        judged=_judged(sides["batch"], threshold) if with_labels else None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_bytes(page)
    share = sum(one.drifted for one in moved) / max(1, len(moved))
    return ReportFacts(path, share, len(page), unvarying)


def _scored(side: "pd.DataFrame", probabilities: np.ndarray | None) -> "pd.DataFrame":
    if probabilities is None:
        return side
    if len(probabilities) != len(side):
        raise ValueError(f"{len(probabilities)} scores for {len(side)} rows: one a row is needed")
    return side.assign(**{PROBABILITY: probabilities})


def _shown(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the frame with codes in words, and a missing level as the level it is."""
    coded = {code: frame[code].map(partial(_worded, words)) for code, words in _CODE_WORDS.items()}
    texts = [column for column in frame if frame[column].dtype == object]
    return frame.assign(**coded, **{column: frame[column].fillna(MISSING) for column in texts})


def _worded(words: Mapping[int, str], code: int) -> str:
    return f"{code} {words[code]}" if code in words else str(code)


def _unvarying(reference: "pd.DataFrame", batch: "pd.DataFrame") -> tuple[str, ...]:
    """Returns the columns that cannot have moved, or of which one side holds no value."""

    def tells(column: str) -> bool:
        values = [side[column].dropna() for side in (reference, batch)]
        levels = set(values[0].unique()) | set(values[1].unique())
        return len(levels) > 1 and all(len(side) for side in values)

    return tuple(column for column in reference if not tells(column))


def _moved(reference: "pd.DataFrame", batch: "pd.DataFrame", columns: Sequence[str]) -> list[Moved]:
    """Returns the columns as Evidently's data drift preset sees them, the furthest moved first."""
    if not columns:
        return []
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    texts = [column for column in columns if reference[column].dtype == object]
    definition = DataDefinition(
        numerical_columns=[column for column in columns if column not in texts],
        categorical_columns=texts,
    )
    earlier, current = (
        Dataset.from_pandas(side[[*columns]], data_definition=definition)
        for side in (reference, batch)
    )
    preset = DataDriftPreset(columns=[*columns], **_METHODS)
    snapshot = Report([preset]).run(current_data=current, reference_data=earlier)
    (table,) = (w for w in snapshot.dump_dict()["widgets"] if w["type"] == "big_table")
    graphs = {graph["id"]: graph["params"] for graph in table["additionalGraphs"]}
    return [_column(row, graphs) for row in table["params"]["data"]]


def _column(row: Mapping[str, Any], graphs: Mapping[str, Any]) -> Moved:
    (part,) = (p for p in row["details"]["parts"] if p["title"] == "DATA DISTRIBUTION")
    traces = graphs[part["id"]]["data"]
    # Each side comes twice: as counts, which are shown first, and as percent.
    percent = {t["name"]: t for t in traces if not t["visible"]}
    numeric = row["column_type"] == "num"
    return Moved(
        column=row["column_name"],
        numeric=numeric,
        distance=float(row["drift_score"]),
        drifted=row["data_drift"] == "Detected",
        bars=(_bins if numeric else _levels)(percent["reference"], percent["current"]),
    )


def _bins(reference: Mapping[str, Any], batch: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    edges = [f"{edge:.4g}" for edge in np.asarray(reference["x"], dtype=float)]
    labels = [f"{low} to {high}" for low, high in pairwise(edges)]
    return list(zip(labels, map(float, reference["y"]), map(float, batch["y"]), strict=True))


def _levels(
    reference: Mapping[str, Any], batch: Mapping[str, Any]
) -> list[tuple[str, float, float]]:
    earlier, current = (
        dict(zip(map(str, side["x"]), map(float, side["y"]), strict=True))
        for side in (reference, batch)
    )
    ranked = sorted(
        {*earlier, *current}, key=lambda v: (-earlier.get(v, 0.0) - current.get(v, 0.0), v)
    )
    bars = [(level, earlier.get(level, 0.0), current.get(level, 0.0)) for level in ranked]
    if len(bars) <= _LEVELS + 1:
        return bars
    rest = bars[_LEVELS:]
    pooled = (f"{len(rest)} others", sum(bar[1] for bar in rest), sum(bar[2] for bar in rest))
    return [*bars[:_LEVELS], pooled]


def _judged(batch: "pd.DataFrame", threshold: float | None) -> Judged:
    if threshold is None or PROBABILITY not in batch:
        raise ValueError("the classification preset needs the scores of the batch and a threshold")
    known = batch[batch[LABEL].notna()]
    rows = untouched(known)
    parts = _classified(rows, threshold) if rows[LABEL].nunique() == 2 else []
    return Judged(len(rows), len(known) - len(rows), threshold, parts)


def _classified(rows: "pd.DataFrame", threshold: float) -> list[Table | Curve]:
    from evidently import BinaryClassification, DataDefinition, Dataset, Report
    from evidently.presets import ClassificationPreset

    task = BinaryClassification(target=LABEL, prediction_probas=PROBABILITY, pos_label=1)
    data = Dataset.from_pandas(
        rows[[LABEL, PROBABILITY]].reset_index(drop=True).astype({LABEL: int}),
        data_definition=DataDefinition(classification=[task]),
    )
    preset = ClassificationPreset(probas_threshold=threshold)
    snapshot = Report([preset]).run(current_data=data, reference_data=None)
    heading, parts = "", list[Table | Curve]()
    for widget in snapshot.dump_dict()["widgets"]:
        params, title = widget["params"], widget["title"].removeprefix("Current: ")
        if widget["type"] == "counter":  # a row of figures, or one without a figure: a heading
            counters = params["counters"]
            heading = counters[0]["label"] or heading
            if len(counters) > 1:
                values = [counter["value"] for counter in counters]
                parts.append(Table(title, [counter["label"] for counter in counters], [values]))
        elif widget["type"] == "table":
            parts.append(Table(title, list(params["header"]), list(params["data"])))
        elif widget["type"] == "big_graph":
            parts.append(_graph(heading, params))
    return parts


def _graph(title: str, figure: Mapping[str, Any]) -> Table | Curve:
    (trace,) = figure["data"]
    x_title, y_title = (
        figure["layout"][axis].get("title", {}).get("text", "") for axis in ("xaxis", "yaxis")
    )
    if trace["type"] == "heatmap":
        # Of the quality by label Evidently gives four rows and the names of three.
        named = zip(trace["y"], np.asarray(trace["text"]).tolist(), strict=False)
        header = [y_title, *(f"{x_title or LABEL} {level}" for level in trace["x"])]
        return Table(title, header, [[name, *cells] for name, cells in named])
    x, y = (np.asarray(trace[axis], dtype=float) for axis in "xy")
    kept = np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(int))
    return Curve(title, x_title, y_title, list(zip(x[kept], y[kept], strict=True)))


def _page(**values: Any) -> bytes:
    from importlib.metadata import version

    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(evidently=version("evidently"), **values).encode()
