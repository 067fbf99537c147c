"""The search on Ray Tune: many trials at a time, on this machine or on a cluster.

Where `RAY_ADDRESS` names a cluster, the whole search runs there and this process only listens; else
Ray is started here for as long as the search takes. How either is reached is in `ray_link`. What is
tried, what is stopped and who wins is decided in `search`; with the same seed all find the same.
What becomes of the winner is decided in `evaluation`.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from health_predict.models import FAMILIES, Candidate
from health_predict.ray_link import cluster, local_ray, quiet
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
"""At least; twice the search data where those are more (70 MB at 100,000 rows). Ray would otherwise
claim 30 % of the memory."""

NODE_SECONDS = 900.0
"""A cluster without a CPU may add a node for so long: a machine starts, an image is pulled."""

_CANCEL_SECONDS = 15.0

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
        with local_ray(workers, max(OBJECT_STORE_BYTES, 2 * _bytes(data))):
            started = time.monotonic()
            result = _run_here(order, data, say)
    else:
        with cluster(address):
            started = time.monotonic()
            result = _run_there(order, data, say)
    return replace(result, seconds=time.monotonic() - began, start_seconds=started - began)


def _bytes(data: SearchData) -> int:
    arrays = (array for side in (data.train, data.validation) for array in vars(side).values())
    return sum(array.nbytes for array in arrays if array is not None)


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
    with quiet():
        return _run(order, box, heard.put)


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
