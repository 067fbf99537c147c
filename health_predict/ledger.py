"""The ledger: what was done to models, by whom, when and why; append-only and hash-chained.

One line of JSON per registration, verdict, approval, move of the alias `champion`, release and
rollback; MLflow keeps no history of an alias, this is it. Nothing is decided or looked up here:
callers say what happened, and remember the newest digest elsewhere, which alone shows that entries
are missing at the end.
"""

import fcntl
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, get_args

from health_predict.schema import IDENTIFIERS

Kind = Literal["registration", "verdict", "approval", "alias_move", "release", "rollback"]

_NOTHING = "0" * 64
"""What the first entry names as the digest of the entry before it."""

_RESTORE = "keep this file as evidence and restore the ledger from a backup"

_OPTIONAL_TEXT = (str, type(None))
_TYPES: dict[str, type | tuple[type, ...]] = {
    "number": int,
    "at": str,
    "kind": str,
    "who": str,
    "version": _OPTIONAL_TEXT,
    "why": str,
    "facts": dict,
    "before": _OPTIONAL_TEXT,
    "after": _OPTIONAL_TEXT,
    "previous": str,
    "digest": str,
}

_log = logging.getLogger(__name__)


class LedgerError(RuntimeError):
    """The ledger is not what was written, or would not take an entry.

    The message names the line, what is wrong with it and the remedy.
    """


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        number: counted from 1; the line.
        at: when it was written, UTC, ISO 8601 with milliseconds.
        kind: what happened.
        who: a Dagster run or a person.
        version: the model version concerned, None if there is none.
        why: the reason, a sentence.
        facts: what it rests on (data fingerprint, metrics, ...); JSON values only.
        before: version behind the alias `champion` before; None if none, or not concerned.
        after: version behind the alias `champion` after; None if none, or not concerned.
        previous: digest of the entry before, 64 zeros for the first.
        digest: SHA-256, hexadecimal, of the canonical JSON of all other fields.
    """

    number: int
    at: str
    kind: Kind
    who: str
    version: str | None
    why: str
    facts: dict[str, Any]
    before: str | None
    after: str | None
    previous: str
    digest: str


class Ledger:
    """The ledger in one file; any number of processes may append to it and read it at a time.

    Args:
        path: the file of JSON lines; made by the first entry. Beside it stand `<name>.lock` and,
            once a writer was killed in the middle of a line, `<name>.torn`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        kind: Kind,
        *,
        who: str,
        why: str,
        version: str | None = None,
        facts: Mapping[str, Any] | None = None,
        before: str | None = None,
        after: str | None = None,
    ) -> Entry:
        """Writes an entry behind the newest one; it is on the disk when this returns.

        An unfinished line was left by a writer that was killed, and nobody was told that it was
        written: it is moved to `<name>.torn`, which is logged as a warning. If this raises
        `OSError`, the entry may have been written nevertheless.

        Args:
            kind: what happened.
            who: a Dagster run or a person.
            why: the reason, a sentence.
            version: the model version concerned.
            facts: JSON values, no identifiers.
            before: version behind the alias `champion` before, where the alias is concerned.
            after: version behind it after.

        Raises:
            LedgerError: the entry is not fit to be written, or the newest line was changed.
        """
        fields: dict[str, Any] = {
            "number": 0,
            "at": "",
            "kind": kind,
            "who": who,
            "version": version,
            "why": why,
            "facts": dict(facts or {}),
            "before": before,
            "after": after,
            "previous": "",
            "digest": "",
        }
        if wrong := _wrong(fields) or next(_unfit("facts", fields["facts"]), None):
            raise LedgerError(f"the {kind!r} entry was not written: {wrong}; correct what is given")
        fields["facts"] = json.loads(_canonical(fields["facts"]))  # as it will be read
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(fcntl.LOCK_EX):
            return self._append(fields)

    def _append(self, fields: dict[str, Any]) -> Entry:
        """Chains and writes the fields of an entry; the lock is held."""
        is_new = not self.path.exists()
        with self.path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            lines, rest = _split(content)
            newest = self._checked(len(lines), lines[-1]) if lines else None
            if rest:
                self._set_aside(rest, len(lines) + 1)
                file.truncate(len(content) - len(rest))
            elif lines and not content.endswith(b"\n"):
                file.write(b"\n")
            fields["number"] = len(lines) + 1
            fields["at"] = datetime.now(UTC).isoformat(timespec="milliseconds")
            fields["previous"] = newest.digest if newest else _NOTHING
            fields["digest"] = _digest(fields)
            file.write(_canonical(fields) + b"\n")
            _flush(file)
        if is_new:
            _flush_folder(self.path.parent)
        return Entry(**fields)

    def _set_aside(self, rest: bytes, number: int) -> None:
        aside = self._beside("torn")
        with aside.open("ab") as file:
            file.write(rest + b"\n")
            _flush(file)
        _log.warning(
            "%s line %d was left unfinished by a writer that was killed; it stands in %s now, and "
            "what it was to record is not in the ledger",
            self.path,
            number,
            aside.name,
        )

    def lines(self) -> list[bytes]:
        """Returns the lines as they stand; an unfinished one at the end is not among them."""
        return self._read()[0]

    def entries(self) -> list[Entry]:
        """Returns the entries in order, their digests not checked: that is `verify`.

        Raises:
            LedgerError: a line is not an entry.
        """
        return [self._parsed(number, line) for number, line in enumerate(self.lines(), 1)]

    def verify(self, anchor: str | None = None) -> int:
        """Returns the number of entries if each is as it was written, where it was written.

        Entries removed at the end are found with the anchor only, and so is a chain that was
        computed anew.

        Args:
            anchor: digest of the newest entry as remembered elsewhere. Entries may follow it: a
                writer can be killed before it has remembered its own.

        Raises:
            LedgerError: at the first line that was changed, removed, inserted or moved, that is
                not JSON or is unfinished; or the anchor is not among the digests.
        """
        lines, rest = self._read()
        digest, digests = _NOTHING, set()
        for number, line in enumerate(lines, 1):
            digest = self._checked(number, line, digest).digest
            digests.add(digest)
        if anchor is not None and anchor not in digests:
            self._fail(
                len(lines) + 1,
                f"is missing: an entry with digest {anchor} was written, and none of the "
                f"{len(lines)} there have it; the end was removed or the chain computed anew",
            )
        if rest:
            self._fail(
                len(lines) + 1,
                "is unfinished: its writer was killed, or the file was cut",
                "the next entry moves it aside, then verify again",
            )
        return len(lines)

    def _read(self) -> tuple[list[bytes], bytes]:
        if not self.path.exists():
            return [], b""
        # A copy without a lock has no writer, and may lie where nothing can be written.
        with self._locked(fcntl.LOCK_SH) if self._beside("lock").exists() else nullcontext():
            return _split(self.path.read_bytes())

    def _checked(self, number: int, line: bytes, previous: str | None = None) -> Entry:
        """Returns a line's entry if it is as it was written; `previous` None is not compared."""
        entry = self._parsed(number, line)
        if entry.digest != _digest(vars(entry)):
            self._fail(number, "was changed: its digest is not that of its content")
        if entry.number != number or previous not in (None, entry.previous):
            self._fail(
                number,
                f"does not continue the line before: it is entry {entry.number} and follows digest "
                f"{entry.previous[:12]}...: here a line was removed, inserted, moved or rewritten",
            )
        return entry

    def _parsed(self, number: int, line: bytes) -> Entry:
        try:
            fields = json.loads(line)
            canonical = _canonical(fields)
        except (ValueError, RecursionError):
            self._fail(number, "is not JSON")
        if canonical != line:
            self._fail(number, "was changed: it is not in the form in which entries are written")
        if wrong := _wrong(fields):
            self._fail(number, f"was changed: {wrong}")
        return Entry(**fields)

    def _fail(self, number: int, what: str, remedy: str = _RESTORE) -> NoReturn:
        raise LedgerError(f"{self.path} line {number} {what}; {remedy}") from None

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with self._beside("lock").open("rb" if kind == fcntl.LOCK_SH else "ab") as lock:
            fcntl.flock(lock, kind)
            yield

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{what}")


