"""The overlays of `k8s/` render to what a release may apply, and say what they shall.

Their schemas are checked by kubernetes-validate, their safety by checkov where it is at hand, and
that kustomize renders the same objects where kubectl is.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions, latest_version

from health_predict.manifests import (
    CONFIG_DIGEST,
    ORDER,
    ManifestError,
    Object,
    render,
    with_image,
)
from health_predict.settings import ROOT

K8S = ROOT / "k8s"
OVERLAYS = ("minikube", "eks")
REFERENCE = "registry.example:5000/health/readmission@sha256:" + "0f" * 32
SIX = {
    f"app.kubernetes.io/{label}"
    for label in ("name", "instance", "version", "component", "part-of", "managed-by")
}
CORES_OF_MINIKUBE = 2.0
# API server .25, controller manager .2, scheduler, etcd and CoreDNS .1 each, Calico .25,
# metrics-server .1: what they request.
CORES_OF_THE_SYSTEM = 1.1


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def objects(overlay: str) -> list[Object]:
    """The objects as a release applies them."""
    return released(overlay)


def released(overlay: str) -> list[Object]:
    rendered = render(K8S / "overlays" / overlay)
    return with_image(
        rendered,
        REFERENCE,
        {"HEALTH_PREDICT_IMAGE_DIGEST": "sha256:" + "0f" * 32},
        {"health-predict/model-version": "3"},
    )


def one(objects: list[Object], kind: str, name: str = "readmission") -> Object:
    [found] = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def pod(objects: list[Object]) -> dict[str, Any]:
    spec: dict[str, Any] = one(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(objects: list[Object]) -> dict[str, Any]:
    [found] = pod(objects)["containers"]
    return dict(found)


def documents(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text()))


def cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


# What is rendered


@pytest.mark.parametrize("version", ["1.36", latest_version()])
def test_every_object_fits_the_schemas_strictly(objects, version):
    assert any(known.startswith("1.36") for known in all_versions())
    for found in objects:
        kubernetes_validate.validate(found, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_would_be_seen(objects):
    container_ = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    container_["livenesProbe"] = container_.pop("livenessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one(objects, "Deployment"), "1.36", strict=True)


def test_kustomize_renders_the_same_objects(overlay, tmp_path):
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not on PATH")
    done = subprocess.run(
        [kubectl, "kustomize", str(K8S / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(
        render(K8S / "overlays" / overlay)
    )


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(o["kind"], o["metadata"]["name"]): o for o in objects}


def test_objects_come_in_the_order_they_are_applied(objects):
    kinds = [found["kind"] for found in objects]
    assert kinds == sorted(kinds, key=ORDER.index)
    assert kinds[0] == "Namespace"
    assert set(kinds) == set(ORDER)


def test_everything_is_in_the_namespace_of_the_service(objects):
    assert objects[0]["metadata"]["name"] == "health-predict"
    assert {o["metadata"].get("namespace") for o in objects[1:]} == {"health-predict"}


def test_every_object_and_pod_has_the_six_recommended_labels(objects):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    pods = one(objects, "Deployment")["spec"]["template"]["metadata"]
    for labels in (*(o["metadata"]["labels"] for o in objects), pods["labels"]):
        assert labels.keys() >= SIX
        assert labels["app.kubernetes.io/version"] == version
        assert labels["app.kubernetes.io/part-of"] == "health-predict"


def test_what_selects_pods_selects_the_service(objects):
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        one(objects, "Service")["spec"]["selector"],
        one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
        # Of a Deployment it cannot change, and this label does with every version.
        assert "app.kubernetes.io/version" not in selector


def test_the_number_of_replicas_is_the_autoscalers_alone(objects):
    assert "replicas" not in one(objects, "Deployment")["spec"]
    scaler = one(objects, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "readmission"
    assert 1 <= scaler["minReplicas"] < scaler["maxReplicas"]


def test_a_roll_out_never_takes_a_pod_away_before_its_successor_is_ready(objects):
    strategy = one(objects, "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    pause = container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 0 < pause < pod(objects)["terminationGracePeriodSeconds"] / 2


def test_probes_ask_what_bentoml_answers(objects):
    probes = {k: v for k, v in container(objects).items() if k.endswith("Probe")}
    assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }
    startup = probes["startupProbe"]
    seconds = startup["periodSeconds"] * startup["failureThreshold"]
    # A start that the probe still allows is not yet a roll-out that stands still.
    assert seconds < one(objects, "Deployment")["spec"]["progressDeadlineSeconds"]


def test_a_pod_may_do_nothing_but_answer(objects):
    inside = container(objects)["securityContext"]
    assert inside["readOnlyRootFilesystem"] is True
    assert inside["allowPrivilegeEscalation"] is False
    assert inside["capabilities"] == {"drop": ["ALL"]}
    around = pod(objects)["securityContext"]
    assert around["runAsNonRoot"] is True
    assert around["runAsUser"] == around["runAsGroup"] == 10001
    assert around["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(objects)["automountServiceAccountToken"] is False
    assert one(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    labels = objects[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_the_service_writes_has_a_place_to_be_written_to(objects):
    mounts = {m["name"]: m["mountPath"] for m in container(objects)["volumeMounts"]}
    assert all("emptyDir" in volume for volume in pod(objects)["volumes"])
    assert {volume["name"] for volume in pod(objects)["volumes"]} == set(mounts)
    config = one(objects, "ConfigMap")["data"]
    writable = [Path(path) for path in mounts.values()]
    for name in ("BENTOML_HOME", "HEALTH_PREDICT_PREDICTION_LOG"):
        assert any(Path(config[name]).is_relative_to(path) for path in writable), name
    assert Path("/tmp") in writable
    assert container(objects)["envFrom"] == [{"configMapRef": {"name": "readmission"}}]


def test_memory_is_reserved_whole_and_room_on_disk_bounded(objects):
    resources = container(objects)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod(objects)["volumes"])


def test_no_container_starts_without_tokens(objects):
    [tokens] = [e for e in container(objects)["env"] if e["name"] == "HEALTH_PREDICT_TOKENS"]
    assert tokens["valueFrom"] == {"secretKeyRef": {"name": "readmission-tokens", "key": "hashes"}}
    assert "HEALTH_PREDICT_AUTH" not in json.dumps(objects)
    assert not any(found["kind"] == "Secret" for found in objects)


def test_what_no_policy_allows_is_denied(objects):
    deny = one(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    assert not any(policy.get("egress") for policy in policies)
    for rule in (rule for policy in policies for rule in policy.get("ingress", [])):
        assert rule["from"]
        assert rule["ports"] == [{"port": 3000, "protocol": "TCP"}]
        cidrs = [peer["ipBlock"]["cidr"] for peer in rule["from"] if "ipBlock" in peer]
        assert not [cidr for cidr in cidrs if cidr.endswith("/0")]


def test_metrics_are_found_where_the_annotations_say(objects):
    annotations = one(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/path"] == "/metrics"
    [port] = container(objects)["ports"]
    [served] = one(objects, "Service")["spec"]["ports"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"]) == "3000"
    assert served["targetPort"] == port["name"]


def test_on_minikube_a_roll_out_at_full_size_fits_two_cores():
    objects = released("minikube")
    most = one(objects, "HorizontalPodAutoscaler")["spec"]["maxReplicas"]
    surge = one(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    each = cores(container(objects)["resources"]["requests"]["cpu"])
    assert most <= 2
    assert CORES_OF_THE_SYSTEM + (most + surge) * each <= CORES_OF_MINIKUBE
    service = one(objects, "Service")["spec"]
    assert service["type"] == "NodePort"
    assert 30000 <= service["ports"][0]["nodePort"] <= 32767


def test_on_eks_pods_are_spread_and_the_vpc_may_ask():
    objects = released("eks")
    spread = pod(objects)["topologySpreadConstraints"]
    keys = {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    assert {constraint["topologyKey"] for constraint in spread} == keys
    assert one(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 2
    policy = one(objects, "NetworkPolicy", "readmission-vpc")["spec"]
    assert all("ipBlock" in peer for peer in policy["ingress"][0]["from"])


def test_a_cluster_names_its_vpc_as_the_readme_says(tmp_path):
    [text] = re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    shutil.copytree(K8S, tmp_path / "k8s")
    own = tmp_path / "k8s" / "overlays" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(text)
    policy = one(render(own), "NetworkPolicy", "readmission-vpc")["spec"]
    assert policy["ingress"][0]["from"] == [{"ipBlock": {"cidr": "10.20.0.0/16"}}]
    assert policy["ingress"][0]["ports"]


def checkov() -> str | None:
    own = ROOT / "var" / "tools" / "checkov" / "bin" / "checkov"
    return os.environ.get("CHECKOV") or shutil.which("checkov") or (str(own) * own.is_file())


def failed_checks(path: Path, *arguments: str) -> set[str]:
    command = checkov()
    if not command:
        pytest.skip(
            "checkov is not at hand: name it by CHECKOV, or install it into var/tools/checkov"
        )
    done = subprocess.run(
        [command, "--file", str(path), "--output", "json", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0, done.stderr
    assert report["summary"]["passed"] > 0
    return {check["check_id"] for check in report["results"]["failed_checks"]}


def test_checkov_finds_nothing_but_the_exceptions_and_each_is_needed(objects, tmp_path):
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(yaml.safe_dump_all(objects))
    settings = K8S / ".checkov.yaml"
    assert failed_checks(rendered, "--config-file", str(settings)) == set()
    bare = ("--framework", "kubernetes", "--skip-download")
    assert failed_checks(rendered, *bare) == set(documents(settings)[0]["skip-check"])


def test_checkov_finds_nothing_in_what_the_deployer_may_do():
    settings = str(K8S / ".checkov.yaml")
    assert failed_checks(K8S / "deployer-role.yaml", "--config-file", settings) == set()


def test_every_exception_has_its_reason():
    lines = (K8S / ".checkov.yaml").read_text().splitlines()
    entries = [number for number, line in enumerate(lines) if line.startswith("  - CKV")]
    assert entries
    assert all(lines[number - 1].lstrip().startswith("# ") for number in entries)


# Who may apply it


def test_the_deployer_may_apply_every_object_and_read_no_secret_but_its_own(objects):
    roles = {o["kind"]: o for o in documents(K8S / "deployer-role.yaml")}
    for found in roles.values():
        kubernetes_validate.validate(found, "1.36", strict=True)
    rules = roles["Role"]["rules"]
    for found in objects[1:]:
        group = found["apiVersion"].rpartition("/")[0]
        plural = re.sub("ys$", "ies", found["kind"].lower() + "s")
        assert allowed(rules, group, plural) >= {"get", "create", "patch"}, plural
    assert allowed(roles["ClusterRole"]["rules"], "", "namespaces") == {"get", "patch"}
    assert roles["ClusterRole"]["rules"][0]["resourceNames"] == ["health-predict"]
    reading = [r for r in rules if "secrets" in r["resources"] and "get" in r["verbs"]]
    assert [rule["resourceNames"] for rule in reading] == [["readmission-pull"]]
    for resource in ("pods/proxy", "services/proxy"):
        assert allowed(rules, "", resource) == {"get", "create"}
    assert allowed(rules, "", "pods/log") == {"get"}
    assert allowed(rules, "", "events") >= {"list", "watch"}
    assert not any("*" in r["verbs"] + r["resources"] + r["apiGroups"] for r in rules)


def allowed(rules: list[dict[str, Any]], group: str, resource: str) -> set[str]:
    fitting = [r for r in rules if group in r["apiGroups"] and resource in r["resources"]]
    return {verb for rule in fitting for verb in rule["verbs"]}


# The image


def test_a_release_sets_image_variables_and_annotations_and_nothing_else(overlay):
    before = render(K8S / "overlays" / overlay)
    kept = json.dumps(before)
    after = with_image(before, REFERENCE, {"A": "1"}, {"health-predict/model-version": "7"})
    assert json.dumps(before) == kept
    assert container(after)["image"] == REFERENCE
    assert {"name": "A", "value": "1"} in container(after)["env"]
    pods = one(after, "Deployment")["spec"]["template"]
    assert pods["metadata"]["annotations"].pop("health-predict/model-version") == "7"
    assert pods["metadata"]["annotations"].pop(CONFIG_DIGEST)
    pods["spec"]["containers"][0]["image"] = "readmission"
    pods["spec"]["containers"][0]["env"].remove({"name": "A", "value": "1"})
    assert after == before


@pytest.mark.parametrize(
    "reference",
    [
        "readmission",
        "registry.example/readmission:3",
        "registry.example/readmission@sha256:abc",
        "registry.example/readmission@sha256:" + "0f" * 32 + " ",
        "@sha256:" + "0f" * 32,
    ],
)
def test_an_image_that_is_not_named_by_digest_is_refused(reference):
    with pytest.raises(ManifestError, match="is not by digest"):
        with_image(render(K8S / "overlays" / "eks"), reference, {}, {})


def test_a_variable_of_a_release_takes_the_place_of_the_one_before():
    objects = with_image(render(K8S / "overlays" / "eks"), REFERENCE, {"A": "1", "B": "2"}, {})
    again = with_image(objects, REFERENCE, {"A": "3"}, {})
    values = {e["name"]: e.get("value") for e in container(again)["env"]}
    assert len(values) == len(container(again)["env"])
    assert (values["A"], values["B"]) == ("3", "2")


def test_a_changed_setting_changes_the_pods():
    before = render(K8S / "overlays" / "eks")
    changed = render(K8S / "overlays" / "eks")
    one(changed, "ConfigMap")["data"]["PYTHONDONTWRITEBYTECODE"] = "0"
    pods = [
        one(with_image(objects, REFERENCE, {}, {}), "Deployment")["spec"]["template"]
        for objects in (before, before, changed)
    ]
    assert pods[0] == pods[1] != pods[2]


def test_two_deployments_leave_no_guess_whose_image_it_is():
    objects = render(K8S / "overlays" / "eks")
    with pytest.raises(ManifestError, match="2 times a Deployment"):
        with_image([*objects, one(objects, "Deployment")], REFERENCE, {}, {})


# The reader

CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  a: '1'\n"
HEAD = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"


def folder(path: Path, recipe: str, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "kustomization.yaml").write_text(HEAD + recipe)
    for name, text in files.items():
        (path / f"{name}.yaml").write_text(text)
    return path


def patched(path: Path, operations: str) -> Object:
    indented = operations.replace("\n", "\n      ")
    recipe = (
        "resources: [c.yaml]\npatches:\n  - target: {kind: ConfigMap, name: c}\n"
        f"    patch: |\n      {indented}\n"
    )
    return render(folder(path, recipe, c=CONFIG))[0]


def test_a_file_may_hold_several_objects_and_a_folder_other_folders(tmp_path):
    account = "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: s}\n---\n"
    folder(tmp_path / "base", "resources: [both.yaml]", both=CONFIG + account)
    top = folder(tmp_path / "top", "resources: [../base]\nnamespace: n\n")
    names = [(o["kind"], o["metadata"]["namespace"]) for o in render(top)]
    assert names == [("ServiceAccount", "n"), ("ConfigMap", "n")]


@pytest.mark.parametrize(
    ("operations", "data"),
    [
        ("- {op: add, path: /data/b, value: x}", {"a": "1", "b": "x"}),
        ("- {op: add, path: /data/b~1c~0d, value: x}", {"a": "1", "b/c~d": "x"}),
        ("- {op: replace, path: /data/a, value: x}", {"a": "x"}),
        ("- {op: remove, path: /data/a}", {}),
        (
            "- {op: add, path: /data/l, value: [1, 3]}\n- {op: add, path: /data/l/1, value: 2}\n"
            "- {op: add, path: /data/l/-, value: 4}\n- {op: replace, path: /data/l/0, value: 0}\n"
            "- {op: remove, path: /data/l/2}",
            {"a": "1", "l": [0, 2, 4]},
        ),
    ],
)
def test_operations_do_what_rfc_6902_says(tmp_path, operations, data):
    assert patched(tmp_path, operations)["data"] == data


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        ("- {op: replace, path: /data/b, value: x}", "no such place"),
        ("- {op: remove, path: /data/b}", "no such place"),
        ("- {op: add, path: /data/b/c, value: x}", "no such place"),
        ("- {op: add, path: /data/a/b, value: x}", "no such place"),
        ("- {op: add, path: data, value: x}", "begins with a slash"),
        ("- {op: move, path: /data/a, from: /data/b}", "add and replace with a value"),
        ("- {op: add, path: /data/a}", "add and replace with a value"),
        ("data: {a: null}", "strategic merge"),
    ],
)
def test_an_operation_that_cannot_be_done_is_refused(tmp_path, operations, said):
    with pytest.raises(ManifestError, match=said):
        patched(tmp_path, operations)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("commonLabels: {a: b}", "`commonLabels` is not read here"),
        ("images: []", "`images` is not read here: write it"),
        ("configMapGenerator: []", "`configMapGenerator` is not read here"),
        ("resources: [absent.yaml]", "absent.yaml"),
        ("resources: ['https://example.org/all.yaml']", "copy the file there"),
        ("resources: [../outside.yaml]", "copy the file there"),
        ("resources: [c.yaml, again.yaml]", "ConfigMap c twice"),
        ("resources: [../top]", "circle"),
        ("resources: [pod.yaml]", "does not apply kind 'Pod'.*ORDER"),
        ("resources: [namespace.yaml]\nnamespace: other", "'other'.*'n'"),
        ("resources: [nameless.yaml]", "metadata.name"),
        ("resources: [double.yaml]", "`name` stands twice"),
        ("resources: [torn.yaml]", "no YAML"),
        ("resources: [c.yaml]\nresources: []", "`resources` stands twice"),
        (
            "resources: [c.yaml]\npatches: [{target: {kind: ConfigMap, name: d}, patch: '[]'}]",
            "ConfigMap d, which is not among",
        ),
        ("resources: [c.yaml]\npatches: [{patch: '[]'}]", "kind and name"),
        (
            "resources: [c.yaml]\npatches: [{target: {labelSelector: a=b}, patch: '[]'}]",
            "`labelSelector` is not read here",
        ),
        (
            "resources: [c.yaml]\npatches: [{target: {kind: ConfigMap, name: c}}]",
            "from `patch` or from `path`",
        ),
        (
            "resources: [c.yaml]\n"
            "patches: [{target: {kind: ConfigMap, name: c}, path: ../outside.yaml}]",
            "copy the file there",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, recipe, said):
    (tmp_path / "outside.yaml").write_text(CONFIG.replace("name: c", "name: o"))
    top = folder(
        tmp_path / "top",
        recipe,
        c=CONFIG,
        again=CONFIG,
        pod="apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n",
        namespace="apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n",
        nameless="apiVersion: v1\nkind: ConfigMap\n",
        double=CONFIG.replace("  name: c\n", "  name: c\n  name: d\n"),
        torn="a: [",
    )
    with pytest.raises(ManifestError, match=said):
        render(top)


def test_a_folder_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"kustomization.yaml is not there"):
        render(tmp_path)
