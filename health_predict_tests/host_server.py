"""A PostgreSQL server as `iac/host` finds it in its container: its superuser is `postgres`."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from health_predict_tests.postgres import Postgres

SUPERUSER_PASSWORD = "superuser"


@contextmanager
def superusers_server() -> Iterator[Postgres]:
    """A server in a folder of its own, removed with it.

    Not in one of pytest's: each session of pytest that begins closes those to other users, and the
    server, which is none of root's, stands still.
    """
    folder = Path(tempfile.mkdtemp(prefix="host-postgres-"))
    folder.chmod(0o711)
    try:
        server = Postgres.make(folder / "server")
        try:
            with server._connect("postgres") as connection, connection.cursor() as cursor:
                cursor.execute(
                    f"CREATE ROLE postgres SUPERUSER LOGIN PASSWORD '{SUPERUSER_PASSWORD}'"
                )
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)
