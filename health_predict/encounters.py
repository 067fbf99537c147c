"""Encounters from where they are published to a table that models may see.

Reading, the contract with its quarantine, the cohort and the label live here; sides and batches
are in `splits`, derived columns in `features`. Rows leave the table in this module and nowhere
else: broken ones to quarantine with a reason, those outside the cohort by rule.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from health_predict import schema
from health_predict.download import DownloadError, Say, fetch
from health_predict.schema import LabelName
from health_predict.store import StoreError, open_store

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

UCI_ARCHIVE = (
    "https://archive.ics.uci.edu/static/public/296/"
    "diabetes+130-us+hospitals+for+years+1999-2008.zip"
)
UCI_SHA256 = "0689e7ec031237dc63031b938805c48377748761a3b26acab621567afa24df97"
"""Digest of `diabetic_data.csv` in the published archive."""
TABLE = "diabetic_data.csv"
REASON = "reason"


class DataError(ValueError):
    """The data cannot be used as it is; the message names the value and the remedy."""


@dataclass(frozen=True)
class Source:
    """Where a table came from.

    Attributes:
        name: the setting as given: `synthetic`, `uci`, a path or a URI.
        sha256: digest of the table's bytes; for the synthetic cohort, of its values.
        synthetic: True where no row describes a real encounter.
    """

    name: str
    sha256: str
    synthetic: bool

    @property
    def caption(self) -> str:
        """How figures made from this table are labelled."""
        return "synthetic cohort" if self.synthetic else "published encounters"


def read(
    data: str,
    *,
    rows: int,
    seed: int,
    downloads: Path | None = None,
    say: Say = lambda words: None,
) -> "tuple[pd.DataFrame, Source]":
    """Reads the raw encounters.

    Args:
        data: `synthetic`, `uci`, a path to the csv or zip, `https://...` or `s3://...`.
        rows: size of the synthetic cohort; other sources are read whole.
        seed: seed of the synthetic cohort.
        downloads: folder in which a download that broke off waits to be gone on with by the next
            call; None: it is lost with this one.
        say: told how far a download is.

    Returns:
        The table as published (n rows, 50 columns of strings, and `intervened` where the source
        has it) and its source. There is no fallback from one source to another.

    Raises:
        DataError: nothing is there, it is not the published table, or its digest is wrong.
    """
    if data == "synthetic":
        return _read_synthetic(rows, seed)
    content = _fetch(UCI_ARCHIVE if data == "uci" else data, downloads, say)
    table = _unpack(content, data)
    digest = hashlib.sha256(table).hexdigest()
    if data == "uci" and digest != UCI_SHA256:
        raise DataError(
            f"the UCI archive holds a {TABLE} with sha256 {digest}, expected {UCI_SHA256}: "
            "fetch it again, or give a path to a copy you trust"
        )
    return _parse(table, data), Source(data, digest, synthetic=False)


def require(data: str) -> None:
    """Raises `DataError` if the setting cannot name a table, before anything is read."""
    if data in ("synthetic", "uci"):
        return
    scheme, separator, rest = data.partition("://")
    if not separator:
        if not Path(data).expanduser().is_file():
            raise DataError(f"no file at {data!r}: {_REMEDY}")
    elif scheme not in ("http", "https", "s3"):
        raise DataError(f"addresses of the kind {scheme}:// are not read: {_REMEDY}")
    elif "@" in rest.partition("/")[0]:  # and would be shown wherever the source is named
        raise DataError(
            f"the {scheme}:// address holds credentials: leave them to the environment, "
            "where the AWS libraries find them"
        )


_REMEDY = (
    "set HEALTH_PREDICT_DATA (make: DATA=...) to 'synthetic', 'uci', a path to the csv or zip, "
    "or an s3:// or https:// address"
)


def _read_synthetic(rows: int, seed: int) -> "tuple[pd.DataFrame, Source]":
    import pandas as pd

    from health_predict import synthetic

    frame = synthetic.cohort(rows, seed)
    values = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return frame, Source("synthetic", hashlib.sha256(values.tobytes()).hexdigest(), synthetic=True)


def _fetch(location: str, downloads: Path | None, say: Say) -> bytes:
    require(location)
    try:
        if location.startswith(("http://", "https://")):
            with TemporaryDirectory() as folder:
                return fetch(location, downloads or Path(folder), say)
        if "://" in location:
            parent, _, name = location.rpartition("/")
            return open_store(parent).read(name)
    except DownloadError as error:
        raise DataError(
            f"cannot download {error}; download it by hand and give its path instead"
        ) from error
    except StoreError as error:
        raise DataError(f"cannot read {location}: {error}") from error
    return Path(location).expanduser().read_bytes()


def _unpack(content: bytes, location: str) -> bytes:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [name for name in archive.namelist() if Path(name).name == TABLE]
        if not members:
            raise DataError(
                f"the archive {location!r} holds {archive.namelist()} and no {TABLE}: "
                "give the archive as UCI publishes it"
            )
        try:
            return archive.read(members[0])
        except zipfile.BadZipFile as error:
            raise DataError(
                f"the archive {location!r} is damaged: {error}; fetch it again"
            ) from error


def _parse(table: bytes, location: str) -> "pd.DataFrame":
    import pandas as pd

    try:
        # "None" is a level of two laboratory columns, not a missing value.
        frame = pd.read_csv(io.BytesIO(table), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise DataError(f"{location!r} is not a CSV table: {error}") from error
    return _published_columns(frame, location)


def _published_columns(frame: "pd.DataFrame", location: str) -> "pd.DataFrame":
    absent = [c for c in schema.COLUMNS if c not in frame.columns]
    optional = [c for c in frame.columns if c == schema.INTERVENED]
    unknown = [c for c in frame.columns if c not in (*schema.COLUMNS, *optional)]
    if absent or unknown:
        raise DataError(
            f"{location!r} does not have the 50 published columns: absent {absent}, "
            f"unknown {unknown}"
        )
    if frame.empty:
        raise DataError(f"{location!r} has the published columns but not one row")
    return frame[[*schema.COLUMNS, *optional]]


def apply_contract(raw: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Splits raw rows into those that keep the contract and those that break it.

    Args:
        raw: the table as published, columns of strings.

    Returns:
        The accepted rows, typed (identifiers int64, codes and counts int32, text as object), and
        the quarantined rows as they came with one `reason` each. Their sizes add up to n.
    """
    import pandas as pd
    from pandera.errors import SchemaErrors

    typed = raw.copy()
    for column in _WHOLE_NUMBERS:
        typed[column] = pd.to_numeric(raw[column], errors="coerce")
    typed = typed.reset_index(drop=True)
    reasons = pd.Series(index=typed.index, dtype=object)
    try:
        _contract().validate(typed, lazy=True)
    except SchemaErrors as errors:
        failures = errors.failure_cases.dropna(subset=["index"])
        for failure in failures.itertuples():
            if pd.isna(reasons[failure.index]):
                across_columns = failure.schema_context == "DataFrameSchema"
                row = raw.iloc[int(failure.index)]
                reasons[failure.index] = failure.check if across_columns else _reason(failure, row)
    broken = reasons.notna()
    position = _arrival(typed[schema.ENCOUNTER_ID])
    quarantined = raw.reset_index(drop=True)[broken].assign(
        **{REASON: reasons[broken], schema.POSITION: position[broken]}
    )
    accepted = typed[~broken].assign(**{schema.POSITION: position[~broken]}).reset_index(drop=True)
    widths = {c: "int64" if c in schema.IDENTIFIERS else "int32" for c in _WHOLE_NUMBERS}
    return accepted.astype(widths), quarantined.reset_index(drop=True)


