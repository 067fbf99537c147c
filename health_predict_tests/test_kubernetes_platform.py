"""A roll-out to a cluster ends with a verified version, or with the one before and the reason.

The cluster is the double, what answers in its pods are real Bentos. Those marked `container` build,
push, pull and run the image for real: `pytest -m container`.
"""

import base64
import contextlib
import hashlib
import json
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from health_predict import containers, images, kubernetes_platform, prediction_log
from health_predict.bundling import digest
from health_predict.cluster import Unreachable
from health_predict.engines import Engine
from health_predict.images import Built
from health_predict.kubernetes_platform import PULL_SECRET, KubernetesPlatform
from health_predict.oci_registry import OciRegistry, Pushed
from health_predict.release import NAME, Bento, Deployment
from health_predict.scorer import DIGESTS, FACTS
from health_predict.verification import LOAD_REQUESTS, GoldenRow
from health_predict_tests import bentos, container_tools, released
from health_predict_tests.container_tools import BASE
from health_predict_tests.kubernetes_double import (
    CRASH_LOOP,
    DEPLOYMENT,
    NAMESPACE,
    NEVER_READY,
    PULL_ERROR,
    SECRET,
    Behaviour,
    image,
)
from health_predict_tests.released import PACE, PASSWORD, Bentos, Place, between, placed, platform


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bentos]:
    with released.running(tmp_path_factory.mktemp("bentos"), "1", "2", "4") as running:
        yield running


@pytest.fixture
def empty(running: Bentos, tmp_path: Path) -> Iterator[Place]:
    """A cluster where nothing was released yet."""
    with placed(tmp_path, running) as place:
        yield place


@pytest.fixture
def place(empty: Place) -> Place:
    """A cluster that serves version 1."""
    assert not empty.roll_out("1", golden=[]).rolled_back
    empty.said.clear()
    empty.double.requests.clear()
    return empty


def scaled(place: Place, replicas: int) -> None:
    """Does what a horizontal autoscaler does."""
    query = {"fieldManager": "kube-controller-manager"}
    patch = {"spec": {"replicas": replicas}}
    place.double.change(DEPLOYMENT, NAMESPACE, NAME, patch, query)


def rolled_back(deployment: Deployment, place: Place, version: str = "1") -> str:
    """Asserts that the version before answers and is declared; returns the sentence."""
    assert deployment.rolled_back
    assert deployment.version == version
    assert deployment.sentence.endswith(f"; version {version} answers.")
    assert place.serves(version)
    return deployment.sentence


# Roll-outs that succeed.


def test_a_first_release_is_verified_and_its_facts_are_told(empty, running):
    deployment = empty.roll_out("1")
    assert (deployment.version, deployment.wanted) == ("1", "1")
    assert not deployment.rolled_back
    assert deployment.sentence == (
        f"Version 1 answers at service readmission in namespace {NAMESPACE}, 5 rows verified."
    )
    assert deployment.seconds > 0
    assert empty.serves("1")
    facts = json.loads(json.dumps(deployment.facts))
    assert facts["before"] is None
    assert facts["golden_rows"] == len(running.golden("1"))
    assert facts["load_requests"] == LOAD_REQUESTS
    assert {one["outcome"] for one in facts["applied"]} <= {"created", "changed"}
    assert "Deployment" in [one["kind"] for one in facts["applied"]]
    assert set(facts["pods"].values()) == {image("1").partition("@")[2]}
    last = facts["rollout"]["timeline"][-1]
    assert last["updated"] == last["available"] == last["replicas"] > 0
    assert facts["rollout"]["problem"] == ""


def test_a_second_release_takes_over_on_every_replica(place):
    scaled(place, 2)
    deployment = place.roll_out("2")
    assert deployment.version == "2"
    assert not deployment.rolled_back
    assert place.serves("2")
    assert len(deployment.facts["pods"]) == 2
    assert deployment.facts["before"]["image"] == image("1")
    for pod in deployment.facts["pods"]:
        assert place.asked(f"GET /api/v1/namespaces/{NAMESPACE}/pods/http:{pod}:3000/proxy") == 1


def test_the_same_release_again_changes_nothing(place):
    place.roll_out("2")
    before = place.deployment()
    deployment = place.roll_out("2")
    assert not deployment.rolled_back
    assert {one["outcome"] for one in deployment.facts["applied"]} == {"unchanged"}
    assert place.deployment() == before
    assert place.serves("2")


