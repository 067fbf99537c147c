"""From a notebook in percent format to a page: executed, with its figures, in one HTML file.

Run as `make eda`. The page loads nothing and has no script. Jupyter's own files go to
`var/jupyter`, not to the home directory. What the page says is in the notebook.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from health_predict.encounters import DataError, require
from health_predict.settings import ROOT, SILENCED, Settings

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOK = ROOT / "notebooks" / "01_eda_baseline.py"
_HIDDEN = "hide-input"
"""Tag of cells of which only the output is shown."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #22272e; font: 17px/1.6 Georgia, "Noto Serif", serif; }
main { max-width: 50rem; margin: 0 auto; padding: 2rem 1.2rem 5rem; }
h1, h2, h3 { font-family: system-ui, "Noto Sans", sans-serif; line-height: 1.25; }
h1 { font-size: 2rem; }
h2 { margin-top: 3rem; font-size: 1.4rem; }
h3 { margin-top: 2rem; font-size: 1.1rem; }
p, ul { max-width: 44rem; }
.anchor-link { display: none; }
blockquote { margin: 1.2rem 0; padding: .4rem 1rem; border-left: 4px solid #d55e00;
  background: #fdf3ec; }
code { font: .86em ui-monospace, "DejaVu Sans Mono", monospace; }
:not(pre) > code { padding: .1em .15em; border-radius: 3px; background: #f3f4f6; }
pre { margin: 1rem 0; padding: .8rem 1rem; border-radius: 6px; background: #f8f8f8;
  font: 12.4px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-x: auto; }
figure { margin: 1.8rem 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .4rem; color: #57606a; font: .85rem/1.45 system-ui, sans-serif; }
table { margin: 1.2rem 0; border-collapse: collapse; display: block; overflow-x: auto;
  font: .85rem/1.4 system-ui, "Noto Sans", sans-serif; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; white-space: nowrap; }
thead th { border-bottom: 1px solid #8b949e; }
td { border-bottom: 1px solid #e6e9ed; }
.prompt { display: none; }
@media print { pre { white-space: pre-wrap; } figure, table { break-inside: avoid; } }
"""


@click.command(help=__doc__)
@click.option("--data", default=lambda: Settings().data, help="As HEALTH_PREDICT_DATA.")
@click.option("--rows", type=click.IntRange(2000), help="Rows of the synthetic cohort.")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: Settings().var / "eda",
    help="Where the page goes.",
)
def main(data: str, rows: int | None, folder: Path) -> None:
    """Renders the notebook."""
    try:
        require(data)
    except DataError as error:
        raise click.ClickException(str(error)) from None
    local = Path(data).expanduser()
    os.environ["HEALTH_PREDICT_DATA"] = str(local.resolve()) if local.is_file() else data
    if rows is not None:
        os.environ["HEALTH_PREDICT_ROWS"] = str(rows)
    path = render(NOTEBOOK, folder)
    sys.stdout.write(f"{path}\n")


def render(notebook: Path, folder: Path) -> Path:
    """Executes a notebook and returns the path of its page.

    Args:
        notebook: in percent format.
        folder: where the page goes; made if it is not there.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the traceback.
    """
    _keep_out_of_the_home_directory(Settings().var.absolute())

    import jupytext
    from nbconvert.preprocessors import ExecutePreprocessor

    cells = jupytext.read(notebook)
    execution = ExecutePreprocessor(
        timeout=None,
        kernel_name="python3",
        # It warns of talking to this process unencrypted, over the loopback interface.
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    execution.preprocess(cells, {"metadata": {"path": str(ROOT)}})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{notebook.stem}.html"
    path.write_text(page(cells), encoding="utf-8")
    return path


def _keep_out_of_the_home_directory(var: Path) -> None:
    """Tells Jupyter, IPython and matplotlib where to write, before they are imported."""
    os.environ.update(SILENCED)
    (var / "jupyter").mkdir(parents=True, exist_ok=True)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        os.environ[name] = str(var / "jupyter")
    os.environ["MPLCONFIGDIR"] = str(var / "matplotlib")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # of a debugger that nobody attaches


def page(cells: "NotebookNode") -> str:
    """Returns an executed notebook as a page of its own."""
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import TagRemovePreprocessor

    exporter = HTMLExporter(template_name="basic")
    hiding = TagRemovePreprocessor(remove_input_tags={_HIDDEN}, enabled=True)
    exporter.register_preprocessor(hiding, enabled=True)
    body, resources = exporter.from_notebook_node(cells)
    title = next(
        line.removeprefix("# ")
        for cell in cells.cells
        for line in cell.source.splitlines()
        if line.startswith("# ")
    )
    return _PAGE.format(title=title, style=_STYLE + _colours(resources), body=body)


def _colours(resources: dict[str, Any]) -> str:
    """Returns the style of highlighted code: of all that nbconvert has, what begins with it."""
    lines = "\n".join(resources["inlining"]["css"]).splitlines()
    return "\n".join(line for line in lines if line.startswith(".highlight "))


if __name__ == "__main__":
    main()
