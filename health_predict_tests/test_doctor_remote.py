"""The doctor on what is reached over the network: S3, Postgres, MLflow, registry, cluster."""

import base64
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from pydantic import SecretStr

from health_predict import processes
from health_predict.doctoring import cluster, models, orchestrator, rounds, service, stores, web
from health_predict.doctoring.finding import Check, Finding, examine
from health_predict.doctoring.postgres import Place
from health_predict.settings import Settings
from health_predict.store import s3_client
from health_predict_tests.postgres import PASSWORD, Postgres
from health_predict_tests.receivers import serving

TOKEN = "cluster-token"
NAMESPACE = "health-predict"


def found(*findings: Finding) -> Finding:
    """Returns the one finding there is."""
    (finding,) = findings
    return finding


@contextmanager
def reserved() -> Iterator[int]:
    """Yields a port that refuses connections for as long as the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, not listening
        yield probe.getsockname()[1]


@contextmanager
def answering(answers: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    """Yields the address of a server that answers by the beginning of a path, else 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            self.rfile.read(length)
            beginnings = [each for each in answers if self.path.startswith(each)]
            status, text = answers[max(beginnings, key=len)] if beginnings else (404, "not here")
            self.send_response(status)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        with serving(server):
            yield f"http://127.0.0.1:{server.server_port}"


# --- the store -----------------------------------------------------------------------------------


def test_a_bucket_takes_gives_back_and_lets_go(bucket: str) -> None:
    finding = found(*stores.store(Settings(store=f"s3://{bucket}/prefix")))
    assert (finding.state, "put, get and delete work" in finding.seen) == ("ok", True)
    assert "endpoint http://127.0.0.1" in finding.seen
    assert s3_client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    finding = found(*stores.store(Settings(store="s3://no-such-bucket-here/prefix")))
    assert finding.state == "wrong"
    assert finding.seen == "s3://no-such-bucket-here/prefix: there is no such bucket"
    assert "correct HEALTH_PREDICT_STORE" in finding.remedy


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("InvalidAccessKeyId", "the credentials are not accepted"),
        ("SignatureDoesNotMatch", "the credentials are not accepted"),
        ("AccessDenied", "access is denied"),
        ("ExpiredToken", "have expired"),
    ],
)
def test_credentials_that_s3_refuses_are_told_apart(
    bucket: str, monkeypatch: pytest.MonkeyPatch, code: str, seen: str
) -> None:
    refusal = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    with answering({"/": (403, refusal)}) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        finding = found(*stores.store(Settings(store="s3://hospital")))
    assert finding.state == "wrong"
    assert seen in finding.seen
    assert finding.remedy


