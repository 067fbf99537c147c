#!/usr/bin/env python3
"""Dagster's homes in the image: one whose runs log to the state folder, one to a bucket.

Runs while the image is built (Dockerfile). Its arguments: the folder that holds dagster.yaml and
compute-logs-s3.yaml, the state folder of the container, and the folder the homes go to. All but the
compute logs is the same in both; which of the two counts says `DAGSTER_HOME` (compose.yaml).
"""

import sys
from pathlib import Path
from typing import Any

import yaml


def homes(source: Path, state: str) -> dict[str, dict[str, Any]]:
    """Returns each home's instance file, by its name.

    Args:
        source: folder of dagster.yaml, which names `var/dagster` beside it.
        state: what stands there for `var`, an absolute path.
    """
    text = (source / "dagster.yaml").read_text().replace("var/dagster", f"{state}/dagster")
    folder = yaml.safe_load(text)
    s3 = yaml.safe_load((source / "compute-logs-s3.yaml").read_text())
    return {"folder": folder, "s3": {**folder, "compute_logs": s3}}


def main(source: Path, state: str, target: Path) -> None:
    """Writes the homes."""
    for name, instance in homes(source, state).items():
        (target / name).mkdir(parents=True, exist_ok=True)
        (target / name / "dagster.yaml").write_text(yaml.safe_dump(instance, sort_keys=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
