#!/usr/bin/env python3
"""Brings the databases to what the installed packages expect: makes their tables, or changes them.

Runs to its end before anything else is started: of two processes that make the tables at a time,
one fails. Run again it changes nothing. The addresses are in the environment, never arguments,
which everybody on the machine can read.
"""

import os
import subprocess
import sys
import time

import psycopg2

DAGSTER = "HEALTH_PREDICT_POSTGRES"
MLFLOW = "MLFLOW_BACKEND_STORE_URI"
_SECONDS = 120.0


def address(name: str) -> str:
    """Returns the address of a database as libpq reads it.

    Raises:
        SystemExit: it is not set.
    """
    given = os.environ.get(name, "")
    if not given:
        sys.exit(f"{name} is not set: iac/host/up writes it into the file of settings")
    return given.replace("postgresql+psycopg2://", "postgresql://", 1)


def wait(name: str) -> None:
    """Waits until a database takes connections.

    Raises:
        SystemExit: it never does; the message has the server's reason, which holds no password.
    """
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return psycopg2.connect(address(name), connect_timeout=5).close()
        except psycopg2.OperationalError as error:
            if time.monotonic() > deadline:
                sys.exit(f"the database of {name} takes no connection: {error}")
            time.sleep(1)


def main() -> None:
    """Waits for both databases and migrates them."""
    wait(DAGSTER)
    wait(MLFLOW)
    subprocess.run(["dagster", "instance", "migrate"], check=True)
    from mlflow import db

    db.upgrade.callback(os.environ[MLFLOW])
    sys.stdout.write("Both databases are as the packages expect.\n")


if __name__ == "__main__":
    main()
