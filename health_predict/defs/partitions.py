"""The one partition scheme: batches, of future encounters as they arrive and of served traffic.

Two kinds of keys, each numbered from 1: `batch-0001` arrives by schedule and its outcomes become
known; `served-0001` is cut from the prediction log and has none.
"""

from collections.abc import Iterable

import dagster as dg

batches = dg.DynamicPartitionsDefinition(name="batches")


def batch_key(number: int) -> str:
    """Returns the partition key of the nth batch, 1 for the first."""
    return f"batch-{number:04d}"


def batch_number(key: str) -> int:
    """Returns the number of an arriving batch.

    Raises:
        ValueError: the key is not of a batch that arrives; one of served traffic is none.
    """
    return _number(key, "batch", batch_key(1))


def arriving(keys: Iterable[str]) -> list[str]:
    """Returns the keys that are not of served traffic, in order of arrival."""
    return sorted((key for key in keys if not is_served(key)), key=batch_number)


def served_key(number: int) -> str:
    """Returns the partition key of the nth batch of served traffic, 1 for the first."""
    return f"served-{number:04d}"


def served_number(key: str) -> int:
    """Returns the number of a batch of served traffic.

    Raises:
        ValueError: the key is not of one.
    """
    return _number(key, "served", served_key(1))


def is_served(key: str) -> bool:
    """Returns whether a batch is of served traffic, which has no outcomes and no patients."""
    return key.startswith("served-")


def _number(key: str, kind: str, example: str) -> int:
    prefix, _, digits = key.partition("-")
    if prefix != kind or not digits.isdigit():
        raise ValueError(f"{key!r} is not the key of a batch: expected e.g. {example!r}")
    return int(digits)
