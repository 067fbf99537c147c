"""A page of Markdown in parts: sections, links, code, tables; and a shell block in commands.

Read by markdown-it, as CommonMark with tables. What a page has to keep to is in `test_docs`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_PUNCTUATION = ";|&()<>\n"


@dataclass(frozen=True)
class Link:
    """Where a page points to, or an image that it shows."""

    target: str
    line: int
    image: bool
    text: str


@dataclass(frozen=True)
class Fence:
    """A fenced block.

    Attributes:
        language: the first word behind the fence.
        content: what is in it.
        line: where it begins, from 1.
        mark: the HTML comment right before it; empty if there is none.
    """

    language: str
    content: str
    line: int
    mark: str


@dataclass(frozen=True)
class Code:
    """A code span."""

    text: str
    line: int


@dataclass
class Section:
    """What stands between a heading and the next one, of whatever level.

    Attributes:
        title: the heading.
        line: where it stands, from 1.
        prose: its paragraphs, code spans left out.
        cells: those of its tables, code spans left out.
        codes: its code spans, those of its tables too.
        fences: its fenced blocks.
        marks: its HTML comments.
    """

    title: str
    line: int
    prose: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    fences: list[Fence] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A page of Markdown.

    Attributes:
        path: of the file.
        anchors: what a link may name behind `#`.
        links: in order, images too.
        sections: in order; the first one, without title, is what stands before any heading.
    """

    path: Path
    anchors: set[str]
    links: list[Link]
    sections: list[Section]

    @property
    def marks(self) -> list[str]:
        """Its HTML comments."""
        return [mark for section in self.sections for mark in section.marks]

    @property
    def fences(self) -> list[Fence]:
        return [fence for section in self.sections for fence in section.fences]

    @property
    def codes(self) -> list[Code]:
        return [code for section in self.sections for code in section.codes]


@cache
def read(path: Path) -> Page:
    """Returns the page of a file."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    page = Page(path, set(), [], [Section("", 1)])
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            title = _text(tokens[place + 1])
            page.anchors.add(_anchor(title, page.anchors))
            page.sections.append(Section(title, _line(token)))
        elif token.type == "fence":
            page.sections[-1].fences.append(_fence(token, tokens[place - 1] if place else None))
        elif token.type == "html_block":
            page.sections[-1].marks.extend(_COMMENT.findall(token.content))
        elif token.type == "inline":
            _inline(page, token, tokens[place - 1].type)
    return page


def _fence(token: Token, before: Token | None) -> Fence:
    marks = _COMMENT.findall(before.content) if before and before.type == "html_block" else []
    language = token.info.split()[0] if token.info.strip() else ""
    return Fence(language, token.content, _line(token), marks[-1] if marks else "")


def _inline(page: Page, token: Token, opened: str) -> None:
    section, line = page.sections[-1], _line(token)
    if opened in ("td_open", "th_open"):
        section.cells.append(_text(token, code=False))
    elif opened != "heading_open":
        section.prose.append(_text(token, code=False))
    for child in token.children or []:
        if child.type == "code_inline":
            section.codes.append(Code(child.content, line))
        elif child.type == "link_open":
            page.links.append(Link(str(child.attrs["href"]), line, False, _text(token)))
        elif child.type == "image":
            page.links.append(Link(str(child.attrs["src"]), line, True, child.content))


def _line(token: Token) -> int:
    return token.map[0] + 1 if token.map else 0


def _text(token: Token, code: bool = True) -> str:
    """Returns the words of an inline token, without its markup."""
    words = []
    for child in token.children or []:
        if child.type == "text" or (code and child.type == "code_inline"):
            words.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            words.append(" ")
    return "".join(words)


def _anchor(title: str, taken: set[str]) -> str:
    """Returns the anchor that GitHub gives a heading."""
    plain = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    number, anchor = 0, plain
    while anchor in taken:
        number += 1
        anchor = f"{plain}-{number}"
    return anchor


def table(path: Path, *head: str) -> list[list[str]]:
    """Returns the rows of the tables with this head, cells as they are written.

    Raises:
        AssertionError: the page has no such table.
    """
    rows: list[list[str]] = []
    inside = found = False
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif cells == list(head):
            inside = found = True
        elif inside and set("".join(cells)) != {"-"} and set("".join(cells)) != {"-", ":"}:
            rows.append(cells)
    assert found, f"{path.name} has no table with the head {', '.join(head)}"
    return rows


def quoted(text: str) -> list[str]:
    """Returns the code spans of a text."""
    return re.findall(r"`([^`]*)`", text)


def commands(script: str) -> Iterator[list[str]]:
    """Yields each simple command of a shell script as its words, redirections left out.

    Of a command in `$(...)`, the command is yielded too, and `SUBSTITUTED` stands in its place.

    Raises:
        ValueError: a quotation is not closed.
    """
    script = _without_comments(script.replace("\\\n", " "))
    plain, substituted = _substituted(script)
    for inside in substituted:
        yield from commands(inside)
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=_PUNCTUATION)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    command: list[str] = []
    words = iter(lexer)
    for word in words:
        if set(word) <= set("<>&") and set(word) & set("<>"):
            next(words, None)  # where to
            if command and command[-1] in ("1", "2"):
                command.pop()  # and of what
        elif set(word) <= set(_PUNCTUATION):
            if command:
                yield command
            command = []
        else:
            command.append(word)
    if command:
        yield command


def _substituted(script: str) -> tuple[str, list[str]]:
    """Returns a script with `SUBSTITUTED` for each `$(...)`, and what stood in them."""
    start = script.find("$(")
    if start < 0:
        return script, []
    depth, end = 1, start + 2
    while depth and end < len(script):
        depth += {"(": 1, ")": -1}.get(script[end], 0)
        end += 1
    rest, further = _substituted(script[end:])
    return f"{script[:start]}SUBSTITUTED{rest}", [script[start + 2 : end - 1], *further]


def _without_comments(script: str) -> str:
    kept, quote, inside = [], "", False
    for place, letter in enumerate(script):
        before = script[place - 1] if place else "\n"
        if letter == "\n":
            inside = False
        elif not quote and letter == "#" and before in " \t\n":
            inside = True
        if inside:
            continue
        if letter == quote:
            quote = ""
        elif not quote and letter in "'\"":
            quote = letter
        kept.append(letter)
    return "".join(kept)
