"""`k8s/minikube-up` and `minikube-down` against stand-ins for the programs they call.

The stand-ins remember what a cluster would, and write down every argument, input and environment
they get. Minikube itself is not run.
"""

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from health_predict.cluster import FIELD_MANAGER
from health_predict.manifests import render
from health_predict.settings import ROOT

UP, DOWN = ROOT / "k8s" / "minikube-up", ROOT / "k8s" / "minikube-down"
PASSWORD = "p\"a's$s %s\\n`w`"
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
ECR_TOKEN = "ecr-" + "t" * 2000

STAND_IN = """
import base64, json, os, shutil, sys
from pathlib import Path
import yaml

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
folder = Path(sys.argv[0]).parent.parent
cluster = folder / "cluster"  # is there while Minikube has the profile
given = sys.stdin.read() if arguments[-2:] == ["-f", "-"] else ""
with (folder / "calls").open("a") as calls:
    print(json.dumps([name, arguments, given, dict(os.environ)]), file=calls)


def minikube(verb):
    if (folder / "broken").exists():
        sys.exit(80)
    if verb == "start":
        cluster.mkdir(exist_ok=True)
    elif verb == "delete":
        shutil.rmtree(cluster, ignore_errors=True)
    elif verb == "ip":
        print("192.168.49.2")
    elif not cluster.exists():
        sys.exit(85)


def kubectl():
    if not cluster.exists():
        sys.exit("connection refused")
    if "apply" in arguments:
        text = given or Path(arguments[-1]).read_text()
        applied = yaml.safe_load(text)
        if applied["kind"] != "Namespace" and not (cluster / "Namespace-health-predict").exists():
            sys.exit("namespaces health-predict not found")
        path = cluster / f"{applied['kind']}-{applied['metadata']['name']}"
        path.write_text(json.dumps(applied))
        print(f"{path.name} serverside-applied")
    elif "get" in arguments:
        path = cluster / f"Secret-{arguments[arguments.index('secret') + 1]}"
        if path.exists():
            print(json.loads(path.read_text())["data"]["hashes"], end="")
    elif "rollout" not in arguments:
        sys.exit(f"unknown: {arguments}")


if name == "minikube":
    minikube(arguments[0])
elif name == "kubectl":
    kubectl()
else:
    print("ecr-" + "t" * 2000)
"""


@dataclass(frozen=True)
class Machine:
    """A machine whose minikube, kubectl and aws are stand-ins.

    Attributes:
        folder: `bin` with the stand-ins, `var`, and what they remember.
    """

    folder: Path

    def run(self, script: Path, *arguments: str, **environment: str) -> Any:
        """Runs a script; returns what it ended with, its output and its errors."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HEALTH_", "MINIKUBE_"))}
        return subprocess.run(
            [script, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={
                **kept,
                "PATH": f"{self.folder / 'bin'}:{kept['PATH']}",
                "HEALTH_PREDICT_VAR": str(self.folder / "var"),
                **environment,
            },
        )

    def up(self, *arguments: str, **environment: str) -> str:
        """Runs minikube-up, which must end well; returns what it said."""
        done = self.run(UP, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        said: str = done.stdout + done.stderr
        return said

    @property
    def calls(self) -> list[tuple[str, list[str], str, dict[str, str]]]:
        """What the stand-ins were called with: name, arguments, input, environment."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    @property
    def token(self) -> Path:
        return self.folder / "var" / "minikube" / "token"

    @property
    def objects(self) -> dict[str, dict[str, Any]]:
        """What the cluster has, by kind and name."""
        found = (self.folder / "cluster").iterdir()
        return {path.name: json.loads(path.read_text()) for path in found}

    def secret(self, name: str, key: str) -> str:
        return base64.b64decode(self.objects[f"Secret-{name}"]["data"][key]).decode()

    def hashes(self) -> list[str]:
        return self.secret("readmission-tokens", "hashes").split(",")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "bin").mkdir()
    for name in ("minikube", "kubectl", "aws"):
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\n{STAND_IN}")
        path.chmod(0o755)
    return Machine(tmp_path)


def credentials(registry: str = "registry.example:5000") -> dict[str, str]:
    return {
        "HEALTH_PREDICT_REGISTRY": registry,
        "HEALTH_PREDICT_REGISTRY_USERNAME": "puller",
        "HEALTH_PREDICT_REGISTRY_PASSWORD": PASSWORD,
    }


