"""Where the seconds go from a drift event to the verified new version serving.

Turns the whole loop on the synthetic cohort in a state folder of its own and reads what each run
recorded. Writes `var/bench/loop.json` and prints a Markdown table; shares first, because seconds
are those of one machine.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from health_predict import loop
from health_predict.settings import ROOT

BENCH = ROOT / "var" / loop.BENCH


def main() -> None:
    """Runs the benchmark."""
    state = BENCH / "state"
    BENCH.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [str(Path(sys.executable).with_name("health-predict")), "loop"],
        env={**os.environ, "HEALTH_PREDICT_VAR": str(state)},
        check=True,
    )
    story = json.loads((state / "loop.json").read_text())
    result = {"machine": machine(), "data": story["data"], **story["seconds"]}
    (BENCH / "loop.json").write_text(json.dumps(result, indent=2))
    sys.stdout.write(table(result) + f"\nwritten to {BENCH / 'loop.json'}\n")


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def table(result: dict[str, Any]) -> str:
    """Returns the newest promotion's course as a Markdown table."""
    newest = result["retrains"][-1]
    total = newest["drift_to_served"]
    rows = [
        f"| {name} | {seconds / total:.0%} | {seconds:.1f} |"
        for name, seconds in newest["parts"].items()
    ]
    head = [
        f"\nDrift event to verified version {newest['version']} ({result['data']}): {total} s\n",
        "| part | share | s |",
        "| --- | ---: | ---: |",
    ]
    return "\n".join(head + rows)


if __name__ == "__main__":
    main()
