"""The scripts of `iac/host` against stand-ins for the programs they call.

The stand-ins remember what an engine would, and write down every argument and environment they get.
A command in a container runs on this machine: in a volume's folder, or beside a real PostgreSQL, so
what a backup holds and a restore brings back is real. Real containers are in
`test_host_containers`.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from health_predict.settings import ROOT
from health_predict_tests.host_server import SUPERUSER_PASSWORD, superusers_server
from health_predict_tests.postgres import Postgres

HOST = ROOT / "iac" / "host"
SCRIPTS = ("up", "down", "status", "backup", "restore", "common.sh", "databases.sh")
SERVICES = ["postgres", "migrate", "mlflow", "node", "code", "daemon", "web", "supervisor"]
SECRETS = (
    *("POSTGRES_PASSWORD", "HEALTH_PREDICT_POSTGRES", "MLFLOW_BACKEND_STORE_URI"),
    *("HEALTH_PREDICT_SERVICE_TOKEN", "HEALTH_PREDICT_TOKENS"),
)

STAND_IN = r"""
import fcntl, json, os, sys
from pathlib import Path

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
folder = Path(sys.argv[0]).parent.parent
with (folder / "calls").open("a") as calls:
    print(json.dumps([name, arguments, dict(os.environ)]), file=calls)
