"""A download that goes on where it broke off, over any number of tries and of runs.

What is fetched, and whether it is what was expected, is known to who asks for it.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[str], None]

_PIECE = 2**14
_TRIES = 5
_SECONDS = 60


class DownloadError(OSError):
    """Nothing, or not all of it, came; the message names the address."""


class _Broken(DownloadError):
    """It broke off: to be gone on with."""


def fetch(url: str, folder: Path, say: Say = lambda words: None) -> bytes:
    """Returns what stands at an `http(s)://` address.

    What has come is kept in the folder until all is there, and is gone on with if the server says
    that it is still the same (`If-Range`, RFC 9110, section 13.1.5); else it begins anew.

    Args:
        url: the address.
        folder: where a part is kept between two tries; made if absent.
        say: told how far it is.

    Raises:
        DownloadError: it did not come within five tries, or the server refused.
    """
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

    folder.mkdir(parents=True, exist_ok=True)
    part = _Part(folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.partial")
    for attempt in Retrying(
        retry=retry_if_exception_type(_Broken),
        stop=stop_after_attempt(_TRIES),
        wait=wait_exponential(max=20),
        reraise=True,
    ):
        with attempt:
            _go_on(url, part, say)
    content = part.path.read_bytes()
    part.remove()
    return content


class _Part:
    """What has come of a download, and the validator of what it is a part of."""

    def __init__(self, path: Path) -> None:
        self.path, self._about = path, path.with_suffix(".json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() and self.validator else 0

    @property
    def validator(self) -> str:
        return str(json.loads(self._about.read_text())) if self._about.exists() else ""

    def begin(self, validator: str) -> None:
        self.remove()
        self._about.write_text(json.dumps(validator))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)


def _go_on(url: str, part: _Part, say: Say) -> None:
    """Asks for what is missing and adds it to the part."""
    import requests

    begun = part.size
    asked = {"Range": f"bytes={begun}-", "If-Range": part.validator} if begun else {}
    # Compressed on the way, an offset would not be one of the file.
    asked["Accept-Encoding"] = "identity"
    try:
        with requests.get(url, headers=asked, stream=True, timeout=_SECONDS) as answer:
            _refuse(answer, part)
            if answer.status_code != requests.codes.partial_content:
                begun = 0
                part.begin(_validator(answer))
            total = begun + int(answer.headers.get("Content-Length", 0))
            _add(answer, part, begun, total, say)
    except requests.RequestException as error:
        raise _Broken(f"{url}: {error}") from error
    if total and part.path.stat().st_size < total:
        raise _Broken(f"{url}: {part.path.stat().st_size:,} of {total:,} bytes came")


def _refuse(answer: Any, part: _Part) -> None:
    if answer.status_code == 416:  # the part is as long as the whole, or longer
        part.remove()
        raise _Broken(f"{answer.url}: what had come does not fit")
    if answer.status_code >= 500 or answer.status_code == 429:
        raise _Broken(f"{answer.url}: the server answers {answer.status_code}")
    if answer.status_code >= 400:
        raise DownloadError(f"{answer.url}: the server answers {answer.status_code}")


def _validator(answer: Any) -> str:
    """Returns what says that it is still the same; empty if the server names nothing strong."""
    tag = str(answer.headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(answer.headers.get("Last-Modified", ""))


def _add(answer: Any, part: _Part, begun: int, total: int, say: Say) -> None:
    told = done = begun
    step = max(total // 5, 2**20)
    with part.path.open("ab") as file:
        for piece in answer.iter_content(_PIECE):
            file.write(piece)
            file.flush()
            done += len(piece)
            if done - told >= step:
                told = done
                say(f"{done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f} MB" if total else ""))
