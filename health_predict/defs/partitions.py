"""The one partition scheme: batches of future encounters, numbered as they arrive."""

import dagster as dg

batches = dg.DynamicPartitionsDefinition(name="batches")


def batch_key(number: int) -> str:
    """Returns the partition key of the nth batch, 1 for the first."""
    return f"batch-{number:04d}"


def batch_number(key: str) -> int:
    """Returns the number of a batch.

    Raises:
        ValueError: the key is not of a batch.
    """
    prefix, _, digits = key.partition("-")
    if prefix != "batch" or not digits.isdigit():
        raise ValueError(f"{key!r} is not the key of a batch: expected e.g. {batch_key(1)!r}")
    return int(digits)
