#!/usr/bin/env python3
"""Byte code of what the platform's processes import, kept apart from the packages.

Runs while the image is built (Dockerfile), by the interpreter of the image. Its arguments: the
project's sources, its Makefile, the folder that byte code of packages goes to, and the one of the
sources', which change more often. The container's files are read-only: without byte code every
process and every run would compile a few thousand modules anew.
"""

import sys
from pathlib import Path

import finish  # image/finish.py, which does the same for the service

SERVERS = (
    "dagster_aws.s3",
    "dagster_postgres",
    "dagster_webserver.cli",
    "gunicorn.app.wsgiapp",
    "mlflow.cli",
    "mlflow.server.fastapi_app",
    "psycopg2",
    "uvicorn.workers",
)
"""What servers import late, beside what the Makefile lists for the demo."""


def used(makefile: str) -> list[str]:
    """Returns the modules that the Makefile lists as `USED`.

    Raises:
        ValueError: it lists none.
    """
    for line in makefile.replace("\\\n", " ").splitlines():
        name, _, value = line.partition(":=")
        if name.strip() == "USED":
            return value.split()
    raise ValueError("the Makefile has no line `USED := ...`")


def main(sources: Path, makefile: Path, packages: Path, own: Path) -> None:
    """Compiles what is imported into a folder, the sources into another."""
    names = {*SERVERS, *used(makefile.read_text()), *finish.named(sources)}
    finish.compile_imported(names, packages)
    finish.compile_files(sources.rglob("*"), own)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