def test_each_thing_is_made_after_what_it_needs(machine):
    machine.up(**credentials())
    steps = [
        (name, next(a for a in arguments if a in STEPS)) for name, arguments, _, _ in machine.calls
    ]
    assert steps == [
        ("minikube", "start"),
        ("minikube", "addons"),
        ("kubectl", "rollout"),
        ("kubectl", "apply"),  # the namespace
        ("kubectl", "apply"),  # the pull secret
        ("kubectl", "get"),
        ("kubectl", "apply"),  # the tokens
        ("minikube", "ip"),
    ]
    assert set(machine.objects) == {
        "Namespace-health-predict",
        "Secret-readmission-pull",
        "Secret-readmission-tokens",
    }


STEPS = {"start", "addons", "rollout", "apply", "get", "ip"}


def test_kubernetes_is_of_the_pinned_version_and_the_add_on_enabled(machine):
    machine.up("--driver=docker")
    start, addon = machine.calls[0][1], machine.calls[1][1]
    assert start[start.index("--kubernetes-version") + 1].startswith("v1.36.")
    assert start[-1] == "--driver=docker"
    assert addon[:3] == ["addons", "enable", "metrics-server"]


def test_it_says_where_the_service_will_answer(machine):
    [service] = [o for o in render(ROOT / "k8s/overlays/minikube") if o["kind"] == "Service"]
    port = service["spec"]["ports"][0]["nodePort"]
    assert f"http://192.168.49.2:{port}" in machine.up()


def test_no_other_cluster_is_touched(machine):
    machine.up(MINIKUBE_PROFILE="mine")
    for name, arguments, _, _ in machine.calls:
        flag = "--profile" if name == "minikube" else "--context"
        assert arguments[arguments.index(flag) + 1] == "mine"


def test_what_is_applied_is_owned_as_a_release_owns_it(machine):
    machine.up(**credentials())
    applied = [arguments for _, arguments, _, _ in machine.calls if "apply" in arguments]
    assert len(applied) == 3
    for arguments in applied:
        assert {"--server-side", f"--field-manager={FIELD_MANAGER}"} <= set(arguments)
    for found in machine.objects.values():
        kubernetes_validate.validate(found, "1.36", strict=True)


def test_run_again_it_changes_nothing(machine):
    machine.up(**credentials())
    token, objects = machine.token.read_text(), machine.objects
    said = machine.up(**credentials())
    assert machine.token.read_text() == token
    assert machine.objects == objects
    assert "is known to the cluster" in said


def test_after_a_deleted_minikube_everything_is_there_again(machine):
    machine.up(**credentials())
    token, objects = machine.token.read_text(), machine.objects
    assert machine.run(DOWN, "--delete").returncode == 0
    assert not (machine.folder / "cluster").exists()
    machine.up(**credentials())
    assert machine.token.read_text() == token
    assert machine.objects == objects


def test_the_token_is_for_its_owner_alone_and_the_cluster_has_its_digest(machine):
    machine.up()
    token = machine.token.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(machine.token.stat().st_mode) == 0o600
    assert machine.hashes() == [hashlib.sha256(token.encode()).hexdigest()]


def test_two_machines_do_not_share_a_token(machine):
    machine.up()
    first = machine.token.read_text()
    shutil.rmtree(machine.folder / "var")
    machine.up()
    assert machine.token.read_text() != first


def test_a_token_that_was_given_by_hand_stays(machine):
    machine.up()
    [own] = machine.hashes()
    other = hashlib.sha256(b"another").hexdigest()
    path = machine.folder / "cluster" / "Secret-readmission-tokens"
    secret = json.loads(path.read_text())
    secret["data"]["hashes"] = base64.b64encode(other.encode()).decode()
    path.write_text(json.dumps(secret))
    machine.up()
    assert machine.hashes() == [other, own]


def test_the_pull_secret_is_what_the_kubelet_reads(machine):
    machine.up(**credentials())
    auths = json.loads(machine.secret("readmission-pull", ".dockerconfigjson"))["auths"]
    assert list(auths) == ["registry.example:5000"]
    auth = base64.b64decode(auths["registry.example:5000"]["auth"]).decode()
    assert auth == f"puller:{PASSWORD}"
    assert machine.objects["Secret-readmission-pull"]["type"] == "kubernetes.io/dockerconfigjson"


