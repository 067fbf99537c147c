"""The graph materialised once on a small cohort, with its asset checks as the gate.

`python -m health_predict.graph_check` runs the jobs bootstrap and ingest_batch and the Bento in one
process on a state of its own, prints every check, and ends with 1 unless each blocking check of
what was materialised ran and passed. Dagster's commands cannot do it: `dagster job execute` knows
no dynamic partition, and neither shows checks. No daemon and no service: `make demo` starts those.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click
import dagster as dg
from rich.console import Console
from rich.table import Table

from health_predict.definitions import assemble
from health_predict.defs.partitions import batch_key, batches
from health_predict.loop import begin_afresh, instance_of
from health_predict.settings import Settings, silence_telemetry

# The smallest cohort whose first champion clears the gate's floors, subgroups included.
ROWS = 12_000
FOLDER = "graph-check"
"""Folder of `var` that takes the state."""

_QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


@dataclass(frozen=True)
class Checked:
    """What became of one asset check.

    Attributes:
        asset: what it checks.
        name: its name.
        blocking: whether it stops what comes after the asset.
        passed: None where it did not run.
    """

    asset: str
    name: str
    blocking: bool
    passed: bool | None

    @property
    def stops(self) -> bool:
        """Whether the gate stays shut: a blocking check that did not run has not passed."""
        return self.blocking and self.passed is not True


@dataclass(frozen=True)
class GraphCheck:
    """What a materialisation of the graph showed.

    Attributes:
        checks: every check of what was materialised.
        failed: what could not be materialised and the run that tried; empty: nothing.
    """

    checks: list[Checked]
    failed: str = ""

    @property
    def passed(self) -> bool:
        """Whether every run succeeded and every blocking check passed."""
        return not self.failed and not any(check.stops for check in self.checks)


def check_graph(settings: Settings) -> GraphCheck:
    """Materialises bootstrap, the first batch and the Bento; returns what became of the checks.

    Args:
        settings: its `var` is emptied first.

    Raises:
        ProcessError: a loop runs on that state.
    """
    begin_afresh(settings)
    settings.keep()
    repository = assemble(settings).get_repository_def()
    everything = repository.get_implicit_global_asset_job_def()
    first = batch_key(1)
    # The Bento is built, not deployed: its check is of the model, and nothing need serve for it.
    parts: dict[str, tuple[dg.JobDefinition, dict[str, Any]]] = {
        "bootstrap": (repository.get_job("bootstrap"), {}),
        "ingest_batch": (repository.get_job("ingest_batch"), {"partition_key": first}),
        "readmission_bento": (everything, {"asset_selection": [dg.AssetKey("readmission_bento")]}),
    }
    found: list[Checked] = []
    with instance_of(settings) as instance:
        instance.add_dynamic_partitions(batches.name or "", [first])
        for name, (job, how) in parts.items():
            done = job.execute_in_process(
                instance=instance, run_config=_QUIET, raise_on_error=False, **how
            )
            found += _checked(done)
            if not done.success:  # what comes after stands on it
                return GraphCheck(found, f"{name}, run {done.run_id[:8]}")
    return GraphCheck(found)


def _checked(done: dg.ExecuteInProcessResult) -> list[Checked]:
    evaluated = {e.asset_check_key: e.passed for e in done.get_asset_check_evaluations()}
    graph = done.job_def.asset_layer.asset_graph
    return [
        Checked(
            key.asset_key.to_user_string(), key.name, graph.get(key).blocking, evaluated.get(key)
        )
        for key in sorted(graph.asset_check_keys)
    ]


def table(checks: Iterable[Checked]) -> Table:
    """Returns the checks as a table, those that stop first."""
    shown = Table("asset", "check", "", "result", title="Asset checks")
    for check in sorted(checks, key=lambda check: (not check.stops, not check.blocking)):
        word = {True: "[green]passed[/]", False: "[red]failed[/]", None: "[red]did not run[/]"}
        softly = {True: "[green]passed[/]", False: "[yellow]warns[/]", None: "[dim]did not run[/]"}
        result = (word if check.blocking else softly)[check.passed]
        shown.add_row(check.asset, check.name, "blocks" if check.blocking else "", result)
    return shown


@click.command(help=__doc__)
@click.option("--rows", default=ROWS, show_default=True, type=click.IntRange(2_000))
@click.option("--data", default="synthetic", show_default=True, help="As HEALTH_PREDICT_DATA.")
def main(rows: int, data: str) -> None:
    """Checks the graph."""
    silence_telemetry()
    settings = own_state(Settings()).model_copy(update={"data": data, "rows": rows})
    done = check_graph(settings)
    Console().print(table(done.checks))
    if done.failed:
        click.echo(f"Not materialised: {done.failed}; the reason is above.", err=True)
    stopped = [check.name for check in done.checks if check.stops]
    if stopped:
        click.echo(f"Blocking checks that did not pass: {', '.join(stopped)}", err=True)
    sys.exit(0 if done.passed else 1)


def own_state(settings: Settings) -> Settings:
    """Returns the settings with nothing left that is shared with a loop: no store, no server."""
    return settings.model_copy(
        update={
            "var": settings.var / FOLDER,
            "store": "",
            "deployment": "local",
            "mlflow_tracking_uri": "",
            "alert_webhook": None,
            "alert_smtp": None,
            "search_backend": "serial",
            "trials": 3,
        }
    )


if __name__ == "__main__":
    main()