def test_the_template_has_the_image_by_digest_and_says_which_and_what_is_inside(place):
    place.roll_out("2")
    template = place.deployment()["spec"]["template"]
    (container,) = template["spec"]["containers"]
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert container["image"] == image("2")
    assert told["HEALTH_PREDICT_IMAGE_DIGEST"] == image("2").partition("@")[2]
    assert template["metadata"]["annotations"]["health-predict/model-version"] == "2"


def test_the_pull_secret_is_written_before_each_roll_out(place):
    ended = {"data": {".dockerconfigjson": base64.b64encode(b'{"auths": {}}').decode()}}
    place.double.change(SECRET, NAMESPACE, PULL_SECRET, ended, {"fieldManager": "kubectl"})
    place.roll_out("2")
    written = [r.split("?")[0] for r in place.double.requests if r.startswith("PATCH")]
    secret, deployment = (
        next(n for n, path in enumerate(written) if part in path)
        for part in (f"/secrets/{PULL_SECRET}", f"/deployments/{NAME}")
    )
    assert secret < deployment
    data = place.double.find(SECRET, PULL_SECRET)["data"][".dockerconfigjson"]
    auths = json.loads(base64.b64decode(data))["auths"]
    assert auths["registry.test:5000"]["password"] == PASSWORD
    assert not any(PASSWORD in sentence for sentence in place.said)


def test_what_verification_asks_is_no_traffic(place, running):
    folder = running.served["2"].predictions
    place.roll_out("2")
    deadline = time.monotonic() + 20
    rows: list[dict[str, object]] = []
    while len(rows) < LOAD_REQUESTS and time.monotonic() < deadline:
        time.sleep(0.1)
        rows = prediction_log.read(folder, {}, 10_000).rows
    assert len(rows) >= LOAD_REQUESTS
    assert {row[prediction_log.REQUEST_ID] for row in rows} == {prediction_log.VERIFICATION}


def test_at_its_own_address_the_service_is_asked_with_the_token_too(place, running):
    url = running.served["2"].url
    there = place.with_cluster(service_url=url)
    assert there.roll_out("2").sentence == f"Version 2 answers at {url}, 5 rows verified."


def test_an_old_pod_that_answers_a_moment_longer_is_waited_for(place, running):
    asked: list[str] = []

    def choose(path: str) -> str:
        asked.append(path)
        return running.served["1" if len(asked) <= 5 else "2"].url

    with between(choose) as url:
        assert not place.with_cluster(service_url=url).roll_out("2").rolled_back


def test_nothing_is_told_of_a_cluster_that_nothing_was_released_to(empty):
    assert empty.is_empty()


# Roll-outs that fail.


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (PULL_ERROR, "not found"),
        (CRASH_LOOP, "ValueError: model.ubj: bad magic number"),
    ],
    ids=["image pull error", "crash loop"],
)
def test_an_image_that_does_not_start_makes_way(place, behaviour: Behaviour, words):
    place.double.behaviours[image("2")] = behaviour
    sentence = rolled_back(place.roll_out("2"), place)
    assert sentence.startswith("Rolled back: version 2 did not become ready: ")
    assert words in sentence


def test_a_roll_out_that_makes_no_progress_makes_way(place):
    place.double.behaviours[image("2")] = NEVER_READY
    place.heard = lambda said: place.double.skip(301) if "old replicas" in said else None
    sentence = rolled_back(place.roll_out("2"), place)
    assert "progress deadline" in sentence
    assert "Readiness probe failed: 503" in sentence


def test_another_version_inside_the_image_is_found_out(place, running):
    place.double.backends[image("2")] = running.served["4"].url
    sentence = rolled_back(place.roll_out("2"), place)
    assert "version 2 was rolled out, but version 4 answers (pod readmission-" in sentence


def test_scores_that_differ_are_found_out(place, running):
    deployment = place.roll_out("2", running.shifted("2"))
    sentence = rolled_back(deployment, place)
    assert "scores golden row 0 as " in sentence
    assert deployment.facts["roll_back"]["problem"] == ""
    assert deployment.facts["problem"] in sentence


