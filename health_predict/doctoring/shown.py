"""Findings for a person, as a table, and for a program, as JSON."""

import json
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from health_predict.doctoring.finding import Finding

_COLOURS = {"ok": "green", "wrong": "bold red", "off": "dim"}


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Prints each finding, a remedy below what is wrong, and the count at the end."""
    table = Table(title="health-predict doctor", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("state")
    table.add_column("what was seen, and what to do", overflow="fold")
    for finding in findings:
        seen = Text(finding.seen)
        if finding.remedy:
            seen.append(f"\n-> {finding.remedy}", "bold" if finding.state == "wrong" else "dim")
        table.add_row(finding.part, Text(finding.state, _COLOURS[finding.state]), seen)
    out = console or Console(highlight=False)
    out.print(table)
    out.print(counted(findings))


def counted(findings: Sequence[Finding]) -> str:
    """Returns how many parts are in each state, in words."""
    counts = {state: sum(each.state == state for each in findings) for state in _COLOURS}
    words = f"{counts['ok']} ok, {counts['off']} off"
    return f"{counts['wrong']} wrong, {words}" if counts["wrong"] else f"Nothing is wrong: {words}"


def as_json(findings: Sequence[Finding]) -> str:
    """Returns the findings as JSON."""
    wrong = sum(finding.state == "wrong" for finding in findings)
    return json.dumps({"wrong": wrong, "findings": [vars(each) for each in findings]}, indent=1)
