"""Served traffic as batches: slices of the prediction log, each cut once and kept.

A slice is the next so many predictions that no slice holds yet. It is copied out of the log when
it is cut, so that whoever reads it again reads the same rows after the log was rotated. When one
is cut, and what a batch of them calls for, is decided in `defs`; nothing is scored here.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_predict import encounters, prediction_log, schema
from health_predict.prediction_log import AT, REQUEST_ID, SCORE, VERIFICATION
from health_predict.store import Store, StoreMissing

if TYPE_CHECKING:
    import pandas as pd

_FOLDER = "served/"
PROBABILITY = "probability"
VERSION = "model_version"


class SliceError(ValueError):
    """A slice is not there or not whole; the message names it and the remedy."""


@dataclass(frozen=True)
class Slice:
    """What is known of a slice beside its rows.

    Attributes:
        key: its partition key.
        rows: how many predictions it holds.
        first: time of the oldest, UTC, ISO 8601.
        last: time of the newest.
        left_out: requests of roll-outs that lay between them; they are not traffic.
        skipped: lines of the log passed over because they are no row.
        torn: files of the log that ended inside a line.
        cursor: where the next slice begins.
    """

    key: str
    rows: int
    first: str
    last: str
    left_out: int
    skipped: int
    torn: int
    cursor: dict[str, int]


@dataclass(frozen=True)
class Waiting:
    """Predictions that no slice holds yet, at most as many as were asked for.

    The attributes are those of `Slice`.
    """

    rows: list[dict[str, Any]]
    left_out: int
    skipped: int
    torn: int
    cursor: dict[str, int]


def waiting(log: Path, after: Slice | None, rows: int) -> Waiting:
    """Returns the next predictions of the log, roll-outs' own requests left out.

    Args:
        log: folder of the prediction log.
        after: the newest slice, None if there is none.
        rows: how many are enough.
    """
    found: list[dict[str, Any]] = []
    left_out = skipped = 0
    cursor: prediction_log.Cursor = after.cursor if after else {}
    while True:
        page = prediction_log.read(log, cursor, rows - len(found))
        traffic = [row for row in page.rows if row[REQUEST_ID] != VERIFICATION]
        found += traffic
        left_out += len(page.rows) - len(traffic)
        skipped += page.skipped
        cursor = page.cursor
        if len(found) >= rows or not page.rows:
            return Waiting(found, left_out, skipped, page.torn, page.cursor)


def cut(store: Store, key: str, what: Waiting) -> Slice:
    """Keeps predictions as a slice: whole or not at all.

    Args:
        store: where slices are kept.
        key: partition key of the slice; one that is there already is never cut again.
        what: the predictions, at least one.

    Raises:
        SliceError: there is a slice of this key.
    """
    times = [row[AT] for row in what.rows]
    made = Slice(
        key=key,
        rows=len(times),
        first=min(times),
        last=max(times),
        left_out=what.left_out,
        skipped=what.skipped,
        torn=what.torn,
        cursor=what.cursor,
    )
    lines = (json.dumps(row, separators=(",", ":")) for row in what.rows)
    content = "\n".join([json.dumps(asdict(made)), *lines]) + "\n"
    if not store.create(_at(key), content.encode()):
        raise SliceError(f"{store.where(_at(key))} is there already: a slice is cut once")
    return made


def slices(store: Store) -> list[str]:
    """Returns the keys of all slices, oldest first."""
    names = [key.removeprefix(_FOLDER) for key in store.keys(_FOLDER)]
    found = [name.removesuffix(".jsonl") for name in names if name.startswith("served-")]
    return sorted(found, key=lambda key: (len(key), key))


def find(store: Store, key: str) -> Slice:
    """Returns what is known of one slice.

    Raises:
        SliceError: it was never cut.
    """
    return Slice(**json.loads(_lines(store, key)[0]))


def table(store: Store, key: str) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Returns a slice as a batch: rows that keep the contract, and those that break it.

    The contract is that of arriving encounters, on the inputs. A request names no patient: each
    row counts as an encounter and a patient of its own, numbered below zero, where no published
    number lies. There is no outcome and no label. The accepted rows also hold the score and the
    model version that were answered.

    Raises:
        SliceError: it was never cut, or does not hold the rows it was cut with.
    """
    import pandas as pd

    rows = pd.DataFrame(list(_rows(store, key)))
    number = pd.RangeIndex(1, len(rows) + 1)
    inputs = rows[list(schema.INPUTS)].map(_as_published)
    stands_in = {**dict.fromkeys(schema.IDENTIFIERS, number), schema.OUTCOME: schema.OUTCOMES[0]}
    raw = inputs.assign(**stands_in)[list(schema.COLUMNS)]
    accepted, broken = encounters.apply_contract(raw)
    cohort = encounters.cohort(accepted, "any")
    cohort = cohort[[*schema.IDENTIFIERS, *schema.INPUTS, schema.POSITION]]
    answered = rows.iloc[cohort[schema.ENCOUNTER_ID] - 1]
    cohort = cohort.assign(
        **{column: -cohort[column] for column in schema.IDENTIFIERS},
        **{
            PROBABILITY: answered[SCORE].to_numpy(dtype="float64"),
            VERSION: answered[prediction_log.VERSION].to_numpy(dtype=object),
        },
    )
    return cohort, broken.drop(columns=[*schema.IDENTIFIERS, schema.OUTCOME])


def keep_quarantine(store: Store, key: str, broken: "pd.DataFrame") -> str:
    """Writes the rows of a slice that broke the contract, with reasons; returns where they are."""
    file = io.BytesIO()
    broken.to_parquet(file, index=False)
    at = f"{_FOLDER}quarantine-{key}.parquet"
    store.write(at, file.getvalue())
    return store.where(at)


def _as_published(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) else value


def _rows(store: Store, key: str) -> Iterator[dict[str, Any]]:
    head, *lines = _lines(store, key)
    expected = Slice(**json.loads(head)).rows
    if len(lines) != expected:
        raise SliceError(
            f"{store.where(_at(key))} holds {len(lines)} rows and was cut with {expected}: it was "
            "changed; restore it from a backup"
        )
    return map(json.loads, lines)


def _lines(store: Store, key: str) -> list[str]:
    try:
        return store.read(_at(key)).decode().splitlines()
    except StoreMissing:
        raise SliceError(
            f"there is no slice {key} of the prediction log (newest: "
            f"{slices(store)[-1:] or 'none'}): the sensor served_traffic cuts them, in turn"
        ) from None


def _at(key: str) -> str:
    return f"{_FOLDER}{key}.jsonl"
