"""The double of Kubernetes answers as the real one does, where a release depends on it."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kubernetes_validate
import pytest

from health_predict_tests import kubernetes_double as double
from health_predict_tests.kubernetes_double import (
    DEPLOYMENT,
    EVENT,
    NAMESPACE,
    POD,
    REPLICA_SET,
    TOKEN,
    KubernetesDouble,
    answering,
    image,
    kubernetes,
    manifests,
)

APPS, CORE = (f"/{root}/namespaces/{NAMESPACE}" for root in ("apis/apps/v1", "api/v1"))
READMISSION = f"{APPS}/deployments/readmission"
APPLY, MERGE = "application/apply-patch+yaml", "application/strategic-merge-patch+json"


@pytest.fixture
def cluster() -> Iterator[KubernetesDouble]:
    """Time stands still in it, unless it is told to pass."""
    with kubernetes(speed=0) as cluster:
        yield cluster


def ask(
    cluster: KubernetesDouble,
    path: str,
    body: Any = None,
    method: str = "GET",
    **headers: str,
) -> tuple[int, Any]:
    sent = {"authorization": f"Bearer {TOKEN}", **headers}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(cluster.url + path, data, sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode()


def apply(
    cluster: KubernetesDouble, thing: Any, manager: str = "health-predict", force: str = "false"
) -> tuple[int, Any]:
    plural = double.KINDS[thing["apiVersion"], thing["kind"]][0]
    root = APPS if "/" in thing["apiVersion"] else CORE
    query = f"fieldManager={manager}&force={force}"
    path = f"{root}/{plural}/{thing['metadata']['name']}?{query}"
    return ask(cluster, path, thing, "PATCH", **{"content-type": APPLY})


def kubectl(cluster: KubernetesDouble, patch: Any, manager: str = "kubectl") -> tuple[int, Any]:
    path = f"{READMISSION}?fieldManager={manager}"
    return ask(cluster, path, patch, "PATCH", **{"content-type": MERGE})


def deployment(version: str, **spec: Any) -> Any:
    return manifests(version, **spec)[-1]


def set_image(version: str) -> Any:
    containers = [{"name": "service", "image": image(version)}]
    order = {"$setElementOrder/containers": [{"name": "service"}]}
    return {"spec": {"template": {"spec": {**order, "containers": containers}}}}


def counts(thing: Any) -> tuple[Any, ...]:
    names = "observedGeneration replicas updatedReplicas readyReplicas availableReplicas "
    names += "unavailableReplicas"
    return tuple(thing.get("status", {}).get(name, "-") for name in names.split())


def history(cluster: KubernetesDouble, seconds: float) -> list[tuple[float, Any]]:
    """Returns the statuses of a roll-out as they follow each other, and after how long."""
    seen: list[tuple[float, Any]] = []
    for tenth in range(round(seconds * 10)):
        now = counts(ask(cluster, READMISSION)[1])
        seen += [] if seen and seen[-1][1] == now else [(tenth / 10, now)]
        cluster.skip(0.1)
    return seen


def test_an_object_is_created_then_changed_then_left_alone(cluster):
    status, made = apply(cluster, deployment("1"))
    assert (status, made["metadata"]["generation"]) == (201, 1)
    status, changed = apply(cluster, deployment("2"))
    assert (status, changed["metadata"]["generation"]) == (200, 2)
    assert changed["metadata"]["uid"] == made["metadata"]["uid"]
    assert changed["metadata"]["resourceVersion"] > made["metadata"]["resourceVersion"]
    config = manifests("1")[0]
    versions = {apply(cluster, config)[1]["metadata"]["resourceVersion"] for _ in range(3)}
    assert len(versions) == 1


def test_a_label_is_no_new_generation(cluster):
    apply(cluster, deployment("1"))
    thing = deployment("1")
    thing["metadata"]["labels"]["tier"] = "serving"
    status, changed = apply(cluster, thing)
    assert (status, changed["metadata"]["generation"]) == (200, 1)
    assert changed["metadata"]["labels"]["tier"] == "serving"


def test_a_conflict_is_told_in_the_words_of_the_real_one(cluster):
    apply(cluster, deployment("1"))
    assert kubectl(cluster, set_image("2"))[0] == 200
    status, refusal = apply(cluster, deployment("3"))
    field = '.spec.template.spec.containers[name="service"].image'
    assert (status, refusal["code"], refusal["reason"]) == (409, 409, "Conflict")
    assert refusal["message"] == (
        f'Apply failed with 1 conflict: conflict with "kubectl" using apps/v1: {field}'
    )
    assert refusal["details"]["causes"] == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "kubectl" using apps/v1',
            "field": field,
        }
    ]
    assert cluster.find(DEPLOYMENT, "readmission")["spec"]["template"]["spec"]["containers"][0][
        "image"
    ] == image("2")


def test_several_conflicts_are_told_by_manager(cluster):
    apply(cluster, deployment("1", minReadySeconds=1), manager="helm")
    apply(cluster, deployment("1", minReadySeconds=1))
    kubectl(cluster, set_image("2"))
    _, refusal = apply(cluster, deployment("3", minReadySeconds=2))
    annotation = ".spec.template.metadata.annotations.health-predict/model-version"
    assert refusal["message"] == (
        "Apply failed with 3 conflicts: "
        f'conflicts with "helm":\n- .spec.minReadySeconds\n- {annotation}\n'
        'conflicts with "kubectl" using apps/v1:\n'
        '- .spec.template.spec.containers[name="service"].image'
    )


def test_force_takes_a_field_over_for_good(cluster):
    apply(cluster, deployment("1"))
    kubectl(cluster, set_image("2"))
    assert apply(cluster, deployment("3"), force="true")[0] == 200
    assert apply(cluster, deployment("4"))[0] == 200
    managers = [
        (held["manager"], held["operation"])
        for held in cluster.find(DEPLOYMENT, "readmission")["metadata"]["managedFields"]
    ]
    assert managers == [("health-predict", "Apply")]


def test_an_equal_value_is_shared_and_no_conflict(cluster):
    apply(cluster, deployment("1"))
    assert apply(cluster, deployment("1"), manager="helm")[0] == 200
    _, refusal = apply(cluster, deployment("2"))
    assert refusal["code"] == 409


def test_what_is_left_out_disappears_unless_another_manager_has_it_too(cluster):
    apply(cluster, deployment("1", minReadySeconds=3, revisionHistoryLimit=4))
    shared = deployment("1", revisionHistoryLimit=4)
    apply(cluster, shared, manager="helm")
    _, changed = apply(cluster, deployment("1"))
    assert "minReadySeconds" not in changed["spec"]
    assert changed["spec"]["revisionHistoryLimit"] == 4


def test_managed_fields_are_written_as_the_real_one_writes_them(cluster):
    _, made = apply(cluster, deployment("1"))
    (held,) = made["metadata"]["managedFields"]
    assert (held["fieldsType"], held["apiVersion"]) == ("FieldsV1", "apps/v1")
    template = held["fieldsV1"]["f:spec"]["f:template"]["f:spec"]
    container = template["f:containers"]['k:{"name":"service"}']
    assert {".", "f:image", "f:name", "f:ports"} <= container.keys()
    assert held["fieldsV1"]["f:spec"]["f:selector"] == {}  # a selector is one value
    assert "f:name" not in held["fieldsV1"]["f:metadata"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replica": 2}, "'replica' was unexpected"),
        ({"replicas": "two"}, "'two' is not of type"),
        ({"template": {}}, "selector` does not match template `labels`"),
        ({"selector": {"matchLabels": {"app.kubernetes.io/name": "other"}}}, "immutable"),
    ],
)
def test_what_is_no_deployment_is_refused(cluster, change, words):
    apply(cluster, deployment("1"))
    thing = deployment("1")
    if change == {"template": {}}:
        thing["spec"]["template"]["metadata"]["labels"] = {"other": "label"}
    else:
        thing["spec"] |= change
    status, refusal = apply(cluster, thing)
    assert status in (400, 422)
    assert words in refusal["message"]


def test_an_apply_wants_a_field_manager_and_a_namespace_that_exists(cluster):
    status, refusal = apply(cluster, deployment("1"), manager="")
    assert (status, refusal["reason"]) == (422, "Invalid")
    assert "fieldManager: Required value" in refusal["message"]
    path = "/api/v1/namespaces/nowhere/configmaps/readmission?fieldManager=me"
    status, refusal = ask(cluster, path, manifests("1")[0], "PATCH", **{"content-type": APPLY})
    assert (status, refusal["message"]) == (404, 'namespaces "nowhere" not found')


def test_without_its_token_nobody_is_answered(cluster):
    status, refusal = ask(cluster, READMISSION, authorization="Bearer another")
    assert (status, refusal["reason"]) == (401, "Unauthorized")


def test_a_roll_out_goes_as_the_recorded_one(cluster):
    apply(cluster, deployment("1"))
    for limit in (3, 4, 5):  # three generations without a new template
        kubectl(cluster, {"spec": {"revisionHistoryLimit": limit}})
    cluster.skip(20)
    kubectl(cluster, set_image("2"))
    seconds, statuses = zip(*history(cluster, 15), strict=True)
    assert statuses == (
        (4, 2, 2, 2, 2, "-"),
        (5, 3, 1, 2, 2, 1),
        (5, 3, 2, 2, 2, 1),
        (5, 2, 2, 2, 2, "-"),
    )
    assert seconds == pytest.approx((0.1, 0.4, 5.7, 10.3), abs=0.4)


def test_a_pod_counts_once_it_has_been_ready_for_as_long_as_it_must(cluster):
    apply(cluster, deployment("1", replicas=1, minReadySeconds=5))
    statuses = [status for _, status in history(cluster, 12)]
    assert statuses[-3:] == [(1, 1, 1, "-", "-", 1), (1, 1, 1, 1, "-", 1), (1, 1, 1, 1, 1, "-")]


def test_a_status_may_still_tell_of_the_deadline_of_the_template_before(cluster):
    cluster.behaviours[image("2")] = double.NEVER_READY
    quick = {"replicas": 1, "progressDeadlineSeconds": 30}
    apply(cluster, deployment("1", **quick))
    cluster.skip(20)
    apply(cluster, deployment("2", **quick))
    cluster.skip(40)
    apply(cluster, deployment("1", **quick))
    reasons = []
    for _ in range(20):
        cluster.skip(0.1)
        status = cluster.find(DEPLOYMENT, "readmission")["status"]
        progressing = next(c for c in status["conditions"] if c["type"] == "Progressing")
        reasons.append((status["observedGeneration"], progressing["reason"]))
    assert list(dict.fromkeys(reasons)) == [
        (2, "ProgressDeadlineExceeded"),
        (3, "ProgressDeadlineExceeded"),
        (3, "NewReplicaSetAvailable"),
    ]


def test_a_pod_that_ends_stays_for_a_while(cluster):
    apply(cluster, deployment("1", replicas=1))
    cluster.skip(20)
    apply(cluster, deployment("2", replicas=1))
    cluster.skip(7)
    ending = ["deletionTimestamp" in pod["metadata"] for pod in cluster.all(POD)]
    assert ending == [True, False]
    cluster.skip(5)
    assert len(cluster.all(POD)) == 1


def test_a_former_template_gets_its_replica_set_back(cluster):
    for version in ("1", "2", "1"):
        apply(cluster, deployment(version))
        cluster.skip(20)
    revisions = [
        thing["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
        for thing in cluster.all(REPLICA_SET)
    ]
    assert revisions == ["3", "2"]


def test_all_that_is_served_is_what_the_schema_says(cluster):
    cluster.behaviours[image("2")] = double.CRASH_LOOP
    for version in ("1", "2"):
        apply(cluster, deployment(version))
        cluster.skip(20)
    for kind in (DEPLOYMENT, REPLICA_SET, POD, EVENT):
        things = cluster.all(kind)
        assert things
        for thing in things:
            kubernetes_validate.validate(thing, double.VERSION, strict=True)


def test_the_official_client_reads_it(cluster, tmp_path: Path):
    from kubernetes import client, config

    apply(cluster, deployment("1"))
    cluster.skip(20)
    api = config.new_client_from_config(str(cluster.kubeconfig(tmp_path)))
    found = client.AppsV1Api(api).read_namespaced_deployment("readmission", NAMESPACE)
    assert (found.metadata.generation, found.status.observed_generation) == (1, 1)
    pods = client.CoreV1Api(api).list_namespaced_pod(NAMESPACE)
    assert [pod.status.container_statuses[0].ready for pod in pods.items] == [True, True]
    events = client.CoreV1Api(api).list_namespaced_event(NAMESPACE)
    assert {event.reason for event in events.items} == {"Scheduled", "Started"}


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app.kubernetes.io/name=readmission", 2),
        ("app.kubernetes.io/name!=readmission", 0),
        ("app.kubernetes.io/name in (readmission,other),pod-template-hash", 2),
        ("app.kubernetes.io/name notin (readmission)", 0),
        ("!pod-template-hash", 0),
        ("tier", 0),
    ],
)
def test_labels_select(cluster, selector, found):
    apply(cluster, deployment("1"))
    cluster.skip(20)
    _, listed = ask(cluster, f"{CORE}/pods?labelSelector={quote(selector)}")
    assert listed["kind"] == "PodList"
    assert len(listed["items"]) == found
    assert not any("kind" in item for item in listed["items"])


def test_events_are_selected_by_what_they_are_about_and_by_nothing_unknown(cluster):
    apply(cluster, deployment("1"))
    cluster.skip(20)
    uid = cluster.all(POD)[0]["metadata"]["uid"]
    _, listed = ask(cluster, f"{CORE}/events?fieldSelector=involvedObject.uid={uid}")
    assert [item["reason"] for item in listed["items"]] == ["Scheduled", "Started"]
    status, refusal = ask(cluster, f"{CORE}/events?fieldSelector=spec.nodeName=a")
    assert (status, refusal["reason"]) == (400, "BadRequest")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "Required value"),
        ({".dockerconfigjson": base64.b64encode(b"{").decode()}, "<secret contents redacted>"),
    ],
)
def test_a_pull_secret_without_a_login_is_refused(cluster, data, words):
    metadata = {"name": "registry"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
    secret["type"] = "kubernetes.io/dockerconfigjson"
    status, refusal = apply(cluster, secret)
    assert status == 422
    assert words in refusal["message"]


def test_logs_are_told_as_the_kubelet_tells_them(cluster):
    cluster.behaviours |= {image("1"): double.PULL_ERROR, image("2"): double.CRASH_LOOP}
    apply(cluster, deployment("1", replicas=1))
    cluster.skip(5)
    name = cluster.all(POD)[0]["metadata"]["name"]
    status, refusal = ask(cluster, f"{CORE}/pods/{name}/log?container=service")
    assert (status, refusal["reason"]) == (400, "BadRequest")
    assert refusal["message"].endswith("is waiting to start: trying and failing to pull image")
    apply(cluster, deployment("2", replicas=1))
    cluster.skip(5)
    path = f"{CORE}/pods/{cluster.all(POD)[-1]['metadata']['name']}/log"
    previous = ask(cluster, f"{path}?container=service&previous=true&tailLines=1")
    assert previous == (200, "ValueError: model.ubj: bad magic number\n")
    status, refusal = ask(cluster, f"{path}?container=another")
    assert status == 400


def test_the_proxy_passes_all_on_but_the_authorization(cluster):
    with answering("1") as service:
        cluster.backends[image("1")] = service.url
        for thing in manifests("1")[1:]:
            apply(cluster, thing)
        cluster.skip(20)
        path = f"{CORE}/services/http:readmission:http/proxy/predict?explain=true"
        answer = ask(cluster, path, {"age": 1}, "POST", **{"x-request-id": "7"})
    assert answer == (200, {"age": 1})
    ((path, headers, body),) = service.asked
    assert (path, body, headers["x-request-id"]) == ("/predict?explain=true", {"age": 1}, "7")
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("services/http:readmission:81", "no service port 81 found"),
        ("services/http:readmission:metrics", 'no endpoints available for service "readmission"'),
        ("services/http:readmission:http", 'no endpoints available for service "readmission"'),
    ],
)
def test_the_proxy_says_what_it_cannot_reach(cluster, target, words):
    apply(cluster, manifests("1")[1])
    status, refusal = ask(cluster, f"{CORE}/{target}/proxy/livez")
    assert (status, refusal["reason"]) == (503, "ServiceUnavailable")
    assert words in refusal["message"]


def test_a_pod_that_does_not_listen_refuses_the_connection(cluster):
    apply(cluster, deployment("1", replicas=1))
    cluster.skip(20)
    name = cluster.all(POD)[0]["metadata"]["name"]
    status, refusal = ask(cluster, f"{CORE}/pods/http:{name}:3000/proxy/livez")
    assert status == 503
    assert refusal["message"].startswith("error trying to reach service: dial tcp 10.244.0.")
    status, refusal = ask(cluster, f"{CORE}/pods/http:gone:3000/proxy/livez")
    assert (status, refusal["message"]) == (404, 'pods "gone" not found')


def test_faults_come_when_they_are_ordered_and_then_no_more(cluster):
    apply(cluster, deployment("1"))
    cluster.fail(429, where="GET", after="1")
    cluster.fail("drop", where="GET")
    assert ask(cluster, READMISSION)[0] == 429
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(cluster, READMISSION)
    assert ask(cluster, READMISSION)[0] == 200
    cluster.fail("lose", where="PATCH")
    with pytest.raises((OSError, http.client.HTTPException)):
        apply(cluster, deployment("2"))
    assert cluster.find(DEPLOYMENT, "readmission")["metadata"]["generation"] == 2