@pytest.mark.parametrize(
    ("failure", "words"),
    [(500, "answers 500 to golden row 0"), ("", "error trying to reach service")],
    ids=["answers 500", "closes the connection"],
)
def test_a_version_that_fails_under_load_makes_way(place, running, failure, words):
    asked: list[str] = []

    def choose(path: str) -> str | int:
        asked.append(path)
        tired = asked.count("/predict") > 50
        return failure if tired and path == "/predict" else running.served["2"].url

    with between(choose) as url:
        place.double.backends[image("2")] = url
        sentence = rolled_back(place.roll_out("2"), place)
    assert f"of {LOAD_REQUESTS} requests, first with: " in sentence
    assert words in sentence


def test_a_version_that_hangs_makes_way(place, running):
    released_at = threading.Event()

    def choose(path: str) -> str:
        if path == "/predict":
            released_at.wait(30)
        return running.served["2"].url

    patient = place.with_cluster(pace=replace(PACE, answer=0.5, unreachable=1))
    with between(choose) as url:
        place.double.backends[image("2")] = url
        try:
            deployment = patient.roll_out("2")
        finally:
            released_at.set()
    assert "does not answer" in rolled_back(deployment, place)


def test_a_field_of_another_manager_is_left_to_it(place):
    patch, query = {"spec": {"minReadySeconds": 7}}, {"fieldManager": "kubectl"}
    place.double.change(DEPLOYMENT, NAMESPACE, NAME, patch, query)
    before = place.deployment()
    sentence = rolled_back(place.roll_out("2"), place)
    assert "was not rolled out: Deployment readmission was not applied" in sentence
    assert '.spec.minReadySeconds by "kubectl"' in sentence
    assert place.deployment()["spec"] == before["spec"]


def test_a_manifest_refused_after_the_deployment_was_changed_undoes_the_change(place):
    place.double.fail(422, 1, "PATCH .*horizontalpodautoscalers")
    sentence = rolled_back(place.roll_out("2"), place)
    assert "applying HorizontalPodAutoscaler readmission: the cluster answered 422" in sentence


def test_a_first_release_that_fails_is_taken_away(empty, running):
    deployment = empty.roll_out("1", running.shifted("1"))
    assert deployment.rolled_back
    assert deployment.version is None
    assert deployment.sentence.endswith("; nothing is served.")
    assert empty.is_empty()


def test_an_image_that_was_refused_is_not_rolled_out(place, running):
    refused = released.released("2", problem="scores golden row 0 as 0.1, the pipeline 0.2")
    deployment = place.platform.roll_out(refused, running.golden("2"), place.say)
    sentence = rolled_back(deployment, place)
    assert sentence.startswith("Refused: version 2 scores golden row 0 as 0.1")
    assert place.asked("PATCH") == 0


def test_a_roll_back_that_fails_says_so(place, running):
    place.double.behaviours[image("1")] = CRASH_LOOP
    deployment = place.roll_out("2", running.shifted("2"))
    assert deployment.rolled_back
    assert deployment.version == "2"
    assert deployment.sentence.startswith("Not rolled back: version 2 scores golden row 0 as ")
    assert "; then version 1 did not become ready: " in deployment.sentence
    assert deployment.sentence.endswith("; version 2 answers.")
    assert "CrashLoopBackOff" in deployment.facts["roll_back"]["problem"]


def test_what_was_verified_before_and_fails_now_stays_for_want_of_another_one(place, running):
    deployment = place.roll_out("1", running.shifted("1"))
    assert "scores golden row 0" in rolled_back(deployment, place)


# Interrupted.

STEPS = {
    "after the pull secret": f"PATCH .*/secrets/{PULL_SECRET}",
    "while applying": "PATCH .*/configmaps/",
    "after applying": f"PATCH .*/deployments/{NAME}",
    "while waiting": "GET .*/replicasets",
    "while asking pods": "GET .*/pods/http:.*/proxy/model-info",
    "under load": "POST .*/services/http:.*/proxy/predict",
}


@pytest.mark.parametrize("where", STEPS.values(), ids=STEPS)
def test_a_cluster_that_goes_away_half_way_is_found_consistent_by_the_next_run(place, where):
    impatient = place.with_cluster(pace=replace(PACE, unreachable=0.2))
    gone = threading.Event()

    def leave() -> None:
        await_request(place, where)
        place.double.fail("drop", float("inf"))
        gone.set()

    leaving = threading.Thread(target=leave)
    leaving.start()
    with pytest.raises(Unreachable):
        impatient.roll_out("2")
    leaving.join()
    place.double.faults.clear()
    assert not place.roll_out("2").rolled_back
    assert place.serves("2")


