"""From what a client sent to an encounter of the cohort, or to the reasons why it is none.

Reasons name fields and what is allowed, never what was sent: so no identifier can come back. A
field may be spelled as published or with underscores, once. Nothing is scored here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from health_predict.schema import COLUMNS, DEATH_OR_HOSPICE, Encounter, field_name

LARGEST_BODY = 64 * 1024
"""Bytes of one encounter: it takes about 1.3 kB."""

PUBLISHED = {field_name(column): column for column in COLUMNS}
"""Published column names by field name."""
_NAMES = {column: name for name, column in PUBLISHED.items()}

Errors = list[dict[str, str | None]]
"""One entry a field: `field`, its published name or None, and `message`, what is asked of it."""


class Refused(Exception):
    """A request that is not answered with a score.

    Attributes:
        status: HTTP status.
        errors: why.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, errors: Errors, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status)
        self.status = status
        self.errors = errors
        self.headers = dict(headers or {})


def refused(
    status: int, message: str, field: str | None = None, headers: Mapping[str, str] | None = None
) -> Refused:
    """Returns a refusal for one reason."""
    return Refused(status, [{"field": field, "message": message}], headers)


def parse(body: bytes) -> Encounter:
    """Returns the encounter of a request body.

    Raises:
        Refused: the body is not one encounter of the cohort.
    """
    return encounter(decode(body))


def decode(body: bytes | str) -> Any:
    """Returns the JSON value of a body, objects as `Fields`.

    Raises:
        Refused: it is not JSON.
    """
    try:
        return _DECODER.decode(body if isinstance(body, str) else body.decode())
    except (ValueError, RecursionError):
        raise refused(422, "the body is not JSON") from None


def elements(body: bytes) -> Iterator[str]:
    """Yields the elements of a JSON array as texts, each of which is JSON.

    One is read at a time: made of millions of small objects, a body unfolds to a hundred times its
    size.

    Raises:
        Refused: it is not one JSON array, or an element is longer than `LARGEST_BODY`.
    """
    try:
        text = body.decode()
    except ValueError:
        raise refused(422, "the body is not JSON") from None
    place = _behind_blanks(text, 0)
    if text[place : place + 1] != "[":
        raise refused(422, "the body is not one JSON array of encounters")
    place, number = _behind_blanks(text, place + 1), 0
    mark = text[place : place + 1]
    while mark != "]":
        number += 1
        element = text[place : place + LARGEST_BODY]
        try:
            _, length = _ANY.raw_decode(element)
        except (ValueError, RecursionError):
            reason = f"row {number} of the array is not JSON of at most {LARGEST_BODY} characters"
            raise refused(422, reason) from None
        yield element[:length]
        place = _behind_blanks(text, place + length)
        mark = text[place : place + 1]
        if mark not in (",", "]"):
            raise refused(422, f"the body is not JSON behind row {number} of the array")
        place = _behind_blanks(text, place + 1) if mark == "," else place
    if _behind_blanks(text, place + 1) != len(text):
        raise refused(422, "the body is not JSON: something stands behind the array")


_BLANKS = re.compile(r"[ \t\n\r]*")


def _behind_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    return found.end() if found else place


class Fields(dict[str, Any]):
    """Values by field name, however the fields were spelled.

    Attributes:
        twice: a field given more than once, None if there is none.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        spelled = _NAMES.get
        names = [spelled(name) or field_name(name) for name, _ in pairs]
        super().__init__(zip(names, [value for _, value in pairs], strict=True))
        self.twice: str | None = None
        if len(self) < len(names):
            self.twice = next(name for name in names if names.count(name) > 1)


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON


# Made once: `json.loads` would make one a request.
_DECODER = json.JSONDecoder(object_pairs_hook=Fields, parse_constant=_no_constant)
_ANY = json.JSONDecoder(parse_constant=_no_constant)


def encounter(fields: Any) -> Encounter:
    """Returns the encounter of decoded fields.

    Args:
        fields: `Fields`; whatever else was decoded is refused.

    Raises:
        Refused: they are not one encounter of the cohort.
    """
    if not isinstance(fields, Fields):
        raise refused(422, "the body is not one JSON object with the fields of an encounter")
    if fields.twice is not None:
        raise refused(422, "given twice", PUBLISHED.get(fields.twice))
    try:
        found = Encounter.model_validate(fields)
    except ValidationError as error:
        raise Refused(
            422, [_entry(e) for e in error.errors(include_input=False, include_url=False)]
        ) from None
    if found.discharge_disposition_id in DEATH_OR_HOSPICE:
        raise refused(
            422,
            "outside the cohort: after a death or a discharge to hospice "
            f"(codes {sorted(DEATH_OR_HOSPICE)}) no readmission is predicted",
            "discharge_disposition_id",
        )
    return found


def _entry(error: Any) -> dict[str, str | None]:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return {
            # A name that was made up may itself be an identifier: only published ones come back.
            "field": PUBLISHED.get(name),
            "message": "not a field of an encounter; identifiers and outcomes are not accepted",
        }
    return {"field": PUBLISHED.get(name), "message": error["msg"]}
