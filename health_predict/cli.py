"""`health-predict`: the loop, its state and its service from a terminal. Thin: no logic of its own.

Settings come from the environment (`HEALTH_PREDICT_...`); options that many want to change are
flags too.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from health_predict.settings import Settings, silence_telemetry

if TYPE_CHECKING:
    from health_predict.tracking import Registry


def _plainly(command: Callable[..., Any]) -> Callable[..., Any]:
    """Shows an expected error as its message instead of a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from pydantic import ValidationError

        from health_predict.card import CardError
        from health_predict.encounters import DataError
        from health_predict.ledger import LedgerError
        from health_predict.loop import LoopError
        from health_predict.processes import ProcessError
        from health_predict.store import StoreError

        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            click.echo("Interrupted; everything that was started is stopped.", err=True)
            sys.exit(130)
        except ValidationError as error:
            words = "\n".join(
                f"HEALTH_PREDICT_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()
            )
            raise click.ClickException(words) from None
        except (CardError, DataError, LedgerError, LoopError) as error:
            raise click.ClickException(str(error)) from None
        except (ProcessError, StoreError, OSError) as error:
            raise click.ClickException(str(error)) from None

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Hospital readmission risk that keeps itself fresh."""
    silence_telemetry()


@main.command()
@click.option("--data", help="synthetic, uci, a path to the csv or zip, https:// or s3://.")
@click.option("--rows", type=click.IntRange(2000), help="Rows of the synthetic cohort.")
@click.option(
    "--batches", type=click.IntRange(1), help="Default: 5 of the synthetic cohort, 8 of others."
)
@click.option("--at-a-time", type=click.IntRange(1), default=2, help="Batches that come together.")
@click.option("--timeout", type=float, default=1800, show_default=True, help="Seconds.")
@_plainly
def loop(
    data: str | None, rows: int | None, batches: int | None, at_a_time: int, timeout: float
) -> None:
    """Turns the whole loop once and shows what it did. State of an earlier loop is removed."""
    from health_predict import loop as loops
    from health_predict.encounters import require
    from health_predict.terminal import Progress, show

    given = {"data": _absolute(data), "rows": rows, "batches": batches}
    settings = Settings(
        cadence="3",
        batches_per_tick=at_a_time,
        arrive_at_rest=True,
        sensor_interval=3,
        rest_batches=1,  # of five batches two would be nearly half
    ).model_copy(update={name: value for name, value in given.items() if value is not None})
    if batches is None:
        settings = settings.model_copy(update={"batches": 5 if settings.data == "synthetic" else 8})
    require(settings.data)
    with Progress() as progress:
        if loops.begin_afresh(settings):
            progress("state", f"The state of an earlier loop in {settings.var} was removed.")
        made = loops.turn(settings, progress, timeout=timeout)
    show(made, settings)
    shortfalls = made.story.shortfalls(settings.batches)
    if shortfalls:
        raise click.ClickException("the loop did not turn: " + "; ".join(shortfalls))


def _absolute(data: str | None) -> str | None:
    """The daemon runs elsewhere: a path is meant from here."""
    return str(Path(data).resolve()) if data and Path(data).exists() else data


@main.command()
@click.option("--port", default=3000, show_default=True, help="Port of Dagit.")
@click.option("--mlflow-port", default=5000, show_default=True, help="Port of MLflow's UI.")
@_plainly
def dev(port: int, mlflow_port: int) -> None:
    """Runs Dagit, the daemon, MLflow's UI and the service on the same state."""
    from health_predict import processes
    from health_predict.loop import instance_of

    settings = Settings.of_state()
    with processes.processes(settings) as group, instance_of(settings):
        group.start("supervisor", processes.supervisor_command(settings))
        group.start("daemon", processes.daemon_command())
        group.start("dagit", processes.webserver_command(port))
        group.start("mlflow", processes.mlflow_command(settings, mlflow_port))
        click.echo(f"Dagit    http://127.0.0.1:{port}")
        click.echo(f"MLflow   http://127.0.0.1:{mlflow_port}")
        click.echo(f"service  http://127.0.0.1:{settings.port}/model-info")
        click.echo(f"logs     {settings.var / 'logs'}; Ctrl-C stops everything")
        processes.wait_until_ended(group)


@main.command()
@_plainly
def serve() -> None:
    """Serves the champion in the foreground."""
    from health_predict.loop import serve as serve_champion

    settings = Settings.of_state()
    click.echo(f"POST http://127.0.0.1:{settings.port}/predict  (Ctrl-C stops)")
    serve_champion(settings)


@main.command()
@_plainly
def status() -> None:
    """Tells in ten lines what the loop knows, decided last and why, and waits for."""
    from health_predict import story
    from health_predict.defs.automation import patience
    from health_predict.terminal import show_status

    settings = Settings.of_state()
    with _instance(settings) as instance:
        show_status(instance, story.tell(instance, patience(settings)), settings)