def test_an_ecr_registry_is_asked_for_its_token(machine):
    machine.up(HEALTH_PREDICT_REGISTRY=ECR)
    [asked] = [arguments for name, arguments, _, _ in machine.calls if name == "aws"]
    assert asked == ["ecr", "get-login-password", "--region", "eu-west-1"]
    auths = json.loads(machine.secret("readmission-pull", ".dockerconfigjson"))["auths"]
    assert base64.b64decode(auths[ECR]["auth"]).decode() == f"AWS:{ECR_TOKEN}"


def test_without_a_registry_no_pull_secret_is_made_and_that_is_said(machine):
    said = machine.up()
    assert "No pull secret made: HEALTH_PREDICT_REGISTRY is not set." in said
    assert "Secret-readmission-pull" not in machine.objects


@pytest.mark.parametrize("registry", ["registry.example:5000", ECR])
def test_no_secret_is_in_an_argument_an_environment_or_what_is_said(machine, registry):
    given = credentials(registry)
    if registry == ECR:
        given = {"HEALTH_PREDICT_REGISTRY": ECR}
    said = machine.up(**given)
    secrets = {machine.token.read_text(), PASSWORD, ECR_TOKEN}
    encoded = {
        base64.b64encode(f"{user}:{secret}".encode()).decode()
        for user in ("puller", "AWS")
        for secret in secrets
    }
    for _, arguments, _, environment in machine.calls:
        for text in (*arguments, *environment.values()):
            assert not [secret for secret in secrets | encoded if secret in text]
    assert not [secret for secret in secrets | encoded if secret in said]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"HEALTH_PREDICT_REGISTRY": "https://registry.example"}, "give host or host:port alone"),
        ({"HEALTH_PREDICT_REGISTRY": 'a","b'}, "give host or host:port alone"),
        ({"HEALTH_PREDICT_REGISTRY": "registry.example"}, "set both HEALTH_PREDICT_REGISTRY_USER"),
        (
            {"HEALTH_PREDICT_REGISTRY": ECR, "HEALTH_PREDICT_REGISTRY_USERNAME": "AWS"},
            "set both HEALTH_PREDICT_REGISTRY_USER",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_started(machine, given, said):
    done = machine.run(UP, **given)
    assert done.returncode != 0
    assert said in done.stderr
    assert machine.calls == []


@pytest.mark.parametrize("program", ["minikube", "kubectl", "aws"])
def test_a_program_that_is_lacking_is_named(machine, program):
    (machine.folder / "bin" / program).unlink()
    # The machine may have the real one: only the shell's own tools stay on PATH.
    tools = machine.folder / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "base64", "tr"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    path = f"{machine.folder / 'bin'}:{tools}"
    done = machine.run(UP, PATH=path, HEALTH_PREDICT_REGISTRY=ECR)
    assert done.returncode != 0
    assert f"{program} is not installed: " in done.stderr
    assert machine.calls == []


def test_a_minikube_that_does_not_start_ends_it(machine):
    (machine.folder / "broken").touch()
    done = machine.run(UP, **credentials())
    assert done.returncode == 80
    assert [arguments[0] for _, arguments, _, _ in machine.calls] == ["start"]


def test_down_stops_and_leaves_the_cluster(machine):
    machine.up()
    before = machine.objects
    assert machine.run(DOWN).returncode == 0
    assert machine.calls[-1][1] == ["stop", "--profile", "health-predict"]
    assert machine.objects == before


@pytest.mark.parametrize("arguments", [(), ("--delete",)])
def test_down_may_be_run_where_there_is_nothing(machine, arguments):
    assert machine.run(DOWN, *arguments).returncode == 0
    assert machine.run(DOWN, *arguments).returncode == 0


def test_down_tells_a_failure_and_an_unknown_argument(machine):
    (machine.folder / "broken").touch()
    assert machine.run(DOWN).returncode == 80
    done = machine.run(DOWN, "--purge")
    assert done.returncode == 2
    assert "'--purge' is not known" in done.stderr


@pytest.mark.parametrize("script", [UP, DOWN], ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not on PATH")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
