"""The search without its machinery: what is tried, what is stopped, who wins; and one process.

Candidates come in generations. What is proposed and what is stopped depends on the generations
before the last one only, never on which worker was faster, so one process, two workers or a cluster
try the same candidates, stop the same trials and find the same winner; and no worker waits for the
slowest of a generation. Ray runs the same search in `tuning`.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from health_predict.models import FAMILIES, STAGES, Candidate, Params, Range, Sample, fit_in_stages

LAG = 2
"""A generation is proposed and judged by what those before the last one found."""

RUNGS = (1, 2, 4)
REDUCTION = 3
"""After these stages a trial goes on only if it is among the best third of those before it that
came as far: asynchronous successive halving (ASHA, Li et al. 2020), with the order taken out."""

# Below it a tree-structured Parzen estimator has nothing to estimate from.
_STARTUP = 4

Fate = Literal["full", "halved", "out of time"]
Say = Callable[[str], None]
"""Told how the search comes on."""


@dataclass(frozen=True)
class SearchData:
    """Preprocessed train and validation sides."""

    train: Sample
    validation: Sample


@dataclass(frozen=True)
class Trial:
    """One candidate's course.

    Attributes:
        number: its place in the search, from 0.
        family: model family.
        params: its hyperparameters.
        curve: validation AUC after each stage it was given.
        fate: `full` if it was given all stages, else why it was stopped.
        seconds: time spent fitting and scoring.
    """

    number: int
    family: str
    params: Params
    curve: list[float]
    fate: Fate
    seconds: float

    @property
    def auc(self) -> float:
        """Validation AUC of the last stage."""
        return self.curve[-1]

    @property
    def words(self) -> str:
        """The course in a line."""
        end = {"full": "all stages", "halved": "stopped", "out of time": "out of time"}[self.fate]
        return (
            f"trial {self.number + 1:2d} {self.family}: AUC {self.auc:.4f}, {end} "
            f"({len(self.curve)} of {STAGES}), {self.seconds:.1f} s"
        )


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


@dataclass(frozen=True)
class Asked:
    """A candidate to try.

    Attributes:
        number: its place in the search, from 0.
        candidate: family and hyperparameters.
        bars: rung -> the validation AUC it needs there to go on.
    """

    number: int
    candidate: Candidate
    bars: dict[int, float]

    def trial(self, curve: list[float], end: Fate, seconds: float) -> Trial:
        """Returns its course."""
        return Trial(self.number, self.candidate.family, self.candidate.params, curve, end, seconds)


class SearchError(RuntimeError):
    """The search found nothing; the message names candidate or budget."""


class Proposals:
    """What is tried next: a model of each family's past trials, and halving's memory.

    The first candidate of a family is its default, the next few are drawn, then Optuna's
    tree-structured Parzen estimator proposes.

    Args:
        trials: candidates in all.
        seed: seed of every draw.
        families: the families that compete.
    """

    def __init__(self, trials: int, seed: int, families: Sequence[str]) -> None:
        unknown = [family for family in families if family not in FAMILIES]
        if unknown or not families:
            raise SearchError(
                f"{', '.join(unknown) or 'no family'} cannot be searched; the families are "
                f"{', '.join(FAMILIES)}"
            )
        self._trials = trials
        # One of each family; in a large search more, so that a cluster is kept busy.
        self._size = max(len(families), trials // 10)
        self._told = 0
        self._families = list(families)
        self._studies = {
            family: _study(FAMILIES[family].default, seed + i)
            for i, family in enumerate(self._families)
        }
        self._asked: dict[int, Any] = {}
        self._ended: dict[int, Trial] = {}
        self._reached: dict[tuple[str, int], list[float]] = defaultdict(list)

    def next(self) -> Asked | None:
        """Returns the next candidate, None while an earlier generation has to end first."""
        number = len(self._asked)
        generation = number // self._size
        while self._told <= generation - LAG:
            if not self._tell(self._told):
                return None
        candidate = self._propose(number)
        return Asked(number, candidate, self._bars(candidate.family))

    @property
    def exhausted(self) -> bool:
        """Whether all candidates were handed out."""
        return len(self._asked) >= self._trials

    def end(self, trial: Trial) -> None:
        """Takes the course of a trial that has ended."""
        self._ended[trial.number] = trial

    def _propose(self, number: int) -> Candidate:
        family = self._families[::-1][number % len(self._families)]
        asked = self._asked[number] = self._studies[family].ask()
        space = FAMILIES[family].space
        return Candidate(family, {name: _suggest(asked, name, space[name]) for name in space})

    def _tell(self, generation: int) -> bool:
        """Learns from a generation, in the order of its numbers; False if it has not ended."""
        numbers = range(generation * self._size, (generation + 1) * self._size)
        if any(number not in self._ended for number in numbers):
            return False
        for trial in map(self._ended.__getitem__, numbers):
            self._studies[trial.family].tell(self._asked[trial.number], trial.auc)
            for rung in RUNGS:
                if len(trial.curve) >= rung:
                    self._reached[trial.family, rung].append(trial.curve[rung - 1])
        self._told += 1
        return True

    def _bars(self, family: str) -> dict[int, float]:
        return {
            rung: float(np.quantile(self._reached[family, rung], 1 - 1 / REDUCTION))
            for rung in RUNGS
            if self._reached[family, rung]
        }

    def result(self, seed: int, seconds: float, start_seconds: float = 0.0) -> SearchResult:
        """Returns the search's end.

        Raises:
            SearchError: no trial was given all stages.
        """
        trials = [self._ended[number] for number in sorted(self._ended)]
        full = [trial for trial in trials if trial.fate == "full"]
        if not full:
            raise SearchError(
                f"none of {len(trials)} trials was fitted in full within {seconds:,.0f} s: raise "
                "HEALTH_PREDICT_SEARCH_SECONDS"
            )
        winner = max(full, key=lambda trial: trial.auc)
        return SearchResult(trials, winner, seed, seconds, start_seconds)


def fate(curve: Sequence[float], bars: dict[int, float], deadline: float) -> Fate | None:
    """Returns why a trial ends after its newest stage, None if it goes on.

    Args:
        curve: validation AUC after each stage so far.
        bars: rung -> the AUC needed there.
        deadline: epoch seconds after which no further stage is begun.
    """
    if len(curve) >= STAGES:
        return "full"
    if curve[-1] < bars.get(len(curve), -np.inf):
        return "halved"
    return "out of time" if time.time() > deadline else None


def _study(default: Params, seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():  # both options are years old and still called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=_STARTUP, multivariate=True, constant_liar=True, seed=seed
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(default)
    return study


def _suggest(asked: Any, name: str, space: Range) -> float | int:
    if space.scale == "integer":
        whole: int = asked.suggest_int(name, int(space.low), int(space.high))
        return whole
    drawn: float = asked.suggest_float(name, space.low, space.high, log=space.scale == "log")
    return drawn


def validation_auc(estimator: Any, validation: Sample) -> float:
    """Returns the AUC of a fitted estimator on the validation side."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(validation.y, estimator.predict_proba(validation.x)[:, 1]))


