"""A PostgreSQL server of this machine, for tests: started, killed, started again."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "p@ss:word"
"""With what has to be percent-encoded in an address."""


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        pytest.skip("no PostgreSQL server is installed: on Debian, apt-get install postgresql")
    return (found[-1] if found else Path(on_path or "")).parent


def _user() -> str | None:
    """Returns whom the server runs as: it refuses root."""
    if os.getuid():
        return None
    return "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"


@dataclass
class Postgres:
    """A server on 127.0.0.1 with its data in a folder.

    Attributes:
        folder: of its data; its own.
        port: where it listens.
    """

    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @classmethod
    def make(cls, folder: Path) -> "Postgres":
        """Returns a server with a fresh cluster, started; skips the test where there is none."""
        binaries, user = _binaries(), _user()
        data = folder / "data"
        data.mkdir(parents=True, mode=0o700)
        (folder / "password").write_text(PASSWORD)
        if user:
            for path in (folder, data, folder / "password"):
                shutil.chown(path, user)
            cls(folder, 0)._open_the_way()
        subprocess.run(
            [
                *(binaries / "initdb", "--pgdata", data, "--username", "health", "--auth", "md5"),
                *("--pwfile", folder / "password", "--encoding", "UTF8", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            user=user,
            cwd=folder,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            made = cls(folder, probe.getsockname()[1])
        made.start()
        return made

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        if _user():
            self._open_the_way()
        command = [
            *(_binaries() / "postgres", "-D", self.folder / "data", "-p", str(self.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
        ]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, user=_user(), cwd=self.folder, stdout=log, stderr=log
            )
        import psycopg2

        deadline = time.monotonic() + 60
        while True:
            try:
                return self._connect("postgres").close()
            except psycopg2.OperationalError as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    words = (self.folder / "postgres.log").read_text(errors="replace")
                    raise AssertionError(f"no PostgreSQL: {error}\n{words[-2000:]}") from error
                time.sleep(0.1)

    def _open_the_way(self) -> None:
        """Lets others through to the folder: each run of pytest closes its own to them, anew."""
        for above in self.folder.parents:
            if above.stat().st_uid == 0 and not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o011)

    def kill(self) -> None:
        """Ends the server and all it started as a power cut would."""
        assert self.process is not None
        import psutil

        family = psutil.Process(self.process.pid).children(recursive=True)
        for member in (self.process, *family):
            member.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=10)

    def create(self, database: str) -> str:
        """Makes a database and returns its address."""
        connection = self._connect("postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{database}"')
        connection.close()
        return self.url(database)

    def url(self, database: str, password: str = "p%40ss%3Aword") -> str:
        """Returns the address of a database."""
        return f"postgresql://health:{password}@127.0.0.1:{self.port}/{database}"

    def _connect(self, database: str) -> Any:
        import psycopg2

        return psycopg2.connect(self.url(database), connect_timeout=5)
