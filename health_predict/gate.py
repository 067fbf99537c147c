"""A challenger before the judge: the held-out people, what it is made of, how large and how fast.

Gathers what `evaluation.judge` asks for from a snapshot and a fitted model. The rule itself is
there, the written bounds in `change_control`; nothing is fitted, stored or moved here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from health_predict import features
from health_predict.change_control import Design, change_control
from health_predict.compiling import Footprint, footprint
from health_predict.evaluation import Verdict, intervals, judge
from health_predict.fitting import CALIBRATION_ROWS, Fitted
from health_predict.models import Candidate
from health_predict.schema import INPUTS, LABEL, PATIENT, SIDE
from health_predict.splits import on_side
from health_predict.subgroups import Contender, People

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

# The newest of the test side: as many as give the gate's margins their meaning, as few as keep them
# of the same months as the next batch.
PEOPLE = 2_000
QUANTILES = 21
GROUPS = ("race", "gender", "age")
"""Partitions no group of which may be worse off; race is not a feature of the model."""


@dataclass(frozen=True)
class Champion:
    """The model that a challenger has to beat."""

    pipeline: "Pipeline"
    threshold: float


@dataclass(frozen=True)
class Examination:
    """The verdict on a challenger, and what it rests on.

    Attributes:
        verdict: the verdict.
        design: what the challenger is made of.
        quantiles: of its scores on the held-out people, from the lowest to the highest in steps
            of 5 %: what one person's score is shown against.
        intervals: measure -> its 95 % interval on the held-out people.
    """

    verdict: Verdict
    design: Design
    quantiles: list[float]
    intervals: dict[str, tuple[float, float]]


def held_out(snapshot: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the newest encounters of the test side, whom no model has learned from."""
    return on_side(snapshot, "test").tail(PEOPLE)


def people(frame: "pd.DataFrame") -> People:
    """Returns encounters with known outcomes as people to be scored on."""
    return People(
        frame[LABEL].to_numpy(),
        frame[PATIENT].to_numpy(),
        {name: frame[name].astype(str).to_numpy() for name in GROUPS},
    )


def examine(
    snapshot: "pd.DataFrame",
    candidate: Candidate,
    fitted: Fitted,
    champion: Champion | None,
    *,
    label: str,
    harm: float,
    seed: int,
) -> Examination:
    """Returns the verdict on a challenger.

    Args:
        snapshot: the snapshot it learned from, all three sides.
        candidate: its family and hyperparameters.
        fitted: the challenger.
        champion: what it has to beat, None if there is none.
        label: `any` or `30d`.
        harm: what a needless intervention costs, in foreseen readmissions.
        seed: seed of the resampling.
    """
    frame = held_out(snapshot)
    size = footprint(fitted.pipeline, {}, frame.head(200)[[*INPUTS]].to_dict("records"))
    design = _design(snapshot, candidate, fitted, size, label)

    def contender(pipeline: "Pipeline", threshold: float) -> Contender:
        return Contender(pipeline.predict_proba(frame)[:, 1], threshold)

    challenger = contender(fitted.pipeline, fitted.thresholds.value)
    crowd = people(frame)
    verdict = judge(
        crowd,
        challenger,
        contender(champion.pipeline, champion.threshold) if champion else None,
        breaches=change_control().breaches(design),
        newest=CALIBRATION_ROWS,
        harm=harm,
        seed=seed,
    )
    steps = np.linspace(0, 1, QUANTILES)
    return Examination(
        verdict,
        design,
        np.quantile(challenger.probabilities, steps).tolist(),
        intervals(crowd, challenger, harm=harm, seed=seed),
    )


def _design(
    snapshot: "pd.DataFrame", candidate: Candidate, fitted: Fitted, size: Footprint, label: str
) -> Design:
    return Design(
        label=label,
        family=candidate.family,
        params=candidate.params,
        calibration=fitted.calibration,
        features=list(features.columns(fitted.pipeline.named_steps["preprocess"])),
        train_rows=int((snapshot[SIDE] == "train").sum()),
        threshold=fitted.thresholds.value,
        bytes=size.bytes,
        latency_ms=size.latency_ms,
    )


def clauses(verdict: Verdict) -> list[dict[str, str | bool]]:
    """Returns the clauses as rows of a table, broken ones first."""
    ordered = sorted(verdict.clauses, key=lambda clause: clause.holds)
    return [{"clause": c.name, "holds": c.holds, "numbers": c.words} for c in ordered]
