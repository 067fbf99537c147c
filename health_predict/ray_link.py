"""Ray, started on this machine for as long as it is used, or reached in a cluster.

A cluster is asked before Ray would wait for it, and each of its nodes before it is trusted: one
with other code would find another result. What runs on Ray is said in `tuning`.
"""

import hashlib
import logging
import os
import platform
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit

from health_predict.search import SearchError

_ATTEMPTS = 3
_ANSWER_SECONDS = 5.0
_NODE_ANSWER_SECONDS = 120.0
# What the same candidate on the same data needs to come to the same AUC, to the bit.
_DECISIVE_PACKAGES = {"numpy", "scipy", "scikit-learn", "xgboost", "xgboost-cpu", "optuna"}
_DECISIVE_MODULES = ("models", "search", "tuning")
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


@contextmanager
def local_ray(workers: int, object_store_bytes: int) -> Iterator[None]:
    """Runs Ray on this machine; stops it and removes its files afterwards.

    Args:
        workers: CPUs it counts.
        object_store_bytes: memory for what is shared; Ray would else claim 30 % of the machine's.
    """
    own = {
        # Left to itself Ray writes a token of its own to the home directory.
        "RAY_AUTH_TOKEN": _own_token(),
        # Without it Ray takes 127.0.0.1 for the outward address of the machine and listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    # Ray's socket paths must stay below 107 characters, so it cannot live under var/.
    directory = tempfile.mkdtemp(prefix="hp-ray-")
    with quiet(**own):
        import ray

        try:
            with _home(directory):
                ray.init(
                    address="local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=object_store_bytes,
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                    configure_logging=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=directory,
                )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(directory, ignore_errors=True)


@cache
def _own_token() -> str:
    """Returns the token of every Ray this process starts: Ray itself keeps the first it sees."""
    return secrets.token_hex(32)


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connects to a cluster, and disconnects: what was begun there ends with the connection.

    Args:
        address: `ray://HOST:10001`, or `HOST:6379` on one of its own machines, or `auto`.

    Raises:
        SearchError: nothing answers there, it lets nobody in, or a node has other code than this
            process; the message names the address and the remedy.
    """
    _require_answer(address)
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    # Ray sends the token only if told to; and asks three times, ever longer, before it gives up.
    own = {
        **({"RAY_AUTH_MODE": "token"} if named else {}),
        "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "5",
    }
    with quiet(**own):
        import ray

        try:
            try:
                _connect(address)
            except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
                # What comes before the last line is a traceback.
                cause = (str(error).strip() or type(error).__name__).splitlines()[-1]
                raise SearchError(
                    f"RAY_ADDRESS={address} answers but lets no search in: {cause}. It must be a "
                    f"cluster of Ray {ray.__version__}; one that asks for a token gets it from "
                    "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH; and from a machine outside of it the "
                    "address is ray://HOST:10001"
                ) from error
            _require_same_code(address)
            yield
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            ray.init(
                address=address,
                logging_level=logging.WARNING,
                log_to_driver=False,
                configure_logging=False,
            )
            return
        # The head starts a process for each client, by a fork among threads, which now and then
        # ends at once; the next one starts.
        except ConnectionAbortedError:
            ray.shutdown()
            if attempt == _ATTEMPTS:
                raise


def _require_answer(address: str) -> None:
    """Raises `SearchError` within seconds where Ray would try for minutes and name no remedy."""
    if address == "auto":
        return  # Ray looks for a cluster on this machine, and says so if there is none
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("", "ray") or not parts.hostname or not port:
        raise SearchError(
            f"RAY_ADDRESS={address} is no address of a Ray cluster: give ray://HOST:10001, or "
            "HOST:6379 on one of its own machines, or leave it empty to search on this machine"
        )
    try:
        socket.create_connection((parts.hostname, port), _ANSWER_SECONDS).close()
        _require_grpc(f"{parts.hostname}:{port}")
    except OSError as error:
        raise SearchError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}. Start it, mend the address "
            "or the way to it (network policy, port), or leave RAY_ADDRESS empty to search on this "
            "machine: the result is the same"
        ) from error


def _require_grpc(target: str) -> None:
    import grpc  # type: ignore[import-untyped]

    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # how to speak to it only Ray knows
    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(_ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise OSError(f"what listens on {target} does not speak Ray's protocol") from None


def code() -> dict[str, str]:
    """Returns what decides the result of a search: versions, and a digest of the modules."""
    digest = hashlib.sha256()
    for name in _DECISIVE_MODULES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return {
        "processor": platform.machine(),
        "python": platform.python_version(),
        **{d.name: d.version for d in distributions() if d.name in _DECISIVE_PACKAGES},
        "health_predict": digest.hexdigest()[:12],
    }


def _require_same_code(address: str) -> None:
    """Raises `SearchError` if a node of the cluster would find another result, or none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def there() -> dict[str, str]:
        from health_predict.ray_link import code as found_there  # that node's

        return found_there()

    here = code()
    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    asked = [
        ray.remote(num_cpus=0)(there)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote()
        for node in nodes
    ]
    for name, answer in zip(nodes.values(), asked, strict=True):
        try:
            found = ray.get(answer, timeout=_NODE_ANSWER_SECONDS)
        except (ImportError, ray.exceptions.RayError) as error:
            raise SearchError(
                f"node {name} of the Ray cluster at {address} cannot run a search: {error}. Start "
                "it from the image of the platform"
            ) from error
        other = [
            f"{part} {here.get(part)} here, {found.get(part)} there"
            for part in sorted(here.keys() | found.keys())
            if here.get(part) != found.get(part)
        ]
        if other:
            raise SearchError(
                f"node {name} of the Ray cluster at {address} would find another result: "
                f"{'; '.join(other)}. Start both from the same image of the platform"
            )


@contextmanager
def quiet(**more: str) -> Iterator[None]:
    """Keeps Ray from calling home and from printing, and restores its variables afterwards.

    Those that Ray set itself too: what belongs to one Ray must not reach the next, which may be
    somebody else's cluster.

    Args:
        more: variables to set if they are not set.
    """

    def rays() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.startswith(("RAY_", "TUNE_"))}

    before = rays()
    values = _QUIET | more
    os.environ.update({name: value for name, value in values.items() if not before.get(name)})
    try:
        yield
    finally:
        for name in rays().keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _home(directory: str) -> Iterator[None]:
    """Makes a directory the home of the processes started meanwhile.

    Usage statistics off or on, Ray asks the metadata servers of three clouds where it runs, unless
    a file in the home directory says.
    """
    Path(directory, "ray_bootstrap_config.yaml").write_text("{}")
    before = os.environ.get("HOME")
    os.environ["HOME"] = directory
    try:
        yield
    finally:
        del os.environ["HOME"]
        if before is not None:
            os.environ["HOME"] = before
