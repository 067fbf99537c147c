"""A download goes on where it broke off, and what it gives is what the server has now."""

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from health_predict.download import DownloadError, fetch

CONTENT = bytes(range(256)) * 16_000


@dataclass
class Site:
    """A server of one file, which breaks off as often as it is told to."""

    content: bytes = CONTENT
    tag: str = '"one"'
    breaks: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"]
        self.asked.append(asked)
        if self.status:
            request.send_response(self.status.pop(0))
            request.end_headers()
            return
        start = 0
        if asked and self.tag and request.headers["If-Range"] == self.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.content):
            request.send_response(416)
            request.end_headers()
            return
        rest = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(rest)))
        if self.tag:
            request.send_header("ETag", self.tag)
        request.end_headers()
        request.wfile.write(rest[: self.breaks.pop(0)] if self.breaks else rest)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    made.url = f"http://127.0.0.1:{server.server_port}/table.zip"
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield made
    server.shutdown()
    server.server_close()


def test_what_broke_off_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.breaks = [2**20, 2**19]
    assert fetch(site.url, tmp_path) == CONTENT
    assert site.asked == [None, f"bytes={2**20}-", f"bytes={2**20 + 2**19}-"]
    assert list(tmp_path.iterdir()) == []


def test_the_next_call_goes_on_with_what_the_last_one_left(site: Site, tmp_path: Path) -> None:
    site.breaks = [2**18] * 5
    with pytest.raises(DownloadError, match=r"bytes came|broken|IncompleteRead"):
        fetch(site.url, tmp_path)
    site.asked.clear()
    assert fetch(site.url, tmp_path) == CONTENT
    assert site.asked == [f"bytes={5 * 2**18}-"]


def test_what_was_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.breaks = [2**18] * 5
    with pytest.raises(DownloadError):
        fetch(site.url, tmp_path)
    site.content, site.tag = CONTENT[::-1], '"two"'
    assert fetch(site.url, tmp_path) == CONTENT[::-1]


def test_without_a_validator_nothing_is_put_together(site: Site, tmp_path: Path) -> None:
    site.tag, site.breaks = "", [2**20]
    assert fetch(site.url, tmp_path) == CONTENT
    assert site.asked == [None, None]


def test_a_part_that_is_whole_already_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.breaks = [2**18] * 5
    with pytest.raises(DownloadError):
        fetch(site.url, tmp_path)
    (part,) = tmp_path.glob("*.partial")
    part.write_bytes(CONTENT)
    assert fetch(site.url, tmp_path) == CONTENT


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    site: Site, tmp_path: Path
) -> None:
    site.status = [503, 429]
    assert fetch(site.url, tmp_path) == CONTENT
    site.status, site.asked = [404], []
    with pytest.raises(DownloadError, match="the server answers 404"):
        fetch(site.url, tmp_path)
    assert len(site.asked) == 1


def test_it_says_how_far_it_is(site: Site, tmp_path: Path) -> None:
    said: list[str] = []
    fetch(site.url, tmp_path, said.append)
    assert said[0].endswith("MB of 4.1 MB")
    assert len(said) >= 3
