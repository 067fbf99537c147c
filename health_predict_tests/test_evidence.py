"""What outcomes prove, held against figures that are computed another way."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from health_predict import evidence
from health_predict.evidence import Followed, Foretold
from health_predict.metrics import net_benefit, plain
from health_predict.outcomes import Performance

ROWS = 600


def followed(seed: int, *, skill: float = 1.0, first_skill: float = 0.3, version: str = "2"):
    """Returns a batch whose champion knows as much more than the first model as its skill."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=ROWS)
    labels = (rng.random(ROWS) < 1 / (1 + np.exp(-z))).astype(int)

    def told(skill: float) -> np.ndarray:
        noisy = skill * z + rng.normal(size=ROWS)
        return 1 / (1 + np.exp(-noisy))

    patients = rng.integers(0, 400, size=ROWS)
    champion, first = told(skill), told(first_skill)
    nobody = Foretold("1", ROWS, int(labels.sum()), None, None)
    return Followed(labels, patients, champion, first, replace(nobody, version=version), nobody)


def test_the_gain_is_the_mean_difference_of_auc_over_the_batches_later_versions_scored() -> None:
    batches = [followed(1), followed(2, version="3"), followed(3, version="1")]
    found = evidence.gain(batches)
    assert found is not None
    assert (found.batches, found.encounters) == (2, 2 * ROWS)
    own = [roc_auc_score(b.labels, b.champion) for b in batches[:2]]
    never = [roc_auc_score(b.labels, b.first) for b in batches[:2]]
    assert found.auc == pytest.approx(np.mean(own))
    assert found.first_auc == pytest.approx(np.mean(never))
    assert found.difference.value == pytest.approx(np.mean(own) - np.mean(never))
    assert found.difference.low < found.difference.value < found.difference.high
    labels = sum(b.labels.sum() for b in batches[:2])
    assert found.expected_observed == pytest.approx(
        sum(b.champion.sum() for b in batches[:2]) / labels
    )
    assert found.first_expected_observed == pytest.approx(
        sum(b.first.sum() for b in batches[:2]) / labels
    )


def test_a_gain_is_beyond_chance_where_there_is_one_and_not_where_there_is_none() -> None:
    better = evidence.gain([followed(seed) for seed in range(4)])
    alike = evidence.gain([followed(seed, first_skill=1.0) for seed in range(4)])
    assert better is not None and better.difference.low > 0
    assert alike is not None and alike.difference.low < 0 < alike.difference.high


def test_a_patient_counts_in_all_batches_or_in_none() -> None:
    batch = followed(1)
    once = evidence.gain([batch, batch])
    apart = evidence.gain([batch, replace(batch, patients=batch.patients + 1_000)])
    assert once is not None and apart is not None
    wide = once.difference.high - once.difference.low
    assert wide > 1.15 * (apart.difference.high - apart.difference.low)


def test_there_is_no_gain_to_tell_where_none_can_be_measured() -> None:
    assert evidence.gain([]) is None
    assert evidence.gain([followed(1, version="1")]) is None
    one_class = replace(followed(1), labels=np.ones(ROWS, dtype=int))
    assert evidence.gain([one_class]) is None
    both = evidence.gain([one_class, followed(2)])
    assert both is not None and both.batches == 1


def test_tenths_of_risk_hold_everybody_once_and_rise() -> None:
    batch = followed(5)
    bins = evidence.reliability(batch.labels, batch.champion)
    assert len(bins) == 10
    assert sum(b.n for b in bins) == ROWS
    assert {b.n for b in bins} == {ROWS // 10}
    lowest = np.sort(batch.champion)[: ROWS // 10]
    assert bins[0].predicted == pytest.approx(lowest.mean())
    of_lowest = batch.labels[np.argsort(batch.champion)][: ROWS // 10]
    assert bins[0].observed.value == pytest.approx(of_lowest.mean())
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)
    assert all(b.observed.low <= b.observed.value <= b.observed.high for b in bins)


def test_people_of_one_risk_stay_together() -> None:
    labels = np.array([0, 1] * 50)
    bins = evidence.reliability(labels, np.repeat([0.2, 0.6], 50))
    assert [(b.n, b.predicted) for b in bins] == [
        (50, pytest.approx(0.2)),
        (50, pytest.approx(0.6)),
    ]
    assert evidence.reliability(np.array([]), np.array([])) == []


def test_net_benefit_is_foreseen_readmissions_less_the_cost_of_needless_interventions() -> None:
    batch = followed(6)
    curve = evidence.decision_curve(batch.labels, batch.champion, batch.first)
    at = next(b for b in curve if b.threshold == 0.5)

    def by_hand(flagged: np.ndarray) -> float:
        hits = (flagged & (batch.labels == 1)).mean()
        needless = (flagged & (batch.labels == 0)).mean()
        return 100 * float(hits - needless * 0.5 / 0.5)

    assert at.champion == pytest.approx(by_hand(batch.champion >= 0.5))
    assert at.first == pytest.approx(by_hand(batch.first >= 0.5))
    assert at.everyone == pytest.approx(by_hand(np.ones(ROWS, dtype=bool)))
    gate = net_benefit(batch.labels.astype(float), batch.champion >= 0.5, plain(batch.labels), 1.0)
    assert at.champion == pytest.approx(100 * gate[0]), "the gate's measure"


def test_a_decision_curve_reaches_from_acting_on_all_to_acting_on_hardly_anybody() -> None:
    batch = followed(7)
    curve = evidence.decision_curve(batch.labels, batch.champion, batch.first)
    first, last = curve[0], curve[-1]
    assert first.threshold == pytest.approx(batch.labels.mean() / 2, abs=0.01)
    assert first.champion == pytest.approx(first.everyone, abs=3)
    assert (batch.champion >= last.threshold).mean() < 0.03
    assert last.everyone < 0
    assert evidence.decision_curve(np.array([]), np.array([]), np.array([])) == []


def test_what_is_told_of_a_batch_is_what_was_assessed() -> None:
    performance = Performance(100, 40, 2, 0.68, "too few")
    assert evidence.foretold("3", performance) == Foretold("3", 100, 40, None, None)
