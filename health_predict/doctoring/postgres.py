"""Whether a PostgreSQL can be reached, and why not: host, port, password, database, told apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from psycopg2.extensions import connection  # type: ignore[import-untyped]

_CONNECT_SECONDS = 3
_STATEMENT = "SET statement_timeout = '3s'"

# libpq tells what is wrong by its words alone; they are of this order in time.
_CAUSES = (
    (
        ("could not translate host name",),
        "wrong host: its name is not known",
        "correct the host in {variable}",
    ),
    (
        ("Connection refused",),
        "nothing listens there",
        "start PostgreSQL, or correct host and port in {variable}",
    ),
    (
        ("timeout expired", "No route to host", "Network is unreachable"),
        "the host does not answer",
        "correct the host in {variable}, or let the firewall pass its port",
    ),
    (
        ("password authentication failed", "no password supplied"),
        "wrong password, or wrong user",
        "correct user and password in {variable}, what is no letter or digit percent-encoded",
    ),
    (
        ("no pg_hba.conf entry",),
        "it does not let this machine in",
        "allow its address in pg_hba.conf and reload",
    ),
    (
        ("does not support SSL",),
        "it speaks without encryption only",
        "set PGSSLMODE=prefer, or give the server a certificate",
    ),
    (
        ("role", "does not exist"),
        "wrong user: there is no such role",
        "create it (createuser --pwprompt), or correct the user in {variable}",
    ),
    (
        ("database", "does not exist"),
        "the database is missing",
        "create it (createdb {database}), or correct its name in {variable}",
    ),
    (
        ("starting up", "shutting down", "recovery mode"),
        "it is starting, stopping or recovering",
        "wait a minute and look again; then its log",
    ),
    (
        ("too many clients", "remaining connection slots"),
        "it takes no more connections",
        "see who holds them (pg_stat_activity), or raise max_connections",
    ),
)
_ALL_OF = ("role", "database")


class Unreachable(RuntimeError):
    """The database cannot be used; the message names cause and remedy."""


@dataclass(frozen=True)
class Place:
    """A database by its address.

    Attributes:
        address: `postgresql://user:password@host:port/database`; a driver's name is passed over.
        variable: where the address comes from.
    """

    address: str
    variable: str

    def __str__(self) -> str:
        """The address without its password."""
        parts = urlsplit(self.address)
        return f"{parts.username}@{parts.hostname}:{parts.port or 5432}/{self.database}"

    @property
    def database(self) -> str:
        """Its name."""
        return urlsplit(self.address).path.strip("/")

    @contextmanager
    def connected(self) -> Iterator["connection"]:
        """Yields a connection, closed afterwards.

        Raises:
            Unreachable: there is none to be had.
        """
        import psycopg2  # type: ignore[import-untyped]

        scheme, _, rest = self.address.partition("://")
        try:
            found = psycopg2.connect(
                f"{scheme.partition('+')[0]}://{rest}", connect_timeout=_CONNECT_SECONDS
            )
        except psycopg2.OperationalError as error:
            raise self._because(str(error)) from None
        try:
            with found.cursor() as cursor:
                cursor.execute(_STATEMENT)
            yield found
        finally:
            found.close()

    def _because(self, said: str) -> Unreachable:
        words = " ".join(said.split())
        for signs, cause, remedy in _CAUSES:
            meant = all if signs[0] in _ALL_OF else any
            if meant(sign in words for sign in signs):
                todo = remedy.format(variable=self.variable, database=self.database)
                return Unreachable(f"{cause} ({self}): {todo}")
        return Unreachable(f"{words} ({self}): see the log of PostgreSQL")


def has_tables(found: "connection", *names: str) -> bool:
    """Returns whether tables are there."""
    with found.cursor() as cursor:
        for name in names:
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (name,))
            if not cursor.fetchone()[0]:
                return False
    return True
