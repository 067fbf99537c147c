"""Whether Python and the installed packages are those that the lock file names."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from health_predict.doctoring.finding import Finding
from health_predict.settings import ROOT

LOCK = ROOT / "requirements.lock"
PYTHONS = ("3.11", "3.12")
"""As `requires-python` in pyproject.toml."""

_PROJECT = Requirement("health_predict[platform]")
_MOST_NAMED = 5


def python(running: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Finds out whether this Python is one of those that are tested."""
    seen = f"{'.'.join(map(str, running))} at {sys.executable}"
    if ".".join(map(str, running[:2])) in PYTHONS:
        yield Finding("Python", "ok", seen)
    else:
        remedy = f"make clean install PYTHON=python{PYTHONS[0]}"
        yield Finding("Python", "wrong", f"{seen}; it takes {' or '.join(PYTHONS)}", remedy)


def packages(lock: Path = LOCK) -> Iterator[Finding]:
    """Finds out whether what is installed is what the lock file names.

    Args:
        lock: the lock file, with one `name==version` a package.
    """
    if not lock.is_file():
        yield Finding("packages", "off", f"there is no {lock} to compare with")
        return
    locked = dict(pins(lock.read_text().splitlines()))
    installed = {name: found for name in locked if (found := _installed(name))}
    others = [
        f"{name} is {found}, locked is {locked[name]}"
        for name, found in installed.items()
        if Version(found) != Version(locked[name])
    ]
    absent = sorted(needed() - set(installed))
    if others or absent:
        missing = [f"{name} is missing" for name in absent]
        remedy = f"{sys.executable} -m pip install --no-deps --require-hashes -r {lock}"
        yield Finding("packages", "wrong", _some([*missing, *others]), remedy)
        return
    left = len(locked) - len(installed)
    words = f"; {left} that only development needs are not installed" if left else ""
    yield Finding("packages", "ok", f"{len(installed)} as in {lock.name}{words}")


def pins(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields name and version of each package that a lock file names for this platform."""
    for line in lines:
        if "==" not in line or line.startswith((" ", "#")):
            continue
        required = Requirement(line.rstrip("\\ "))
        if required.marker is None or required.marker.evaluate():
            (pin,) = required.specifier
            yield canonicalize_name(required.name), pin.version


def needed() -> set[str]:
    """Returns the packages without which the platform does not run, by canonical name."""
    found: set[str] = set()
    seen: set[str] = set()
    queue = deque([_PROJECT])
    while queue:
        wanted = queue.popleft()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        name = canonicalize_name(wanted.name)
        found.add(name)
        for text in _requires(name):
            inner = Requirement(text)
            extras = wanted.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                queue.append(inner)
    return found - {canonicalize_name(_PROJECT.name)}


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _some(words: list[str]) -> str:
    more = len(words) - _MOST_NAMED
    return "; ".join(words[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
