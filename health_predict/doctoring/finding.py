"""What a check finds, and how checks are made: side by side, each within a bound, no secret told.

What is checked stands in the other modules of `doctoring`, which checks are due in `rounds`.
"""

import importlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import psutil

State = Literal["ok", "wrong", "off"]
T = TypeVar("T")

SECONDS = 5.0
"""A check that has no answer after this has found that there is none."""
# A cold import of MLflow takes 20 s on a busy machine, and says nothing of what is checked.
_IMPORT_SECONDS = 60.0
_HIDDEN = "***"
_UNITS = {"days": 86_400, "h": 3_600, "min": 60}


@dataclass(frozen=True)
class Finding:
    """What was found out about one part.

    Attributes:
        part: its name.
        state: `wrong` needs somebody, `off` is not in use or was stopped in order.
        seen: what was seen, with numbers; where off, why.
        remedy: what to do; every wrong part has one.
    """

    part: str
    state: State
    seen: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.state == "wrong" and not self.remedy:
            raise ValueError(f"{self.part} is wrong and nothing is said against it")


@dataclass(frozen=True)
class Check:
    """One look at a part.

    Attributes:
        part: what a finding is named after where the check itself ends badly.
        look: makes the findings.
        remedy: for what `look` did not foresee, and for an answer that does not come.
        imports: what it imports; not counted into the bound.
        seconds: the bound.
    """

    part: str
    look: Callable[[], Iterable[Finding]]
    remedy: str
    imports: tuple[str, ...] = ()
    seconds: float = SECONDS


class Once(Generic[T]):
    """What several checks need and one of them finds out."""

    def __init__(self, find: Callable[[], T]) -> None:
        self._find, self._lock = find, threading.Lock()
        self._found: Future[T] = Future()

    def __call__(self) -> T:
        """Returns it, or raises what finding it out has raised; who comes second waits."""
        return self._settled().result()

    def if_known(self) -> T | None:
        """Returns it, None if it could not be found out."""
        found = self._settled()
        return None if found.exception() else found.result()

    def _settled(self) -> "Future[T]":
        with self._lock:
            if not self._found.done():
                _settle(self._found, self._find)
        return self._found


def _settle(future: "Future[T]", find: Callable[[], T]) -> None:
    """Puts into a future what is found, or what was raised: a check that breaks is a finding."""
    try:
        future.set_result(find())
    except BaseException as error:
        future.set_exception(error)


def told(error: BaseException, before: Sequence[str] = (": ", "; ")) -> tuple[str, str]:
    """Returns what an error of ours says in two parts: what is the matter, and the remedy.

    By convention its message ends in the remedy.

    Args:
        error: what was raised.
        before: what the remedy comes after, outside of brackets.
    """
    words = " ".join(str(error).split())
    depth, cut = 0, 0
    for at, letter in enumerate(words):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0 and words[at : at + 2] in before:
            cut = at
    return (words[:cut], words[cut + 2 :]) if cut else (words, "")


def ago(timestamp: float) -> str:
    """Returns how long ago a moment was (epoch seconds), in words."""
    seconds = max(0.0, time.time() - timestamp)
    for unit, size in _UNITS.items():
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def of_error(part: str, error: BaseException, remedy: str = "") -> Finding:
    """Returns the finding that an error is.

    Args:
        part: what is wrong.
        error: what was raised.
        remedy: empty: the one that the message of the error ends in.
    """
    seen, named = (" ".join(str(error).split()), remedy) if remedy else told(error)
    return Finding(part, "wrong", seen, named or "read the log of what was asked")


def examine(checks: Sequence[Check], secrets: Collection[str] = ()) -> list[Finding]:
    """Makes checks side by side; returns their findings in the order of the checks.

    Args:
        checks: what is looked at.
        secrets: shown in no finding, whoever brought them into it.
    """
    before = _children()
    looks = [_Look(check) for check in checks]
    for look in looks:
        look.thread.start()
    findings = [finding for look in looks for finding in look.findings()]
    if any(look.late for look in looks):
        for child in _children() - before:  # what a check has started and waits for
            child.kill()
    return [_without(finding, secrets) for finding in findings]


@dataclass
class _Look:
    check: Check
    late: bool = False
    began: "Future[float]" = field(default_factory=Future)
    found: "Future[list[Finding]]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        # A thread that hangs in the network or on a dead mount must not keep the process.
        self.thread = threading.Thread(target=self._look, daemon=True, name=self.check.part)

    def _look(self) -> None:
        _settle(self.began, self._prepared)
        _settle(self.found, self._looked)

    def _prepared(self) -> float:
        for name in self.check.imports:
            importlib.import_module(name)
        return time.monotonic()

    def _looked(self) -> list[Finding]:
        self.began.result()  # raises what importing has raised
        return list(self.check.look())

    def findings(self) -> list[Finding]:
        """Returns what was found, once it is there or late."""
        check = self.check
        try:
            broken = self.began.exception(_IMPORT_SECONDS)
            ends = 0.0 if broken else self.began.result() + check.seconds
            error = broken or self.found.exception(max(0.0, ends - time.monotonic()))
        except TimeoutError:
            self.late = True
            return [
                Finding(
                    check.part, "wrong", f"no answer within {check.seconds:.0f} s", check.remedy
                )
            ]
        if error is not None:
            seen = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return [Finding(check.part, "wrong", seen, check.remedy)]
        return self.found.result()


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _without(finding: Finding, secrets: Collection[str]) -> Finding:
    seen, remedy = finding.seen, finding.remedy
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        seen, remedy = seen.replace(secret, _HIDDEN), remedy.replace(secret, _HIDDEN)
    return replace(finding, seen=seen, remedy=remedy)
