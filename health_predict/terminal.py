"""What a person sees in the terminal: progress while the loop turns, the table at its end."""

import time
from collections.abc import Sequence
from types import TracebackType

import dagster as dg
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from health_predict.alerts import Outbox
from health_predict.defs.automation import (
    deploy_decision,
    matured_decision,
    patience,
    retrain_decision,
)
from health_predict.defs.decisions import why
from health_predict.defs.facts import Event, latest, newest_verdict
from health_predict.evidence import Foretold
from health_predict.ledger import Entry
from health_predict.loop_report import LoopReport
from health_predict.settings import Settings
from health_predict.store import open_store
from health_predict.story import LoopStory

_DECISIONS = {
    "no_action": "[dim]no action[/]",
    "promoted": "[green]retrained, promoted[/]",
    "refused": "[yellow]retrained, refused[/]",
    "waiting": "[yellow]waits for approval[/]",
    "rests": "[yellow]same shift, rests[/]",
    "failed": "[red]retraining failed[/]",
    "pending": "[red]pending[/]",
}
_KINDS = {"alias_move": "bold green", "release": "bold green", "rollback": "bold red"}


class Progress:
    """Prints one line an event, and keeps the standing of the loop on the last line."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._status = Status("starting", console=self._console)
        self._began = time.monotonic()

    def __enter__(self) -> "Progress":
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._status.stop()

    def __call__(self, subject: str, sentence: str) -> None:
        """Prints an event; without a subject, sets the standing."""
        if not subject:
            self._status.update(sentence)
            return
        passed = time.monotonic() - self._began
        line = f"[dim]{passed:5.0f} s[/]  [bold]{subject:<22}[/] {sentence}"
        # Into a file, a sentence stays on one line.
        self._console.print(line, soft_wrap=not self._console.is_terminal)


def show(made: LoopReport, settings: Settings) -> None:
    """Prints the story as a table, one answer of the service, and where to look on."""
    told = made.story
    console = Console(highlight=False)
    console.print()
    console.print(_table(made))
    console.print(f"[bold]{made.headline}[/] {made.worth} {made.taken_back}\n")
    for row in told.batches:
        console.print(f"[bold]{row.batch}[/]  {row.reason}")
    for sentence in told.rollbacks:
        console.print(f"[red]{sentence}[/]")
    console.print(f"\n[bold]POST /predict[/] answered by version {told.served_version}:")
    console.print_json(data=told.predict_response)
    console.print(_seconds(told))
    console.print("[bold]Look on[/]")
    console.print(f"  page       {made.page}", soft_wrap=True)
    console.print(f"  facts      {settings.var / 'loop.json'}", soft_wrap=True)
    console.print(
        f"  drift      {settings.store_uri}/drift_reports/<batch>/report.html (Evidently)",
        soft_wrap=True,
    )
    console.print("  make dev   Dagit and MLflow on this state;  make serve   /predict")


def _table(made: LoopReport) -> Table:
    told = made.story
    table = Table(title=f"The loop on the {told.data}: {told.source}")
    table.add_column("batch")
    table.add_column("drift", justify="right")
    table.add_column("decision")
    first = f"v{made.first_version}"
    for title in ("by", "AUC", "E/O", f"AUC\nof {first}", f"E/O\nof {first}"):
        table.add_column(title, justify="right")
    for row in made.batches:
        drift = row.told.drift
        table.add_row(
            row.told.batch,
            f"[{'red' if drift.drifted else 'green'}]{drift.statistic:.3f}[/]",
            _DECISIONS[row.told.decision],
            f"v{row.told.champion_version}",
            *_foretold(row.champion),
            *_foretold(row.first),
        )
    table.caption = (
        f"{told.data}; {first} had it never been retrained; serving version {told.served_version}"
    )
    return table


def _foretold(foretold: Foretold | None) -> tuple[str, str]:
    if foretold is None:
        return "", ""
    auc, ratio = foretold.auc, foretold.expected_observed
    return f"{auc.value:.3f}" if auc else "", f"{ratio.value:.2f}" if ratio else ""


def _seconds(told: LoopStory) -> str:
    lines = [
        f"first champion after {told.seconds['first_champion']:.0f} s, "
        f"whole loop {told.seconds['total']:.0f} s"
    ]
    for entry in told.seconds["retrains"]:
        lines.append(
            f"drift to verified version {entry['version']}: {entry['drift_to_served']:.0f} s"
        )
    return "\n".join(lines)


def show_status(instance: dg.DagsterInstance, told: LoopStory, settings: Settings) -> None:
    """Prints in ten lines what the loop knows, decided last and why, and waits for."""
    console = Console(highlight=False)
    for name, words in status_lines(instance, told, settings).items():
        console.print(Text.assemble((f"{name:<10}", "bold"), words), soft_wrap=True)


def status_lines(
    instance: dg.DagsterInstance, told: LoopStory, settings: Settings
) -> dict[str, str]:
    """Returns the ten lines: what about, and what is known, decided and waited for."""
    champion = told.promotions[-1] if told.promotions else None
    newest = told.batches[-1] if told.batches else None
    performance = latest(instance, "batch_performance")
    open_alerts = Outbox(open_store(settings.store_uri), []).open().values()
    scored = sum(batch.auc is not None for batch in told.batches)
    return {
        "data": f"{told.source} ({told.data})",
        "champion": (
            f"version {champion.version} ({champion.family}, {champion.window})"
            if champion
            else "none yet"
        ),
        "gate": _said(newest_verdict(instance)),
        "batches": f"{len(told.batches)} watched, {scored} with known outcomes",
        "drift": f"{newest.batch}: {newest.reason}" if newest else "no batch was watched yet",
        "foretold": _said(performance),
        "arrival": matured_decision(instance, settings.label_delay).sentence,
        "training": retrain_decision(instance, 0, patience(settings)).sentence,
        "roll-out": deploy_decision(instance).sentence,
        "alerts": "; ".join(alert.title for alert in open_alerts) or "none open",
    }


def _said(event: Event | None) -> str:
    if event is None:
        return "nothing yet"
    return f"{event.partition}: {why(event)}" if event.partition else why(event)


def show_ledger(entries: Sequence[Entry]) -> None:
    """Prints each entry: number, when (UTC), what, version, alias, who; below it, why."""
    console = Console(highlight=False)
    for entry in entries:
        line = Text.assemble(
            (f"{entry.number:>4}  {entry.at[:19].replace('T', ' ')}  ", "dim"),
            (f"{entry.kind:<12}", _KINDS.get(entry.kind, "bold")),
            f"  {_version(entry.version):<4}  {_alias(entry):<20}  {entry.who}",
        )
        for text in (line, Text(f"      {entry.why}")):
            console.print(text, soft_wrap=not console.is_terminal)


def _version(version: str | None) -> str:
    return "" if version is None else f"v{version}"


def _alias(entry: Entry) -> str:
    if entry.before is None and entry.after is None:
        return ""
    return f"champion {_version(entry.before) or 'none'} -> {_version(entry.after) or 'none'}"
