"""Whether the state folder can be written to, by whom, and how long its disk will last."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from health_predict.doctoring.finding import Finding
from health_predict.settings import Settings

# A loop of eight batches leaves 350 MB and builds its Bentos in copies; what runs into a full disk
# ends in the middle, SQLite and logs included.
LEAST_FREE = 2 * 10**9
"""Bytes that have to be free on the disk of the state folder."""
_LEAST_FILES = 10_000
# More than a file system keeps beside the name.
_TRIED = b"\0" * 64 * 1024
_LOOKED_AT = (".", "dagster", "store", "serving", "bentoml", "logs", "mlflow.db")


def disk(settings: Settings, least_free: int = LEAST_FREE) -> Iterator[Finding]:
    """Finds out whether there is room, and whether a file can be written where the state is.

    Args:
        settings: say where.
        least_free: bytes.
    """
    place = _there(settings.var)
    usage, files = shutil.disk_usage(place), os.statvfs(place)
    seen = f"{_size(usage.free)} free of {_size(usage.total)} at {place}"
    remedy = "remove what is not needed (var/bench, var/cache, var/logs), or enlarge the disk"
    if usage.free < least_free:
        seen += f", and a loop needs {_size(least_free)}"
        yield Finding("disk", "wrong", f"disk full: {seen}", remedy)
    elif files.f_files and files.f_favail < _LEAST_FILES:
        seen += f", but only {files.f_favail} more files (inodes)"
        yield Finding("disk", "wrong", f"disk full: {seen}", remedy)
    elif error := _unwritten(place):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        seen += f", but a file cannot be written: {error.strerror}"
        other = f"see `mount`, and who owns {place}: it has to be writable for this user"
        yield Finding("disk", "wrong", seen, remedy if full else other)
    else:
        yield Finding("disk", "ok", seen)


def permissions(settings: Settings) -> Iterator[Finding]:
    """Finds out whether what is there may be changed by this user, and by nobody else."""
    var = settings.var
    if not var.exists():
        yield Finding("state folder", "off", f"{var} is not there yet", "make demo, or make dev")
        return
    there = [path for path in (var / name for name in _LOOKED_AT) if path.exists()]
    locked = [path for path in there if not os.access(path, os.R_OK | os.W_OK)]
    if locked:
        owner = locked[0].stat().st_uid
        seen = f"{locked[0]} belongs to user {owner} and is not writable for user {os.getuid()}"
        remedy = f"sudo chown -R {os.getuid()} {var}, or run as user {owner}"
        yield Finding("state folder", "wrong", seen, remedy)
        return
    loose = [path for path in there if path.stat().st_mode & stat.S_IWOTH]
    if loose:
        seen = f"{loose[0]} is writable for everybody on this machine, models included"
        yield Finding("state folder", "wrong", seen, f"chmod -R o-w {var}")
        return
    mode = stat.filemode(var.stat().st_mode)
    yield Finding("state folder", "ok", f"{var}, {mode}, user {var.stat().st_uid}")


def _there(path: Path) -> Path:
    """Returns the folder itself, or the nearest above it that exists."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _unwritten(place: Path) -> OSError | None:
    """Returns why a file cannot be written, None if it can; it never has a name."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(_TRIED)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
