"""A version beside the old one scores logged traffic again, is compared, and goes away."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from health_predict import manifests, shadow
from health_predict.cluster import Unreachable
from health_predict.prediction_log import VERIFICATION, PredictionLog
from health_predict.release import NAME
from health_predict.shadow import SHADOW, compare
from health_predict_tests import released
from health_predict_tests.kubernetes_double import CRASH_LOOP, DEPLOYMENT, NAMESPACE, POD, image
from health_predict_tests.released import OVERLAY, PACE, Bentos, Place, between, placed

EKS = OVERLAY.parent / "eks"
OLD_SCORES = (0.9, 0.1, 0.7, 0.2, 0.49)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bentos]:
    with released.running(tmp_path_factory.mktemp("bentos"), "1", "2") as running:
        yield running


@pytest.fixture
def traffic(tmp_path: Path) -> Path:
    return tmp_path / "traffic"


@pytest.fixture
def place(running: Bentos, tmp_path: Path, traffic: Path) -> Iterator[Place]:
    """A cluster that serves version 1 and tries others beside it."""
    with placed(tmp_path, running) as place:
        place = place.with_platform(traffic=traffic)
        assert not place.roll_out("1", golden=[]).rolled_back
        place.said.clear()
        place.double.requests.clear()
        yield place


def logged(folder: Path, rows: Sequence[dict[str, Any]], scores: Sequence[float]) -> None:
    """Writes traffic that version 1 answered with these scores."""
    log = PredictionLog(folder)
    for encounter, score in zip(rows, scores, strict=True):
        log.add("3f1c9a52-7d41-4b0e-9c55-2f6c1f0f7a11", "1", score, encounter)
    log.close()
    assert log.written == len(rows)


def encounters(running: Bentos) -> list[dict[str, Any]]:
    return [row.encounter for row in running.golden("2")]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector["matchLabels"].items() <= labels.items()


# What runs beside.


@pytest.mark.parametrize("overlay", [OVERLAY, EKS], ids=lambda overlay: overlay.name)
def test_its_pods_are_let_through_by_no_service_and_counted_by_no_budget(overlay):
    objects = manifests.render(overlay)
    (deployment,) = shadow.beside(objects)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    by_kind = {each["kind"]: each["spec"] for each in objects if "spec" in each}
    assert deployment["metadata"]["name"] == SHADOW
    assert deployment["spec"]["replicas"] == 1
    assert selects(deployment["spec"]["selector"], labels)
    assert not selects({"matchLabels": by_kind["Service"]["selector"]}, labels)
    assert not selects(by_kind["PodDisruptionBudget"]["selector"], labels)
    assert not selects(by_kind["Deployment"]["selector"], labels)
    assert by_kind["HorizontalPodAutoscaler"]["scaleTargetRef"]["name"] == NAME


def test_the_deployment_it_is_made_of_stays_as_it_is():
    objects = manifests.render(OVERLAY)
    shadow.beside(objects)
    assert objects == manifests.render(OVERLAY)


@pytest.mark.parametrize("overlay", [OVERLAY, EKS], ids=lambda overlay: overlay.name)
def test_the_network_policies_hold_for_its_pods_as_for_the_others(overlay):
    objects = manifests.render(overlay)
    (deployment,) = shadow.beside(objects)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    chosen = [one for one in policies if selects({"matchLabels": {}, **one["podSelector"]}, labels)]
    assert len(chosen) == len(policies)


# What comes of it.


def test_the_comparison_is_what_it_is_by_hand():
    new = [
        {"probability_score": 0.5, "prediction": 1},
        {"probability_score": 0.3, "prediction": 0},
        {"probability_score": 0.2, "prediction": 0},
        {"probability_score": 0.8, "prediction": 1},
    ]
    found = compare([0.4, 0.1, 0.3, 0.6], new, [0.1, 0.4, 0.2, 0.3], 0.5, "by hand")
    assert (found.rows, found.source, found.problem) == (4, "by hand", "")
    assert found.agreement == 0.75
    assert found.mean_shift == pytest.approx(0.1)
    assert found.largest_shift == pytest.approx(0.2)
    assert found.median_ms == pytest.approx(250)


def test_what_was_asked_lately_is_scored_again_and_compared(place, running, traffic):
    rows = encounters(running)
    logged(traffic, rows, OLD_SCORES)
    deployment = place.roll_out("2")
    assert not deployment.rolled_back
    assert place.serves("2")
    found = deployment.facts["shadow"]
    new = [row.score for row in running.golden("2")]
    same = [(a >= 0.5) == (b >= 0.5) for a, b in zip(OLD_SCORES, new, strict=True)]
    shifts = [b - a for a, b in zip(OLD_SCORES, new, strict=True)]
    assert found["rows"] == len(rows)
    assert found["source"] == f"the prediction log: its newest {len(rows)} requests"
    assert 0 < sum(same) < len(same)
    assert found["agreement"] == sum(same) / len(same)
    assert found["mean_shift"] == pytest.approx(sum(shifts) / len(shifts), abs=1e-6)
    assert found["largest_shift"] == pytest.approx(max(map(abs, shifts)), abs=1e-6)
    assert found["median_ms"] > 0


def test_of_a_long_log_the_newest_requests_are_scored_again(place, running, traffic, monkeypatch):
    monkeypatch.setattr(shadow, "ROWS", 3)
    rows = encounters(running)
    logged(traffic, rows, OLD_SCORES)
    found = place.roll_out("2").facts["shadow"]
    shifts = [row.score - old for row, old in zip(running.golden("2"), OLD_SCORES, strict=True)]
    assert found["rows"] == 3
    assert found["mean_shift"] == pytest.approx(sum(shifts[-3:]) / 3, abs=1e-6)


def test_what_an_earlier_verification_asked_is_left_out(place, running, traffic):
    log = PredictionLog(traffic)
    log.add(VERIFICATION, "1", 0.9, encounters(running)[0])
    log.close()
    assert "golden rows" in place.roll_out("2").facts["shadow"]["source"]


def test_a_value_the_log_withheld_does_not_keep_a_version_out(place, running, traffic):
    rows = [{**encounters(running)[0], "diag_1": "8888888"}]
    logged(traffic, rows, [0.2])
    assert "withheld" in next(traffic.iterdir()).read_text()
    deployment = place.roll_out("2")
    assert deployment.facts["shadow"]["rows"] == 1
    assert not deployment.rolled_back


def test_golden_rows_stand_in_for_an_empty_log(place, running):
    deployment = place.roll_out("2")
    found = deployment.facts["shadow"]
    assert found["source"] == "golden rows: nothing was logged"
    assert found["rows"] == len(running.golden("2"))
    assert found["agreement"] == 1
    assert found["largest_shift"] == pytest.approx(0, abs=1e-6)
    assert not deployment.rolled_back


def test_a_first_release_has_nothing_to_run_beside(running, tmp_path, traffic):
    with placed(tmp_path, running) as empty:
        deployment = empty.with_platform(traffic=traffic).roll_out("1")
        assert "shadow" not in deployment.facts
        assert empty.asked(SHADOW) == 0
        assert not deployment.rolled_back


def test_it_may_pull_its_image(place):
    place.double.delete(("v1", "Secret"), NAMESPACE, "readmission-pull")
    assert not place.roll_out("2").rolled_back


# While it runs, and after.


def test_clients_are_answered_by_the_old_version_while_it_runs(place, running):
    seen: list[tuple[str | None, set[str]]] = []

    def choose(path: str) -> str:
        names = {thing["metadata"]["name"] for thing in place.double.all(DEPLOYMENT)}
        if path == "/predict" and SHADOW in names:
            seen.append((place.platform.served_version(), place.images()))
        return running.served["2"].url

    with between(choose) as url:
        place.double.backends[image("2")] = url
        assert not place.roll_out("2").rolled_back
    assert seen
    assert all(version == "1" for version, _ in seen)
    assert all(images == {image("1"), image("2")} for _, images in seen)


def refused(place: Place, deployment: Any) -> str:
    """Asserts that version 1 was not touched and nothing of the shadow is left."""
    assert deployment.rolled_back
    assert deployment.sentence.startswith("Refused: version 2 ")
    assert deployment.sentence.endswith("; version 1 answers.")
    assert place.asked(f"PATCH /apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}?") == 0
    assert not [p for p in place.double.all(POD) if SHADOW in p["metadata"]["name"]]
    assert place.serves("1")
    return str(deployment.sentence)


def test_one_that_cannot_start_is_refused_before_the_switch(place):
    place.double.behaviours[image("2")] = CRASH_LOOP
    sentence = refused(place, place.roll_out("2"))
    assert "did not become ready as a shadow: " in sentence
    assert "bad magic number" in sentence


@pytest.mark.parametrize(
    ("failure", "words"),
    [(500, "answers 500 to a request of golden rows"), ("", "error trying to reach service")],
    ids=["answers 500", "closes the connection"],
)
def test_one_that_fails_on_a_request_is_refused_before_the_switch(place, failure, words):
    with between(lambda _: failure) as url:
        place.double.backends[image("2")] = url
        assert words in refused(place, place.roll_out("2"))


def test_something_else_in_the_image_is_refused_before_the_switch(place):
    with between(lambda _: 200) as url:
        place.double.backends[image("2")] = url
        assert "does not answer as the service does" in refused(place, place.roll_out("2"))


def test_one_left_by_a_run_that_lost_the_cluster_is_taken_away_by_the_next(place):
    impatient = place.with_cluster(pace=replace(PACE, unreachable=0.2))
    lost = f"deployments/{SHADOW}|pods/http:{SHADOW}"
    impatient.heard = lambda said: (
        place.double.fail("drop", float("inf"), lost) if f"{SHADOW}: created" in said else None
    )
    with pytest.raises(Unreachable):
        impatient.roll_out("2")
    place.double.faults.clear()
    assert SHADOW in {thing["metadata"]["name"] for thing in place.double.all(DEPLOYMENT)}
    assert not place.roll_out("2").rolled_back
    assert place.serves("2")
