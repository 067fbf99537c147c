"""The search on Ray Tune: many trials at a time, on this machine or on a cluster.

The only module that imports ray. What is tried, what is stopped and who wins is decided in
`search`; with the same seed both find the same. What becomes of the winner is decided in
`evaluation`.
"""

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

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

Backend = Literal["ray", "serial"]


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
        SearchError: a trial failed, a family is unknown, or no trial was fitted in full in time.
    """
    if backend == "serial":
        return search_serially(
            data, trials=trials, seed=seed, families=families, seconds=seconds, say=say
        )
    began = time.monotonic()
    proposals = Proposals(trials, seed, families)
    with _ray(workers) as storage:
        started = time.monotonic()
        _tune(data, proposals, trials, seed, workers, deadline_of(seconds), storage, say)
    return proposals.result(seed, time.monotonic() - began, started - began)


@contextmanager
def _ray(workers: int) -> Iterator[str]:
    """Yields a directory for results while Ray runs; stops Ray and removes it afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # Left to itself Ray writes a token of its own to the home directory.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Without it Ray takes 127.0.0.1 for the outward address of the machine and listens there.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    # Ray's socket paths must stay below 107 characters, so it cannot live under var/.
    directory = tempfile.mkdtemp(prefix="hp-ray-")
    local: dict[str, Any] = {
        "num_cpus": workers,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": directory,
    }
    try:
        with _home(directory):
            ray.init(
                address=address,
                logging_level=logging.WARNING,
                log_to_driver=False,
                configure_logging=False,
                **({} if address else local),
            )
        yield str(Path(directory) / "results")
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


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


def _tune(
    data: SearchData,
    proposals: Proposals,
    trials: int,
    seed: int,
    workers: int,
    deadline: float,
    storage: str,
    say: Say,
) -> None:
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    class CandidateTrial(tune.Trainable):
        """Fits one candidate a stage at a time; one actor serves many candidates."""

        def setup(self, config: dict[str, Any], data: SearchData | None = None) -> None:
            assert data is not None  # tune.with_parameters hands it over
            self.data = data
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
        tune.with_resources(tune.with_parameters(CandidateTrial, data=data), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric="auc",
            mode="max",
            search_alg=searcher,
            scheduler=Halving(),
            num_samples=trials,
            max_concurrent_trials=workers,
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
            f"{len(failed)} of {trials} trials failed, first {candidate.family} with "
            f"{candidate.params}: {failed[0].error}"
        )
