"""Which rows are the past, which batch a row arrives in, and which side a patient is on.

Encounter order is the only clock of the published table. No model and no storage here.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from health_predict.schema import PATIENT, SIDE

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


def initial(encounters: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the first 20 % of the encounters: what the first champion learns from."""
    return encounters.iloc[: _initial_rows(encounters)].reset_index(drop=True)


def future(encounters: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the other 80 %: what arrives batch by batch."""
    return encounters.iloc[_initial_rows(encounters) :].reset_index(drop=True)


def _initial_rows(encounters: "pd.DataFrame") -> int:
    return int(len(encounters) * INITIAL_SHARE)


def batch_count(future_rows: int, batch_rows: int) -> int:
    """Returns how many batches the future holds; a short rest joins the last one."""
    return max(1, future_rows // batch_rows)


def batch(future_encounters: "pd.DataFrame", number: int, batch_rows: int) -> "pd.DataFrame":
    """Returns the nth batch of the future.

    Args:
        future_encounters: the future, in encounter order.
        number: 1 for the first batch.
        batch_rows: rows a batch; the last one also takes the rest.

    Raises:
        ValueError: the future holds no such batch.
    """
    count = batch_count(len(future_encounters), batch_rows)
    if not 1 <= number <= count:
        raise ValueError(
            f"there is no batch {number}: the future holds {count} of {batch_rows} rows"
        )
    stop = None if number == count else number * batch_rows
    return future_encounters.iloc[(number - 1) * batch_rows : stop].reset_index(drop=True)
