"""The official client against the double of Kubernetes: apply, roll-out, answers, faults."""

import json
import logging
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from health_predict.cluster import (
    Cluster,
    ClusterError,
    Deployed,
    FieldConflict,
    Pace,
    Rollout,
    Unreachable,
)
from health_predict_tests import kubernetes_double as double
from health_predict_tests.kubernetes_double import (
    DEPLOYMENT,
    NAMESPACE,
    POD,
    SECRET,
    KubernetesDouble,
    Service,
    answering,
    image,
    kubernetes,
    manifests,
)

SPEED = 60.0
LONG = 30.0
"""Seconds that no wait of a test comes near, unless it hangs."""
PACE = Pace(poll=0.02, answer=5, unreachable=20, pull=0.1, config=0.1, unschedulable=0.1)
NAME = "readmission"


@dataclass
class Place:
    """A cluster, its double, and what was said."""

    cluster: Cluster
    double: KubernetesDouble
    said: list[str]

    def apply(self, version: str, **spec: Any) -> list[str]:
        """Applies the manifests of a version; returns what became of each."""
        applied = self.cluster.apply(manifests(version, **spec), self.said.append)
        return [each.outcome for each in applied]

    def wait(self, seconds: float = LONG, **options: str) -> Rollout:
        return self.cluster.await_rollout(NAME, self.said.append, seconds, **options)

    def release(self, version: str, behaviour: double.Behaviour, **spec: Any) -> Rollout:
        """Rolls out an image that behaves as told."""
        self.double.behaviours[image(version)] = behaviour
        self.apply(version, **spec)
        return self.wait()

    def asked(self, part: str) -> int:
        """Returns how many requests had a part in method and path."""
        return sum(part in request for request in self.double.requests)


@contextmanager
def placed(folder: Path, speed: float) -> Iterator[Place]:
    with kubernetes(speed) as running:
        cluster = Cluster(NAMESPACE, "double", running.kubeconfig(folder), pace=PACE)
        yield Place(cluster, running, [])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path, SPEED) as place:
        yield place


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Place]:
    """One whose pods take half a second to be ready."""
    with placed(tmp_path, 10) as place:
        yield place


@pytest.fixture
def still(tmp_path: Path) -> Iterator[Place]:
    """One where no time passes unless it is told to."""
    with placed(tmp_path, 0) as place:
        yield place


@pytest.fixture
def serve(place: Place) -> Iterator[Callable[..., Service]]:
    """Has a version answer in its pods."""
    with ExitStack() as stack:

        def serve(version: str, status: int = 200) -> Service:
            service = stack.enter_context(answering(version, status))
            place.double.backends[image(version)] = service.url
            return service

        yield serve


def paced(place: Place, **changes: float) -> Place:
    cluster = replace(place.cluster, pace=replace(PACE, **changes))
    return replace(place, cluster=cluster)


def kubectl_sets_image(place: Place, version: str) -> None:
    containers = [{"name": "service", "image": image(version)}]
    patch = {"spec": {"template": {"spec": {"containers": containers}}}}
    place.double.change(DEPLOYMENT, NAMESPACE, NAME, patch, {"fieldManager": "kubectl"})


# Apply.


def test_manifests_are_made_changed_and_left_alone_in_their_order(place):
    assert place.apply("1") == ["created", "created", "created"]
    assert place.apply("1") == ["unchanged", "unchanged", "unchanged"]
    assert place.apply("2") == ["unchanged", "unchanged", "changed"]
    assert place.said[:3] == [
        "ConfigMap readmission: created.",
        "Service readmission: created.",
        "Deployment readmission: created.",
    ]
    (held,) = place.double.find(DEPLOYMENT, NAME)["metadata"]["managedFields"]
    assert (held["manager"], held["operation"]) == ("health-predict", "Apply")


