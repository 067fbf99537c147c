"""The search: Ray Tune runs the candidates of all families in one go, ASHA stops the weak ones.

The only module that imports ray. What a candidate is, and how it is fitted in stages, is said in
`models`; what becomes of the winner is decided in `evaluation`.
"""

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from health_predict.models import STAGES, Candidate, candidates, fit_in_stages

OBJECT_STORE_BYTES = 256 * 2**20
"""The search data of 100,000 rows take 60 MB; Ray would otherwise claim 30 % of the memory."""

# Half of the trials that reach a rung go on from it.
_REDUCTION = 2


@dataclass(frozen=True)
class SearchData:
    """Preprocessed features (n, k) float32 and labels (n,) of the train and validation sides."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray


@dataclass(frozen=True)
class Trial:
    """One candidate's course.

    Attributes:
        family: model family.
        params: its hyperparameters.
        curve: validation AUC after each stage it was given.
        stopped_early: whether ASHA stopped it before the last stage.
        seconds: time spent fitting and scoring.
    """

    family: str
    params: dict[str, float | int]
    curve: list[float]
    stopped_early: bool
    seconds: float

    @property
    def auc(self) -> float:
        """Validation AUC of the last stage."""
        return self.curve[-1]


@dataclass(frozen=True)
class SearchResult:
    """All trials of a search, the best of those that ran in full, and the seed."""

    trials: list[Trial]
    winner: Trial
    seed: int
    seconds: float
    start_seconds: float = field(default=0.0)

    @property
    def candidate(self) -> Candidate:
        """The winner as something to fit."""
        return Candidate(self.winner.family, self.winner.params)


class SearchError(RuntimeError):
    """A trial failed; the message names the candidate."""


def search(data: SearchData, *, trials: int, seed: int, workers: int = 2) -> SearchResult:
    """Returns the result of one search over all families.

    Args:
        data: features and labels of the train and validation sides.
        trials: how many candidates are drawn; at least one a family.
        seed: seed of the draw and of every estimator.
        workers: candidates fitted at a time, one core each.

    Raises:
        SearchError: a trial failed.
    """
    import time

    drawn = candidates(trials, seed)
    began = time.monotonic()
    with _ray(workers) as storage:
        started = time.monotonic()
        results = _tune(data, drawn, seed, workers, storage)
    finished = [_trial(result) for result in results]
    winner = max((t for t in finished if not t.stopped_early), key=lambda t: t.auc)
    return SearchResult(
        finished, winner, seed, time.monotonic() - began, start_seconds=started - began
    )


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
    data: SearchData, drawn: list[Candidate], seed: int, workers: int, storage: str
) -> list[Any]:
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import ASHAScheduler

    class CandidateTrial(tune.Trainable):
        """Fits one candidate a stage at a time; one actor serves many candidates."""

        def setup(self, config: dict[str, Any], data: SearchData | None = None) -> None:
            assert data is not None  # tune.with_parameters hands it over
            self.data = data
            self.begin(config["candidate"])

        def begin(self, candidate: Candidate) -> None:
            self.curve: list[float] = []
            self.stages = fit_in_stages(candidate, self.data.x_train, self.data.y_train, seed)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.begin(new_config["candidate"])
            return True

        def step(self) -> dict[str, Any]:
            from sklearn.metrics import roc_auc_score

            scores = next(self.stages).predict_proba(self.data.x_validation)[:, 1]
            self.curve.append(float(roc_auc_score(self.data.y_validation, scores)))
            return {"auc": self.curve[-1], "curve": list(self.curve)}

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(CandidateTrial, data=data), {"cpu": 1}),
        param_space={"candidate": tune.grid_search(drawn)},
        tune_config=tune.TuneConfig(
            metric="auc",
            mode="max",
            scheduler=ASHAScheduler(max_t=STAGES, grace_period=1, reduction_factor=_REDUCTION),
            max_concurrent_trials=workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=storage,
            verbose=0,
            stop={"training_iteration": STAGES},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[JsonLoggerCallback()],  # the curve is read from it; the others are off
        ),
    )
    results = tuner.fit()
    trials = [results[i] for i in range(len(results))]
    failed = [trial for trial in trials if trial.error is not None]
    if failed:
        candidate: Candidate = (failed[0].config or {})["candidate"]
        raise SearchError(
            f"{len(failed)} of {len(drawn)} trials failed, first {candidate.family} with "
            f"{candidate.params}: {failed[0].error}"
        )
    return trials


def _trial(result: Any) -> Trial:
    candidate: Candidate = result.config["candidate"]
    curve = result.metrics["curve"]
    return Trial(
        candidate.family,
        candidate.params,
        curve,
        stopped_early=len(curve) < STAGES,
        seconds=result.metrics["time_total_s"],
    )