lock = (folder / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
memory = folder / "engine.json"
known = json.loads(memory.read_text()) if memory.exists() else {
    "services": {}, "volumes": [], "networks": [], "images": []
}


def keep():
    memory.write_text(json.dumps(known))


def broken(what):
    return (folder / f"broken-{what}").exists()


def after(option, words):
    return words[words.index(option) + 1]


def make(service, compose, started):
    known["volumes"] = sorted({*known["volumes"], *compose["volumes"]})
    known["networks"] = ["default"]
    found = known["services"].setdefault(service, {"id": f"id-{service}", "status": "created"})
    found.setdefault("restarts", 0)
    found.setdefault("exit", 0)
    if not started:
        return
    found["status"] = "exited" if service == "migrate" else "running"
    found["health"] = "starting" if broken(service) else "healthy"
    found["exit"] = 3 if broken(service) else 0
    found["restarts"] = 9 if broken(f"{service}-again") else 0
    if broken(f"{service}-again"):
        found["health"] = "starting"


def compose(words):
    verb = [w for w in words if w in ("up", "down", "version")][0]
    if verb == "version":
        return
    files = [words[i + 1] for i, word in enumerate(words) if word == "--file"]
    sys.path.append(PACKAGES)
    import yaml

    told = yaml.load(Path(files[0]).read_text(), yaml.CSafeLoader)
    if broken("compose"):
        sys.exit("cannot do: " + os.environ["HEALTH_PREDICT_POSTGRES"])
    rest = words[words.index(verb) + 1 :]
    if verb == "up":
        named = [word for word in rest if not word.startswith("-")]
        for service in named or [s for s, d in told["services"].items() if "profiles" not in d]:
            make(service, told, "--no-start" not in rest)
    else:
        known["services"] = {"stuck": {"id": "id-stuck"}} if broken("down") else {}
        known["networks"] = []
        if "--volumes" in rest:
            known["volumes"] = []
            import shutil

            shutil.rmtree(folder / "volumes", ignore_errors=True)
    keep()


def inspect(words):
    form = after("--format", words)
    found = [s for s in known["services"].values() if s["id"] == words[-1]]
    if not found:
        sys.exit("no such object")
    service = found[0]
    print({
        "{{.State.Status}} {{.State.ExitCode}}": f"{service['status']} {service['exit']}",
        "{{.State.Health.Status}}": service.get("health", "").replace("checked", "starting"),
        "{{.State.Running}}": str(service["status"] == "running").lower(),
        "{{.RestartCount}}": service["restarts"],
        "{{index .Config.Healthcheck.Test 1}}": "the check",
    }[form])


def volume(words):
    given = after("--volume", words).rsplit(":", 1)[0]
    path = Path(given) if given.startswith("/") else folder / "volumes" / given
    path.mkdir(parents=True, exist_ok=True)
    return path


def inside(command):
    lock.close()
    os.execvp(command[0], command)


def engine():
    verb = arguments[0]
    rest = arguments[1:]
    if verb == "info":
        if broken(name):
            sys.exit("cannot connect")
        print("awslogs" if broken("logging") else "json-file")
    elif verb == "compose":
        compose(rest)
    elif verb == "healthcheck":
        sys.exit(0 if inspect_health(rest[-1]) == "healthy" else 1)
    elif verb == "ps":
        service = [w.split("=")[-1] for w in rest if "compose.service=" in w]
        found = known["services"].get(service[0])
        if found:
            print(found["id"])
    elif verb == "inspect":
        inspect(rest)
    elif verb == "image":
        sys.exit(0 if rest[-1] in known["images"] else 1)
    elif verb == "images":
        print("\n".join(i for i in known["images"] if i.startswith(rest[-1])))
    elif verb == "rmi":
        known["images"].remove(rest[-1])
        keep()
    elif verb == "build":
        if broken("build"):
            sys.exit("no space left on device")
        known["images"].append(after("--tag", rest))
        keep()
    elif verb in ("container", "volume", "network"):
        for each in known["services" if verb == "container" else f"{verb}s"]:
            print(f"id-{each}")
    elif verb == "logs":
        print("its last words", file=sys.stderr)
    elif verb == "run":
        command = rest[rest.index("--workdir") + 3 :]
        os.chdir(volume(rest))
        inside(command)
    elif verb == "exec" and rest[-1] == "the check":
        found = [s for s in known["services"].values() if s["id"] == rest[0]][0]
        sys.exit(0 if found["health"] == "checked" else 1)
    elif verb == "exec":
        command = rest[2:]
        if command[0] == "bash":
            command = ["bash", os.environ["DATABASES"]] if "PGHOST" in os.environ else ["true"]
        inside(command)
    else:
        sys.exit(f"unknown: {arguments}")


def inspect_health(which):
    return [s.get("health") for s in known["services"].values() if s["id"] == which][0]


if name in ("docker", "podman"):
    engine()
elif name == "podman-compose":
    if arguments == ["--version"]:
        print(f"podman-compose version {os.environ.get('PODMAN_COMPOSE_IS', '1.6.0')}")
    else:
        compose(arguments)
elif name == "minikube":
    if arguments[0] == "status" and not (folder / "minikube").exists():
        sys.exit(7)
    if arguments[0] == "start":
        (folder / "minikube").touch()
    if arguments[0] == "ip":
        print("192.168.49.2")
    if arguments[0] == "stop":
        (folder / "minikube").unlink(missing_ok=True)
elif name == "kubectl":
    if "view" in arguments:
        print("apiVersion: v1\nkind: Config\ncurrent-context: health-predict")
"""


@dataclass(frozen=True)
class Machine:
    """A machine whose engine, and whose cluster, are stand-ins.

    Attributes:
        folder: `bin` with the stand-ins, `volumes`, `settings`, and what they remember.
        environment: what every script sees beside that.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, script: str, *arguments: object, **environment: str) -> Any:
        """Runs a script; returns what it ended with, its output and its errors."""
        dropped = ("HEALTH_PREDICT_", "MINIKUBE_", "COMPOSE_", "AWS_", "PUBLIC_", "POSTGRES_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        return subprocess.run(
            [HOST / script, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={
                **kept,
                "PATH": f"{self.folder / 'bin'}:{kept['PATH']}",
                "SETTINGS_FILE": str(self.settings),
                "DATABASES": str(HOST / "databases.sh"),
                **PORTS,
                **self.environment,
                **environment,
            },
        )

    def done(self, script: str, *arguments: object, **environment: str) -> str:
        """Runs a script, which must end well; returns what it said."""
        done = self.run(script, *arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        said: str = done.stdout + done.stderr
        return said

    @property
    def settings(self) -> Path:
        return self.folder / "etc" / "env"

    def kept(self) -> dict[str, str]:
        """What stands in the file of settings."""
        lines = self.settings.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def write_settings(self, *lines: str, mode: int = 0o600) -> None:
        self.settings.parent.mkdir(exist_ok=True)
        self.settings.write_text("".join(f"{line}\n" for line in lines))
        self.settings.chmod(mode)

    @property
    def calls(self) -> list[tuple[str, list[str], dict[str, str]]]:
        """What the stand-ins were called with: name, arguments, environment."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    def forget_calls(self) -> None:
        (self.folder / "calls").unlink(missing_ok=True)

    def started(self) -> list[str]:
        """Services that compose was told to start, in order."""
        return [
            arguments[-1]
            for name, arguments, _ in self.calls
            if {"up", "--detach"} <= set(arguments)
        ]

    @property
    def engine(self) -> dict[str, Any]:
        """What the engine has."""
        found: dict[str, Any] = json.loads((self.folder / "engine.json").read_text())
        return found

    def breaks(self, what: str) -> None:
        (self.folder / f"broken-{what}").touch()

    def mends(self, what: str) -> None:
        (self.folder / f"broken-{what}").unlink()


PORTS: dict[str, str] = {}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with Docker and a free port for each service."""
    (tmp_path / "bin").mkdir()
    for name in ("docker", "podman", "podman-compose", "minikube", "kubectl"):
        path = tmp_path / "bin" / name
        # Without what Python looks for when it starts: it is started some hundred times a test.
        packages = sysconfig.get_path("purelib")
        path.write_text(f"#!{sys.executable} -IS\nPACKAGES = {packages!r}\n{STAND_IN}")
        path.chmod(0o755)
    ports = {name: str(free_port()) for name in ("DAGSTER_PORT", "MLFLOW_PORT", "SERVICE_PORT")}
    monkeypatch.setattr(sys.modules[__name__], "PORTS", ports)
    return Machine(tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- up ---


def test_each_service_is_started_after_what_it_needs_and_all_are_told_healthy(machine):
    said = machine.done("up")
    assert machine.started() == SERVICES
    ups = [arguments for _, arguments, _ in machine.calls if "--detach" in arguments]
    assert all("--no-deps" in arguments for arguments in ups)
    table = [line.split() for line in said.splitlines() if line.split()[:1] and "healthy" in line]
    assert [row[0] for row in table] == [name for name in SERVICES if name != "migrate"]
    assert re.search(r"^migrate +done *$", said, re.M)
    assert f"http://127.0.0.1:{PORTS['DAGSTER_PORT']}" in said


def test_roles_and_passwords_are_set_before_anybody_asks_the_database(machine):
    machine.done("up")
    words = [arguments for name, arguments, _ in machine.calls if name == "docker"]
    script = next(i for i, each in enumerate(words) if each[0] == "exec")
    migrate = next(i for i, each in enumerate(words) if "up" in each and each[-1] == "migrate")
    assert words[script][-2:] == ["bash", "/docker-entrypoint-initdb.d/databases.sh"]
    assert script < migrate


def test_secrets_are_made_once_for_their_owner_alone(machine):
    said = machine.done("up")
    kept = machine.kept()
    assert set(kept) == set(SECRETS)
    assert stat.S_IMODE(machine.settings.stat().st_mode) == 0o600
    token = kept["HEALTH_PREDICT_SERVICE_TOKEN"]
    assert kept["HEALTH_PREDICT_TOKENS"] == hashlib.sha256(token.encode()).hexdigest()
    form = r"postgresql://dagster:[0-9a-f]{48}@postgres:5432/dagster"
    assert re.fullmatch(form, kept["HEALTH_PREDICT_POSTGRES"])
    assert len({*kept.values()}) == len(kept)
    assert "Made and written" in said
    said = machine.done("up")
    assert machine.kept() == kept
    assert "Made and written" not in said


def test_two_machines_share_no_secret(machine):
    machine.done("up")
    first = machine.kept()
    machine.settings.unlink()
    machine.done("up")
    assert not {*first.values()} & {*machine.kept().values()}


def test_what_was_set_stays_and_only_what_lacks_is_made(machine):
    machine.write_settings("# mine", "POSTGRES_PASSWORD=given", "HEALTH_PREDICT_DATA=uci")
    machine.done("up")
    text = machine.settings.read_text()
    assert text.startswith("# mine\nPOSTGRES_PASSWORD=given\nHEALTH_PREDICT_DATA=uci\n")
    assert set(machine.kept()) == {*SECRETS, "HEALTH_PREDICT_DATA"}


def test_a_link_to_the_settings_stays_one(machine):
    machine.write_settings("HEALTH_PREDICT_DATA=uci")
    elsewhere = machine.folder / "disk"
    machine.settings.rename(elsewhere)
    machine.settings.symlink_to(elsewhere)
    machine.done("up")
    assert machine.settings.is_symlink()
    assert "POSTGRES_PASSWORD=" in elsewhere.read_text()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o600


def test_settings_reach_compose_as_they_stand(machine):
    given = 'pa\'ss $HOME `id` \\ "word"'
    machine.write_settings(
        f"HEALTH_PREDICT_ALERT_SMTP={given}",
        "HEALTH_PREDICT_DATA='uci'",
        'export HEALTH_PREDICT_ROWS="5000"',
        "HEALTH_PREDICT_LABEL=",
        "HEALTH_PREDICT_SEED=3\r",
    )
    machine.done("up", HEALTH_PREDICT_SEED="4")
    seen = machine.calls[-1][2]
    assert seen["HEALTH_PREDICT_ALERT_SMTP"] == given
    assert seen["HEALTH_PREDICT_DATA"] == "uci"
    assert seen["HEALTH_PREDICT_ROWS"] == "5000"
    assert seen["HEALTH_PREDICT_SEED"] == "4"  # the environment outranks the file
    assert "HEALTH_PREDICT_LABEL" not in seen


def test_no_secret_is_an_argument_or_said(machine):
    machine.write_settings("HEALTH_PREDICT_REGISTRY_PASSWORD=p\"a's$s")
    said = machine.done("up")
    secrets = {*machine.kept().values()} - {machine.kept()["HEALTH_PREDICT_TOKENS"]}
    secrets |= {re.sub(r".*://\w+:(\w+)@.*", r"\1", value) for value in secrets}
    for _, arguments, _ in machine.calls:
        assert [word for word in arguments if any(secret in word for secret in secrets)] == []
    assert [secret for secret in secrets if secret in said] == []


def test_what_compose_says_when_it_fails_is_shown_without_secrets(machine):
    machine.breaks("compose")
    done = machine.run("up")
    assert done.returncode != 0
    assert "cannot do: (HEALTH_PREDICT_POSTGRES)" in done.stderr
    assert machine.kept()["HEALTH_PREDICT_POSTGRES"] not in done.stdout + done.stderr


def test_run_again_it_starts_the_same_and_builds_nothing(machine):
    machine.done("up")
    before = machine.engine
    machine.forget_calls()
    machine.done("up")
    assert machine.engine == before
    assert machine.started() == SERVICES
    assert "build" not in [arguments[0] for _, arguments, _ in machine.calls]


def test_the_image_is_built_of_this_checkout_and_older_ones_go(machine):
    (machine.folder / "engine.json").write_text(
        json.dumps(
            {
                "services": {},
                "volumes": [],
                "networks": [],
                "images": ["localhost/health-predict:0123456789ab", "postgres:17"],
            }
        )
    )
    machine.done("up")
    [image] = [each for each in machine.engine["images"] if each.startswith("localhost/")]
    assert re.fullmatch(r"localhost/health-predict:[0-9a-f]{12}", image)
    assert image != "localhost/health-predict:0123456789ab"
    assert "postgres:17" in machine.engine["images"]
    [build] = [arguments for _, arguments, _ in machine.calls if arguments[0] == "build"]
    assert build[build.index("--target") + 1] == "platform"
    assert build[-1] == str(ROOT)
    assert machine.calls[-1][2]["PLATFORM_IMAGE"] == image


def test_an_image_that_is_given_is_not_built(machine):
    machine.done("up", PLATFORM_IMAGE="registry.example/platform@sha256:" + "0" * 64)
    built = [a for n, a, _ in machine.calls if a[0] == "build"]
    assert len(built) == 1  # stands for a pull: it is not there yet
    machine.forget_calls()
    machine.done("up", PLATFORM_IMAGE="registry.example/platform@sha256:" + "0" * 64)
    assert [a for n, a, _ in machine.calls if a[0] == "build"] == []


def test_a_service_that_is_not_healthy_in_time_is_named_with_its_last_words(machine):
    machine.breaks("mlflow")
    done = machine.run("up", AWAIT_SECONDS="2")
    assert done.returncode != 0
    assert "its last words" in done.stderr
    assert "mlflow is starting after" in done.stderr
    assert machine.started()[-1] == "mlflow"


@pytest.mark.parametrize("broken", ["code-again", "migrate"])
def test_one_that_crashes_again_and_again_is_not_waited_for(machine, broken):
    machine.breaks(broken)
    done = machine.run("up", AWAIT_SECONDS="300")
    assert done.returncode != 0
    assert machine.started()[-1] == broken.split("-")[0]
    machine.mends(broken)
    machine.done("up")


def test_a_check_that_docker_has_not_made_yet_is_made(machine):
    machine.done("up")
    known = machine.engine
    known["services"]["daemon"]["health"] = "checked"
    (machine.folder / "engine.json").write_text(json.dumps(known))
    assert re.search("^daemon +healthy", machine.done("status"), re.M)


def test_a_build_that_fails_ends_it_before_anything_is_started(machine):
    machine.breaks("build")
    done = machine.run("up")
    assert done.returncode != 0
    assert "no space left" in done.stderr
    assert machine.started() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"HEALTH_PREDICT_DEPLOYMENT": "local"}, "'local': here it is host or kubernetes"),
        ({"HEALTH_PREDICT_STORE": "/data/store"}, "no container sees that folder"),
        ({"HEALTH_PREDICT_VAR": "var"}, "give the whole path"),
        ({"HEALTH_PREDICT_COMPUTE_LOGS": "s3"}, "needs HEALTH_PREDICT_COMPUTE_LOGS_BUCKET"),
        ({"HEALTH_PREDICT_TOKENS": "0" * 64}, "lacks the sha256 of HEALTH_PREDICT_SERVICE_TOKEN"),
        ({"DAGSTER_PORT": "http"}, "DAGSTER_PORT is 'http': it takes a port"),
        ({"COMPOSE_PROFILES": "public"}, "the profile public needs PUBLIC_DOMAIN"),
        (
            {
                "COMPOSE_PROFILES": "notebook,public",
                "PUBLIC_DOMAIN": "a.test",
                "PUBLIC_TLS": "internal",
                "PUBLIC_USER": "somebody",
                "PUBLIC_HASH": "plain",
            },
            "PUBLIC_HASH is no bcrypt hash",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_started(machine, given, said):
    done = machine.run("up", **given)
    assert done.returncode != 0
    assert said in done.stderr
    assert machine.started() == []
    assert not machine.settings.exists()


def test_a_port_that_somebody_else_has_is_named_with_its_variable(machine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = machine.run("up", MLFLOW_PORT=port)
        assert done.returncode != 0
        assert f"port {port} is taken" in done.stderr
        assert "MLFLOW_PORT" in done.stderr


def test_its_own_port_is_not_somebody_elses(machine):
    machine.done("up")
    with socket.create_server(("127.0.0.1", int(PORTS["MLFLOW_PORT"]))):
        machine.done("up")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_settings_that_others_may_read_are_refused(machine, mode):
    machine.write_settings("POSTGRES_PASSWORD=x", mode=mode)
    done = machine.run("up")
    assert done.returncode != 0
    assert f"chmod 600 {machine.settings}" in done.stderr


def test_a_broken_line_is_named_by_its_number_alone(machine):
    machine.write_settings("# fine", "POSTGRES_PASSWORD: hidden")
    done = machine.run("up")
    assert done.returncode != 0
    assert "line 2 of" in done.stderr
    assert "hidden" not in done.stderr


def test_the_state_folder_is_made_for_the_containers_user(machine):
    state = machine.folder / "disk" / "state"
    machine.done("up", HEALTH_PREDICT_VAR=str(state))
    assert state.is_dir()
    if os.getuid() == 0:
        assert (state.stat().st_uid, state.stat().st_gid) == (10001, 10001)


def test_profiles_are_started_last_and_the_notebook_gets_a_token(machine):
    given = {
        "COMPOSE_PROFILES": "public,notebook",
        "PUBLIC_DOMAIN": "hospital.test",
        "PUBLIC_TLS": "internal",
        "PUBLIC_USER": "somebody",
        "PUBLIC_HASH": "$2y$05$" + "a" * 53,
        "NOTEBOOK_PORT": str(free_port()),
    }
    said = machine.done("up", **given)
    assert machine.started() == [*SERVICES, "notebook", "proxy"]
    assert "JUPYTER_TOKEN" in machine.kept()
    targets = [a[a.index("--target") + 1] for _, a, _ in machine.calls if a[0] == "build"]
    assert targets == ["platform", "notebook"]
    assert "https://dagster.hospital.test" in said


def test_an_unknown_argument_is_refused(machine):
    for script in ("up", "down", "status"):
        done = machine.run(script, "--faster")
        assert done.returncode == 2
        assert "'--faster' is not known" in done.stderr
    assert machine.calls == []


# --- which engine ---


def test_without_docker_podman_is_told_its_own_way(machine):
    machine.breaks("docker")
    machine.done("up")
    words = [a for n, a, _ in machine.calls if n == "podman-compose" and "up" in a]
    for arguments in words:
        pairs = itertools.pairwise(arguments)
        files = [Path(name).name for option, name in pairs if option == "--file"]
        assert files == ["compose.yaml", "compose.podman.yaml"]
    assert machine.started() == SERVICES


@pytest.mark.parametrize("version", ["1.0.3", "0.9", "unknown"])
def test_a_podman_compose_that_shares_no_network_is_refused(machine, version):
    machine.breaks("docker")
    done = machine.run("up", PODMAN_COMPOSE_IS=version)
    assert done.returncode != 0
    assert "install 1.1 or newer" in done.stderr


def test_without_any_engine_it_is_said_what_to_install(machine):
    machine.breaks("docker")
    machine.breaks("podman")
    done = machine.run("status")
    assert done.returncode != 0
    assert "install Docker" in done.stderr


def test_a_daemon_that_sends_logs_elsewhere_is_left_to_it(machine):
    machine.done("up")
    assert "compose.daemon-logs.yaml" not in str(machine.calls)
    machine.breaks("logging")
    machine.forget_calls()
    machine.done("up")
    ups = [arguments for _, arguments, _ in machine.calls if "--detach" in arguments]
    assert all("compose.daemon-logs.yaml" in str(arguments) for arguments in ups)


# --- a cluster ---


def kubernetes(machine: Machine) -> dict[str, str]:
    return {
        "HEALTH_PREDICT_DEPLOYMENT": "kubernetes",
        "HEALTH_PREDICT_VAR": str(machine.folder / "var"),
        "KUBE_FOLDER": str(machine.folder / "kube"),
    }


def test_with_a_cluster_minikube_comes_first_and_no_service_runs_here(machine):
    said = machine.done("up", **kubernetes(machine))
    steps = [(name, arguments) for name, arguments, _ in machine.calls]
    started = next(i for i, (n, a) in enumerate(steps) if (n, a[0]) == ("minikube", "start"))
    assert started < next(i for i, (_, a) in enumerate(steps) if "--detach" in a)
    assert machine.started() == [name for name in SERVICES if name != "supervisor"]
    assert re.search(r"^minikube +healthy", said, re.M)
    ups = [arguments for _, arguments, _ in machine.calls if "--detach" in arguments]
    assert all("compose.kubernetes.yaml" in str(arguments) for arguments in ups)
    targets = [a[a.index("--target") + 1] for _, a, _ in machine.calls if a[0] == "build"]
    assert targets == ["platform", "builder"]


def test_after_a_reboot_minikube_and_its_pull_secret_are_back(machine):
    given = {
        **kubernetes(machine),
        "HEALTH_PREDICT_REGISTRY": "registry.example:5000",
        "HEALTH_PREDICT_REGISTRY_USERNAME": "puller",
        "HEALTH_PREDICT_REGISTRY_PASSWORD": "secret",
    }
    said = machine.done("up", **given)
    assert "Pull secret for registry.example:5000 is in place." in said
    (machine.folder / "minikube").unlink()
    assert machine.run("status", **given).returncode != 0
    said = machine.done("up", **given)
    assert "Pull secret for registry.example:5000 is in place." in said
    machine.done("status", **given)


def test_containers_reach_the_cluster_as_the_loop_is_known_there(machine):
    machine.done("up", **kubernetes(machine))
    config = machine.folder / "kube" / "config"
    assert "current-context: health-predict" in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    [view] = [a for n, a, _ in machine.calls if n == "kubectl" and "view" in a]
    assert {"--raw", "--minify", "--flatten", "--context", "health-predict"} <= set(view)
    seen = next(e for _, a, e in reversed(machine.calls) if "--detach" in a)
    token = (machine.folder / "var" / "minikube" / "token").read_text()
    assert seen["HEALTH_PREDICT_SERVICE_TOKEN"] == token
    assert seen["HEALTH_PREDICT_KUBE_CONTEXT"] == "health-predict"
    assert "HEALTH_PREDICT_SERVICE_TOKEN" not in machine.kept()


def test_a_cluster_elsewhere_needs_no_minikube(machine):
    machine.done("up", **kubernetes(machine), HEALTH_PREDICT_OVERLAY="eks")
    assert "minikube" not in [name for name, _, _ in machine.calls]


def test_down_stops_minikube_too(machine):
    machine.done("up", **kubernetes(machine))
    machine.done("down", **kubernetes(machine))
    assert not (machine.folder / "minikube").exists()
    assert machine.calls[-1][:2] == ("minikube", ["stop", "--profile", "health-predict"])


# --- down and status ---


def test_down_leaves_what_lasts_and_up_brings_all_of_it_back(machine):
    machine.done("up")
    volumes, secrets = machine.engine["volumes"], machine.kept()
    machine.done("down")
    assert machine.engine["services"] == {}
    assert machine.engine["volumes"] == volumes
    machine.done("up")
    assert machine.kept() == secrets
    machine.done("status")


def test_down_takes_volumes_when_it_is_told_to(machine):
    machine.done("up")
    said = machine.done("down", "--volumes")
    assert machine.engine["services"] == {}
    assert machine.engine["volumes"] == []
    assert machine.engine["networks"] == []
    assert "are gone" in said
    assert machine.settings.exists()


def test_down_stops_what_other_settings_had_started(machine):
    machine.done("up")
    machine.done("down")
    [down] = [e for _, a, e in machine.calls if "down" in a]
    assert down["COMPOSE_PROFILES"] == "public,notebook"


@pytest.mark.parametrize("arguments", [(), ("--volumes",)])
def test_down_may_be_run_where_there_is_nothing(machine, arguments):
    for _ in range(2):
        machine.done("down", *arguments)
    assert [a for _, a, _ in machine.calls if "down" in a] == []


def test_down_says_what_it_could_not_remove(machine):
    machine.done("up")
    machine.breaks("down")
    done = machine.run("down", "--volumes")
    assert done.returncode != 0
    assert "still there: containers id-stuck" in done.stderr


def test_status_is_well_only_if_all_is(machine):
    done = machine.run("status")
    assert done.returncode == 1
    assert "postgres: iac/host/up starts it" in done.stdout
    machine.done("up")
    machine.done("status")
    known = machine.engine
    known["services"]["web"].update(status="exited", exit=137)
    known["services"]["code"]["health"] = "unhealthy"
    (machine.folder / "engine.json").write_text(json.dumps(known))
    done = machine.run("status")
    assert done.returncode == 1
    assert re.search(r"^web +exited \(137\)", done.stdout, re.M)
    assert re.search(r"^code +unhealthy", done.stdout, re.M)
    assert "docker logs --tail 50 id-web" in done.stdout


def test_status_changes_nothing(machine):
    machine.done("up")
    before = machine.engine
    machine.forget_calls()
    machine.done("status")
    assert machine.engine == before
    assert {arguments[0] for _, arguments, _ in machine.calls} <= {
        "info",
        "compose",
        "ps",
        "inspect",
    }


# --- backup and restore, with a real PostgreSQL ---


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with superusers_server() as made:
        yield made


@pytest.fixture
def kept(machine: Machine, server: Postgres) -> Machine:
    """A machine that runs, with something in both databases and in its files."""
    for name in ("dagster", "mlflow"):
        drop(server, name)
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    path = f"{machine.folder / 'bin'}:{binaries[-1]}:{os.environ['PATH']}" if binaries else None
    given = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGPASSWORD": SUPERUSER_PASSWORD,
        "BACKUPS": str(machine.folder / "backups"),
        **({"PATH": path} if path else {}),
    }
    made = Machine(machine.folder, given)
    made.done("up")
    fill(server, made)
    return made


def drop(server: Postgres, name: str) -> None:
    connection = server._connect("postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    connection.close()


def password(machine: Machine, variable: str) -> str:
    found = re.search(r"://\w+:(\w+)@", machine.kept()[variable])
    assert found is not None
    return found[1]


OWNERS = {"dagster": "HEALTH_PREDICT_POSTGRES", "mlflow": "MLFLOW_BACKEND_STORE_URI"}


def connected(server: Postgres, machine: Machine, database: str) -> Any:
    """Connects as the database's own role, with the password that is in force."""
    return psycopg2.connect(
        host="127.0.0.1",
        port=server.port,
        user=database,
        password=password(machine, OWNERS[database]),
        dbname=database,
    )


def fill(server: Postgres, machine: Machine) -> None:
    for database in OWNERS:
        with connected(server, machine, database) as connection, connection.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE kept (id serial PRIMARY KEY, text text, bytes bytea);"
                "CREATE INDEX by_text ON kept (text);"
                "INSERT INTO kept (text, bytes) SELECT 'zeile ä ' || i, decode(md5(i::text), 'hex')"
                " FROM generate_series(1, 500) AS i;"
                "CREATE VIEW few AS SELECT * FROM kept WHERE id < 10"
            )
    for name, content in {
        "state/store/initial.parquet": os.urandom(200_000),
        "state/store/ledger.jsonl": b"{}\n",
        "state/bentoml/a file/with space": b"x",
        "artifacts/1/model.skops": b"model",
        "state/matplotlib/cache.json": b"made anew",
        "state/half.partial": b"half",
    }.items():
        path = machine.folder / "volumes" / f"health-predict_{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def contents(server: Postgres, machine: Machine) -> dict[str, Any]:
    """Everything there is: rows of both databases with their owners, and files by digest."""
    found: dict[str, Any] = {}
    for database in OWNERS:
        with connected(server, machine, database) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT * FROM kept ORDER BY id")
            found[database] = [(i, text, bytes(blob)) for i, text, blob in cursor.fetchall()]
            cursor.execute("SELECT last_value FROM kept_id_seq")
            [(found[f"{database} goes on at"],)] = cursor.fetchall()
            cursor.execute(
                "SELECT relname, relkind, pg_get_userbyid(relowner) FROM pg_class "
                "WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
            )
            found[f"{database} has"] = cursor.fetchall()
    volumes = machine.folder / "volumes"
    found["files"] = {
        str(path.relative_to(volumes)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(volumes.rglob("*"))
        if path.is_file() and "matplotlib" not in path.parts and path.suffix != ".partial"
    }
    return found


def backups(machine: Machine) -> list[Path]:
    return sorted((machine.folder / "backups").iterdir())


def change_everything(server: Postgres, machine: Machine) -> None:
    for database in OWNERS:
        with connected(server, machine, database) as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM kept WHERE id > 3; CREATE TABLE later (x int)")
    state = machine.folder / "volumes" / "health-predict_state"
    (state / "store" / "ledger.jsonl").write_text("changed")
    (state / "store" / "later.json").write_text("{}")
    shutil.rmtree(state / "bentoml")


def test_what_is_restored_is_what_was_backed_up(kept, server):
    before = contents(server, kept)
    kept.done("backup")
    [folder] = backups(kept)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z", folder.name)
    change_everything(server, kept)
    assert contents(server, kept) != before
    kept.done("down")
    kept.done("restore", folder, "--force")
    assert contents(server, kept) == before
    kept.done("up")
    assert contents(server, kept) == before


def test_a_backup_is_restored_on_a_machine_with_other_secrets(kept, server):
    before = contents(server, kept)
    kept.done("backup")
    [folder] = backups(kept)
    secrets = kept.kept()
    kept.done("down", "--volumes")
    for name in OWNERS:
        drop(server, name)
    kept.settings.unlink()
    kept.done("restore", folder)
    assert not {*secrets.values()} & {*kept.kept().values()}
    assert contents(server, kept) == before


def test_no_secret_is_in_a_backup_and_it_is_for_its_owner_alone(kept):
    kept.done("backup")
    [folder] = backups(kept)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {
        *("dagster.dump", "mlflow.dump", "state.tar.gz", "artifacts.tar.gz"),
        *("ABOUT", "SHA256SUMS"),
    }
    secrets = [password(kept, variable) for variable in OWNERS.values()]
    secrets.append(kept.kept()["HEALTH_PREDICT_SERVICE_TOKEN"])
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not [secret for secret in secrets if secret.encode() in path.read_bytes()]


def test_a_backup_that_fails_half_way_leaves_nothing(kept):
    (kept.folder / "bin" / "tar").write_text("#!/bin/sh\necho broken pipe >&2\nexit 2\n")
    (kept.folder / "bin" / "tar").chmod(0o755)
    done = kept.run("backup")
    assert done.returncode != 0
    assert "the files of state cannot be read: tar ended with exit code 2" in done.stderr
    assert backups(kept) == []


def test_a_file_that_grows_meanwhile_is_no_failure(kept):
    real = shutil.which("tar")
    (kept.folder / "bin" / "tar").write_text(f'#!/bin/sh\n{real} "$@"\nexit 1\n')
    (kept.folder / "bin" / "tar").chmod(0o755)
    kept.done("backup")


def test_without_its_database_nothing_is_backed_up(kept):
    kept.done("down")
    done = kept.run("backup")
    assert done.returncode != 0
    assert "the database does not run: iac/host/up starts it" in done.stderr
    assert not (kept.folder / "backups").exists()


def test_what_is_in_a_bucket_is_left_to_the_bucket(kept):
    said = kept.done("backup", HEALTH_PREDICT_STORE="s3://hospital/state")
    [folder] = backups(kept)
    assert "The store is s3://hospital/state: its bucket's versions keep it." in said
    assert "store: s3://hospital/state" in (folder / "ABOUT").read_text()


@pytest.mark.parametrize("damage", ["changed", "lacking", "unlisted", "unknown"])
def test_a_damaged_backup_is_refused_and_nothing_is_touched(kept, server, damage):
    kept.done("backup")
    [folder] = backups(kept)
    kept.done("down")
    if damage == "changed":
        with (folder / "dagster.dump").open("r+b") as file:
            file.seek(100)
            file.write(b"\0\1\2")
    elif damage == "lacking":
        (folder / "artifacts.tar.gz").unlink()
    elif damage == "unlisted":
        sums = (folder / "SHA256SUMS").read_text().splitlines()
        (folder / "SHA256SUMS").write_text(
            "".join(f"{line}\n" for line in sums if "mlflow.dump" not in line)
        )
    else:
        (folder / "SHA256SUMS").unlink()
    before = contents(server, kept)
    kept.forget_calls()
    done = kept.run("restore", folder, "--force")
    assert done.returncode != 0
    assert re.search("not as it was written|lacks|has no checksum|is no backup", done.stderr)
    assert contents(server, kept) == before
    assert kept.calls == []


def test_nothing_is_restored_while_services_run(kept, server):
    kept.done("backup")
    [folder] = backups(kept)
    before = contents(server, kept)
    done = kept.run("restore", folder, "--force")
    assert done.returncode != 0
    assert "mlflow node code daemon web supervisor still run" in done.stderr
    assert contents(server, kept) == before


def test_nothing_is_replaced_unless_that_is_meant(kept, server):
    kept.done("backup")
    [folder] = backups(kept)
    kept.done("down")
    before = contents(server, kept)
    done = kept.run("restore", folder)
    assert done.returncode != 0
    for what in ("database dagster", "database mlflow", "files of state", "files of artifacts"):
        assert what in done.stderr
    assert contents(server, kept) == before


def test_a_restore_that_fails_leaves_a_database_as_it_was_or_empty_and_is_begun_again(kept, server):
    before = contents(server, kept)
    kept.done("backup")
    [folder] = backups(kept)
    kept.done("down")
    real = shutil.which("pg_restore", path=kept.environment.get("PATH"))
    broken = kept.folder / "bin" / "pg_restore"
    broken.write_text(f'#!/bin/sh\nhead -c 4000 | {real} "$@"\n')
    broken.chmod(0o755)
    assert kept.run("restore", folder, "--force").returncode != 0
    connection = server._connect("dagster")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert cursor.fetchall() == [(0,)]
    connection.close()
    broken.unlink()
    kept.done("restore", folder, "--force")
    assert contents(server, kept) == before


def test_minikubes_token_in_the_state_folder_is_left_alone(kept, server):
    state = kept.folder / "volumes" / "health-predict_state"
    (state / "minikube").mkdir()
    (state / "minikube" / "token").write_text("its own")
    kept.done("backup")
    [folder] = backups(kept)
    listed = subprocess.run(
        ["tar", "--list", "--file", folder / "state.tar.gz"], capture_output=True, text=True
    )
    assert "minikube" not in listed.stdout
    kept.done("down")
    kept.done("restore", folder, "--force")
    assert (state / "minikube" / "token").read_text() == "its own"


@pytest.mark.parametrize("arguments", [(), ("--forced",), ("one", "--volumes")])
def test_a_restore_that_is_told_something_else_is_refused(machine, arguments):
    done = machine.run("restore", *arguments)
    assert done.returncode == 2
    assert machine.calls == []


# --- all of them ---


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not on PATH")
    done = subprocess.run(
        [shellcheck, "--external-sources", HOST / script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