def _arrival(numbers: "pd.Series") -> np.ndarray:
    """Returns each row's place in encounter order; one without a number stays with its neighbour.

    The published file keeps this order only roughly.
    """
    order = numbers.ffill().fillna(0).to_numpy().argsort(kind="stable")
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    return position


# Above it a column of doubles, which one broken number makes of a column, confuses neighbours.
_LARGEST_IDENTIFIER = 2**53
_WHOLE_NUMBERS = (*schema.IDENTIFIERS, *schema.CODES, *schema.COUNTS)


def _contract() -> "pa.DataFrameSchema":
    import pandera.pandas as pa

    whole = pa.Check(lambda s: s % 1 == 0, name="is a whole number")
    identifier = pa.Check.in_range(1, _LARGEST_IDENTIFIER)
    columns = {
        schema.ENCOUNTER_ID: pa.Column(
            checks=[whole, identifier], unique=True, report_duplicates="exclude_first"
        ),
        schema.PATIENT: pa.Column(checks=[whole, identifier]),
        schema.OUTCOME: pa.Column(str, pa.Check.isin(schema.OUTCOMES)),
        schema.INTERVENED: pa.Column(str, pa.Check.isin(schema.MARKS), required=False),
        **{c: pa.Column(checks=[whole, pa.Check.in_range(1, 999)]) for c in schema.CODES},
        **{c: pa.Column(checks=[whole, pa.Check.in_range(*r)]) for c, r in schema.COUNTS.items()},
        **{c: pa.Column(str, pa.Check.isin(levels)) for c, levels in schema.CLOSED.items()},
        **{c: pa.Column(str, pa.Check.str_length(1, 80)) for c in schema.OPEN},
    }
    changed_but_untreated = pa.Check(
        lambda f: ~((f["change"] == "Ch") & (f["diabetesMed"] == "No")),
        name="a drug was changed though none was given",
        ignore_na=False,
    )
    return pa.DataFrameSchema(columns, checks=[changed_but_untreated])


