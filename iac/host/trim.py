#!/usr/bin/env python3
"""Leaves of an environment what the platform needs: no tools of development, few tests.

Runs while the image is built (Dockerfile), by the interpreter of the image, on an environment that
holds the whole lock file. Its argument: the project's description. What stays is what the extra
`platform` asks for and what that asks for in turn, by each package's own description.
"""

import shutil
import sys
import sysconfig
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRA = "platform"

TESTED = ("matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "statsmodels")
"""Packages whose folders `tests` are large and only tests; in others what is called so is code."""

NEVER = (
    *(f"{package}/**/tests" for package in TESTED),
    *(f"**/*.{suffix}" for suffix in ("c", "h", "hpp", "pxd", "pyi", "pyx")),
)
"""Of packages, what nothing imports at run time."""


def wanted(project: dict[str, object], installed: dict[str, Distribution]) -> set[str]:
    """Returns the names of the distributions that the extra needs, canonical.

    Args:
        project: the table `project` of pyproject.toml.
        installed: every distribution of the environment by its canonical name.

    Raises:
        SystemExit: one is needed and not installed.
    """
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    own: list[str] = project["dependencies"]  # type: ignore[assignment]
    open_ends = [Requirement(line) for line in (*own, *extras[EXTRA])]
    seen: set[tuple[str, str]] = set()
    while open_ends:
        requirement = open_ends.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in installed:
            sys.exit(f"{requirement} is needed and not in requirements.lock: run `make lock`")
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            for line in installed[name].requires or ():
                further = Requirement(line)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    further.marker = None
                    open_ends.append(further)
    return {name for name, _ in seen}


def remove(distribution: Distribution, root: Path) -> None:
    """Removes what a distribution has installed below a folder, and folders left empty by that."""
    files = [Path(str(distribution.locate_file(path))) for path in distribution.files or ()]
    for path in files:
        if path.resolve().is_relative_to(root):
            path.unlink(missing_ok=True)
    for folder in sorted({p for path in files for p in path.parents}, key=lambda p: -len(p.parts)):
        inside = folder.resolve().is_relative_to(root) and folder.resolve() != root
        if inside and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def main(description: Path) -> None:
    """Removes what is not wanted, and says how much is left."""
    root = Path(sys.prefix).resolve()
    project = tomllib.loads(description.read_text())["project"]
    installed = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    keep = wanted(project, installed)
    for name in sorted(installed.keys() - keep):
        remove(installed[name], root)
    for pattern in NEVER:
        for path in [*Path(sysconfig.get_path("purelib")).glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    sys.stdout.write(f"{len(keep)} of {len(installed)} distributions are kept\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
