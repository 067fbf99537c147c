"""The search on Ray Tune: many trials at a time, on this machine or on a cluster.

The only module that imports ray. Where `RAY_ADDRESS` names a cluster, the whole search runs there
and this process only listens; else Ray is started here for as long as the search takes. What is
tried, what is stopped and who wins is decided in `search`; with the same seed all find the same.
What becomes of the winner is decided in `evaluation`.
"""

import hashlib
import logging
import os
import platform
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from health_predict.models import FAMILIES, Candidate
from health_predict.search import (
    Asked,
    Proposals,
    Say,
    SearchData,
    SearchError,
    SearchResult,
    courses,
    deadline_of,
    fate,
    search_serially,
)

OBJECT_STORE_BYTES = 256 * 2**20
"""The search data of 100,000 rows take 70 MB; Ray would otherwise claim 30 % of the memory."""

NODE_SECONDS = 900.0
"""A cluster without a CPU may add a node for so long: a machine starts, an image is pulled."""

_ATTEMPTS = 3
_ANSWER_SECONDS = 5.0
_NODE_ANSWER_SECONDS = 120.0
_CANCEL_SECONDS = 15.0
# What the same candidate on the same data needs to come to the same AUC, to the bit.
_DECISIVE_PACKAGES = {"numpy", "scipy", "scikit-learn", "xgboost", "xgboost-cpu", "optuna"}
_DECISIVE_MODULES = ("models", "search", "tuning")
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

Backend = Literal["ray", "serial"]


@dataclass(frozen=True)
class _Order:
    """What a search is asked for, data apart."""

    trials: int
    seed: int
    workers: int
    families: tuple[str, ...]
    seconds: float | None


def search(
    data: SearchData,
    *,
    trials: int,
    seed: int,
    workers: int = 2,
    families: Sequence[str] = tuple(FAMILIES),
    seconds: float | None = None,
    backend: Backend = "ray",
    say: Say = lambda words: None,
) -> SearchResult:
    """Returns the result of one search over all families.

    Args:
        data: features and labels of the train and validation sides.
        trials: how many candidates are tried.
        seed: seed of the proposals and of every estimator.
        workers: candidates fitted at a time, one core each; Ray only.
        families: the families that compete.
        seconds: after these no further stage is begun; None for no limit.
        backend: `ray`, or `serial` for this process alone. Both find the same.
        say: told of each trial as it ends.

    Raises:
        SearchError: a trial failed, a family is unknown, no trial was fitted in full in time, or
            the cluster that `RAY_ADDRESS` names is out of reach or has other code than this.
    """
    if backend == "serial":
        return search_serially(
            data, trials=trials, seed=seed, families=families, seconds=seconds, say=say
        )
    order = _Order(trials, seed, workers, tuple(families), seconds)
    Proposals(trials, seed, families)  # a family that is unknown is so before Ray starts
    began = time.monotonic()
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        with _local_ray(workers):
            started = time.monotonic()
            result = _run_here(order, data, say)
    else:
        with _cluster(address):
            _require_same_code(address)
            started = time.monotonic()
            result = _run_there(order, data, say)
    return replace(result, seconds=time.monotonic() - began, start_seconds=started - began)