@main.command()
@click.option("--by", required=True, help="Who asks for it.")
@click.option("--why", required=True, help="The reason, which the ledger keeps.")
@_plainly
def retrain(by: str, why: str) -> None:
    """Forces a retraining: without drift, and without waiting for batches that arrive."""
    from health_predict.defs.recording import force_retrain

    with _instance(Settings.of_state()) as instance:
        try:
            force_retrain(instance, by, why)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    click.echo("Noted: the sensor retrain_on_drift asks for it at its next tick.")


@main.command()
@click.option("--to", "version", required=True, help="The version that was champion before.")
@click.option("--by", required=True, help="Who decides.")
@click.option("--why", required=True, help="The reason, in words.")
@_plainly
def rollback(version: str, by: str, why: str) -> None:
    """Makes an earlier version the champion again; the sensor deploy_on_promotion rolls it out."""
    from health_predict.definitions import assemble
    from health_predict.loop import LoopError, failure_of

    settings = Settings.of_state()
    wanted = {"config": {"version": version, "name": by, "reason": why}}
    asked = {
        "ops": {"reinstate_version": wanted},
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    with _instance(settings) as instance:
        job = assemble(settings).resolve_job_def("reinstate")
        done = job.execute_in_process(instance=instance, run_config=asked, raise_on_error=False)
        if not done.success:
            raise LoopError(failure_of(done))
    click.echo(f"Version {version} is the champion again: deploy_on_promotion rolls it out.")


def _instance(settings: Settings) -> Any:
    from health_predict.loop import LoopError, instance_of

    local = settings.deployment == "local"
    if local and not (settings.var / "dagster").exists():
        raise LoopError(f"there is no state in {settings.var} yet: run `make demo` or `make dev`")
    return instance_of(settings)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The lines as they are.")
@click.option("--tail", type=click.IntRange(1), help="Only so many of the newest entries.")
@_plainly
def ledger(as_json: bool, tail: int | None) -> None:
    """Shows what was done to models, by whom and why, and verifies that it is unchanged."""
    from health_predict.ledger import Ledger, LedgerError
    from health_predict.store import open_store

    settings = Settings.of_state()
    book = Ledger(open_store(settings.store_uri))
    newest = slice(-tail if tail else None, None)
    if as_json:
        for line in book.lines()[newest]:
            click.echo(line)
    else:
        from health_predict.terminal import show_ledger

        show_ledger(book.entries()[newest])
    anchor = _anchor(settings)
    count = book.verify(anchor)
    if not count:
        raise LedgerError(f"there is no ledger at {book.where} yet: run `make demo` or `make dev`")
    words = f"{count} {'entry' if count == 1 else 'entries'}, chain verified"
    unseen = "; MLflow remembers no newest entry, so entries removed at the end would not be seen"
    # Out of the way of what reads the lines.
    click.echo(f"{words}{'' if anchor else unseen}.", err=as_json)


def _anchor(settings: Settings) -> str | None:
    """Returns the digest of the newest entry as MLflow remembers it, None if it does not."""
    registry = _registry(settings)
    return registry.ledger_head() if registry else None


def _registry(settings: Settings) -> "Registry | None":
    database = settings.tracking_uri.removeprefix("sqlite:///")
    if database != settings.tracking_uri and not Path(database).exists():
        return None  # to ask would make it
    from health_predict.tracking import Registry

    return Registry(settings.tracking_uri, settings.artifacts)


@main.command()
@_plainly
def card() -> None:
    """Prints the model card of the champion, as Markdown."""
    from health_predict import card as cards
    from health_predict.loop import LoopError

    settings = Settings.of_state()
    registry = _registry(settings)
    champion = registry.champion() if registry else None
    if champion is None:
        raise LoopError("there is no champion yet: run `make demo` or `make dev`")
    click.echo(cards.render(cards.card(champion.facts)), nl=False)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@_plainly
def doctor(as_json: bool) -> None:
    """Checks every part that the settings name; exit code 1 if one is wrong. Changes nothing."""
    from health_predict.doctoring import rounds, shown

    findings = rounds.everything()
    if as_json:
        click.echo(shown.as_json(findings))
    else:
        shown.show(findings)
    if any(finding.state == "wrong" for finding in findings):
        sys.exit(1)


@main.command()
@click.option("--markdown", is_flag=True, help="All there are, as docs/settings.md has them.")
@_plainly
def settings(markdown: bool) -> None:
    """Prints the settings in force, secrets hidden."""
    from health_predict import settings_table

    if markdown:
        click.echo(settings_table.markdown(), nl=False)
        return
    for name, value in settings_table.in_force(Settings.of_state()).items():
        click.echo(f"{name}={value}")


@main.command()
@click.argument("data")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The JSON file.")
@_plainly
def profile(data: str, to: Path) -> None:
    """Makes the synthetic cohort's profile from the published table."""
    from health_predict.encounters import read
    from health_predict.synthetic_profile import write_profile

    raw, source = read(data, rows=0, seed=0)
    write_profile(raw, to)
    click.echo(f"{to}: {to.stat().st_size:,} bytes from {len(raw):,} rows of {source.name}")


@main.command(hidden=True)
def environment() -> None:
    """Prints the environment that Dagster's own commands need, for `eval`."""
    from health_predict import processes

    for name, value in processes.environment(Settings.of_state()).items():
        if name not in os.environ:
            click.echo(f"export {name}={value!r}")