def test_a_status_written_in_between_is_no_change(still):
    still.apply("1")
    found = still.double.find(DEPLOYMENT, NAME)
    still.double.fail(503, 1, "PATCH .*deployments")
    said = []

    def say(sentence: str) -> None:
        said.append(sentence)
        still.double.skip(20 if "trying again" in sentence else 0)

    still.cluster.apply(manifests("1"), say)
    assert "trying again" in said[2]
    assert said[3] == "Deployment readmission: unchanged."
    written = still.double.find(DEPLOYMENT, NAME)
    assert written["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]


def test_a_manifest_may_name_its_own_namespace(place):
    (config, *_) = manifests("1")
    config["metadata"]["namespace"] = "default"
    place.cluster.apply([config], place.said.append)
    assert place.double.find(("v1", "ConfigMap"), NAME, "default")


def test_what_lives_in_no_namespace_is_given_none(place):
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shadow"}}
    (applied,) = place.cluster.apply([namespace], place.said.append)
    assert applied.outcome == "created"
    elsewhere = replace(place.cluster, namespace="shadow")
    elsewhere.apply(manifests("1"), place.said.append)
    assert place.double.find(DEPLOYMENT, NAME, "shadow")


def test_the_manifests_of_the_caller_stay_as_they_are(place):
    things = manifests("1")
    place.cluster.apply(things, place.said.append)
    assert things == manifests("1")


def test_a_field_of_another_manager_is_left_to_it_and_named(place):
    place.apply("1")
    kubectl_sets_image(place, "9")
    with pytest.raises(FieldConflict) as refused:
        place.apply("2")
    (conflict,) = refused.value.conflicts
    assert conflict.manager == '"kubectl" using apps/v1'
    assert conflict.field == '.spec.template.spec.containers[name="service"].image'
    assert conflict.field in str(refused.value)
    assert '"kubectl"' in str(refused.value)
    assert "force" in str(refused.value)
    assert place.cluster.deployed(NAME) == Deployed(image("9"), "1", 2)


def test_force_takes_the_field_over(place):
    place.apply("1")
    kubectl_sets_image(place, "9")
    place.cluster.apply(manifests("2"), place.said.append, force=True)
    assert place.cluster.deployed(NAME) == Deployed(image("2"), "2", 3)
    assert place.apply("3") == ["unchanged", "unchanged", "changed"]


def test_replicas_left_out_stay_as_the_autoscaler_set_them(place):
    place.apply("1")
    without = manifests("1")
    del without[-1]["spec"]["replicas"]
    patch = {"spec": {"replicas": 5}}
    query = {"fieldManager": "kube-controller-manager"}
    place.double.change(DEPLOYMENT, NAMESPACE, NAME, patch, query)
    place.cluster.apply(without, place.said.append)
    assert place.double.find(DEPLOYMENT, NAME)["spec"]["replicas"] == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": {"ports": [{"port": "eighty"}]}}, "mend the manifest"),
        ({"kind": "ServiceMonitor"}, "the cluster knows no ServiceMonitor of v1"),
        ({"apiVersion": "monitoring.coreos.com/v1"}, "install what defines it"),
        ({"metadata": {"name": NAME, "namespace": "away"}}, 'namespaces "away" not found'),
    ],
)
def test_a_manifest_that_is_refused_is_named_with_the_remedy(place, change, words):
    service = manifests("1")[1] | change
    with pytest.raises(ClusterError, match=f"{service['kind']}") as refused:
        place.cluster.apply([service], place.said.append)
    assert words in str(refused.value)
    assert place.asked("PATCH") <= 1  # what is refused is not tried again


def test_what_cannot_change_is_refused_with_the_remedy(place):
    place.apply("1")
    changed = manifests("1")[-1]
    other = {"app.kubernetes.io/name": "other"}
    changed["spec"]["selector"]["matchLabels"] = other
    changed["spec"]["template"]["metadata"]["labels"] = other
    with pytest.raises(ClusterError, match=r"field is immutable.*deleted first"):
        place.cluster.apply([changed], place.said.append)


# Faults on the way.


@pytest.mark.parametrize(
    ("fault", "times"), [("drop", 3), ("lose", 2), (429, 3), (410, 1), (500, 2), (503, 3), (504, 2)]
)
def test_what_passes_is_waited_for(place, fault, times):
    place.double.fail(fault, times, "PATCH")
    assert place.apply("1")[1:] == ["created", "created"]
    assert sum("trying again" in sentence for sentence in place.said) == times
    place.double.fail(fault, times, "GET .*deployments/")
    assert not place.wait().problem
    assert sum("trying again" in sentence for sentence in place.said) == 2 * times