def await_request(place: Place, where: str) -> None:
    """Waits until the cluster was asked something."""
    seen = 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        requests = place.double.requests[seen:]
        if any(re.search(where, request) for request in requests):
            return
        seen += len(requests)
        time.sleep(0.001)
    raise AssertionError(f"nobody asked {where}")


def killed(place: Place, version: str, golden: list[GoldenRow], where: str, folder: Path) -> None:
    """Begins a roll-out in a process of its own, and kills that at a step."""
    process = subprocess.Popen(released.command(place, version, golden, folder))
    try:
        await_request(place, where)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("where", STEPS.values(), ids=STEPS)
def test_a_killed_roll_out_is_completed_by_the_next_run(place, running, tmp_path, where):
    killed(place, "2", running.golden("2"), where, tmp_path)
    assert not place.roll_out("2").rolled_back
    assert place.serves("2")


@pytest.mark.parametrize("where", [*STEPS.values()][2:5], ids=[*STEPS][2:5])
def test_a_bad_version_left_by_a_killed_run_makes_way_in_the_next(place, running, tmp_path, where):
    killed(place, "2", running.shifted("2"), where, tmp_path)
    rolled_back(place.roll_out("2", running.shifted("2")), place)


def test_a_bad_first_version_left_by_a_killed_run_is_taken_away(empty, running, tmp_path):
    killed(empty, "1", running.shifted("1"), STEPS["while asking pods"], tmp_path)
    assert empty.roll_out("1", running.shifted("1")).version is None
    assert empty.is_empty()


def test_after_a_killed_roll_out_another_version_goes_back_to_the_verified_one(
    place, running, tmp_path
):
    killed(place, "2", running.golden("2"), STEPS["while asking pods"], tmp_path)
    rolled_back(place.roll_out("4", running.shifted("4")), place)


# Two at once.


def test_of_two_roll_outs_at_once_the_older_yields(place):
    place.double.behaviours[image("2")] = NEVER_READY
    older: list[Deployment] = []
    thread = threading.Thread(target=lambda: older.append(place.roll_out("2")))
    thread.start()
    await_request(place, STEPS["while waiting"])
    newer = place.roll_out("4")
    thread.join()
    assert not newer.rolled_back
    assert older[0].rolled_back
    assert older[0].sentence.startswith(
        "Yielded: version 2 makes way for a release that began later: "
    )
    assert place.serves("4")


def test_a_roll_out_that_is_overtaken_while_it_is_verified_yields(place, running, monkeypatch):
    monkeypatch.setattr(kubernetes_platform, "_SETTLE_SECONDS", 0.2)
    newer: list[Deployment] = []
    thread = threading.Thread(target=lambda: newer.append(place.roll_out("4")))

    def choose(path: str) -> str:
        if path == "/predict" and not thread.ident:
            thread.start()
            await_request(place, r"PATCH .*/deployments/")
            while place.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] != (
                image("4")
            ):
                time.sleep(0.01)
        return running.served["2"].url

    with between(choose) as url:
        place.double.backends[image("2")] = url
        older = place.roll_out("2")
        thread.join()
    assert older.sentence.startswith("Yielded: version 2 makes way for a release")
    assert not newer[0].rolled_back
    assert place.serves("4")


# The image.


@dataclass(frozen=True)
class Store(released.Keeper):
    """A registry that remembers what it was sent."""

    sent: list[str] = field(default_factory=list)

    def push(self, engine: Engine, image_: str, repository: str, tag: str, say: object) -> Pushed:
        self.sent.append(f"{image_} as {repository}:{tag}")
        return Pushed(image("1"), image("1").partition("@")[2], 7, (7,), 0.1, False, "")


def with_facts(home: Path, built: bentos.Built) -> Bento:
    """Tells a model what a training run tells it; returns the Bento it is in then."""
    folder = home / "models" / NAME / built.bento.version
    facts = json.loads((folder / FACTS).read_text())
    facts |= {"trained_at": "2026-03-01T12:00:00+00:00", "git_revision": "0123abc"}
    (folder / FACTS).write_text(json.dumps(facts))
    digests = json.loads((folder / DIGESTS).read_text())
    digests[FACTS] = hashlib.sha256((folder / FACTS).read_bytes()).hexdigest()
    (folder / DIGESTS).write_text(json.dumps(digests))
    found, size = digest(home, built.bento.tag)
    return Bento(built.bento.tag, built.bento.version, found, size)


