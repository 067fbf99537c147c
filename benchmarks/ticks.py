"""How long a tick of each sensor and of the schedule takes with a long history behind it.

Writes a history of batches into an instance of its own (SQLite in a temporary folder), then times
ticks as the daemon makes them: the first with no cursor, the next with the one it left. Writes
`var/bench/ticks.json` and a page.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import dagster as dg

from benchmarks.report import Run, table
from health_predict import processes
from health_predict.definitions import assemble
from health_predict.defs.partitions import batch_key, batches
from health_predict.settings import Settings

ASSETS = ("future_batch", "batch_predictions", "drift_report", "batch_performance")
FACTS: dict[str, dict[str, Any]] = {
    "future_batch": {"dagster/row_count": 4_000},
    "batch_predictions": {"champion_version": "1", "dagster/row_count": 4_000},
    "drift_report": {
        "drifted": False,
        "statistic": 0.6,
        "threshold": 0.7,
        "champion_version": "1",
        "sentence": "Minor drift.",
    },
    "batch_performance": {
        "within_bounds": True,
        "expected_observed": 1.0,
        "champion_version": "1",
        "dagster/row_count": 4_000,
        "sentence": "As foretold.",
    },
}


@click.command(help=__doc__)
@click.option("--batches", "count", default=10_000, type=click.IntRange(1))
def main(count: int) -> None:
    """Runs the benchmark."""
    run = Run("ticks", "Ticks with a long history behind them")
    with TemporaryDirectory() as folder:
        settings = Settings(var=Path(folder), alert_webhook="http://127.0.0.1:9/never")
        home = processes.dagster_home(settings)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            began = time.monotonic()
            write_history(instance, count)
            written = time.monotonic() - began
            ticks = measure(instance, settings)
    result = {
        "batches": count,
        "events": len(ASSETS) * count,
        "seconds_to_write": round(written, 1),
        "ticks": ticks,
    }
    run.publish(ratios(result, settings.sensor_interval), result, page(result))


def write_history(instance: dg.DagsterInstance, count: int) -> None:
    """Writes a champion that is deployed, and batches that were scored, watched and foretold."""

    def record(asset: str, partition: str | None, facts: dict[str, Any]) -> None:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=partition, metadata=facts)
        )

    served = {"wanted": "1", "version": "1", "rolled_back": False, "sentence": "It answers."}
    record("future", None, {"batches": count + 1})
    record("registered_model", None, {"version": "1", "promoted": True, "sentence": "Promoted."})
    keys = [batch_key(number) for number in range(1, count + 1)]
    instance.add_dynamic_partitions(batches.name or "", keys)
    for key in keys:
        for asset in ASSETS:
            record(asset, key, FACTS[asset])
    record("readmission_deployment", None, served)


def measure(instance: dg.DagsterInstance, settings: Settings) -> dict[str, dict[str, float]]:
    """Returns name -> seconds of the first tick and of the one after it."""
    repository = assemble(settings).get_repository_def()
    found = {}
    for sensor in sorted(repository.sensor_defs, key=lambda s: s.name):
        if isinstance(sensor, dg.RunStatusSensorDefinition):
            continue  # Dagster's own loop over run events
        cursor, seconds = None, []
        for _ in range(2):
            context = dg.build_sensor_context(
                instance=instance,
                cursor=cursor,
                repository_def=repository,
                sensor_name=sensor.name,
            )
            began = time.perf_counter()
            answer = sensor.evaluate_tick(context)
            seconds.append(round(time.perf_counter() - began, 3))
            cursor = answer.cursor
        found[sensor.name] = {"first": seconds[0], "next": seconds[1]}
    (schedule,) = repository.schedule_defs
    at = datetime.now(UTC)
    began = time.perf_counter()
    schedule.evaluate_tick(
        dg.build_schedule_context(
            instance=instance, scheduled_execution_time=at, repository_def=repository
        )
    )
    found[schedule.name] = {"next": round(time.perf_counter() - began, 3)}
    return found


def ratios(result: dict[str, Any], interval: float) -> dict[str, float]:
    """Returns each tick's seconds over those that lie between two, the dearest first."""
    dearest = {name: max(seconds.values()) for name, seconds in result["ticks"].items()}
    return {
        f"{name}, of its {interval:.0f} s": seconds / interval
        for name, seconds in sorted(dearest.items(), key=lambda tick: -tick[1])
    }


def page(result: dict[str, Any]) -> str:
    """Returns the seconds as Markdown."""
    said = f"{result['batches']:,} batches, {result['events']:,} events."
    rows = [
        (name, f"{seconds['first']:.2f}" if "first" in seconds else "", f"{seconds['next']:.2f}")
        for name, seconds in result["ticks"].items()
    ]
    return f"{said}\n\n{table(('tick', 'first, no cursor, s', 'next, s'), rows)}"


if __name__ == "__main__":
    main()