@contextmanager
def _local_ray(workers: int) -> Iterator[None]:
    """Runs Ray on this machine; stops it and removes its files afterwards."""
    own = {
        # Left to itself Ray writes a token of its own to the home directory.
        "RAY_AUTH_TOKEN": _own_token(),
        # Without it Ray takes 127.0.0.1 for the outward address of the machine and listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    # Ray's socket paths must stay below 107 characters, so it cannot live under var/.
    directory = tempfile.mkdtemp(prefix="hp-ray-")
    with _environment(**_QUIET, **own):
        import ray

        try:
            with _home(directory):
                ray.init(
                    address="local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
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
def _cluster(address: str) -> Iterator[None]:
    """Connects to a cluster, and disconnects: what was begun there ends with the connection."""
    _require_answer(address)
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    # Ray sends the token only if told to; and asks three times, ever longer, before it gives up.
    own = {
        **({"RAY_AUTH_MODE": "token"} if named else {}),
        "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "5",
    }
    with _environment(**_QUIET, **own):
        import ray

        try:
            try:
                _connect(address)
            except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
                cause = str(error).strip().splitlines()[-1]  # what comes before is a traceback
                raise SearchError(
                    f"RAY_ADDRESS={address} answers but lets no search in: {cause}. It must be a "
                    f"cluster of Ray {ray.__version__}; one that asks for a token gets it from "
                    "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH; and from a machine outside of it the "
                    "address is ray://HOST:10001"
                ) from error
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


def _code() -> dict[str, str]:
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
        from health_predict.tuning import _code as code  # that node's, not this process's

        return code()

    here = _code()
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


def _run_here(order: _Order, data: SearchData, say: Say) -> SearchResult:
    import ray

    return _run(order, [ray.put(data)], say)


def _run_there(order: _Order, data: SearchData, say: Say) -> SearchResult:
    """Returns the result of a search that runs whole in the cluster.

    On its head, which outlives the nodes that come and go with the work: nothing of a search is
    kept anywhere else, so the nodes need no folder in common.
    """
    import ray
    from ray.util.queue import Queue

    head: dict[str, Any] = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
    heard = Queue(actor_options=head)
    box = [ray.put(data)]  # what is inside of a list is handed on as a reference, not as a copy
    running = ray.remote(max_retries=0, **head)(_runner).remote(order, box, heard)
    try:
        _listen(running, heard, say)
        result: SearchResult = ray.get(running)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SearchError):
            raise error.cause from None
        raise SearchError(f"the search failed in the Ray cluster: {error}") from error
    except ray.exceptions.RayError as error:
        raise SearchError(f"the search was lost in the Ray cluster: {error}") from error
    except BaseException:  # given up here: asked to end, it takes its files away
        ray.cancel(running)
        ray.wait([running], timeout=_CANCEL_SECONDS)
        raise
    return result


def _listen(running: Any, heard: Any, say: Say) -> None:
    """Says what is heard of a search until it has ended."""
    import ray

    latest = time.monotonic() + NODE_SECONDS
    ended: list[Any] = []
    while not ended:
        ended, _ = ray.wait([running], timeout=1)
        for words in heard.get_nowait_batch(heard.qsize()):
            say(words)
        if ray.cluster_resources().get("CPU", 0) >= 1:
            latest = time.monotonic() + NODE_SECONDS
        elif time.monotonic() > latest:
            raise SearchError(
                f"the Ray cluster has no CPU and added none within {NODE_SECONDS:,.0f} s: give it "
                "a node, or find out by `ray status` why its autoscaler does not"
            )


def _runner(order: _Order, box: list[Any], heard: Any) -> SearchResult:
    """Runs a search in a process of the cluster, which tells on the queue how it comes on."""
    with _environment(**_QUIET):
        return _run(order, box, heard.put)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets what is not; afterwards Ray's variables are what they were, its own doing included.

    What belongs to one Ray must not reach the next, which may be somebody else's cluster.
    """

    def rays() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.startswith(("RAY_", "TUNE_"))}

    before = rays()
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


def _run(order: _Order, box: list[Any], say: Say) -> SearchResult:
    """Returns the result of a search on the Ray that this process is connected to.

    Args:
        order: what is searched.
        box: a list whose one element is the reference of the search data.
        say: told of each trial as it ends.
    """
    proposals = Proposals(order.trials, order.seed, order.families)
    # Tune writes down how a search comes on; it is read by nobody but Tune, in this process.
    storage = tempfile.mkdtemp(prefix="hp-tune-")
    began = time.monotonic()
    try:
        _tune(order, box, proposals, storage, say)
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    return proposals.result(order.seed, time.monotonic() - began)


def _tune(order: _Order, box: list[Any], proposals: Proposals, storage: str, say: Say) -> None:
    import ray
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    deadline, seed = deadline_of(order.seconds), order.seed

    class CandidateTrial(tune.Trainable):
        """Fits one candidate a stage at a time; one actor serves many candidates."""

        def setup(self, config: dict[str, Any], box: Sequence[Any] = ()) -> None:
            self.data: SearchData = ray.get(box[0])  # a node holds it once, however many trials
            self.begin(config["candidate"])

        def begin(self, candidate: Candidate) -> None:
            self.curve: list[float] = []
            self.courses = courses(candidate, self.data, seed)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.begin(new_config["candidate"])
            return True

        def step(self) -> dict[str, Any]:
            self.curve.append(next(self.courses))
            return {"auc": self.curve[-1], "curve": list(self.curve)}

    class Proposing(Searcher):
        """Hands out what `Proposals` proposes."""

        def __init__(self, say: Say) -> None:
            super().__init__(metric="auc", mode="max")
            self.running: dict[str, Asked] = {}
            self.say = say

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune writes the searcher down; a logger cannot be

        def suggest(self, trial_id: str) -> Any:
            if proposals.exhausted or time.time() > deadline:
                return Searcher.FINISHED
            asked = proposals.next()
            if asked is None:
                return None  # Tune asks again
            self.running[trial_id] = asked
            return {"candidate": asked.candidate}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            asked = self.running.pop(trial_id)
            if error or not result:
                return  # Tune reports it below
            end = fate(result["curve"], asked.bars, deadline)
            assert end is not None  # no other reason ends a trial
            trial = asked.trial(result["curve"], end, result["time_total_s"])
            proposals.end(trial)
            self.say(trial.words)

        def save(self, checkpoint_path: str) -> None:
            """Nothing is kept: a search that is broken off begins anew."""

        def restore(self, checkpoint_path: str) -> None:
            """See `save`."""

    class Halving(FIFOScheduler):
        """Stops a trial that falls behind those before it, or runs out of time."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            bars = searcher.running[trial.trial_id].bars
            return self.STOP if fate(result["curve"], bars, deadline) else self.CONTINUE

    searcher = Proposing(say)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(CandidateTrial, box=box), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric="auc",
            mode="max",
            search_alg=searcher,
            scheduler=Halving(),
            num_samples=order.trials,
            max_concurrent_trials=order.workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=storage,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[JsonLoggerCallback()],  # Tune reads results back from it; others are off
        ),
    )
    results = tuner.fit()
    failed = [r for r in (results[i] for i in range(len(results))) if r.error is not None]
    if failed:
        candidate: Candidate = (failed[0].config or {})["candidate"]
        raise SearchError(
            f"{len(failed)} of {order.trials} trials failed, first {candidate.family} with "
            f"{candidate.params}: {failed[0].error}"
        )
