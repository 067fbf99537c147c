"""The first model had it never been retrained: what it says of batches that later versions scored.

Asked as `batch_performance` asks of the champion of the day, on the same encounters. What the
difference is worth is measured in `evidence`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from health_predict import evidence, schema
from health_predict.defs.partitions import arriving
from health_predict.defs.performance import _calibrated_on, _known
from health_predict.defs.resources import Gate, SearchBudget
from health_predict.evidence import Followed, Foretold
from health_predict.gate import people
from health_predict.outcomes import Performance, assess
from health_predict.served import PROBABILITY, VERSION
from health_predict.tracking import Registry

# Its interval is read beside another and decides nothing.
_RESAMPLES = 100


class FirstModel:
    """A version that is asked what it would have said of later batches.

    Args:
        registry: holds it.
        version: of the first champion.
        gate: the costs.
        budget: the seed.
    """

    def __init__(self, registry: Registry, version: str, gate: Gate, budget: SearchBudget) -> None:
        self._version = registry.version(version)
        self._pipeline: Any = None
        self._registry, self._harm, self._seed = registry, gate.harm, budget.seed

    @property
    def version(self) -> str:
        """Its number."""
        return self._version.version

    def score(self, frame: pd.DataFrame) -> np.ndarray:
        """Returns its probabilities (n,) of readmission."""
        if self._pipeline is None:  # where no later version scored, it is not needed
            self._pipeline = self._registry.load(self._version)
        scores: np.ndarray = self._pipeline.predict_proba(frame)[:, 1]
        return scores

    def foretold(self, known: pd.DataFrame, probabilities: np.ndarray) -> Foretold:
        """Returns how well it foretold encounters with known outcomes."""
        facts = self._version.facts
        performance = assess(
            people(known),
            probabilities,
            gate_auc=facts["test"]["auc"],
            threshold=facts["threshold"],
            harm=self._harm,
            calibrated_on=_calibrated_on(self._version),
            seed=self._seed,
            resamples=_RESAMPLES,
        )
        return evidence.foretold(self.version, performance)


def beside(
    first: FirstModel | None,
    performances: Mapping[str, Performance],
    batches: Mapping[str, pd.DataFrame],
    predictions: Mapping[str, pd.DataFrame],
) -> dict[str, Followed]:
    """Returns by batch what both models said of the encounters with known outcomes.

    Args:
        first: the first model; None before there was one.
        performances: of the batches whose outcomes are known, by key.
        batches: encounters by key.
        predictions: their scores by key.
    """
    found: dict[str, Followed] = {}
    for key in arriving(performances):
        if first is None or key not in batches or key not in predictions:
            continue
        known, _ = _known(batches[key], predictions[key])
        champion = evidence.foretold(str(predictions[key][VERSION].iloc[0]), performances[key])
        told = known[PROBABILITY].to_numpy()
        same = champion.version == first.version
        never = told if same else first.score(known)
        found[key] = Followed(
            known[schema.LABEL].to_numpy(),
            known[schema.PATIENT].to_numpy(),
            told,
            never,
            champion,
            champion if same else first.foretold(known, never),
        )
    return found
