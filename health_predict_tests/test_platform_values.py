"""The platform on a cluster: values that the charts know, versions of the lock, no secret in sight.

`chart_names.yaml` holds the charts' names; neither chart nor helm is here, so that what they make
of the values is seen only where Dagster itself makes it: the pod of a run.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil
import pytest
import requests
import yaml
from dagster import DagsterRun
from dagster._config import process_config
from dagster._core.errors import DagsterInvalidConfigError
from dagster._core.instance.config import dagster_instance_config
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job
from dagster_k8s.launcher import K8sRunLauncher
from kubernetes.client import ApiClient

from health_predict import tuning
from health_predict.defs import jobs
from health_predict.models import FAMILIES
from health_predict.search import Proposals
from health_predict.settings import ROOT, Settings

PLATFORM = ROOT / "k8s" / "platform"
NAMES = yaml.safe_load((Path(__file__).parent / "chart_names.yaml").read_text())
CHARTS = ("dagster", "kuberay-operator")
KUBERNETES = "1.36"
NAMESPACE = "health-predict-platform"
Object = dict[str, Any]


def values(chart: str) -> Object:
    found: Object = yaml.safe_load((PLATFORM / f"{chart}.values.yaml").read_text())
    return found


def documents(*names: str) -> list[Object]:
    paths = [PLATFORM / name for name in names] or sorted(PLATFORM.rglob("*.yaml"))
    kept = [p for p in paths if p.name != "kustomization.yaml" and ".values." not in p.name]
    return [document for path in kept for document in yaml.safe_load_all(path.read_text())]


def one(kind: str, name: str) -> Object:
    [found] = [o for o in documents() if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def locked(package: str) -> str:
    lock = (ROOT / "requirements.lock").read_text()
    [found] = re.findall(rf"^{package}==(\S+)", lock, re.MULTILINE)
    return str(found)


def unknown(given: Any, known: Any, at: str = "") -> list[str]:
    """Returns the places in values that a chart has no name for."""
    if known == "any":
        return []
    if isinstance(known, list):
        return [place for item in given for place in unknown(item, known[0], f"{at}[]")]
    return [
        place
        for name, inside in given.items()
        for place in (
            unknown(inside, known[name], f"{at}.{name}") if name in known else [f"{at}.{name}"]
        )
    ]


# The charts


@pytest.mark.parametrize("chart", CHARTS)
def test_every_value_has_a_name_that_the_chart_knows(chart):
    assert unknown(values(chart), NAMES[chart]) == []


def test_a_name_that_the_chart_does_not_know_would_be_seen():
    given = values("dagster")
    given["dagsterDaemon"]["runCoordinator"]["maxConcurrentRuns"] = 3
    given["dagster-user-deployments"]["deployments"][0]["replicas"] = 2
    assert sorted(unknown(given, NAMES["dagster"])) == [
        ".dagster-user-deployments.deployments[].replicas",
        ".dagsterDaemon.runCoordinator.maxConcurrentRuns",
    ]


def test_charts_are_pinned_and_dagsters_is_of_the_version_of_the_packages():
    readme = (PLATFORM / "README.md").read_text().replace("\\\n", " ")
    installed = dict(
        re.findall(r"helm upgrade --install \S+ (\S+)\s+--version (\d+\.\d+\.\d+)\s", readme)
    )
    assert set(installed) == {"dagster/dagster", "kuberay/kuberay-operator"}
    assert installed["dagster/dagster"] == locked("dagster")
    assert f", {locked('dagster')}:" in (PLATFORM / "dagster.values.yaml").read_text()
    operator = installed["kuberay/kuberay-operator"]
    assert values("kuberay-operator")["image"]["tag"] == f"v{operator}"
    assert f"version {operator}:" in (PLATFORM / "kuberay-operator.values.yaml").read_text()


def test_values_are_those_of_the_release_and_namespace_that_the_readme_installs():
    readme = (PLATFORM / "README.md").read_text().replace("\\\n", " ")
    for command in re.findall(r"helm (?:upgrade|uninstall).*", readme):
        assert f"--namespace {NAMESPACE}" in command
    webserver = "svc/dagster-dagster-webserver 3000:3000"  # release, then the chart's name for it
    assert webserver in readme
    assert values("dagster")["dagsterWebserver"]["service"]["port"] == 3000


# Dagster's instance


def instance() -> Object:
    found: Object = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    return found


def test_concurrency_and_queue_are_those_of_the_instance_of_one_machine():
    more = values("dagster")["additionalInstanceConfig"]
    for part in ("concurrency", "run_queue", "freshness", "nux"):
        assert more[part] == instance()[part], part
    # With it the chart would write `run_coordinator`, which Dagster refuses beside `run_queue`.
    assert values("dagster")["dagsterDaemon"]["runCoordinator"]["enabled"] is False


def test_what_the_chart_has_its_own_words_for_says_the_same():
    given, own = values("dagster"), instance()
    assert given["telemetry"] == own["telemetry"] == {"enabled": False}
    schedule, sensor = (
        given["retention"][kind]["purgeAfterDays"] for kind in ("schedule", "sensor")
    )
    assert schedule == own["retention"]["schedule"]["purge_after_days"]
    assert sensor.items() >= own["retention"]["sensor"]["purge_after_days"].items()
    daemon = given["dagsterDaemon"]
    assert daemon["runMonitoring"]["enabled"] == own["run_monitoring"]["enabled"]
    assert (
        daemon["runMonitoring"]["pollIntervalSeconds"]
        == (own["run_monitoring"]["poll_interval_seconds"])
    )
    assert daemon["runRetries"]["maxRetries"] == own["run_retries"]["max_retries"]


def test_dagster_takes_what_is_added_to_its_instance(tmp_path):
    added = values("dagster")["additionalInstanceConfig"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(added))
    taken, _ = dagster_instance_config(str(tmp_path))
    assert taken["concurrency"]["runs"]["max_concurrent_runs"] == 3
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({**added, "run_queues": {}}))
    with pytest.raises(DagsterInvalidConfigError, match="run_queues"):
        dagster_instance_config(str(tmp_path))


def test_what_runs_print_goes_where_it_goes_on_one_machine_with_a_bucket():
    own = yaml.safe_load((ROOT / "iac" / "host" / "compute-logs-s3.yaml").read_text())
    manager = values("dagster")["computeLogManager"]
    assert manager["type"] == "CustomComputeLogManager"
    assert manager["config"]["customComputeLogManager"] == own
    assert own["config"]["bucket"]["env"] in one("ConfigMap", NAMESPACE)["data"]


# The pod of a run, as dagster-k8s makes it


def launcher_config() -> Object:
    """Returns what the chart hands to the launcher of these values: its template in Python."""
    given = values("dagster")["runLauncher"]["config"]["k8sRunLauncher"]
    inside = given["runK8sConfig"]
    return {
        "dagster_home": values("dagster")["global"]["dagsterHome"],
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": values("dagster")["global"]["postgresqlSecretName"],
        "service_account_name": values("dagster")["global"]["serviceAccountName"],
        "load_incluster_config": given["loadInclusterConfig"],
        "image_pull_policy": given["imagePullPolicy"],
        "job_namespace": given["jobNamespace"],
        "env_config_maps": [source["name"] for source in given["envConfigMaps"]],
        "env_secrets": [source["name"] for source in given["envSecrets"]],
        "volumes": given["volumes"],
        "volume_mounts": given["volumeMounts"],
        "labels": given["labels"],
        "resources": given["resources"],
        "security_context": given["securityContext"],
        "run_k8s_config": {
            "container_config": inside["containerConfig"],
            "pod_spec_config": inside["podSpecConfig"],
            "job_spec_config": inside["jobSpecConfig"],
        },
    }


@pytest.fixture
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Object:
    """The Kubernetes Job of a run of a job."""
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)  # none is asked
    launcher = K8sRunLauncher(**launcher_config())
    tags = dict(getattr(jobs, request.param).tags or {})
    run = DagsterRun(job_name=request.param, run_id="0f" * 16, tags=tags)
    context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=True)
    image = values("dagster")["dagster-user-deployments"]["deployments"][0]["image"]
    made = construct_dagster_k8s_job(
        context.get_k8s_job_config(f"{image['repository']}:{image['tag']}", launcher),
        ["dagster", "api", "execute_run"],
        f"dagster-run-{run.run_id}",
        component="run_worker",
        user_defined_k8s_config=context.run_k8s_config,
        labels={"dagster/job": request.param},
    )
    found: Object = ApiClient().sanitize_for_serialization(made)
    return found


def test_the_launcher_takes_what_the_chart_hands_it():
    taken = process_config(K8sRunLauncher.config_type(), launcher_config())
    assert taken.success, taken.errors


@pytest.mark.parametrize("launched", ["retrain", "ingest_batch"], indirect=True)
def test_a_run_gets_a_pod_that_kubernetes_and_the_namespace_take(launched):
    kubernetes_validate.validate(launched, KUBERNETES, strict=True)
    spec = launched["spec"]["template"]["spec"]
    assert restricted(spec) == []
    assert spec["serviceAccountName"] == "dagster"
    names = [volume["name"] for volume in spec["volumes"]]
    assert len(names) == len(set(names))
    assert launched["spec"]["ttlSecondsAfterFinished"] == 24 * 60 * 60
    assert launched["spec"]["activeDeadlineSeconds"] == 2 * 60 * 60
    template = launched["spec"]["template"]["metadata"]
    assert template["labels"]["health-predict/asks"] == "everything"


@pytest.mark.parametrize("launched", ["retrain"], indirect=True)
def test_a_run_finds_settings_secrets_and_the_token_of_the_ray_cluster(launched):
    [container] = launched["spec"]["template"]["spec"]["containers"]
    assert {"configMapRef": {"name": NAMESPACE}} in container["envFrom"]
    assert {"secretRef": {"name": NAMESPACE}} in container["envFrom"]
    token = {e["name"]: e.get("valueFrom") for e in container["env"]}["RAY_AUTH_TOKEN"]
    options = one("RayCluster", "health-predict-ray")["spec"]["authOptions"]
    assert options["mode"] == "token"
    assert token == {"secretKeyRef": {"name": options["secretName"], "key": "auth_token"}}
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "2Gi"}  # a training's own


# The Ray cluster


def ray_pods() -> list[Object]:
    spec = one("RayCluster", "health-predict-ray")["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [
        {"apiVersion": "v1", "kind": "Pod", **{"metadata": {}, **group["template"]}}
        for group in groups
    ]


def test_the_ray_cluster_is_of_the_version_of_the_package_and_has_names_that_kuberay_knows():
    spec = one("RayCluster", "health-predict-ray")["spec"]
    assert spec["rayVersion"] == locked("ray")
    assert unknown(spec, NAMES["raycluster"]) == []


@pytest.mark.parametrize("pod", ray_pods(), ids=["head", "node"])
def test_the_pods_of_the_ray_cluster_are_such_that_kubernetes_takes_them(pod):
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    assert restricted(pod["spec"]) == []
    [container] = pod["spec"]["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    # KubeRay would else put probes that ask a dashboard.
    assert {"readinessProbe", "livenessProbe"} <= container.keys()
    ports = {port["name"] for port in container["ports"]}
    assert {
        container[f"{kind}Probe"]["tcpSocket"]["port"] for kind in ("liveness", "readiness")
    } <= (ports)


def test_a_search_finds_the_head_and_uses_every_core_the_cluster_may_grow_to():
    settings = one("ConfigMap", NAMESPACE)["data"]
    cluster = one("RayCluster", "health-predict-ray")
    service = f"{cluster['metadata']['name']}-head-svc"  # as KubeRay calls it
    assert settings["RAY_ADDRESS"] == f"ray://{service}:10001"
    [group] = cluster["spec"]["workerGroupSpecs"]
    cores = group["maxReplicas"] * int(group["rayStartParams"]["num-cpus"])
    assert int(settings["HEALTH_PREDICT_WORKERS"]) == cores
    assert handed_out(int(settings["HEALTH_PREDICT_TRIALS"])) >= cores
    [container] = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["cpu"] == group["rayStartParams"]["num-cpus"]
    head = cluster["spec"]["headGroupSpec"]["rayStartParams"]
    assert head["num-cpus"] == "0"
    for started in (head, group["rayStartParams"]):
        assert int(started["object-store-memory"]) >= tuning.OBJECT_STORE_BYTES


def handed_out(trials: int) -> int:
    """Returns how many candidates a search hands out before it waits for one to end."""
    proposals = Proposals(trials, 0, tuple(FAMILIES))
    asked = iter(proposals.next, None)
    return sum(1 for _ in asked)


def test_a_ray_starts_with_the_options_of_the_cluster():
    spec = one("RayCluster", "health-predict-ray")["spec"]
    said = subprocess.run(
        [Path(sys.executable).with_name("ray"), "start", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        for option in group["rayStartParams"]:
            assert f"--{option} " in said, option


# What is no chart


def restricted(spec: Object) -> list[str]:
    """Returns what a pod lacks to run where the Pod Security Standard `restricted` is enforced."""
    around, lacking = spec["securityContext"], []
    if around.get("runAsNonRoot") is not True or not around.get("runAsUser"):
        lacking.append("runAsNonRoot, with a number")
    if around.get("seccompProfile") != {"type": "RuntimeDefault"}:
        lacking.append("seccompProfile")
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        inside = container.get("securityContext", {})
        if inside.get("allowPrivilegeEscalation") is not False:
            lacking.append(f"allowPrivilegeEscalation of {container['name']}")
        if inside.get("capabilities", {}).get("drop") != ["ALL"]:
            lacking.append(f"capabilities of {container['name']}")
        if inside.get("readOnlyRootFilesystem") is not True:
            lacking.append(f"readOnlyRootFilesystem of {container['name']}")
    return lacking


def test_every_plain_object_fits_the_schemas_strictly():
    plain = [found for found in documents() if found["kind"] != "RayCluster"]
    assert len(plain) > 15
    for found in plain:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_every_pod_may_run_in_the_namespace():
    kinds = ("Deployment", "StatefulSet", "Job")
    specs = [o["spec"]["template"]["spec"] for o in documents() if o["kind"] in kinds]
    given = values("dagster")
    for part in (
        given["dagsterWebserver"],
        given["dagsterDaemon"],
        given["dagster-user-deployments"]["deployments"][0],
    ):
        inside = {"name": "dagster", "securityContext": part["securityContext"]}
        specs.append({"securityContext": part["podSecurityContext"], "containers": [inside]})
    assert len(specs) == 6
    assert [restricted(spec) for spec in specs] == [[]] * len(specs)
    labels = one("Namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["app.kubernetes.io/part-of"] == "health-predict"  # the service lets it in


def test_all_but_the_namespace_say_where_they_belong():
    for found in documents():
        if found["kind"] not in ("Namespace", "ClusterRoleBinding"):
            own = NAMESPACE if found["kind"] != "RoleBinding" else "health-predict"
            assert found["metadata"]["namespace"] == own, found["metadata"]["name"]


def images(found: Any) -> list[str]:
    if isinstance(found, list):
        return [image for item in found for image in images(item)]
    if not isinstance(found, dict):
        return []
    own = found.get("image")
    here = [own] if isinstance(own, str) else []
    if isinstance(own, dict):
        here = [f"{own['repository']}:{own.get('tag')}"]
    return here + [image for item in found.values() for image in images(item)]


def test_every_image_is_pinned_and_the_platforms_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    recipe = yaml.safe_load((PLATFORM / "kustomization.yaml").read_text())
    [named] = recipe["images"]
    platform = f"{named['newName']}:{named['newTag']}"
    assert named == {"name": "health-predict", "newName": named["newName"], "newTag": version}
    used = images(documents()) + images(values("dagster")) + images(values("kuberay-operator"))
    used = [platform if image == "health-predict" else image for image in used]
    assert used.count(platform) == 7
    for image in set(used):
        name, _, tag = image.rpartition(":")
        assert re.search(r"\d+\.\d+", tag), image
        assert "latest" not in image
        assert name.rpartition("/")[2] in ("health-predict", "postgres", "operator")


def test_kustomize_puts_the_image_everywhere_and_drops_nothing(tmp_path):
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not on PATH")
    rendered = subprocess.run(
        [kubectl, "kustomize", str(PLATFORM)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    ).stdout
    found = list(yaml.safe_load_all(rendered))
    recipe = yaml.safe_load((PLATFORM / "kustomization.yaml").read_text())
    assert len(found) == len(documents(*recipe["resources"]))
    [named] = recipe["images"]
    assert images(found) == [f"{named['newName']}:{named['newTag']}"] * 4


SECRET = re.compile(r"passw|token|secret|credential|api_?key", re.IGNORECASE)


def literals(found: Any, at: str = "") -> list[str]:
    """Returns the places where something that sounds secret has a value of its own."""
    if isinstance(found, list):
        return [place for item in found for place in literals(item, at)]
    if not isinstance(found, dict):
        return []
    own = {str(found["name"]): found["value"]} if found.keys() >= {"name", "value"} else found
    here = [
        f"{at}.{name}"
        for name, value in own.items()
        if SECRET.search(str(name)) and isinstance(value, str) and value
    ]
    return here + [p for name, item in found.items() for p in literals(item, f"{at}.{name}")]


# Names of secrets, and words that only sound like one.
NO_SECRETS = {"postgresqlSecretName", "secretName", "automountServiceAccountToken"}


def test_no_secret_stands_in_a_file():
    assert not any(found["kind"] == "Secret" for found in documents())
    given = {chart: values(chart) for chart in CHARTS}
    places = literals([documents(), given])
    assert {place.rpartition(".")[2] for place in places} <= NO_SECRETS
    for path in PLATFORM.rglob("*"):
        if path.is_file():
            assert not re.search(r"://[^/\s$\"]+:[^@/\s$\"]+@", path.read_text()), path
            assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN", path.read_text()), path


def test_a_secret_in_a_file_would_be_seen():
    given = values("dagster")
    given["postgresql"]["postgresqlPassword"] = "hunter2"
    container = {"env": [{"name": "RAY_AUTH_TOKEN", "value": "hunter2"}]}
    assert {place.rpartition(".")[2] for place in literals([given, container])} - NO_SECRETS == {
        "postgresqlPassword",
        "RAY_AUTH_TOKEN",
    }


def test_every_secret_that_is_named_is_made_by_the_readme():
    readme = (PLATFORM / "README.md").read_text()
    made = set(re.findall(r"create secret generic (\S+)", readme))
    text = json.dumps([documents(), values("dagster")])
    named = set(re.findall(r'"(?:secretKeyRef|secret_key_ref)": \{"name": "([^"]+)"', text))
    named |= set(re.findall(r'"(?:secretName|postgresqlSecretName)": "([^"]+)"', text))
    named |= {source["name"] for source in values("dagster")["dagsterDaemon"]["envSecrets"]}
    assert named == made == {"dagster-postgresql", NAMESPACE, "mlflow", "health-predict-ray"}


def test_settings_are_such_that_the_code_takes_them(monkeypatch):
    given = one("ConfigMap", NAMESPACE)["data"]
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEALTH_PREDICT_POSTGRES", "postgresql://dagster:x@postgres:5432/dagster")
    settings = Settings()
    own = {name for name in given if name.startswith("HEALTH_PREDICT_")}
    known = {f"HEALTH_PREDICT_{name.upper()}" for name in Settings.model_fields}
    assert own - known == {"HEALTH_PREDICT_COMPUTE_LOGS_BUCKET"}  # Dagster's, see dagster.values
    assert settings.deployment == "kubernetes"
    [port] = one("Service", "mlflow")["spec"]["ports"]
    assert settings.mlflow_tracking_uri == f"http://mlflow:{port['port']}"


# Who talks to whom


def policies() -> list[Object]:
    return [found for found in documents() if found["kind"] == "NetworkPolicy"]


def test_what_no_policy_allows_is_denied():
    deny = one("NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for found in policies():
        for way in ("ingress", "egress"):
            for rule in found["spec"].get(way, []):
                peers = rule["from" if way == "ingress" else "to"]
                assert peers
                blocks = [peer["ipBlock"] for peer in peers if "ipBlock" in peer]
                assert way == "egress" or not blocks
                wide = [block for block in blocks if block["cidr"] == "0.0.0.0/0"]
                # There lie the credentials of the node.
                assert all(block["except"] == ["169.254.0.0/16"] for block in wide)
                own = peers == [{"podSelector": found["spec"]["podSelector"]}]
                assert rule.get("ports") or own, found["metadata"]["name"]


def test_every_label_that_lets_a_pod_talk_is_on_one_and_known():
    given = values("dagster")
    asked = [
        given["dagsterWebserver"]["labels"],
        given["dagsterDaemon"]["labels"],
        given["dagster-user-deployments"]["deployments"][0]["labels"],
        given["runLauncher"]["config"]["k8sRunLauncher"]["labels"],
    ]
    assert asked == [{"health-predict/asks": "everything"}] * 4
    kinds = ("Deployment", "Job")
    pods = [o["spec"]["template"]["metadata"]["labels"] for o in documents() if o["kind"] in kinds]
    assert {labels["health-predict/asks"] for labels in pods} == {"database"}
    head, node = ray_pods()
    assert head["metadata"]["labels"] == {"health-predict/asks": "api"}  # its autoscaler
    assert node["metadata"] == {}
    values_of = json.dumps([found["spec"] for found in policies()])
    assert {"everything", "database"} <= set(re.findall(r'"(\w+)"', values_of))


# MLflow


def test_mlflow_starts_as_told_answers_to_its_name_and_to_no_other(tmp_path):
    [container] = one("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    port = free_port()
    changed = {"--host": "127.0.0.1", "--port": str(port), "--workers": "1"}
    changed["--artifacts-destination"] = str(tmp_path / "artifacts")
    command = [str(Path(sys.executable).with_name(container["command"][0]))]
    for argument in container["command"][1:]:
        name, equals, value = argument.partition("=")
        command.append(f"{name}{equals}{changed.get(name, value)}")
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (tmp_path / "log").open("wb") as log:
        running = psutil.Popen(
            [sys.executable, *command], env=environment, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        probe = container["readinessProbe"]["httpGet"]
        name = {header["name"]: header["value"] for header in probe["httpHeaders"]}["Host"]
        until = time.monotonic() + 180
        while answer(port, probe["path"], name) != 200:
            assert time.monotonic() < until and running.poll() is None, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.5)
        asked = "/api/2.0/mlflow/experiments/search?max_results=1"
        tracking = one("ConfigMap", NAMESPACE)["data"]["HEALTH_PREDICT_MLFLOW_TRACKING_URI"]
        assert answer(port, asked, tracking.removeprefix("http://")) == 200
        assert answer(port, asked, f"localhost:{port}") == 200  # kubectl port-forward
        assert answer(port, asked, "rebound.example") == 403
    finally:
        family = [*running.children(recursive=True), running]
        for process in family:
            process.terminate()
        for process in psutil.wait_procs(family, timeout=15)[1]:
            process.kill()


def answer(port: int, path: str, host: str) -> int | None:
    try:
        return requests.get(
            f"http://127.0.0.1:{port}{path}", headers={"Host": host}, timeout=30
        ).status_code
    except requests.ConnectionError:
        return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The README


def test_the_commands_of_the_readme_are_such_that_a_shell_reads_them():
    readme = (PLATFORM / "README.md").read_text()
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)
        for path in re.findall(r"(?:k8s|iac)/[\w./-]+", block):
            assert (ROOT / path).exists(), path


def test_every_file_is_listed_in_the_readme():
    readme = (PLATFORM / "README.md").read_text()
    for path in PLATFORM.iterdir():
        if path.name not in ("README.md", "kustomization.yaml"):
            assert f"`{path.name}{'/' * path.is_dir()}`" in readme, path.name
