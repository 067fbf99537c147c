"""The loop report as a page: one self-contained HTML file, no script, nothing loaded from anywhere.

What stands in it is said by `loop_report`, put into figures and tables by `panels`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from health_predict import panels
from health_predict.loop_report import LoopReport
from health_predict.tracking import MODEL

if TYPE_CHECKING:
    from markupsafe import Markup

_FOLDER = Path(__file__).parent
_NEWEST = 12
"""Decisions that are shown at once; earlier ones are folded."""


def write_page(report: LoopReport) -> None:
    """Writes the page to where the report says, whole or not at all."""
    path = Path(report.page)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(render(report), encoding="utf-8")
    partial.replace(path)


def render(report: LoopReport) -> str:
    """Returns the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "breakable": _breakable,
        "moment": panels.moment,
        "tag": panels.tag,
        "href": lambda address: href(address, Path(report.page).parent),
    }
    decisions = panels.decisions(report)
    return environment.get_template("page.html.j2").render(
        report=report,
        synthetic=report.story.data.startswith("synthetic"),
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        watched=[panels.drift(report), panels.columns(report)],
        foretold=[panels.auc(report), panels.ratio(report)],
        believed=[panels.reliability(report), panels.benefit(report)],
        decisions=decisions[-_NEWEST:],
        earlier=decisions[:-_NEWEST],
        calm=panels.calm(report),
        groups=panels.groups(report),
        small_groups=panels.small_groups(report),
        features=panels.features(report),
        model=MODEL,
    )


def href(address: str, folder: Path) -> str:
    """Returns what a link to an address says; empty where a browser cannot follow it.

    Args:
        address: a web address, a file's address or path, or a place in a bucket.
        folder: where the page lies. What lies below it is found if the folder is moved.
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        return address
    path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(address)
    if parts.scheme not in ("", "file") or not path.is_absolute():
        return ""
    if path.is_relative_to(folder):
        return quote(path.relative_to(folder).as_posix())
    return path.as_uri()


def _breakable(name: str) -> "Markup":
    """Returns a name that may go on in the next line after each of its parts."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))