def test_an_apply_whose_answer_was_lost_is_made_again_and_done_once(place):
    place.apply("1")
    place.double.fail("lose", 1, "PATCH .*deployments")
    assert place.apply("2") == ["unchanged", "unchanged", "changed"]
    assert place.cluster.deployed(NAME) == Deployed(image("2"), "2", 2)


def test_the_api_server_says_when_to_ask_again(place):
    place.double.fail(429, 1, "GET", after="1")
    before = place.double._now
    assert place.cluster.deployed(NAME) is None
    assert place.double._now - before >= SPEED * 0.9


def test_a_roll_out_survives_an_api_server_that_comes_and_goes(place):
    place.apply("1")
    for fault in ("drop", 503, 410, 429, "lose", 500):
        place.double.fail(fault, 1, "GET .*(deployments/|pods|replicasets)")
    rollout = place.wait()
    assert not rollout.problem
    assert not any(fault.times for fault in place.double.faults)
    assert any("trying again" in sentence for sentence in place.said)


def test_an_api_server_that_stays_away_is_called_unreachable(place):
    place.apply("1")
    away = paced(place, unreachable=0.2)
    away.double.fail("drop", 1e9)
    with pytest.raises(Unreachable, match=r"cluster unreachable: http://127.0.0.1") as gone:
        away.wait()
    assert "kubectl cluster-info" in str(gone.value)


def test_nobody_at_the_address_is_called_unreachable(place, tmp_path):
    with kubernetes() as gone:
        path = gone.kubeconfig(tmp_path)
    away = Cluster(NAMESPACE, kubeconfig=path, pace=replace(PACE, unreachable=0.1))
    with pytest.raises(Unreachable, match="cluster unreachable"):
        away.deployed(NAME)


def test_a_failure_of_the_api_server_itself_is_not_asked_for_ever(place):
    place.double.fail(500, 1e9, "PATCH")
    with pytest.raises(Unreachable, match="500"):
        place.apply("1")
    assert place.asked("PATCH") == 4


# Credentials.


def test_without_credentials_the_remedy_is_to_log_in(place, tmp_path):
    path = place.double.kubeconfig(tmp_path, {"token": "expired"})
    with pytest.raises(ClusterError, match=r"401 Unauthorized.*log in"):
        replace(place.cluster, kubeconfig=path).deployed(NAME)


def test_a_command_that_fetches_tokens_is_run_as_kubectl_does(place, tmp_path):
    credential = {
        **{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"},
        "status": {"token": double.TOKEN},
    }
    user = {
        "exec": {
            **{"apiVersion": credential["apiVersion"], "interactiveMode": "Never"},
            **{"command": sys.executable, "args": ["-c", f"print({json.dumps(credential)!r})"]},
        }
    }
    cluster = replace(place.cluster, kubeconfig=place.double.kubeconfig(tmp_path, user))
    assert cluster.deployed(NAME) is None


@pytest.mark.parametrize("context", [None, "double"])
def test_no_kubeconfig_and_no_pod_is_said_with_the_remedy(monkeypatch, tmp_path, context):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError, match="set KUBECONFIG"):
        Cluster(NAMESPACE, context).deployed(NAME)


def test_a_context_that_is_not_there_is_named(place):
    with pytest.raises(ClusterError, match="production"):
        replace(place.cluster, context="production").deployed(NAME)


def test_the_kubeconfig_of_the_environment_is_found(place, monkeypatch):
    place.apply("1")
    monkeypatch.setenv("KUBECONFIG", f"/nowhere:{place.cluster.kubeconfig}")
    found = replace(place.cluster, kubeconfig=None, context=None)
    assert found.deployed(NAME) == Deployed(image("1"), "1", 1)


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Makes a certificate for 127.0.0.1; returns its file and a server's context with it."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cluster")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "cluster.pem"
    encoding = serialization.Encoding.PEM
    path.write_bytes(
        signed.public_bytes(encoding)
        + key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context


def test_in_a_pod_the_service_account_is_used(monkeypatch, tmp_path):
    from kubernetes.config import incluster_config

    path, context = certificate(tmp_path)
    (tmp_path / "token").write_text(double.TOKEN)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with kubernetes(SPEED, context) as running:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(running.port))
        inside = Cluster(NAMESPACE, pace=PACE)
        inside.apply(manifests("1"), print)
        assert inside.deployed(NAME) == Deployed(image("1"), "1", 1)


