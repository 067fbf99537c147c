"""`iac/host`: what its compose files, images and settings say, and the small programs in the image.

Nothing is started by an engine here; that is in `test_host_containers`. The programs run for real,
with a real PostgreSQL where they ask for one.
"""

import ast
import concurrent.futures
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PathDistribution
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import psycopg2
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from health_predict import settings_table
from health_predict.settings import ROOT, Settings
from health_predict_tests.host_server import SUPERUSER_PASSWORD, superusers_server
from health_predict_tests.postgres import Postgres

HOST = ROOT / "iac" / "host"
COMPOSE = HOST / "compose.yaml"
ONE_SHOT = "migrate"
PUBLIC = "proxy"
PROFILES = {"proxy": ["public"], "notebook": ["notebook"]}
SHARING = {"code", "daemon", "web", "supervisor"}
"""Services on the network of `node`."""

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|HASH|POSTGRES$|BACKEND_STORE_URI|SMTP|WEBHOOK")
"""Names of variables that hold a secret."""
NOT_SECRET = {"HEALTH_PREDICT_TOKENS"}  # digests


class _Loader(yaml.SafeLoader):
    """Reads compose's own tag `!reset` as its value."""


_Loader.add_constructor("!reset", lambda loader, node: None)


def compose(path: Path = COMPOSE) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(), _Loader)
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


every_service = pytest.mark.parametrize("name", services())


