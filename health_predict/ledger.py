"""The ledger: what was done to models, by whom, when and why; append-only and hash-chained.

One line of JSON per registration, verdict, approval, move of the alias `champion`, release and
rollback; MLflow keeps no history of an alias, this is it. Nothing is decided or looked up here:
callers say what happened, and remember the newest digest elsewhere, which alone shows that entries
are missing at the end.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, get_args

from health_predict.schema import IDENTIFIERS
from health_predict.store import Store

Kind = Literal["registration", "verdict", "approval", "alias_move", "release", "rollback"]

_NOTHING = "0" * 64
"""What the first entry names as the digest of the entry before it."""

_KEY = "ledger.jsonl"
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
    """The ledger in a store; any number of processes may append to it and read it at a time.

    Args:
        store: keeps it as `ledger.jsonl`, JSON lines; made by the first entry.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def where(self) -> str:
        """Where a person finds it."""
        return self.store.where(_KEY)

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
        """Writes an entry behind the newest one; it is kept when this returns.

        If this raises `OSError` or `StoreError`, the entry may have been written nevertheless.

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
        self.store.update(_KEY, lambda content: self._chained(content or b"", fields))
        return Entry(**fields)

    def _chained(self, content: bytes, fields: dict[str, Any]) -> bytes:
        """Returns the ledger with one more entry, whose place is written into its fields."""
        lines = content.splitlines()
        newest = self._checked(len(lines), lines[-1]) if lines else None
        if newest and newest.digest == fields["digest"]:
            return content  # a store whose answer was lost asks again: it is there already
        fields["number"] = len(lines) + 1
        fields["at"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        fields["previous"] = newest.digest if newest else _NOTHING
        fields["digest"] = _digest(fields)
        end = b"" if not content or content.endswith(b"\n") else b"\n"
        return content + end + _canonical(fields) + b"\n"

    def lines(self) -> list[bytes]:
        """Returns the lines as they stand."""
        return self.store.read(_KEY).splitlines() if self.store.exists(_KEY) else []

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
            LedgerError: at the first line that was changed, removed, inserted or moved, or that is
                not JSON; or the anchor is not among the digests.
        """
        lines = self.lines()
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
        return len(lines)

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

    def _fail(self, number: int, what: str) -> NoReturn:
        raise LedgerError(f"{self.where} line {number} {what}; {_RESTORE}") from None


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