def test_another_certificate_than_expected_ends_it_at_once(tmp_path):
    _, context = certificate(tmp_path)
    (tmp_path / "another").mkdir()
    other, _ = certificate(tmp_path / "another")
    with kubernetes(SPEED, context) as running:
        path = running.kubeconfig(tmp_path, **{"certificate-authority": str(other)})
        with pytest.raises(ClusterError, match="is not who the kubeconfig expects"):
            Cluster(NAMESPACE, kubeconfig=path, pace=PACE).deployed(NAME)
        assert running.requests == []


# Roll-outs.


def test_a_roll_out_is_followed_to_its_end(slow):
    slow.release("1", double.HEALTHY)
    slow.said.clear()
    rollout = slow.release("2", double.HEALTHY)
    assert not rollout.problem
    assert rollout.generation == 2
    seen = [
        (each.observed_generation, each.replicas, each.updated, each.ready, each.unavailable)
        for each in rollout.timeline
    ]
    recorded = [(1, 2, 2, 2, 0), (2, 3, 1, 2, 1), (2, 3, 2, 2, 1), (2, 2, 2, 2, 0)]
    # A look may miss a status that another followed at once; none is seen twice or out of order.
    assert seen == [each for each in recorded if each in seen]
    assert seen[-1] == recorded[-1]
    seconds = [each.seconds for each in rollout.timeline]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= rollout.seconds
    assert "Roll-out of readmission: 1 of 2 new replicas made." in slow.said
    assert {pod.image for pod in slow.cluster.ready_pods(NAME)} == {image("2")}


def test_the_wait_does_not_end_before_the_change_is_observed(slow):
    slow.release("1", double.HEALTHY)
    late_seen = replace(double.HEALTHY, observed_after=10)
    rollout = slow.release("2", late_seen)
    assert rollout.timeline[0].observed_generation == 1
    assert rollout.timeline[-1].observed_generation == 2
    assert "Roll-out of readmission: the change is not observed yet." in slow.said


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (
            double.CRASH_LOOP,
            [
                "is in CrashLoopBackOff: back-off 10s restarting failed container",
                "it ended before (Error, exit code 1) and was restarted",
                "event BackOff: Back-off restarting failed container",
                "log ValueError: model.ubj: bad magic number",
            ],
        ),
        (double.PULL_ERROR, ["Err", "event Failed: Failed to pull image", "not found"]),
        (double.PULL_DENIED, ["401 Unauthorized", "event BackOff: Back-off pulling image"]),
        (double.BAD_NAME, ["is in InvalidImageName: couldn't parse image name"]),
        (
            double.NO_CONFIG,
            ['is in CreateContainerConfigError: configmap "readmission" not found', "event Failed"],
        ),
        (double.NO_NODE, ["is Unschedulable: 0/1 nodes are available", "event FailedScheduling"]),
        (double.NO_QUOTA, ["pods cannot be made", "exceeded quota: small"]),
    ],
)
def test_what_waiting_does_not_mend_ends_the_wait_and_is_told(place, behaviour, words):
    place.release("1", double.HEALTHY)
    rollout = place.release("2", behaviour)
    assert "not rolled out within" not in rollout.problem
    for each in words:
        assert each in rollout.problem
    assert len(place.cluster.ready_pods(NAME)) == 0
    assert place.double.find(DEPLOYMENT, NAME)["status"]["availableReplicas"] == 2


def test_an_image_that_can_be_pulled_at_the_second_try_is_waited_for(place):
    patient = paced(place, pull=LONG)
    assert not patient.release("1", double.PULL_HICCUP).problem


def test_a_node_that_is_added_is_waited_for(place):
    added = replace(double.HEALTHY, stages=(*double.NO_NODE.stages, *late(20)))
    patient = paced(place, unschedulable=LONG)
    assert not patient.release("1", added).problem


def late(seconds: float) -> tuple[double.Stage, ...]:
    return tuple(replace(each, at=each.at + seconds) for each in double.HEALTHY.stages)


def test_a_deadline_that_passes_ends_the_wait(place):
    rollout = place.release("1", double.NEVER_READY, progressDeadlineSeconds=15)
    assert "the progress deadline has passed: ReplicaSet" in rollout.problem
    assert "is not ready" in rollout.problem
    assert "event Unhealthy: Readiness probe failed: 503" in rollout.problem
    assert "log still loading the model" in rollout.problem