def test_no_credentials_and_no_endpoint_are_told_apart(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(store=f"s3://{bucket}")
    with reserved() as port, monkeypatch.context() as elsewhere:
        elsewhere.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        finding = found(*stores.store(settings))
    assert "S3 cannot be reached" in finding.seen
    assert "AWS_ENDPOINT_URL_S3" in finding.remedy
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    finding = found(*stores.store(settings))
    assert "there are no credentials" in finding.seen
    assert "AWS_PROFILE" in finding.remedy


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    settings = Settings(var=tmp_path)
    assert found(*stores.store(settings)).state == "off"
    (tmp_path / "store").mkdir()
    assert found(*stores.store(settings)).state == "ok"
    assert list((tmp_path / "store").iterdir()) == []


def test_an_object_of_a_bucket_is_a_source(bucket: str) -> None:
    s3_client().put_object(Bucket=bucket, Key="in/table.csv", Body=b"a,b\n")
    assert found(*stores.source(Settings(data=f"s3://{bucket}/in/table.csv"))).state == "ok"
    absent = found(*stores.source(Settings(data=f"s3://{bucket}/in/absent.csv")))
    assert absent.seen.endswith("in/absent.csv is not there")


# --- Postgres ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres.make(tmp_path_factory.mktemp("postgres"))
    yield server
    server.kill()


def on_host(url: str, var: Path) -> Settings:
    return Settings(var=var, deployment="host", postgres=SecretStr(url))


def test_a_database_that_dagster_has_used_is_whole(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = on_host(postgres.create("whole"), tmp_path)
    monkeypatch.setenv("HEALTH_PREDICT_POSTGRES", postgres.url("whole"))
    before = orchestrator.storage(settings)
    assert before.instance is None
    assert "has no tables of Dagster yet" in before.finding.seen
    with dg.DagsterInstance.from_config(str(processes.dagster_home(settings))):
        pass
    after = orchestrator.storage(settings)
    assert after.instance is not None
    assert after.finding.state == "ok"
    assert after.finding.seen.startswith(f"PostgreSQL health@127.0.0.1:{postgres.port}/whole, sch")
    after.instance.dispose()


def test_a_schema_of_another_version_of_dagster_is_named(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = on_host(postgres.create("older"), tmp_path)
    monkeypatch.setenv("HEALTH_PREDICT_POSTGRES", postgres.url("older"))
    with dg.DagsterInstance.from_config(str(processes.dagster_home(settings))):
        pass
    place = Place(postgres.url("older"), "X")
    with place.connected() as connection, connection, connection.cursor() as cursor:
        cursor.execute("UPDATE alembic_version SET version_num = '16e3115a602a'")
    seen = orchestrator.storage(settings)
    assert seen.finding.state == "wrong"
    assert "16e3115a602a instead of" in seen.finding.seen
    assert "dagster instance migrate" in seen.finding.remedy


def test_why_a_database_cannot_be_reached_is_told_apart(postgres: Postgres, tmp_path: Path) -> None:
    def look(url: str) -> Finding:
        (finding,) = examine(
            [Check("x", lambda: [orchestrator.storage(on_host(url, tmp_path)).finding], "-")],
            {PASSWORD, "wrong"},
        )
        assert finding.state == "wrong"
        assert PASSWORD not in finding.seen + finding.remedy
        assert "p%40ss" not in finding.seen + finding.remedy
        return finding

    password = look(postgres.url("postgres", "wrong"))
    assert password.seen.startswith("*** password, or *** user")
    assert "HEALTH_PREDICT_POSTGRES" in password.remedy
    missing = look(postgres.url("absent"))
    assert missing.seen.startswith("the database is missing")
    assert "createdb absent" in missing.remedy
    host = look("postgresql://health:x@no-such-host.invalid/dagster")
    assert "host: its name is not known" in host.seen
    assert "correct the host" in host.remedy
    with reserved() as port:
        closed = look(f"postgresql://health:x@127.0.0.1:{port}/dagster")
    assert closed.seen.startswith("nothing listens there")
    assert "start PostgreSQL" in closed.remedy


def test_a_database_that_was_killed_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = Postgres.make(tmp_path_factory.mktemp("killed"))
    place = Place(server.create("dagster"), "HEALTH_PREDICT_POSTGRES")
    with place.connected():
        pass
    server.kill()
    settings = on_host(server.url("dagster"), tmp_path_factory.mktemp("var"))
    finding = orchestrator.storage(settings).finding
    assert finding.seen.startswith("nothing listens there")


def test_mlflow_on_postgres_is_told_by_its_tables(postgres: Postgres) -> None:
    url = postgres.create("mlflow").replace("postgresql://", "postgresql+psycopg2://")
    empty = models.tracking(Settings(mlflow_tracking_uri=url))
    assert (empty.finding.state, empty.used) == ("ok", False)
    with Place(url, "X").connected() as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE experiments (name text, lifecycle_stage text)")
        cursor.execute("INSERT INTO experiments VALUES ('readmission', 'active')")
    assert models.tracking(Settings(mlflow_tracking_uri=url)).used
    wrong = models.tracking(Settings(mlflow_tracking_uri=postgres.url("mlflow", "wrong")))
    assert "wrong password" in wrong.finding.seen
    assert models.VARIABLE in wrong.finding.remedy


# --- MLflow --------------------------------------------------------------------------------------


def mlflow_at(uri: str) -> Finding:
    return models.tracking(Settings(mlflow_tracking_uri=uri)).finding


def test_mlflow_down_is_named() -> None:
    with reserved() as port:
        finding = mlflow_at(f"http://127.0.0.1:{port}")
    assert finding.state == "wrong"
    assert finding.seen == f"MLflow down: nothing listens at http://127.0.0.1:{port}/health"
    assert finding.remedy == "start it, or correct the address"


@pytest.mark.parametrize(
    ("status", "text", "seen", "remedy"),
    [
        (404, "", "wrong URI", models.VARIABLE),
        (401, "", "wrong credentials", "MLFLOW_TRACKING_PASSWORD"),
        (403, "Invalid Host header - possible DNS rebinding", "refuses to be called", "--allowed"),
        (502, "", "answers 502", "log"),
    ],
)
def test_what_an_mlflow_server_says_is_told_apart(
    status: int, text: str, seen: str, remedy: str
) -> None:
    with answering({"/health": (status, text)}) as url:
        finding = mlflow_at(url)
    assert finding.state == "wrong"
    assert seen in finding.seen
    assert remedy in finding.remedy


def test_an_mlflow_server_is_asked_as_whom_the_address_names() -> None:
    said: dict[str, tuple[int, str]] = {"/health": (200, "OK"), "/version": (200, "3.4.0")}
    missing = {"/api/2.0/mlflow/experiments/get-by-name": (404, "{}")}
    with answering({**said, **missing}) as url:
        tracking = models.tracking(
            Settings(mlflow_tracking_uri=url.replace("//", "//ada:love-lace@"))
        )
    assert (tracking.finding.state, tracking.used) == ("ok", False)
    assert tracking.finding.seen.startswith(f"version 3.4.0 at {url}")
    assert "love-lace" not in repr(tracking)


@pytest.mark.parametrize("uri", ["mlruns", "ftp://somewhere/x", "sqlite"])
def test_an_address_of_no_mlflow_is_named(uri: str) -> None:
    finding = mlflow_at(uri)
    assert finding.seen.startswith("wrong URI")
    assert models.VARIABLE in finding.remedy


def test_a_database_of_mlflow_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert mlflow_at(f"sqlite:///{path}").state == "off"
    path.write_bytes(b"no database" * 1000)
    assert "cannot be read: file is not a database" in mlflow_at(f"sqlite:///{path}").seen
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE experiments (name text, lifecycle_stage text)")
    assert "no experiment readmission yet" in mlflow_at(f"sqlite:///{path}").seen


def test_a_real_server_is_told_by_its_version_and_its_hosts(tmp_path: Path) -> None:
    with reserved() as port:
        pass
    settings = Settings(var=tmp_path)
    command = [*processes.mlflow_command(settings, port), "--allowed-hosts", "elsewhere:1"]
    log = (tmp_path / "mlflow.log").open("wb")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        finding = mlflow_at(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 120
        while "down" in finding.seen:
            assert time.monotonic() < deadline, (tmp_path / "mlflow.log").read_text()
            time.sleep(0.3)
            finding = mlflow_at(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(30)
        log.close()
    # Health is told to anybody; what is asked next is not.
    assert finding.state == "wrong"
    assert finding.seen == f"http://127.0.0.1:{port} refuses to be called 127.0.0.1:{port}"
    assert finding.remedy == f"start MLflow with --allowed-hosts 127.0.0.1:{port}"


# --- Dagit and addresses in general --------------------------------------------------------------


def test_dagit_is_looked_for_where_readers_are_sent() -> None:
    info = {"/server_info": (200, '{"dagster_webserver_version": "1.13"}')}
    with answering(info) as url:
        assert found(*stores.dagit(Settings(dagit_url=url))).state == "ok"
    with answering({"/": (200, "hello")}) as url:
        assert "not as Dagit" in found(*stores.dagit(Settings(dagit_url=url))).seen
    with answering({"/": (401, "who?")}) as url:
        assert found(*stores.dagit(Settings(dagit_url=url))).seen.endswith("asks for a login")
    assert found(*stores.dagit(Settings(dagit_url=url))).state == "wrong"


def test_what_does_not_speak_http_is_told_from_what_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        with pytest.raises(web.Unanswered, match="does not answer within"):
            web.ask(url)
    with pytest.raises(web.Unanswered, match="wrong host"):
        web.ask("http://no-such-host.invalid/")
    with pytest.raises(web.Unanswered, match="that is no address"):
        web.ask("http://[::bad/")


# --- registry and cluster ------------------------------------------------------------------------


def test_a_registry_that_refuses_and_one_that_is_away_are_told_apart(tmp_path: Path) -> None:
    def look(url: str, **given: Any) -> Finding:
        return found(*cluster.registry(Settings(registry=url, **given)))

    known = {"registry_username": "deploy", "registry_password": SecretStr("pass-word")}
    with answering({"/v2/": (404, "{}")}) as url:
        assert look(url, **known).seen.endswith("answers as deploy")
    with answering({"/v2/": (401, "{}")}) as url:
        refused = look(url, **known)
    assert "refuses user 'deploy'" in refused.seen
    assert "HEALTH_PREDICT_REGISTRY_USERNAME" in refused.remedy
    with reserved() as port:
        away = look(f"http://127.0.0.1:{port}", **known)
    assert "does not answer" in away.seen
    assert "see whether" in away.remedy
    assert "set HEALTH_PREDICT_REGISTRY" in look("").remedy


def test_an_engine_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    finding = found(*cluster.engine(Settings()))
    assert finding.state == "wrong"
    assert "docker is not installed" in finding.seen
    assert "install podman" in finding.remedy


class Api:
    """An API server as far as the doctor asks it, with a memory of what it grants and holds."""

    def __init__(self) -> None:
        role = next(yaml.safe_load_all(cluster.ROLE.read_text()))
        self.rules: list[dict[str, Any]] = role["rules"]
        self.incomplete = False
        self.allowed: set[str] = set()
        self.objects: dict[str, Any] = {
            "/version": {"gitVersion": "v1.34.0"},
            f"/api/v1/namespaces/{NAMESPACE}": {"kind": "Namespace"},
        }
        self.token = TOKEN
        self.changed: list[str] = []

    def answer(self, method: str, path: str, body: Any, token: str) -> tuple[int, Any]:
        if token != self.token:
            return 401, {"kind": "Status", "apiVersion": "v1", "message": "Unauthorized"}
        if path.endswith("selfsubjectrulesreviews"):
            return 201, {"status": {"resourceRules": self.rules, "incomplete": self.incomplete}}
        if path.endswith("selfsubjectaccessreviews"):
            wanted = body["spec"]["resourceAttributes"]
            return 201, {
                "status": {"allowed": f"{wanted['verb']} {wanted['resource']}" in self.allowed}
            }
        if method != "GET":
            self.changed.append(f"{method} {path}")
        if path in self.objects:
            return 200, self.objects[path]
        return 404, {"kind": "Status", "apiVersion": "v1", "message": "not found"}

    def keep_secret(self, host: str, written: datetime) -> None:
        content = json.dumps({"auths": {host: {"auth": "c2VjcmV0"}}}).encode()
        moment = written.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.objects[f"/api/v1/namespaces/{NAMESPACE}/secrets/readmission-pull"] = {
            "metadata": {
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"time": moment}],
            },
            "data": {".dockerconfigjson": base64.b64encode(content).decode()},
        }


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that the kubeconfig names."""
    state = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            path = self.path.partition("?")[0]
            status, content = state.answer(self.command, path, body, token)
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        path = tmp_path / "kubeconfig"
        write_kubeconfig(path, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("KUBECONFIG", str(path))
        with serving(server):
            yield state


def write_kubeconfig(path: Path, address: str) -> None:
    content = {
        **{"apiVersion": "v1", "kind": "Config", "current-context": "here"},
        "clusters": [{"name": "here", "cluster": {"server": address}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    path.write_text(yaml.safe_dump(content))


def on_cluster(**given: Any) -> Settings:
    return Settings(deployment="kubernetes", registry="http://registry.example:5000", **given)


def test_a_cluster_is_looked_at_and_nothing_is_applied(api: Api) -> None:
    api.keep_secret("registry.example:5000", datetime.now(UTC) - timedelta(hours=3))
    there, rights, secret = cluster.cluster(on_cluster())
    assert [each.state for each in (there, rights, secret)] == ["ok", "ok", "ok"]
    assert "Kubernetes v1.34.0" in there.seen
    assert secret.seen.endswith("written 3 h ago")
    assert api.changed == []


def test_rights_that_are_missing_are_named(api: Api) -> None:
    kept = [rule for rule in api.rules if "deployments" not in rule["resources"]]
    api.rules = kept
    _, rights, _ = cluster.cluster(on_cluster())
    assert rights.state == "wrong"
    assert "get deployments.apps, list deployments.apps" in rights.seen
    assert "k8s/deployer-role.yaml" in rights.remedy
    api.rules = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
    assert list(cluster.cluster(on_cluster()))[1].state == "ok"


def test_an_authoriser_that_cannot_list_its_rules_is_asked_one_by_one(api: Api) -> None:
    rules = [rule for rule in api.rules if "pods/log" not in rule["resources"]]
    api.rules, api.incomplete = rules, True
    _, rights, _ = cluster.cluster(on_cluster())
    assert rights.seen == "not allowed: get pods/log"
    api.allowed = {"get pods"}
    assert list(cluster.cluster(on_cluster()))[1].state == "ok"


def test_a_pull_secret_is_missing_for_another_registry_or_too_old(api: Api) -> None:
    def look(**given: Any) -> Finding:
        return list(cluster.cluster(on_cluster(**given)))[2]

    assert look().state == "off"
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/readmission"
    api.objects[path] = {"kind": "Deployment"}
    known = {"registry_username": "u", "registry_password": SecretStr("p")}
    assert "no pod can start" in look(**known).seen
    api.keep_secret("other.example", datetime.now(UTC))
    assert look().seen == "readmission-pull is for other.example, not for registry.example:5000"
    amazon = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    api.keep_secret(amazon, datetime.now(UTC) - timedelta(hours=13))
    old = list(cluster.cluster(Settings(deployment="kubernetes", registry=amazon)))[2]
    assert old.state == "wrong"
    assert "tokens end after 12 h" in old.seen
    assert "k8s/minikube-up" in old.remedy
    assert look(overlay="eks").state == "off"


def test_why_a_cluster_cannot_be_used_is_told_apart(
    api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.token = "another"
    refused = found(*cluster.cluster(on_cluster()))
    assert "401" in refused.seen
    assert "log in to the cluster again" in refused.remedy
    api.token = TOKEN
    del api.objects[f"/api/v1/namespaces/{NAMESPACE}"]
    space = found(*cluster.cluster(on_cluster()))
    assert f"there is no namespace {NAMESPACE}" in space.seen
    assert "k8s/base/namespace.yaml" in space.remedy
    context = found(*cluster.cluster(on_cluster(kube_context="elsewhere")))
    assert "elsewhere" in context.seen
    assert "kubectl config get-contexts" in context.remedy
    with reserved() as port:
        write_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}")
        away = found(*cluster.cluster(on_cluster()))
    assert away.seen.startswith("cluster unreachable")
    assert "k8s/minikube-up" in away.remedy


def test_the_service_in_a_cluster_is_compared_with_the_champion(api: Api) -> None:
    base = f"/api/v1/namespaces/{NAMESPACE}/services/http:readmission:http/proxy/model-info"

    def look(champion: str | None, coming: str = "") -> Finding:
        return found(*service.in_cluster(on_cluster(), champion, lambda: coming))

    assert look("2").state == "wrong"
    api.objects[base] = {"version": "2"}
    assert look("2").state == "ok"
    assert look("3", "Rolling out version 3.").state == "ok"
    stale = look("3")
    assert "version 2 answers" in stale.seen
    assert "the champion is version 3" in stale.seen
    assert "launch the job deploy" in stale.remedy
    api.token = "another"
    assert look("2").state == "wrong"


# --- the whole -----------------------------------------------------------------------------------


@contextmanager
def mute() -> Iterator[int]:
    """Yields a port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield server.getsockname()[1]


def test_a_round_ends_though_nobody_answers(tmp_path: Path) -> None:
    with mute() as port:
        given = {
            "VAR": tmp_path / "var",
            "DEPLOYMENT": "kubernetes",
            "STORE": "s3://hospital",
            "DATA": f"http://127.0.0.1:{port}/table.csv",
            "POSTGRES": f"postgresql://health:hush-hush@127.0.0.1:{port}/dagster",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
            "DAGIT_URL": f"http://127.0.0.1:{port}",
            "REGISTRY": f"http://127.0.0.1:{port}",
            "SERVICE_URL": f"http://127.0.0.1:{port}",
        }
        kubeconfig = tmp_path / "kubeconfig"
        write_kubeconfig(kubeconfig, f"http://127.0.0.1:{port}")
        aws = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        done = subprocess.run(
            [str(Path(sys.executable).with_name("health-predict")), "doctor", "--json"],
            cwd=tmp_path,
            env={
                **os.environ,
                **{f"HEALTH_PREDICT_{name}": str(value) for name, value in given.items()},
                **dict.fromkeys(aws, "hush-hush"),
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
                "KUBECONFIG": str(kubeconfig),
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 1, done.stderr
    assert "hush-hush" not in done.stdout + done.stderr
    findings = {each["part"]: each for each in json.loads(done.stdout)["findings"]}
    silent = {"Dagster storage", "MLflow", "Dagit", "store", "data source", "registry", "cluster"}
    for part in silent:
        assert findings[part]["state"] == "wrong", findings[part]
        assert findings[part]["remedy"]
    assert findings["code location"]["state"] == "ok"
    assert findings["champion"]["seen"] == "unknown while MLflow does not answer"


def test_parts_are_looked_at_only_where_the_deployment_has_them(tmp_path: Path) -> None:
    def parts(**given: Any) -> set[str]:
        return {check.part for check in rounds.due(Settings(var=tmp_path, **given))}

    only_there = {"cluster", "registry", "container engine"}
    assert not only_there & parts()
    assert not only_there & parts(deployment="host")
    assert only_there <= parts(deployment="kubernetes")
    assert "Dagit" in parts(deployment="host")
    assert "Dagit" not in parts()
