"""A large group that is worse off is found, a small one is not called fine, chance is not harm."""

import numpy as np
import pytest

from health_predict import metrics
from health_predict.subgroups import SMALLEST_CLASS, SMALLEST_GROUP, Contender, People, by_group

ROWS, FLOOR = 3_000, 0.55
SIZES = {"a": 1_800, "b": 900, "c": 200, "d": 100}
"""Four groups: two large, one just large enough, one too small."""


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def world(seed: int = 0) -> tuple[People, np.ndarray]:
    """Returns people in four groups and half of each one, and the log-odds of their risk."""
    rng = np.random.default_rng(seed)
    z = 1.2 * rng.normal(size=ROWS)
    labels = (rng.random(ROWS) < sigmoid(z)).astype(float)
    groups = {
        "race": np.repeat(list(SIZES), list(SIZES.values())),
        "gender": np.where(np.arange(ROWS) % 2, "Female", "Male"),
    }
    return People(labels, np.arange(ROWS), groups), z


def scores(
    people: People, challenger: np.ndarray, champion: np.ndarray | None
) -> dict[str, object]:
    weights = metrics.by_patient(people.patients, 0, resamples=200)
    rival = None if champion is None else Contender(champion)
    found = by_group(people, Contender(challenger), rival, weights, FLOOR)
    return {group.group: group for group in found}


def harmed(found: dict) -> set[str]:
    return {name for name, group in found.items() if group.harmed}


def noisy_in(people: People, z: np.ndarray, race: str) -> np.ndarray:
    """Returns probabilities that rank one group by coin and all others as they should."""
    worse = people.groups["race"] == race
    shuffled = np.random.default_rng(9).permutation(z[worse])
    told = z.copy()
    told[worse] = shuffled
    return sigmoid(told)


def test_a_large_group_that_is_ranked_worse_is_found_and_nobody_else():
    people, z = world()
    found = scores(people, noisy_in(people, z, "b"), sigmoid(z))
    assert "race: b" in harmed(found)
    assert not harmed(found) & {"race: a", "race: c", "race: d"}
    assert found["race: b"].words.startswith("AUC -0.")
    assert "on 900 encounters" in found["race: b"].words


def test_a_large_group_whose_probabilities_are_worse_is_found_though_its_ranks_are_not():
    people, z = world()
    shifted = sigmoid(z + 0.8 * (people.groups["race"] == "a"))
    found = scores(people, shifted, sigmoid(z))
    assert "race: a" in harmed(found)
    assert found["race: a"].words.startswith("AUC +0.000")
    assert found["race: a"].expected_observed > 1.15


def test_a_group_that_is_better_off_is_not_harmed():
    people, z = world()
    assert harmed(scores(people, sigmoid(z), noisy_in(people, z, "b"))) == set()


def test_a_group_of_too_few_is_said_to_be_so_and_never_fine():
    people, z = world()
    few = scores(people, noisy_in(people, z, "d"), sigmoid(z))["race: d"]
    assert few.words == "too few to say"
    assert (few.n, few.auc, few.expected_observed, few.harmed) == (100, None, None, False)


def test_a_large_group_with_few_readmissions_is_too_few_as_well():
    people, z = world()
    labels = people.labels.copy()
    members = np.flatnonzero(people.groups["race"] == "b")
    labels[members] = 0
    labels[members[: SMALLEST_CLASS - 1]] = 1
    rare = People(labels, people.patients, people.groups)
    assert scores(rare, sigmoid(z), sigmoid(z))["race: b"].words == "too few to say"
    labels[members[SMALLEST_CLASS]] = 1
    assert scores(rare, sigmoid(z), sigmoid(z))["race: b"].auc is not None


def test_every_group_of_every_partition_is_told_with_its_size():
    people, z = world()
    found = scores(people, sigmoid(z), sigmoid(z))
    sizes = {f"race: {name}": size for name, size in SIZES.items()}
    assert {name: group.n for name, group in found.items()} == {
        **sizes,
        "gender: Female": ROWS // 2,
        "gender: Male": ROWS // 2,
    }
    told = {name for name, group in found.items() if group.auc is not None}
    assert told == {name for name, group in found.items() if group.n >= SMALLEST_GROUP}


def test_the_same_model_harms_nobody():
    people, z = world()
    assert harmed(scores(people, sigmoid(z), sigmoid(z))) == set()


def test_a_model_that_differs_by_chance_alone_seldom_seems_to_harm_anybody():
    refused = 0
    for seed in range(40):
        people, z = world(seed)
        noise = np.random.default_rng(1_000 + seed).normal(size=(2, ROWS))
        one, other = sigmoid(0.9 * (z + 0.4 * noise))
        refused += bool(harmed(scores(people, one, other)))
    assert refused <= 6  # 5 % over all groups make 2 of 40; more than 6 come once in 300


def test_a_first_model_that_ranks_a_large_group_by_coin_harms_it():
    people, z = world()
    assert harmed(scores(people, noisy_in(people, z, "b"), None)) == {"race: b"}
    assert harmed(scores(people, sigmoid(z), None)) == set()


@pytest.mark.parametrize("race", ["c", "d"])
def test_doubt_does_not_refuse_a_first_model(race):
    people, z = world()
    assert f"race: {race}" not in harmed(scores(people, sigmoid(0.3 * z), None))