def test_a_container_that_was_restarted_is_heard_before_and_after(place):
    restarted = double.CRASH_LOOP.stages[:4]
    limping = replace(double.CRASH_LOOP, stages=restarted, log="started again\n")
    problem = place.release("1", limping, progressDeadlineSeconds=15).problem
    assert "log ValueError: model.ubj: bad magic number\nlog started again" in problem


def test_the_deadline_of_the_release_before_does_not_end_the_roll_back(still):
    quick = {"replicas": 1, "progressDeadlineSeconds": 15}
    still.double.behaviours[image("2")] = double.NEVER_READY
    for version, seconds in (("1", 20), ("2", 30), ("1", 0.5)):
        still.apply(version, **quick)
        still.double.skip(seconds)
    status = still.double.find(DEPLOYMENT, NAME)["status"]
    assert (status["observedGeneration"], "ProgressDeadlineExceeded" in str(status)) == (3, True)

    def say(sentence: str) -> None:
        still.said.append(sentence)
        still.double.skip(20)

    patient = replace(still.cluster, pace=replace(PACE, config=LONG))
    assert not patient.await_rollout(NAME, say, LONG).problem
    assert still.said[-1] == "Roll-out of readmission: 1 old replicas still to end."


def test_a_deadline_that_had_passed_before_the_wait_is_told_too(place):
    quick = {"progressDeadlineSeconds": 15}
    place.release("1", double.NEVER_READY, **quick)
    assert "the progress deadline has passed" in place.wait().problem


def test_time_runs_out_with_what_is_missing_and_the_pod_that_is_late(place):
    place.double.behaviours[image("1")] = double.NEVER_READY
    place.apply("1")
    rollout = place.wait(seconds=0.5)
    assert rollout.problem.startswith("not rolled out within 0 s: 0 of 2 new replicas available")
    assert "log still loading the model" in rollout.problem


def test_a_change_that_is_never_observed_is_told(place):
    place.double.behaviours[image("1")] = double.UNSEEN
    place.apply("1")
    assert place.wait(seconds=0.2).problem.endswith("the change is not observed yet")


def test_a_paused_deployment_is_told_with_the_remedy(place):
    place.release("1", double.HEALTHY)
    rollout = place.release("2", double.HEALTHY, paused=True)
    assert "kubectl rollout resume deployment/readmission" in rollout.problem


def test_a_deployment_that_is_taken_away_ends_the_wait(place):
    place.apply("1")
    place.double.delete(DEPLOYMENT, NAMESPACE, NAME)
    assert "is gone" in place.wait().problem


def test_the_older_of_two_releases_yields(place):
    place.double.behaviours[image("1")] = double.NEVER_READY
    place.apply("1")

    def second_release(sentence: str) -> None:
        place.said.append(sentence)
        if "available" in sentence:
            place.apply("2")

    rollout = place.cluster.await_rollout(NAME, second_release, LONG, image=image("1"))
    assert rollout.overtaken
    assert image("2") in rollout.problem
    newer = place.wait(image=image("2"))
    assert not newer.overtaken
    assert not newer.problem


def test_a_better_release_is_not_blamed_for_the_pods_of_a_worse_one(place):
    place.release("1", double.HEALTHY)
    assert place.release("2", double.CRASH_LOOP).problem
    assert not place.release("3", double.HEALTHY).problem


def test_a_roll_back_keeps_the_pods_of_the_former_template(place):
    place.release("1", double.HEALTHY)
    before = {pod.name for pod in place.cluster.ready_pods(NAME)}
    assert place.release("2", double.CRASH_LOOP).problem
    place.cluster.roll_back_to(manifests("1"), place.said.append)
    assert not place.wait().problem
    assert {pod.name for pod in place.cluster.ready_pods(NAME)} == before


def test_a_first_release_that_failed_is_taken_away_with_its_pods(place):
    assert place.release("1", double.CRASH_LOOP).problem
    assert place.cluster.take_away(NAME)
    assert place.cluster.deployed(NAME) is None
    assert place.double.all(POD) == []
    assert not place.cluster.take_away(NAME)
    assert not place.release("2", double.HEALTHY).problem


# What runs, and what it answers.