@pytest.fixture
def unbuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[KubernetesPlatform, Store, bentos.Built]:
    """A platform whose engine builds something, and runs nothing; its registry; version 1."""
    home, made = bentos.store(tmp_path)
    store = Store()
    one = replace(made["1"], bento=with_facts(home, made["1"]))
    built = Built("readmission:1", "sha256:" + "c" * 64, 9, "base:1", "sha256:" + "d" * 64, 1)
    monkeypatch.setattr(kubernetes_platform, "find_engine", lambda _: Engine("buildah", None))
    monkeypatch.setattr(images, "containerise", lambda *_: built)
    there = replace(platform(tmp_path / "kubeconfig", home), registry=store)
    return there, store, one


def test_where_no_container_runs_the_bento_itself_is_tried_and_that_is_recorded(unbuilt):
    there, store, one = unbuilt
    said: list[str] = []
    found = there.containerise(one.bento, one.golden, said.append)
    assert (found.problem, found.reference, found.version) == ("", image("1"), "1")
    assert found.facts["tried"].startswith("the Bento by `bentoml serve`, not its image: buildah ")
    assert found.facts["smoke"]["problem"] == ""
    assert store.sent == [f"readmission:1 as readmission:1-{one.bento.digest[:12]}"]
    assert Path(found.facts["sbom"]).is_file()
    json.dumps(found.facts)
    assert any("it answers as the pipeline" in sentence for sentence in said)


def test_a_bento_that_scores_otherwise_is_not_pushed(unbuilt):
    there, store, one = unbuilt
    golden = [replace(row, score=row.score + 0.01) for row in one.golden]
    found = there.containerise(one.bento, golden, lambda _: None)
    assert found.problem.startswith("scores golden row 0 as ")
    assert found.facts["smoke"]["problem"] == found.problem
    assert store.sent == []


def test_a_bento_that_does_not_start_is_not_pushed(unbuilt):
    there, store, one = unbuilt
    bentos.tamper(there.bentoml_home, "1")
    found = there.containerise(one.bento, one.golden, lambda _: None)
    assert "tables.json" in found.problem
    assert store.sent == []


@pytest.mark.container
def test_an_image_is_built_tried_pushed_rolled_out_by_digest_and_verified(tmp_path):
    home, made = bentos.store(tmp_path)
    one = replace(made["1"], bento=with_facts(home, made["1"]))
    with ExitStack() as stack:
        engine = stack.enter_context(container_tools.engine())
        server = stack.enter_context(container_tools.registry({"deploy": PASSWORD}))
        place = stack.enter_context(placed(tmp_path, Bentos(home, made, {})))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in engine.environment.items():  # as a machine is configured
            patch.setenv(name, value)
        container_tools.base_image(engine)
        oci = OciRegistry(server.address, "deploy", PASSWORD)
        place = place.with_platform(
            bentoml_home=home, registry=oci, engine="buildah", token="", base_image=BASE
        )
        wrong = [replace(row, score=row.score + 0.01) for row in one.golden]
        refused = place.platform.containerise(one.bento, wrong, place.say)
        assert refused.problem.startswith("scores golden row 0 as ")
        assert {"PUT", "POST", "PATCH"}.isdisjoint(server.requests)
        pushed = place.platform.containerise(one.bento, one.golden, place.say)
        assert pushed.problem == ""
        assert pushed.reference == f"{oci.host}/readmission@{pushed.digest}"
        assert pushed.facts["tried"] == "the image, run by podman"
        elsewhere = stack.enter_context(container_tools.engine())
        pulled = oci.pull(elsewhere, "readmission", pushed.digest)
        port, open_to_all = bentos.free_port(), {"HEALTH_PREDICT_AUTH": "off"}
        for name, value in elsewhere.environment.items():
            patch.setenv(name, value)
        container = stack.enter_context(containers.run(pulled, elsewhere, port, open_to_all))
        await_ready(container.url)
        place.double.backends[pushed.reference] = container.url
        place.double.registries[oci.host] = ("deploy", PASSWORD)
        deployment = place.platform.roll_out(pushed, one.golden, place.say)
        assert deployment.sentence.endswith("5 rows verified.")
        assert set(deployment.facts["pods"].values()) == {pushed.digest}
        assert place.images() == {pushed.reference}
        assert not any(PASSWORD in sentence for sentence in place.said)


def await_ready(url: str) -> None:
    deadline = time.monotonic() + containers.READY_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=2):
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} is not ready")