def module(path: Path) -> ModuleType:
    """Returns a program as a module."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Returns a value with `${NAME}` and `${NAME:-default}` filled in."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: environment.get(m[1]) or m[2] or "", text)


def variables(path: Path = COMPOSE) -> set[str]:
    """Returns the names that a compose file takes from its environment."""
    found = set(re.findall(r"\$\{(\w+)", path.read_text()))
    for service in compose(path)["services"].values():
        found |= {key for key, value in (service.get("environment") or {}).items() if value is None}
    return found


# --- the compose file ---


def test_a_conservative_form_is_used():
    assert set(compose()) == {
        *("services", "volumes", "x-service", "x-platform", "x-dagster", "x-aws", "x-settings")
    }


@every_service
def test_a_port_is_of_this_machine_alone_but_for_the_proxy(name):
    ports = services()[name].get("ports", [])
    if name == PUBLIC:
        assert ports == ["80:80", "443:443"]
    else:
        assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_database_and_the_code_server_have_no_port():
    assert all("ports" not in services()[name] for name in ("postgres", "code", "daemon"))
    command = services()["code"]["command"]
    assert command[command.index("--host") + 1] == "127.0.0.1"


@every_service
def test_what_is_not_always_wanted_is_in_a_profile(name):
    assert services()[name].get("profiles", []) == PROFILES.get(name, [])


@every_service
def test_an_image_is_built_here_or_named_by_its_digest(name):
    image = interpolated(services()[name]["image"], {})
    assert image.startswith("localhost/health-predict:") or re.search(
        r"@sha256:[0-9a-f]{64}$", image
    )


@every_service
def test_no_secret_is_in_the_file(name):
    for key, value in (services()[name].get("environment") or {}).items():
        if SECRET.search(key) and key not in NOT_SECRET:
            assert value is None, key
        assert "://" not in (value or "") or "@" not in value


@every_service
def test_a_service_says_by_itself_whether_it_is_healthy(name):
    check = services()[name]["healthcheck"]
    if name == ONE_SHOT:
        assert check == {"disable": True}
        return
    kind, command = check["test"]
    assert kind == "CMD-SHELL"
    assert command
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@every_service
def test_a_service_waits_for_what_it_needs_to_be_healthy(name):
    for needed, how in services()[name].get("depends_on", {}).items():
        assert needed in services()
        ended = "service_completed_successfully"
        assert how == {"condition": ended if needed == ONE_SHOT else "service_healthy"}


def test_nothing_that_uses_a_database_starts_before_its_tables_are_there():
    def before(name: str) -> set[str]:
        direct = set(services()[name].get("depends_on", {}))
        return direct.union(*(before(needed) for needed in direct)) if direct else direct

    asks = [
        name
        for name, service in services().items()
        if {"HEALTH_PREDICT_POSTGRES", "MLFLOW_BACKEND_STORE_URI"}
        & set(service.get("environment") or {})
    ]
    assert {"mlflow", "code", "daemon", "web", "notebook"} <= set(asks)
    for name in set(asks) - {"postgres", ONE_SHOT}:
        assert {"postgres", ONE_SHOT} <= before(name), name


@every_service
def test_a_service_comes_back_is_bounded_and_rotates_its_log(name):
    service = services()[name]
    assert service["restart"] == ("no" if name == ONE_SHOT else "unless-stopped")
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert service["logging"]["driver"] == "json-file"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


@every_service
def test_a_service_has_no_privileges(name):
    service = services()[name]
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == PUBLIC else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only", False) is (name != "postgres")
    assert "privileged" not in service
    assert not [volume for volume in service.get("volumes", []) if "docker.sock" in volume]


def test_dagsters_processes_share_what_they_need_to_find_each_other():
    sharing = {n for n, s in services().items() if s.get("network_mode") == "service:node"}
    assert sharing == SHARING
    seen = {n for n, s in services().items() if s.get("pid") == "service:node"}
    # Who launches runs and who asks whether they live.
    assert seen == {"code", "daemon"}
    assert services()["node"]["hostname"] == "node"


def test_podman_is_told_the_same_in_its_own_words():
    told = compose(HOST / "compose.podman.yaml")["services"]
    assert set(told) == {"code", "daemon"}
    for service in told.values():
        assert service == {
            "pid": "container:${COMPOSE_PROJECT_NAME:-host}_node_1",
            "hostname": services()["node"]["hostname"],
        }


def test_leaving_logs_to_the_daemon_leaves_out_no_service():
    told = compose(HOST / "compose.daemon-logs.yaml")["services"]
    assert set(told) == set(services())
    assert all(service == {"logging": None} for service in told.values())


def test_what_is_published_leads_to_the_service():
    command = services()["node"]["command"]
    listen, target = command[-2:]
    assert f"127.0.0.1:${{SERVICE_PORT:-3500}}:{listen}" in services()["node"]["ports"]
    assert services()["supervisor"]["command"][-2] == target
    assert f"node:{listen}" in (HOST / "Caddyfile").read_text()
    assert int(target) == Settings.model_fields["port"].default


def test_the_code_server_is_found_where_it_listens():
    [location] = yaml.safe_load((HOST / "workspace.yaml").read_text())["load_from"]
    command = services()["code"]["command"]
    port = command[command.index("--port") + 1]
    assert location["grpc_server"] == {
        "host": "localhost",
        "port": int(port),
        "location_name": "health_predict",
    }
    assert services()["code"]["healthcheck"]["test"][1].endswith(f"code {port}")
    for name in ("daemon", "web"):
        assert services()[name]["command"][-1] == "iac/host/workspace.yaml"


def test_every_setting_reaches_the_code_server():
    given = set(services()["code"]["environment"])
    wanted = {f"HEALTH_PREDICT_{name.upper()}" for name in Settings.model_fields}
    others = {variable.name for variable in settings_table.LIBRARIES}
    assert (wanted | others) - given == {
        "HEALTH_PREDICT_VAR",  # the image says it: on the machine it is another folder
        "HEALTH_PREDICT_PORT",  # fixed inside; outside it is SERVICE_PORT
        "KUBECONFIG",  # a file of the machine: compose.kubernetes.yaml mounts one
        "REGISTRY_AUTH_FILE",  # as well; credentials go by HEALTH_PREDICT_REGISTRY_PASSWORD
        "RAY_AUTH_TOKEN_PATH",  # as well; the token goes by RAY_AUTH_TOKEN
    }


def test_every_option_of_the_service_reaches_its_supervisor():
    given = set(services()["supervisor"]["environment"])
    wanted = {variable.name for variable in settings_table.SERVICE}
    assert wanted - given == {
        "HEALTH_PREDICT_AUTH",  # on a host the service always asks for a token
        "HEALTH_PREDICT_IMAGE_DIGEST",  # there is no image
    }


def test_every_variable_is_known():
    known = settings_table.known() | set(example())
    aws = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"}
    project = {"COMPOSE_PROJECT_NAME", "MINIKUBE_PROFILE", "KUBE_FOLDER"}
    images = {"NOTEBOOK_IMAGE", "BUILDER_IMAGE", "PROXY_IMAGE"}
    for path in HOST.glob("compose*.yaml"):
        assert variables(path) - known - aws - project - images == set(), path.name


def example() -> dict[str, str]:
    lines = (HOST / "env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_example_holds_no_secret_and_names_nothing_that_is_not_read():
    read = set().union(*(variables(path) for path in HOST.glob("compose*.yaml")))
    for script in ("common.sh", "up", "down", "backup", "restore"):
        read |= set(re.findall(r"\b[A-Z][A-Z0-9_]{3,}\b", (HOST / script).read_text()))
    assert set(example()) - read == set()
    assert [key for key, value in example().items() if value and SECRET.search(key)] == []


def test_the_scripts_hide_every_variable_that_holds_a_secret():
    listed = re.search(r"readonly secrets=\((.*?)\)", (HOST / "common.sh").read_text(), re.DOTALL)
    assert listed is not None
    known = set().union(*(variables(path) for path in HOST.glob("compose*.yaml")))
    # An access key's id is no secret, a registry's user neither.
    assert {n for n in known if SECRET.search(n)} - NOT_SECRET == set(listed[1].split())


@pytest.mark.parametrize(
    ("files", "environment"),
    [
        ((), {}),
        ((), {"COMPOSE_PROFILES": "public,notebook"}),
        (("compose.kubernetes.yaml",), {"HEALTH_PREDICT_DEPLOYMENT": "kubernetes"}),
    ],
    ids=["host", "profiles", "kubernetes"],
)
def test_docker_compose_takes_it(files, environment):
    program = shutil.which("docker-compose")
    if not program:
        pytest.skip("docker-compose is not installed: run .ci/container-tools")
    given = [word for name in ("compose.yaml", *files) for word in ("--file", str(HOST / name))]
    done = subprocess.run(
        [program, *given, "config", "--quiet"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_rolling_out_to_a_cluster_costs_no_more_privileges_than_it_says():
    told = compose(HOST / "compose.kubernetes.yaml")["services"]
    assert set(told) == {"node", "code"}
    assert told["code"]["cap_add"] == ["SETGID", "SETUID", "SYS_CHROOT"]
    assert "user" not in told["code"]
    assert not [volume for volume in told["code"]["volumes"] if "sock" in volume]


# --- Dagster's instance ---


def instance(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def test_the_hosts_instance_is_the_local_one_with_a_database():
    local, host = instance(ROOT / "dagster.yaml"), instance(HOST / "dagster.yaml")
    assert local.pop("storage") == {"sqlite": {"base_dir": "var/dagster/storage"}}
    url = {"env": "HEALTH_PREDICT_POSTGRES"}
    assert host.pop("storage") == {"postgres": {"postgres_url": url}}
    assert host == local


def test_a_home_has_its_logs_in_the_state_folder_or_in_a_bucket_and_all_else_alike():
    made = module(HOST / "homes.py").homes(HOST, "/var/lib/health-predict")
    folder, s3 = made["folder"], made["s3"]
    base = folder["compute_logs"]["config"]["base_dir"]
    assert base == "/var/lib/health-predict/dagster/compute_logs"
    assert s3["compute_logs"]["class"] == "S3ComputeLogManager"
    assert "var/dagster" not in json.dumps(s3).replace("/var/lib/health-predict/dagster", "")
    folder.pop("compute_logs"), s3.pop("compute_logs")
    assert folder == s3


def test_what_a_run_prints_reaches_the_bucket(tmp_path, s3_server, monkeypatch):
    import boto3
    import dagster as dg
    from dagster._core.storage.compute_log_manager import ComputeIOType

    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "HEALTH_PREDICT_COMPUTE_LOGS_BUCKET": "compute",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="compute")
    told = module(HOST / "homes.py").homes(HOST, str(tmp_path))["s3"]
    told["compute_logs"]["config"]["local_dir"] = str(tmp_path / "logs")
    kept = {"compute_logs": told["compute_logs"]}
    with dg.instance_for_test(overrides=kept) as instance:
        manager = instance.compute_log_manager
        key = ["run", "compute_logs", "step"]
        with manager.open_log_stream(key, ComputeIOType.STDERR) as stream:
            stream.write("said by a run")
        found = {
            each["Key"]: client.get_object(Bucket="compute", Key=each["Key"])["Body"].read()
            for each in client.list_objects_v2(Bucket="compute")["Contents"]
        }
    assert [key for key, content in found.items() if content == b"said by a run"] == [
        "compute-logs/storage/run/compute_logs/step.err"
    ]


# --- the image ---


def dockerfile() -> str:
    return (HOST / "Dockerfile").read_text()


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM (\S+) AS (\S+)$", dockerfile(), flags=re.MULTILINE)
    return {parts[i + 1]: parts[i + 2] for i in range(1, len(parts), 3)}


def test_the_base_is_named_by_its_digest():
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11\S*@sha256:[0-9a-f]{64}$", dockerfile(), re.M)
    assert set(re.findall(r"^FROM (\S+)", dockerfile(), re.M)) <= {"${BASE_IMAGE}", *stages()}


def test_packages_come_by_their_hashes_from_wherever_pip_is_told():
    [install] = re.findall(r'^ENV INSTALL="(.*)"$', dockerfile(), re.M)
    assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(install.split())
    assert "index" not in install
    assert "://" not in dockerfile().replace("file://", "")
    for name in ("requirements.lock", "iac/host/notebook.lock"):
        assert "--index-url" not in (ROOT / name).read_text()


@pytest.mark.parametrize("target", ["platform", "builder", "notebook"])
def test_what_runs_is_not_root(target):
    users = re.findall(r"^USER (\S+)$", stages()[target], re.M)
    assert users[-1] == "10001:10001"


def test_only_who_builds_images_installs_debian_packages():
    assert [name for name, steps in stages().items() if "apt-get" in steps] == ["builder"]
    assert "gcc" not in dockerfile()


def test_everything_the_image_is_built_of_is_there_and_let_through():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[next(i for i, line in enumerate(ignore) if not line.startswith("#"))] == "*"
    assert "**/.env" in ignore
    joined = dockerfile().replace("\\\n", " ")
    for words in re.findall(r"^COPY (?!--from)(.*)$", joined, re.M):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == path or source.startswith(f"{path}/") for path in allowed), source
    assert not {"var", ".venv", ".git", "docs"} & allowed


def test_the_image_is_called_after_all_that_is_copied_into_it():
    script = (HOST / "common.sh").read_text().replace("\\\n", " ")
    [words] = re.findall(r"^ *find (Makefile .*?) -type f", script, re.M)
    named = words.split()
    joined = dockerfile().replace("\\\n", " ")
    for words in re.findall(r"^COPY (?!--from)(.*)$", joined, re.M):
        for source in words.split()[:-1]:
            assert any(source == path or source.startswith(f"{path}/") for path in named), source


def test_the_image_says_nothing_to_anybody():
    from health_predict.settings import SILENCED

    told = stages()["platform"]
    told_off = {name: value for name, value in SILENCED.items() if f"{name}={value}" in told}
    assert {"DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK"} <= set(told_off)


class _Told(PathDistribution):
    """A distribution that is what it was told to be."""

    def __init__(self, *requires: str) -> None:
        self._requires = requires

    @property
    def requires(self) -> list[str]:
        return list(self._requires)


def test_of_the_lock_what_the_platform_asks_for_is_kept():
    trim = module(HOST / "trim.py")
    project = {
        "dependencies": ["a[more]>=1", "never; sys_platform == 'nowhere'"],
        "optional-dependencies": {"platform": ["B_b"], "dev": ["tool"]},
    }
    installed = {
        "a": _Told("c", "d; extra == 'more'", "e; extra == 'less'"),
        "b-b": _Told("a[less]; python_version > '3'"),
        **{name: _Told() for name in ("c", "d", "e", "tool", "f")},
    }
    assert trim.wanted(project, installed) == {"a", "b-b", "c", "d", "e"}
    del installed["d"]
    with pytest.raises(SystemExit, match="d is needed and not in"):
        trim.wanted(project, installed)


def test_of_the_real_lock_the_tools_of_development_go():
    from importlib.metadata import distributions

    trim = module(HOST / "trim.py")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {trim.canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    kept = trim.wanted(project, installed)
    assert {"dagster", "dagster-postgres", "psycopg2-binary", "mlflow", "ray", "bentoml"} <= kept
    assert not {"pytest", "ruff", "mypy", "moto", "selenium", "pip", "jupytext"} & kept


def test_a_distribution_is_removed_with_its_folders_and_nothing_else(tmp_path):
    trim = module(HOST / "trim.py")
    root = tmp_path / "venv"
    packages = root / "lib"
    for name in (
        "gone/deep/x.py",
        "shared/gone.py",
        "shared/stays.py",
        "gone-1.dist-info/METADATA",
    ):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text("Metadata-Version: 2.1\nName: gone\nVersion: 1\n")
    (tmp_path / "outside").touch()
    listed = "gone/deep/x.py,,\nshared/gone.py,,\ngone-1.dist-info/METADATA,,\n../../outside,,\n"
    (packages / "gone-1.dist-info" / "RECORD").write_text(listed + "gone-1.dist-info/RECORD,,\n")
    trim.remove(PathDistribution(packages / "gone-1.dist-info"), root)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"venv/lib/shared/stays.py", "outside"}
    assert not (packages / "gone").exists()


def test_byte_code_is_made_of_what_the_makefile_lists(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "image"))
    compiling = module(HOST / "compile.py")
    listed = compiling.used((ROOT / "Makefile").read_text())
    assert {"dagster._grpc.server", "dagster_webserver.cli", "xgboost"} <= set(listed)
    with pytest.raises(ValueError, match="USED"):
        compiling.used("all:\n\ttrue\n")


def test_what_servers_import_late_is_there_to_be_compiled(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "image"))
    for name in module(HOST / "compile.py").SERVERS:
        assert importlib.util.find_spec(name), name


def pins(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", path.read_text(), re.M):
        found.setdefault(name, set()).add(version)
    return found


def test_the_notebooks_lock_agrees_with_the_projects():
    own, project = pins(HOST / "notebook.lock"), pins(ROOT / "requirements.lock")
    assert "jupyterlab" in own
    assert {name for name in own.keys() & project if own[name] - project[name]} == set()
    blocks = re.split(r"\n(?=[a-z0-9])", (HOST / "notebook.lock").read_text())
    assert [
        b.split()[0] for b in blocks if "==" in b.split()[0] and "--hash=sha256:" not in b
    ] == []


# --- the programs in the image ---


@contextmanager
def running(*command: object, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}")


@pytest.fixture
def forwarded() -> Iterator[tuple[int, int, "subprocess.Popen[bytes]"]]:
    """A port that leads to another one, both free, and what forwards."""
    listen, target = free_port(), free_port()
    with running(sys.executable, HOST / "forward.py", listen, target) as process:
        await_port(listen)
        yield listen, target, process


def test_a_connection_is_carried_whole_in_both_directions(forwarded):
    listen, target, _ = forwarded
    sent = os.urandom(3_000_000)

    def echo_once(server: socket.socket) -> bytes:
        client, _ = server.accept()
        with client:
            got = b"".join(
                iter(lambda: client.recv(65536), b"")
            )  # until the other side has said all
            client.sendall(got[::-1])
            return got

    with socket.create_server(("127.0.0.1", target)) as server:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            answered = pool.submit(echo_once, server)
            with socket.create_connection(("127.0.0.1", listen)) as client:
                writing = pool.submit(
                    lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR))
                )
                got = b"".join(iter(lambda: client.recv(65536), b""))
            writing.result()
            assert answered.result() == sent
        assert got == sent[::-1]


def test_while_nothing_serves_a_connection_is_closed_and_later_ones_are_carried(forwarded):
    listen, target, _ = forwarded
    with socket.create_connection(("127.0.0.1", listen), timeout=10) as client:
        assert client.recv(1) == b""
    with (
        socket.create_server(("127.0.0.1", target)) as server,
        socket.create_connection(("127.0.0.1", listen), timeout=10) as client,
    ):
        serving, _ = server.accept()
        serving.sendall(b"there")
        assert client.recv(5) == b"there"
        serving.close()
        assert client.recv(1) == b""


def test_it_ends_when_it_is_told_to_with_connections_open(forwarded):
    listen, target, process = forwarded
    with (
        socket.create_server(("127.0.0.1", target)),
        socket.create_connection(("127.0.0.1", listen)),
    ):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


@contextmanager
def web(status: int) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/here" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def healthy(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, HOST / "healthy.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_what_answers_is_healthy_and_what_fails_is_not():
    with web(200) as port:
        assert healthy("answers", port, "/here") == (0, "")
        assert healthy("answers", port, "/there")[0] == 1
        assert healthy("listens", port) == (0, "")
    with web(500) as port:
        code, said = healthy("answers", port, "/here")
        assert (code, "answers with 500" in said) == (1, True)
    code, said = healthy("answers", free_port())
    assert (code, "does not answer" in said) == (1, True)
    assert healthy("listens", free_port())[0] == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (health_pb2.HealthCheckResponse.SERVING, 0),
        (health_pb2.HealthCheckResponse.NOT_SERVING, 1),
        (None, 1),
    ],
)
def test_a_code_server_is_healthy_when_it_says_so(status, code):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if status is not None:
        servicer.set("DagsterApi", status)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert healthy("code", port)[0] == code
    finally:
        server.stop(None)


def test_the_code_servers_name_is_the_one_dagster_uses():
    from dagster._grpc import server

    path = Path(server.__file__)
    names = {
        node.args[0].value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "set"
        and len(node.args) == 2
        and isinstance(node.args[0], ast.Constant)
    }
    assert module(HOST / "healthy.py")._SERVICE in names


# --- with a real PostgreSQL ---


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with superusers_server() as made:
        yield made


def databases(server: Postgres, **urls: str) -> "subprocess.CompletedProcess[str]":
    """Runs databases.sh beside the server, as `postgres` is where the script looks for it."""
    return subprocess.run(
        ["bash", HOST / "databases.sh"],
        env={
            **os.environ,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGPASSWORD": SUPERUSER_PASSWORD,
            **urls,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def urls(suffix: str, dagster: str = "one%40%24", mlflow: str = "two") -> dict[str, str]:
    return {
        "HEALTH_PREDICT_POSTGRES": f"postgresql://dagster{suffix}:{dagster}@postgres:5432/d{suffix}",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://mlflow{suffix}:{mlflow}@postgres/m{suffix}",
    }


def connect(server: Postgres, user: str, password: str, database: str) -> Any:
    return psycopg2.connect(
        host="127.0.0.1", port=server.port, user=user, password=password, dbname=database
    )


def test_each_has_a_database_of_its_own_and_cannot_read_the_others(server):
    done = databases(server, **urls("a"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with connect(server, "dagstera", "one@$", "da") as one, one.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)")
    with connect(server, "mlflowa", "two", "ma") as other, other.cursor() as cursor:
        cursor.execute("CREATE TABLE own (x int)")
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        connect(server, "mlflowa", "two", "da")


def test_other_passwords_are_in_force_at_the_next_start_and_what_is_there_stays(server):
    assert databases(server, **urls("b")).returncode == 0
    with connect(server, "dagsterb", "one@$", "db") as one, one.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 7 AS x")
    for _ in range(2):
        assert databases(server, **urls("b", dagster="new")).returncode == 0
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        connect(server, "dagsterb", "one@$", "db")
    with connect(server, "dagsterb", "new", "db") as one, one.cursor() as cursor:
        cursor.execute("SELECT x FROM kept")
        assert cursor.fetchall() == [(7,)]


def test_a_database_elsewhere_is_left_alone_and_a_broken_address_refused(server):
    elsewhere = "postgresql://x:y@db.example.org:5432/dagster"
    done = databases(server, **{**urls("c"), "HEALTH_PREDICT_POSTGRES": elsewhere})
    assert done.returncode == 0
    with server._connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        found = {name for (name,) in cursor.fetchall()}
    assert "mc" in found
    assert not {"dagster", "dc"} & found
    broken = {**urls("c"), "HEALTH_PREDICT_POSTGRES": "postgresql://nobody@postgres/x"}
    done = databases(server, **broken)
    assert done.returncode != 0
    assert "HEALTH_PREDICT_POSTGRES is not postgresql://" in done.stderr


def migrate(tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    made = module(HOST / "homes.py").homes(HOST, str(tmp_path))["folder"]
    (home / "dagster.yaml").write_text(yaml.safe_dump(made))
    return subprocess.run(
        [sys.executable, HOST / "migrate.py"],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("HEALTH_PREDICT_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DAGSTER_HOME": str(home),
            **environment,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def tables(server: Postgres, database: str) -> set[str]:
    with server._connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name for (name,) in cursor.fetchall()}


def test_tables_of_both_are_made_once_and_a_second_time_changes_nothing(server, tmp_path):
    given = {
        "HEALTH_PREDICT_POSTGRES": server.create("migrated_dagster"),
        "MLFLOW_BACKEND_STORE_URI": server.create("migrated_mlflow").replace(
            "postgresql://", "postgresql+psycopg2://"
        ),
    }
    done = migrate(tmp_path, **given)
    assert done.returncode == 0, done.stderr
    made = tables(server, "migrated_dagster"), tables(server, "migrated_mlflow")
    assert {"runs", "event_logs", "alembic_version"} <= made[0]
    assert {"experiments", "registered_models", "alembic_version"} <= made[1]
    done = migrate(tmp_path, **given)
    assert done.returncode == 0, done.stderr
    assert (tables(server, "migrated_dagster"), tables(server, "migrated_mlflow")) == made
    assert "p%40ss" not in done.stdout + done.stderr


def test_without_an_address_nothing_is_migrated(tmp_path):
    done = migrate(tmp_path)
    assert done.returncode != 0
    assert "HEALTH_PREDICT_POSTGRES is not set" in done.stderr


# --- the proxy ---

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def caddy() -> str:
    program = shutil.which("caddy")
    if not program:
        pytest.skip("caddy is not installed: run .ci/container-tools")
    return program


@contextmanager
def proxied(caddy: str, folder: Path, dagster: int, mlflow: int, service: int) -> Iterator[int]:
    """The proxy with what it leads to on these ports; yields its port of TLS."""
    https, http_port, admin = free_port(), free_port(), free_port()
    text = (HOST / "Caddyfile").read_text()
    for before, after in {
        "basic_auth": "basicauth",  # its name before Caddy 2.8, which Debian 12 has
        "node:3000": f"127.0.0.1:{dagster}",
        "mlflow:5000": f"127.0.0.1:{mlflow}",
        "node:3501": f"127.0.0.1:{service}",
    }.items():
        assert before in text
        text = text.replace(before, after)
    options = (
        f"admin 127.0.0.1:{admin}\nhttps_port {https}\nhttp_port {http_port}\nskip_install_trust"
    )
    (folder / "Caddyfile").write_text(f"{{\n{options}\n}}\n{text}")
    environment = {
        "PUBLIC_DOMAIN": "hospital.test",
        "PUBLIC_TLS": "internal",
        "PUBLIC_USER": "somebody",
        "PUBLIC_HASH": bcrypt(),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "HOME": str(folder),
    }
    command = (caddy, "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile")
    with running(*command, **environment):
        await_port(https)
        yield https


def bcrypt() -> str:
    """Returns a hash of the password as htpasswd writes it."""
    done = subprocess.run(
        ["htpasswd", "-nbB", "-C", "5", "somebody", PASSWORD],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().split(":", 1)[1]


@contextmanager
def listening() -> Iterator[tuple[int, list[dict[str, str]]]]:
    """A server that keeps what headers it got."""
    got: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.append({key.lower(): value for key, value in self.headers.items()})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, got
    finally:
        server.shutdown()
        server.server_close()


def ask(port: int, host: str, path: str = "/", *options: str) -> tuple[int, str]:
    """Asks the proxy by a name; returns status and headers with the body."""
    done = subprocess.run(
        [
            *("curl", "--silent", "--insecure", "--include", "--max-time", "20"),
            *("--resolve", f"{host}:{port}:127.0.0.1", *options, f"https://{host}:{port}{path}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    status = re.search(r"^HTTP/\S+ (\d+)", done.stdout)
    return int(status[1]) if status else 0, done.stdout.lower()


def test_nobody_gets_in_without_the_password_and_it_goes_no_further(caddy, tmp_path):
    if not shutil.which("htpasswd"):
        pytest.skip("htpasswd is not installed: run .ci/container-tools")
    login = ("--user", f"somebody:{PASSWORD}")
    with (
        listening() as (d, dagster),
        listening() as (m, mlflow),
        listening() as (s, service),
        proxied(caddy, tmp_path, d, m, s) as port,
    ):
        for host, got in (("dagster", dagster), ("mlflow", mlflow)):
            name = f"{host}.hospital.test"
            assert ask(port, name)[0] == 401
            assert ask(port, name, "/", "--user", "somebody:wrong")[0] == 401
            assert got == []
            status, said = ask(port, name, "/", *login)
            assert status == 200
            assert "strict-transport-security" in said
            assert "authorization" not in got[-1]
        bearer = ("--header", "Authorization: Bearer its-own")
        assert ask(port, "hospital.test", "/predict", *bearer)[0] == 200
        assert service[-1]["authorization"] == "Bearer its-own"
        for path in ("/metrics", "/livez", "/readyz"):
            assert ask(port, "hospital.test", path, *bearer)[0] == 404
        assert len(service) == 1
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)


# --- the unit ---


def test_the_unit_starts_and_stops_by_the_scripts_after_the_network_and_docker():
    text = (HOST / "health-predict.service").read_text()
    for verb, script in (("ExecStart", "up"), ("ExecStop", "down")):
        [path] = re.findall(rf"^{verb}=(\S+)$", text, re.M)
        assert path == f"/opt/health-predict/iac/host/{script}"
        assert os.access(HOST / script, os.X_OK)
    assert "After=network-online.target docker.service" in text
    assert {"Type=oneshot", "RemainAfterExit=yes", "WantedBy=multi-user.target"} <= set(
        text.splitlines()
    )


def test_systemd_finds_nothing_in_the_unit(tmp_path):
    analyse = shutil.which("systemd-analyze")
    if not analyse:
        pytest.skip("systemd-analyze is not installed")
    text = (HOST / "health-predict.service").read_text()
    unit = tmp_path / "health-predict.service"
    unit.write_text(text.replace("/opt/health-predict/", f"{ROOT}/"))
    done = subprocess.run(
        [analyse, "verify", "--man=no", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "health-predict.service" not in done.stderr, done.stderr