def test_nothing_is_deployed_where_nothing_was_applied(place):
    assert place.cluster.deployed(NAME) is None
    assert place.cluster.ready_pods(NAME) == ()


def test_ready_pods_are_those_of_the_present_template_with_their_digests(place):
    place.release("1", double.HEALTHY)
    pods = place.cluster.ready_pods(NAME)
    assert len(pods) == 2
    assert {(pod.image, pod.digest, pod.port) for pod in pods} == {
        (image("1"), image("1").partition("@")[2], 3000)
    }
    place.release("2", double.NEVER_READY, progressDeadlineSeconds=15)
    assert place.cluster.ready_pods(NAME) == ()


def test_a_pod_that_is_being_ended_is_not_among_the_ready_ones(still):
    still.apply("1")
    still.double.skip(20)
    still.apply("1", replicas=1)
    still.double.skip(1)
    assert len(still.double.all(POD)) == 2
    (pod,) = still.cluster.ready_pods(NAME)
    ending = [each for each in still.double.all(POD) if "deletionTimestamp" in each["metadata"]]
    assert [each["metadata"]["name"] for each in ending] != [pod.name]


def test_a_pod_answers_with_its_status_and_json(place, serve):
    service = serve("1")
    place.release("1", double.HEALTHY)
    pod = place.cluster.ready_pods(NAME)[0]
    assert place.cluster.ask_pod(pod, "/model-info") == (200, {"version": "1"})
    answer = place.cluster.ask_pod(pod, "predict?explain=true", {"age": [1]}, {"x-request-id": "7"})
    assert answer == (200, {"age": [1]})
    path, headers, body = service.asked[-1]
    assert (path, body, headers["x-request-id"]) == ("/predict?explain=true", {"age": [1]}, "7")
    assert headers["content-type"] == "application/json"


def test_a_token_for_the_service_passes_the_api_server_in_a_header_of_its_own(place, serve):
    service = serve("1")
    place.release("1", double.HEALTHY)
    pod = place.cluster.ready_pods(NAME)[0]
    headers = {"Authorization": "Bearer of-the-service"}
    place.cluster.ask_pod(pod, "/predict", {"age": 1}, headers)
    place.cluster.ask_service(NAME, "/predict", {"age": 1}, headers)
    for _, received, _ in service.asked:
        assert received["x-health-predict-token"] == "of-the-service"
        assert double.TOKEN not in str(received)  # the cluster's own


@pytest.mark.parametrize("status", [401, 404, 422, 429, 503])
def test_a_refusal_of_the_service_is_an_answer_and_not_asked_for_again(place, serve, status):
    service = serve("1", status)
    place.release("1", double.HEALTHY)
    assert place.cluster.ask_service(NAME, "/predict", {"age": 1}) == (status, {"age": 1})
    assert len(service.asked) == 1


def test_a_refusal_of_the_api_server_on_the_way_is_asked_for_again(place, serve):
    service = serve("1")
    place.release("1", double.HEALTHY)
    place.double.fail(429, 2, "/proxy/")
    place.double.fail("drop", 1, "/proxy/")
    assert place.cluster.ask_service(NAME, "/model-info")[0] == 200
    assert len(service.asked) == 1


def test_many_may_ask_at_once(place, serve):
    service = serve("1")
    place.release("1", double.HEALTHY)
    ask = place.cluster.ask_service
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda age: ask(NAME, "/predict", {"age": age}), range(100)))
    assert answers == [(200, {"age": age}) for age in range(100)]
    assert len(service.asked) == 100


def test_a_service_is_asked_by_the_name_or_number_of_its_port(place, serve):
    serve("1")
    place.release("1", double.HEALTHY)
    assert place.cluster.ask_service(NAME, "/model-info", port="80")[0] == 200
    with pytest.raises(ClusterError, match="no service port 81 found"):
        replace(place.cluster, pace=replace(PACE, unreachable=0.1)).ask_service(
            NAME, "/model-info", port="81"
        )


def test_pods_that_are_away_are_said_to_be(place, serve):
    serve("1")
    place.release("1", double.HEALTHY)
    pod = place.cluster.ready_pods(NAME)[0]
    del place.double.backends[image("1")]
    asked = place.asked("/proxy/")
    with pytest.raises(ClusterError, match=r"does not answer at /model-info.*connection refused"):
        place.cluster.ask_pod(pod, "/model-info")
    assert place.asked("/proxy/") == asked + 1
    with pytest.raises(ClusterError, match='pods "gone" not found'):
        place.cluster.ask_pod(replace(pod, name="gone"), "/model-info")
    with pytest.raises(ClusterError, match='services "other" not found'):
        place.cluster.ask_service("other", "/model-info")


