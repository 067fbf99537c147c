"""Whether the ports that are needed here are free, or held by whom they are meant for."""

import errno
import os
import socket
from collections.abc import Iterator, Mapping

import psutil

from health_predict import supervisor
from health_predict.backend import HOST
from health_predict.doctoring.finding import Finding
from health_predict.settings import Settings

DAGIT, MLFLOW = 3000, 5000
"""Ports of `health-predict dev`, unless it is told others."""


def look(settings: Settings, ours: Mapping[str, int]) -> Iterator[Finding]:
    """Finds out who has the ports.

    Args:
        settings: name the service's.
        ours: our processes that live, by name.
    """
    status = supervisor.status(settings.serving)
    if settings.deployment != "kubernetes":
        pid = status.pid if status else ours.get("supervisor")
        yield _port("service", settings.port, pid, "set HEALTH_PREDICT_PORT to a free port")
    if settings.deployment == "local":  # elsewhere they are not processes of this machine
        yield _port("Dagit", DAGIT, ours.get("dagit"), "health-predict dev --port 3001")
        yield _port("MLflow", MLFLOW, ours.get("mlflow"), "health-predict dev --mlflow-port 5001")


def _port(name: str, port: int, ours: int | None, otherwise: str) -> Finding:
    part = f"port {port} ({name})"
    problem = _unusable(port)
    if not problem:
        return Finding(part, "ok", "free")
    if problem != errno.EADDRINUSE:
        return Finding(part, "wrong", f"cannot be used: {os.strerror(problem)}", otherwise)
    holder = _listener(port)
    if holder is not None and ours in {holder.pid, *(parent.pid for parent in holder.parents())}:
        return Finding(part, "ok", f"held by our {name} (process {holder.pid})")
    who = _named(holder)
    end = (
        f"stop process {holder.pid}" if holder else f"find out who it is (ss -ltnp sport = {port})"
    )
    return Finding(part, "wrong", f"port taken by {who}", f"{end}, or {otherwise}")


def _unusable(port: int) -> int:
    """Returns the error number with which a server would fail, 0 if it would not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as our servers do
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.errno or errno.EADDRINUSE
    return 0


def _listener(port: int) -> psutil.Process | None:
    """Returns who listens, None if this user may not know."""
    try:
        found = [
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == port
            and connection.laddr.ip in (HOST, "0.0.0.0", "::")
        ]
        return psutil.Process(found[0]) if found and found[0] else None
    except psutil.Error:
        return None


def _named(process: psutil.Process | None) -> str:
    """Returns who a process is; of its command line, which may hold secrets, our part alone."""
    if process is None:
        return "a process of another user"
    try:
        name, words = process.name(), process.cmdline()
        if "health_predict.supervisor" in words:
            folder = words[words.index("health_predict.supervisor") + 1]
            name = f"the supervisor of {folder}"
        return f"{name} (process {process.pid}, user {process.username()})"
    except psutil.Error:
        return f"process {process.pid}"
