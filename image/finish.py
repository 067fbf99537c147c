#!/usr/bin/env python3
"""Finishes the packages of the image: byte code for what is imported, away with what never is.

Runs while the image is built (image/Dockerfile), by the interpreter of the image, and needs nothing
but it. Its arguments: the service's sources, the folder that byte code of packages goes to, and the
one of the sources', which change more often.

Byte code, because the container's files are read-only: without it every start compiles 1,200
modules anew, which more than doubles the time until it answers. Of what is imported only: all of it
would take three times as much. Not checked against its source (PEP 552), which does not change any
more; so it is the same in every build.
"""

import ast
import importlib
import py_compile
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))

SERVER = (
    "_bentoml_impl.client",
    "_bentoml_impl.loader",
    "_bentoml_impl.server.allocator",
    "_bentoml_impl.server.app",
    "_bentoml_impl.server.serving",
    "_bentoml_impl.worker.service",
    "_bentoml_sdk._internals",
    "asgiref.sync",
    "bentoml._internal.configuration.v2",
    "bentoml._internal.runner.container",
    "bentoml._internal.server.http.access",
    "bentoml._internal.server.http.instruments",
    "bentoml._internal.server.http.traffic",
    "bentoml._internal.server.metrics.prometheus",
    "bentoml._internal.utils.telemetry",
    "bentoml.container",
    "bentoml.serving",
    "bentoml_cli.cli",
    "bentoml_cli.serve",
    "ctypes.util",
    "encodings.idna",
    "opentelemetry.instrumentation.asgi",
    "prometheus_client.multiprocess",
    "pynvml",
    "tornado.platform.asyncio",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
"""What `bentoml serve` imports late; a test compares with what it does import."""

NEVER = (
    "**/test",
    "**/tests",
    "**/*.c",
    "**/*.h",
    "**/*.hpp",
    "**/*.pxd",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.a",
    "**/*.lib",
    # XGBoost needs scipy.sparse and scipy.special, and those scipy.linalg.
    "scipy/cluster",
    "scipy/datasets",
    "scipy/differentiate",
    "scipy/fft",
    "scipy/fftpack",
    "scipy/integrate",
    "scipy/interpolate",
    "scipy/io",
    "scipy/misc",
    "scipy/ndimage",
    "scipy/odr",
    "scipy/optimize",
    "scipy/signal",
    "scipy/spatial",
    "scipy/stats",
)
"""Of the packages, what serving does not import: tests, what compilers read, most of scipy."""


def trim(packages: Path) -> None:
    """Removes what is never imported."""
    for pattern in NEVER:
        for path in [*packages.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def named(sources: Path) -> set[str]:
    """Returns the modules of others that the sources import, also inside functions."""
    names = set()
    for path in sources.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    own = {path.name for path in sources.iterdir()}
    return {name for name in names if name.split(".")[0] not in own}


def compile_imported(names: set[str], target: Path) -> None:
    """Imports modules and compiles them, and all that came with them, into a folder."""
    for name in sorted(names):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:  # what only training imports is not in the image
            if name in SERVER:
                raise
    files = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
    compile_files((Path(file) for file in files - {__file__}), target)


def compile_files(files: Iterable[Path], target: Path) -> None:
    """Compiles sources into a folder that `PYTHONPYCACHEPREFIX` may name."""
    sys.pycache_prefix = str(target)
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for file in sorted(files):
        if file.suffix == ".py":
            py_compile.compile(str(file), doraise=True, invalidation_mode=unchecked)


if __name__ == "__main__":
    sources, packages, own = (Path(argument) for argument in sys.argv[1:])
    trim(PACKAGES)
    compile_imported({*SERVER, *named(sources)}, packages)
    compile_files(sources.rglob("*"), own)