def test_an_answer_that_is_no_json_is_not_the_services(place, serve):
    serve("1")
    place.release("1", double.HEALTHY)
    with pytest.raises(ClusterError, match=r"not with JSON.*<html>"):
        place.cluster.ask_service(NAME, "/")


def test_a_service_url_is_asked_directly_and_with_the_header_as_it_is(place, serve):
    service, refusing = serve("1"), serve("2", 503)
    direct = replace(place.cluster, service_url=f"{service.url}/")
    headers = {"authorization": "Bearer of-the-service"}
    assert direct.ask_service(NAME, "/predict", {"age": 1}, headers) == (200, {"age": 1})
    assert service.asked[0][1]["authorization"] == "Bearer of-the-service"
    assert place.double.requests == []
    refused = replace(place.cluster, service_url=refusing.url).ask_service(NAME, "/model-info")
    assert refused == (503, {"version": "2"})
    with pytest.raises(ClusterError, match="not with JSON"):
        direct.ask_service(NAME, "/")
    with pytest.raises(ClusterError, match=r"nothing answers at http://127.0.0.1:9/"):
        replace(place.cluster, service_url="http://127.0.0.1:9").ask_service(NAME, "/model-info")


# The pull secret.

REGISTRY, USER, PASSWORD = "registry.test:5000", "AWS", "pa55word/of+ecr="


def test_pods_pull_with_the_secret_and_not_with_an_old_password(place):
    place.double.registries[REGISTRY] = (USER, PASSWORD)
    place.cluster.ensure_pull_secret("registry", REGISTRY, USER, "expired")
    assert "401 Unauthorized" in place.release("1", double.HEALTHY).problem
    applied = place.cluster.ensure_pull_secret("registry", REGISTRY, USER, PASSWORD)
    assert applied.outcome == "changed"
    assert not place.release("2", double.HEALTHY).problem


def test_a_secret_that_kubectl_made_is_taken_over(place):
    old = {
        **{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry"}},
        **{"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}},
    }
    query = {"fieldManager": "kubectl-create"}
    place.double.apply(SECRET, NAMESPACE, "registry", old, query)
    assert place.cluster.ensure_pull_secret("registry", REGISTRY, USER, PASSWORD)
    (held,) = [
        each
        for each in place.double.find(SECRET, "registry")["metadata"]["managedFields"]
        if "f:data" in each["fieldsV1"]
    ]
    assert held["manager"] == "health-predict"


def test_a_secret_of_another_type_is_refused_with_the_remedy_and_without_the_password(place):
    old = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry"}, "type": "Opaque"}
    place.double.apply(SECRET, NAMESPACE, "registry", old, {"fieldManager": "somebody"})
    with pytest.raises(ClusterError, match=r"type: field is immutable.*deleted first") as refused:
        place.cluster.ensure_pull_secret("registry", REGISTRY, USER, PASSWORD)
    assert PASSWORD not in str(refused.value)


def test_the_password_reaches_no_log(place, caplog):
    place.cluster.deployed(NAME)  # the client quietens these two when it is made
    for logger in ("urllib3", "kubernetes"):
        caplog.set_level(logging.DEBUG, logger)
    place.double.fail(503, 1, "PATCH")
    place.cluster.ensure_pull_secret("registry", REGISTRY, USER, PASSWORD)
    content = place.double.find(SECRET, "registry")["data"][".dockerconfigjson"]
    assert caplog.records
    for record in caplog.records:
        assert PASSWORD not in record.getMessage()
        assert content not in record.getMessage()
        assert double.TOKEN not in record.getMessage()


def test_the_pods_of_the_double_are_those_asked(place, serve):
    services = [serve("1"), serve("2")]
    for version in ("1", "2"):
        place.release(version, double.HEALTHY)
    for pod in place.cluster.ready_pods(NAME):
        assert place.cluster.ask_pod(pod, "/model-info") == (200, {"version": "2"})
    assert services[0].asked == []
    assert len(place.double.all(POD)) >= 2