def _canonical(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        _canonical({name: value for name, value in fields.items() if name != "digest"})
    ).hexdigest()


def _wrong(fields: Any) -> str | None:
    """Returns why these fields are not those of an entry, None if they are."""
    if not isinstance(fields, dict) or set(fields) != set(_TYPES):
        return f"an entry has the fields {', '.join(_TYPES)}"
    for name, types in _TYPES.items():
        if not isinstance(fields[name], types):
            return f"its {name} is of type {type(fields[name]).__name__}"
    if fields["kind"] not in get_args(Kind):
        return f"its kind is none of {', '.join(get_args(Kind))}"
    empty = [name for name in ("who", "why") if not fields[name].strip()]
    return f"its {empty[0]} is empty" if empty else None


def _unfit(name: str, value: Any) -> Iterator[str]:
    """Yields what must not be written, by its place; an identifier's value is never repeated."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield f"{name} has a key of type {type(key).__name__}, JSON has only text"
            elif key in IDENTIFIERS:
                yield f"{name} has the key {key}, and identifiers do not leave the data"
            else:
                yield from _unfit(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _unfit(f"{name}[{place}]", inner)
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{name} is {value}, which JSON does not have"
    elif not isinstance(value, str | int | None):
        yield f"{name} is of type {type(value).__name__}, which JSON does not have"


def _split(content: bytes) -> tuple[list[bytes], bytes]:
    """Returns the lines, and what is unfinished; a line that lacks its newline only is whole."""
    *lines, rest = content.split(b"\n")
    return ([*lines, rest], b"") if _is_json(rest) else (lines, rest)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """A new file outlives a power cut only once its folder was written too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