def courses(candidate: Candidate, data: SearchData, seed: int) -> Iterator[float]:
    """Yields the validation AUC of a candidate after each of its stages."""
    from threadpoolctl import threadpool_limits

    stages = fit_in_stages(candidate, data.train, seed)
    for _ in range(STAGES):
        # One thread, wherever it runs: sums made by two differ in their last digits.
        with threadpool_limits(1):
            auc = validation_auc(next(stages), data.validation)
        yield auc


def search_serially(
    data: SearchData,
    *,
    trials: int,
    seed: int,
    families: Sequence[str] = tuple(FAMILIES),
    seconds: float | None = None,
    say: Say = lambda words: None,
) -> SearchResult:
    """Returns the result of a search in this process: for laptops, tests and tiny searches.

    Args:
        data: features and labels of the train and validation sides.
        trials: how many candidates are tried.
        seed: seed of the proposals and of every estimator.
        families: the families that compete.
        seconds: after these no further stage is begun; None for no limit.
        say: told of each trial as it ends.

    Raises:
        SearchError: a family is unknown, or no trial was fitted in full in time.
    """
    began, deadline = time.monotonic(), deadline_of(seconds)
    proposals = Proposals(trials, seed, families)
    while not proposals.exhausted and time.time() < deadline:
        asked = proposals.next()
        assert asked is not None  # every earlier one has ended
        trial = _run(asked, data, seed, deadline)
        proposals.end(trial)
        say(trial.words)
    return proposals.result(seed, time.monotonic() - began)


def deadline_of(seconds: float | None) -> float:
    """Returns when a search that may take so many seconds from now ends, epoch seconds."""
    return time.time() + seconds if seconds is not None else float("inf")


def _run(asked: Asked, data: SearchData, seed: int, deadline: float) -> Trial:
    began = time.monotonic()
    curve: list[float] = []
    for auc in courses(asked.candidate, data, seed):
        curve.append(auc)
        if end := fate(curve, asked.bars, deadline):
            break
    assert end is not None  # the last stage is one
    return asked.trial(curve, end, time.monotonic() - began)
