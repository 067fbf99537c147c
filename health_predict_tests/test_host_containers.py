"""`iac/host` for real: images made here, started by podman-compose, asked, killed, taken away.

The base is Debian's by debootstrap, PostgreSQL is Debian's in the place of the official image, with
the same way of being told what to do; everything else is as it is shipped. Marked `container`:
`pytest -m container`. What is slow to make is kept in the folder that `container_tools` names.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from health_predict.engines import Engine
from health_predict.settings import ROOT
from health_predict_tests.container_tools import BASE, base_image, engine

pytestmark = pytest.mark.container

HOST = ROOT / "iac" / "host"
PLATFORM = "localhost/health-predict:tested"
POSTGRES = "localhost/postgres:tested"
# What a machine that builds images and tests beside it needs for a start.
PATIENCE = "900"

# Like the official image: user 999, the folders it has, and what its entrypoint promises.
POSTGRES_FILE = f"""
FROM {BASE}
RUN groupadd --gid 999 postgres \\
    && useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres \\
    && apt-get update -qq \\
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \\
        postgresql > /dev/null \\
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* \\
    && install -d -o 999 -g 999 -m 700 /var/lib/postgresql/data \\
    && install -d -o 999 -g 999 -m 3777 /run/postgresql \\
    && ln -s /usr/lib/postgresql/*/bin/* /usr/local/sbin/
COPY entrypoint /entrypoint
STOPSIGNAL SIGINT
ENTRYPOINT ["bash", "/entrypoint"]
"""
ENTRYPOINT = """
set -e
data=/var/lib/postgresql/data
if [ ! -s "$data/PG_VERSION" ]; then
  initdb --pgdata "$data" --username postgres --pwfile <(printenv POSTGRES_PASSWORD) \\
    --auth-local trust --auth-host scram-sha-256
  echo 'host all all all scram-sha-256' >> "$data/pg_hba.conf"
  pg_ctl --pgdata "$data" -o "-c listen_addresses=''" --wait start
  for script in /docker-entrypoint-initdb.d/*; do bash "$script"; done
  pg_ctl --pgdata "$data" --mode fast --wait stop
fi
exec postgres -D "$data" -c 'listen_addresses=*'
"""


def cache() -> Path:
    return Path(os.environ.get("HEALTH_PREDICT_CACHE", ROOT / "var" / "cache"))


def podman_compose(folder: Path) -> Path:
    """Returns a podman-compose that shares networks; Debian 12's does not."""
    found = shutil.which("podman-compose")
    if found and not re.search(r" 1\.0\.|composer", told(found, "--version")):
        return Path(found)
    packages = cache() / "podman-compose"
    if not packages.exists():
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
                *("--require-hashes", "--target", packages),
                *("-r", HOST / "podman-compose.lock"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(packages, ignore_errors=True)
            pytest.skip(f"no podman-compose 1.1 or newer can be had here: {done.stderr[-300:]}")
    program = folder / "podman-compose"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(packages)!r})\n"
        "from podman_compose import main\nmain()\n"
    )
    program.chmod(0o755)
    return program


def told(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return done.stdout + done.stderr


def kept(one: Engine, folder: Path) -> Engine:
    """Returns an engine whose images last: made of this lock file, older ones removed."""
    lock = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()[:12]
    store = cache() / f"platform-{lock}"
    for old in cache().glob("platform-*"):
        if old != store:
            shutil.rmtree(old)
    store.mkdir(parents=True, exist_ok=True)
    configuration = folder / "kept.conf"
    configuration.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{store}"\nrunroot = "{folder}/kept-run"\n'
    )
    return replace(
        one, environment={**one.environment, "CONTAINERS_STORAGE_CONF": str(configuration)}
    )


def build(one: Engine, folder: Path) -> None:
    """Builds both images; what has not changed is taken from layers made before."""
    if one.call("podman", "image", "exists", BASE).returncode:
        base_image(one)
    (folder / "postgres").mkdir()
    (folder / "postgres" / "Dockerfile").write_text(POSTGRES_FILE)
    (folder / "postgres" / "entrypoint").write_text(ENTRYPOINT)
    for words in (
        ("--tag", POSTGRES, str(folder / "postgres")),
        (
            *("--file", str(HOST / "Dockerfile"), "--target", "platform", "--tag", PLATFORM),
            *("--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", "REVISION=0123abc", str(ROOT)),
        ),
    ):
        done = one.call("podman", "build", "--quiet", "--layers", *words)
        assert done.returncode == 0, done.stderr[-3000:]


def runner(one: Engine, folder: Path) -> Engine:
    """Returns an engine with bridges and names of its own, which sees the images that last."""
    volumes = re.compile(r"^volumes = .*$", re.MULTILINE)
    before = Path(one.environment["CONTAINERS_CONF"]).read_text()
    containers, storage = folder / "run.conf", folder / "run-storage.conf"
    containers.write_text(
        volumes.sub("", before)
        + f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}/networks"\n'
    )
    made = Path(one.environment["CONTAINERS_STORAGE_CONF"]).read_text()
    lock = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()[:12]
    storage.write_text(
        made + f'[storage.options]\nadditionalimagestores = ["{cache() / f"platform-{lock}"}"]\n'
    )
    return replace(
        one,
        environment={
            **one.environment,
            "CONTAINERS_CONF": str(containers),
            "CONTAINERS_STORAGE_CONF": str(storage),
        },
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Deployment:
    """One deployment of the host.

    Attributes:
        engine: what runs it.
        folder: for its settings and backups.
        environment: what its scripts see.
    """

    engine: Engine
    folder: Path
    environment: dict[str, str]

    def run(self, script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        dropped = ("HEALTH_PREDICT_", "COMPOSE_", "AWS_", "PUBLIC_", "POSTGRES_", "MLFLOW_")
        return subprocess.run(
            [str(HOST / script), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith(dropped)},
                **self.engine.environment,
                **self.environment,
            },
        )

    def done(self, script: str, *arguments: object) -> str:
        done = self.run(script, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.environment[f'{name}_PORT']}"

    def container(self, service: str) -> str:
        return f"{self.environment['COMPOSE_PROJECT_NAME']}_{service}_1"

    def inside(self, service: str, *command: str) -> str:
        return self.engine.ask("exec", self.container(service), *command)

    def left(self) -> dict[str, str]:
        """What there is of it: containers, volumes, networks."""
        label = f"label=com.docker.compose.project={self.environment['COMPOSE_PROJECT_NAME']}"
        return {
            kind: self.engine.ask(kind, "ls", *more, "--quiet", "--filter", label)
            for kind, more in (("container", ("--all",)), ("volume", ()), ("network", ()))
        }

    def graphql(self, query: str, **variables: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url('DAGSTER')}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            got = json.load(answer)
        assert "errors" not in got, got
        return got["data"]

    def launch(self, job: str) -> str:
        """Launches a job; returns the run's id."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self._launch(job)
            except urllib.error.HTTPError as error:
                # Dagit finds out by using it that a connection it kept died with the database.
                if error.code != 500 or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def _launch(self, job: str) -> str:
        parameters = {
            "selector": {
                "repositoryLocationName": "health_predict",
                "repositoryName": "__repository__",
                "jobName": job,
            },
            "mode": "default",
            "runConfigData": {},
        }
        made = self.graphql(
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {"
            " __typename ... on LaunchRunSuccess { run { runId } }"
            " ... on PythonError { message } } }",
            p=parameters,
        )["launchRun"]
        assert made["__typename"] == "LaunchRunSuccess", made
        run_id: str = made["run"]["runId"]
        return run_id

    def status(self, run_id: str) -> str:
        found = self.graphql(
            "query($i: ID!) { runOrError(runId: $i) { ... on Run { status } } }", i=run_id
        )
        status: str = found["runOrError"]["status"]
        return status

    def await_status(self, run_id: str, *wanted: str) -> str:
        deadline = time.monotonic() + float(PATIENCE)
        while time.monotonic() < deadline:
            try:
                status = self.status(run_id)
            except (OSError, KeyError):  # the web server, or its database, is on its way back
                status = ""
            if status in wanted:
                return status
            time.sleep(1)
        raise AssertionError(f"{run_id} is {status}, not {wanted}: {self.last_words()}")

    def last_words(self) -> str:
        words = [self.engine.call("podman", "logs", "--tail", "15", self.container("code"))]
        return "\n".join(done.stdout + done.stderr for done in words)

    def await_healthy(self) -> str:
        deadline = time.monotonic() + float(PATIENCE)
        while time.monotonic() < deadline:
            done = self.run("status")
            if done.returncode == 0:
                return done.stdout
            time.sleep(2)
        raise AssertionError(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Everything of the host, started once."""
    if not Path("/usr/lib/podman/netavark").exists():
        pytest.skip("no networks with names: run .ci/container-tools")
    folder = tmp_path_factory.mktemp("host")
    with engine() as one:
        build(kept(one, folder), folder)
        running = runner(one, folder)
        made = Deployment(
            running,
            folder,
            {
                "HOST_COMPOSE": str(podman_compose(folder)),
                "COMPOSE_PROJECT_NAME": f"hp{os.getpid()}",
                "SETTINGS_FILE": str(folder / "env"),
                "PLATFORM_IMAGE": PLATFORM,
                "POSTGRES_IMAGE": POSTGRES,
                "BACKUPS": str(folder / "backups"),
                "AWAIT_SECONDS": PATIENCE,
                **{f"{name}_PORT": str(free_port()) for name in ("DAGSTER", "MLFLOW", "SERVICE")},
                # The first training begins by itself: it shall be short.
                "HEALTH_PREDICT_ROWS": "2000",
                "HEALTH_PREDICT_TRIALS": "3",
                "HEALTH_PREDICT_FAMILIES": "logistic_regression",
                "HEALTH_PREDICT_SEARCH_BACKEND": "serial",
            },
        )
        try:
            yield made
        finally:
            made.run("down", "--volumes")


@pytest.fixture
def host(deployment: Deployment) -> Deployment:
    """The deployment, everything started."""
    deployment.done("up")
    return deployment


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_what_is_started_answers_runs_a_job_and_outlives_what_is_killed(host):
    table = host.done("status")
    for service in ("postgres", "mlflow", "node", "code", "daemon", "web", "supervisor"):
        assert re.search(rf"^{service} +healthy", table, re.M), table
    assert re.search(r"^migrate +done", table, re.M)

    # The pages.
    assert get(f"{host.url('DAGSTER')}/server_info")[0] == 200
    status, page = get(host.url("DAGSTER"))
    assert (status, ">Dagster</title>" in page) == (200, True)
    assert get(host.url("MLFLOW"))[0] == 200
    assert get(f"{host.url('MLFLOW')}/", Host="attacker.example")[0] == 403
    status, said = get(f"{host.url('SERVICE')}/model-info")
    assert status in (200, 503), said

    # A job, whose worker the daemon can tell to be alive.
    first = host.launch("refresh_data")
    host.await_status(first, "STARTED", "SUCCESS")
    assert host.await_status(first, "SUCCESS", "FAILURE") == "SUCCESS"
    seen = host.inside("daemon", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "dagster api grpc" in seen
    assert host.inside("daemon", "uname", "-n").strip() == "node"

    # Nobody is root, nothing can be written where code is.
    assert host.inside("code", "id", "-u").strip() == "10001"
    written = host.engine.call(
        "podman", "exec", host.container("code"), "touch", "/opt/health-predict/x"
    )
    assert written.returncode != 0

    # The code server and the database are killed in the middle of a run: both come back by
    # themselves, no run stays started for ever, and what was done is known.
    second = host.launch("refresh_data")
    host.await_status(second, "STARTED", "SUCCESS")
    for service in ("code", "postgres"):
        process = host.engine.ask("inspect", "--format", "{{.State.Pid}}", host.container(service))
        os.kill(int(process), signal.SIGKILL)
    host.await_healthy()
    host.await_status(second, "SUCCESS", "FAILURE")
    assert host.status(first) == "SUCCESS"
    third = host.launch("refresh_data")
    assert host.await_status(third, "SUCCESS", "FAILURE") == "SUCCESS", host.last_words()

    # A backup, while everything runs; then all goes.
    host.done("backup")
    [backup] = (host.folder / "backups").iterdir()
    host.done("down", "--volumes")
    assert host.left() == {"container": "", "volume": "", "network": ""}

    # What is restored knows the runs.
    host.done("restore", backup)
    host.done("up")
    assert {host.status(run) for run in (first, third)} == {"SUCCESS"}
    host.done("down", "--volumes")
    assert host.left() == {"container": "", "volume": "", "network": ""}


def test_what_is_not_shipped_is_not_in_the_image(deployment):
    def inside(script: str) -> str:
        return deployment.engine.ask(
            *("run", "--rm", "--network", "none", "--read-only", PLATFORM, "sh", "-c", script)
        )

    look = "command -v gcc cc make pip pip3 apt-get curl; ls /opt/venv/bin | grep -E 'pytest|ruff'"
    assert set(inside(f"{look}; true").split()) <= {"/usr/bin/apt-get"}  # Debian's own
    assert inside("git -C /opt/health-predict rev-parse --short=12 HEAD") == "0123abc"
    assert inside("health-predict --help").startswith("Usage: health-predict")
    # What servers import has byte code: their files cannot be written.
    script = (
        "import importlib, sys\nsys.path.insert(0, '/opt/health-predict')\n"
        "for name in ('dagster._grpc.server', 'dagster_webserver.cli', 'mlflow.cli'):\n"
        "    importlib.import_module(name)\n"
        "files = [m.__cached__ for m in sys.modules.values()"
        " if getattr(m, '__cached__', None) and '/opt/venv/' in (m.__file__ or '')]\n"
        "import pathlib\nprint(len(files), sum(not pathlib.Path(f).exists() for f in files))"
    )
    total, lacking = inside(f'python -c "{script}"').split()[-2:]
    assert int(total) > 1000
    assert int(lacking) < 0.01 * int(total)
    size = int(deployment.engine.ask("image", "inspect", "--format", "{{.Size}}", PLATFORM))
    assert size < 1.7e9