def _reason(failure: Any, row: "pd.Series") -> str:
    column = failure.column
    if column in schema.IDENTIFIERS:  # an identifier's value is never repeated
        repeated = "unique" in str(failure.check)
        return f"{column}: {'seen before' if repeated else 'not a whole number from 1 to 2^53'}"
    value = row[column]
    if column in schema.COUNTS:
        low, high = schema.COUNTS[column]
        return f"{column}: {value!r} is not a whole number from {low} to {high}"
    if column in schema.CODES:
        return f"{column}: {value!r} is not a whole number from 1 to 999"
    if column in schema.OPEN and not isinstance(value, str):
        return f"{column}: no text"
    if column in schema.OPEN:
        return f"{column}: a text of {len(value)} characters, allowed are 1 to 80"
    closed = {schema.OUTCOME: schema.OUTCOMES, schema.INTERVENED: schema.MARKS, **schema.CLOSED}
    allowed = ", ".join(level or "empty" for level in closed[column])
    return f"{column}: {value!r} is not one of {allowed}"


def cohort(accepted: "pd.DataFrame", label: LabelName) -> "pd.DataFrame":
    """Returns the encounters a readmission can follow, with the 0/1 column `label`.

    Discharges to hospice and deaths are left out. Rows come in order of arrival; the index is
    renewed. `intervened` becomes a column of bool, False throughout where the source lacks it.
    """
    inside = ~accepted["discharge_disposition_id"].isin(schema.DEATH_OR_HOSPICE)
    frame = accepted[inside].sort_values(schema.POSITION, ignore_index=True)
    positive = frame[schema.OUTCOME].isin(schema.POSITIVE_OUTCOMES[label])
    marked = frame[schema.INTERVENED] == "Yes" if schema.INTERVENED in frame else False
    return frame.assign(**{schema.LABEL: positive.astype("int8"), schema.INTERVENED: marked})


def untouched(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows whose care no prediction changed: what may be learned from and judged on.

    A row without a mark, or stored before the field was known, counts as one under usual care.
    """
    if schema.INTERVENED not in frame:
        return frame
    return frame[frame[schema.INTERVENED].ne(True)]
