"""Which rows are the past, which batch a row arrives in, and which side a patient is on.

Encounter order is the only clock of the published table. No model and no storage here.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from health_predict.schema import PATIENT, POSITION, SIDE

if TYPE_CHECKING:
    import pandas as pd

INITIAL_SHARE = 0.2
SIDES = {"train": 0.70, "validation": 0.15, "test": 0.15}
# Changing the key would move patients between sides: models trained before would have seen
# people they are then judged on.
_KEY = b"health_predict/side/1"


def side(patients: "np.ndarray | pd.Series") -> np.ndarray:
    """Returns the side of each patient (n,): `train`, `validation` or `test`, for all time."""
    unique, inverse = np.unique(np.asarray(patients, dtype=np.int64), return_inverse=True)
    bounds = np.cumsum(list(SIDES.values()))[:-1]
    indices = np.searchsorted(bounds, [_position(p) for p in unique], side="right")
    return np.array(list(SIDES))[indices][inverse]


def _position(patient: int) -> float:
    digest = hashlib.blake2b(str(patient).encode(), key=_KEY, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def with_side(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the frame with the column `side`, made from `patient_nbr`."""
    return frame.assign(**{SIDE: side(frame[PATIENT])})


def on_side(snapshot: "pd.DataFrame", name: str) -> "pd.DataFrame":
    """Returns the rows whose column `side` is `name`, in their order."""
    return snapshot[snapshot[SIDE] == name]


@dataclass(frozen=True)
class Calendar:
    """What has happened and what arrives when, by the position of a row in order of arrival.

    Positions count every row of the source, broken ones and those outside the cohort too: when a
    broken row is mended, no other row moves to another batch.

    Attributes:
        rows: rows of the source.
        batches: batches the future is cut into; 0: as many as fit.
        batch_rows: rows of a batch where `batches` is 0; the last one also takes the rest.
    """

    rows: int
    batches: int
    batch_rows: int

    @property
    def initial_rows(self) -> int:
        """Rows of the first 20 %: what the first champion learns from."""
        return int(self.rows * INITIAL_SHARE)

    @property
    def rows_a_batch(self) -> int:
        """Rows of every batch but the last."""
        future_rows = self.rows - self.initial_rows
        return max(1, future_rows // self.batches) if self.batches else self.batch_rows

    @property
    def count(self) -> int:
        """How many batches the future holds; a short rest joins the last one."""
        return max(1, (self.rows - self.initial_rows) // self.rows_a_batch)

    def span(self, number: int) -> range:
        """Returns the positions of the nth batch, 1 for the first.

        Raises:
            ValueError: the future holds no such batch.
        """
        if not 1 <= number <= self.count:
            raise ValueError(
                f"there is no batch {number}: the future holds {self.count} of "
                f"{self.rows_a_batch} rows"
            )
        start = self.initial_rows + (number - 1) * self.rows_a_batch
        return range(start, self.rows if number == self.count else start + self.rows_a_batch)


def within(frame: "pd.DataFrame", positions: range) -> "pd.DataFrame":
    """Returns the rows of a frame at these positions, in order, the index renewed."""
    inside = frame[frame[POSITION].between(positions.start, positions.stop - 1)]
    return inside.sort_values(POSITION, ignore_index=True)
