"""A push ends with the digest that the registry reports, or with the reason in words.

Against a real registry with a password, sent to by a real engine; Amazon's interface is moto's.
"""

import base64
import hashlib
import http.server
import json
import os
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from health_predict.ecr import EcrRegistry
from health_predict.engines import ContainerError, Engine
from health_predict.images import inspect
from health_predict.oci_registry import OciRegistry
from health_predict.registry_credentials import Credentials
from health_predict.registry_http import RegistryError, Unauthorised
from health_predict_tests.bentos import HOST, free_port
from health_predict_tests.container_tools import (
    RegistryServer,
    engine,
    failing_first,
    image,
    registry,
)

PASSWORD = "correct-horse"
REGION = "eu-central-1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture(scope="module")
def builder() -> Iterator[Engine]:
    with engine() as made:
        yield made


@pytest.fixture(scope="module")
def images(builder: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two images of one file each."""
    folder = tmp_path_factory.mktemp("contents")
    made = {}
    for name in ("one", "two"):
        (folder / name).write_text(name * 1000)
        made[name] = image(builder, f"localhost/{name}:1", folder / name)
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with registry({"deploy": PASSWORD}) as started:
        yield started


@pytest.fixture
def oci(server: RegistryServer) -> OciRegistry:
    return OciRegistry(server.address, "deploy", PASSWORD, attempts=3, pause=0.01)


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"tests/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"


def fetch(server: RegistryServer, path: str, password: str = PASSWORD, user: str = "deploy") -> Any:
    """Asks the registry without the code under test."""
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Accept": MANIFEST}
    asked = urllib.request.Request(f"{server.address}/v2/{path}", headers=headers)
    with urllib.request.urlopen(asked) as response:
        return response.read()


def test_a_pushed_image_is_known_by_the_digest_the_registry_reports(
    oci, builder, images, server, repository
):
    said: list[str] = []
    pushed = oci.push(builder, images["one"], repository, "1-abc", said.append)
    content = fetch(server, f"{repository}/manifests/1-abc")
    assert pushed.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert pushed.reference == f"{HOST}:{server.port}/{repository}@{pushed.digest}"
    assert pushed.layers == tuple(layer["size"] for layer in json.loads(content)["layers"])
    assert pushed.size == sum(pushed.layers) > 0
    assert not pushed.already_there
    assert said == [f"Pushing {images['one']} to {HOST}:{server.port}/{repository}:1-abc."]


def test_an_image_pulled_back_by_its_digest_is_the_one_that_was_pushed(
    oci, builder, images, repository
):
    pushed = oci.push(builder, images["one"], repository, "1")
    with engine() as elsewhere:
        pulled = oci.pull(elsewhere, repository, pushed.digest)
        assert inspect(elsewhere, pulled).id == inspect(builder, images["one"]).id


def test_an_engine_that_only_builds_pushes_too(oci, builder, images, server, repository):
    alone = replace(builder, runner=None)
    pushed = oci.push(alone, images["two"], repository, "1")
    assert not pushed.already_there
    assert oci.push(builder, images["two"], repository, "1").already_there
    assert json.loads(fetch(server, f"{repository}/manifests/1"))["config"]["digest"] == (
        inspect(alone, images["two"]).id
    )


def test_pushing_the_same_image_again_sends_nothing(oci, builder, images, server, repository):
    first = oci.push(builder, images["one"], repository, "1")
    before = len(server.requests)
    again = oci.push(builder, images["one"], repository, "1")
    assert again.already_there
    assert replace(again, seconds=0.0, already_there=False) == replace(first, seconds=0.0)
    assert set(server.requests[before:]) == {"HEAD", "GET"}


def test_a_tag_of_another_image_is_refused_and_keeps_it(oci, builder, images, server, repository):
    first = oci.push(builder, images["one"], repository, "1")
    before = len(server.requests)
    with pytest.raises(RegistryError, match=r":1 is another image .* needs a tag of its own"):
        oci.push(builder, images["two"], repository, "1")
    assert set(server.requests[before:]) == {"HEAD", "GET"}
    assert oci.manifest(repository, "1").digest == first.digest


def test_an_image_this_machine_does_not_have_is_named(oci, builder, repository):
    with pytest.raises(ContainerError, match="localhost/absent:1"):
        oci.push(builder, "localhost/absent:1", repository, "1")


def test_what_was_never_pushed_is_not_there(oci, repository):
    assert oci.manifest(repository, "1") is None


def test_a_wrong_password_is_said_to_be_one_and_not_shown(server, builder, images, repository):
    wrong = OciRegistry(server.address, "deploy", "wrong-horse", attempts=3, pause=0.01)
    with pytest.raises(Unauthorised, match="refuses user 'deploy': wrong password") as refused:
        wrong.push(builder, images["one"], repository, "1")
    assert "horse" not in str(refused.value)
    assert "horse" not in repr(wrong.credentials())


def test_without_credentials_the_settings_that_hold_them_are_named(
    server, builder, images, repository, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Unauthorised, match="HEALTH_PREDICT_REGISTRY_USER"):
        OciRegistry(server.address).push(builder, images["one"], repository, "1")


@pytest.mark.parametrize("variable", ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG"])
def test_credentials_that_the_engine_has_itself_are_enough(
    server, builder, images, repository, variable, monkeypatch, tmp_path
):
    login = base64.b64encode(f"deploy:{PASSWORD}".encode()).decode()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {f"{HOST}:{server.port}": {"auth": login}}}))
    given = path if variable == "REGISTRY_AUTH_FILE" else tmp_path
    monkeypatch.setenv(variable, str(given))
    pushed = OciRegistry(server.address).push(builder, images["one"], repository, "1")
    assert pushed.digest in pushed.reference


def test_credentials_are_on_no_command_line_and_in_a_file_for_its_owner_that_does_not_stay(
    oci, builder, images, repository, monkeypatch, tmp_path
):
    real = os.environ["PATH"]
    (tmp_path / "podman").write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/words
[ -n "$REGISTRY_AUTH_FILE" ] && stat -c '%n %a' "$REGISTRY_AUTH_FILE" >> {tmp_path}/files
PATH={real} exec podman "$@"
"""
    )
    (tmp_path / "podman").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{real}")
    oci.push(builder, images["one"], repository, "1")
    words = (tmp_path / "words").read_text()
    assert f"push --tls-verify=false {images['one']}" in words
    assert PASSWORD not in words
    assert base64.b64encode(f"deploy:{PASSWORD}".encode()).decode() not in words
    (line,) = (tmp_path / "files").read_text().splitlines()
    path, mode = line.split()
    assert mode == "600"
    assert not Path(path).exists()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"],
    ids=["connections are dropped", "503"],
)
def test_a_registry_that_fails_for_a_moment_is_asked_again(
    server, builder, images, repository, answer
):
    with failing_first(server.port, 2, answer) as port:
        oci = OciRegistry(f"http://{HOST}:{port}", "deploy", PASSWORD, attempts=3, pause=0.01)
        pushed = oci.push(builder, images["one"], repository, "1")
    content = fetch(server, f"{repository}/manifests/{pushed.digest}")
    assert pushed.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_registry_that_is_down_is_named_after_a_bounded_number_of_attempts(
    builder, images, repository
):
    port = free_port()
    oci = OciRegistry(f"http://{HOST}:{port}", "deploy", PASSWORD, attempts=3, pause=0.01)
    with pytest.raises(RegistryError, match=rf"{HOST}:{port} does not answer.*\(3 attempts\)"):
        oci.push(builder, images["one"], repository, "1")


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(
    oci, builder, images, server, repository
):
    pushed = oci.push(builder, images["one"], repository, "1")
    digest = pushed.digest.removeprefix("sha256:")
    blobs = server.folder / "data/docker/registry/v2/blobs/sha256"
    path = blobs / digest[:2] / digest / "data"
    path.write_text(path.read_text() + " ")
    with pytest.raises(RegistryError, match=f"reports sha256:{digest} .* what it sends is sha256:"):
        oci.push(builder, images["one"], repository, "1")


def test_a_manifest_that_is_gone_is_not_taken_for_one(oci, builder, images, server, repository):
    pushed = oci.push(builder, images["two"], repository, "1")
    digest = pushed.digest.removeprefix("sha256:")
    (server.folder / "data/docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data").unlink()
    assert oci.manifest(repository, "1") is None


@pytest.mark.parametrize(
    "address", ["", "ftp://registry", "registry/team", "https://", "http://u:p@registry"]
)
def test_what_is_no_address_of_a_registry_is_refused(address):
    with pytest.raises(RegistryError, match=r"no registry|no credentials"):
        OciRegistry(address)


def test_a_password_without_a_user_is_refused():
    with pytest.raises(RegistryError, match="together"):
        OciRegistry("registry.example.org", "", PASSWORD)


# --- a registry with tokens ---


@contextmanager
def token_registry(content: bytes) -> Iterator[str]:
    """A registry of one manifest that takes tokens, handed out for a password."""
    basic = "Basic " + base64.b64encode(f"deploy:{PASSWORD}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            if self.path.startswith("/token?"):
                admitted = given == basic and "scope=repository%3Aa%2Fb%3Apull%2Cpush" in self.path
                self._answer(200 if admitted else 401, b'{"token": "t0ken"}')
            elif given != "Bearer t0ken":
                here = f"http://{self.headers['Host']}/token"
                asked = f'Bearer realm="{here}",service="tests"'
                self._answer(401, b"{}", **{"WWW-Authenticate": asked})
            else:
                digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
                self._answer(200, content, **{"Docker-Content-Digest": digest})

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer((HOST, 0), Handler) as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{started.server_address[1]}"
        started.shutdown()


CONTENT = json.dumps({"config": {"digest": "sha256:c0"}, "layers": [{"size": 7}]}).encode()


def test_a_registry_that_hands_out_tokens_is_asked_for_one():
    with token_registry(CONTENT) as address:
        found = OciRegistry(address, "deploy", PASSWORD).manifest("a/b", "1")
    assert found is not None
    assert found.config == "sha256:c0"
    assert found.layers == (7,)


def test_a_registry_that_hands_out_no_token_refuses_the_user():
    with token_registry(CONTENT) as address, pytest.raises(Unauthorised, match="'deploy'"):
        OciRegistry(address, "deploy", "wrong").manifest("a/b", "1")


# --- Amazon's ---


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    pytest.importorskip("flask_cors", reason="moto[server] is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = server_module.ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def client(aws: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    return boto3.client("ecr", endpoint_url=aws, region_name=REGION)


@pytest.fixture
def token(client: Any) -> str:
    """The password that AWS hands out."""
    data = client.get_authorization_token()["authorizationData"][0]
    return base64.b64decode(data["authorizationToken"]).decode().removeprefix("AWS:")


@pytest.fixture
def private(token: str) -> Iterator[RegistryServer]:
    """A registry that takes what AWS hands out."""
    with registry({"AWS": token}) as started:
        yield started


def ecr(aws: str, server: RegistryServer, create: bool = True) -> EcrRegistry:
    return EcrRegistry(
        REGION, address=server.address, endpoint_url=aws, create=create, attempts=2, pause=0.01
    )


def test_a_push_to_amazon_uses_its_token_and_makes_the_repository(
    aws, client, token, private, builder, images, repository
):
    said: list[str] = []
    pushed = ecr(aws, private).push(builder, images["one"], repository, "1", said.append)
    content = fetch(private, f"{repository}/manifests/1", token, "AWS")
    assert pushed.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert pushed.scan == "scanned on push"
    assert said[0] == f"Making the repository {repository} with immutable tags."
    (made,) = client.describe_repositories(repositoryNames=[repository])["repositories"]
    assert made["imageTagMutability"] == "IMMUTABLE"
    assert made["imageScanningConfiguration"]["scanOnPush"] is True


def test_a_repository_that_is_missing_is_not_made_unless_that_is_allowed(
    aws, client, private, builder, images, repository
):
    with pytest.raises(RegistryError, match=f"no repository {repository}.*CREATE_REPOSITORY"):
        ecr(aws, private, create=False).push(builder, images["one"], repository, "1")
    with pytest.raises(client.exceptions.RepositoryNotFoundException):
        client.describe_repositories(repositoryNames=[repository])


def test_immutable_tags_of_amazon_are_respected_and_mutable_ones_moved(
    aws, client, private, builder, images, repository
):
    client.create_repository(repositoryName=repository, imageTagMutability="IMMUTABLE")
    keeper = ecr(aws, private)
    keeper.push(builder, images["one"], repository, "1")
    with pytest.raises(RegistryError, match="tags are immutable"):
        keeper.push(builder, images["two"], repository, "1")
    client.put_image_tag_mutability(repositoryName=repository, imageTagMutability="MUTABLE")
    moved = keeper.push(builder, images["two"], repository, "1")
    assert keeper.manifest(repository, "1").config == inspect(builder, images["two"]).id
    assert not moved.already_there


def test_a_scan_is_requested_where_none_is_made_on_push(
    aws, client, token, private, builder, images, repository
):
    client.create_repository(repositoryName=repository)
    keeper = ecr(aws, private)
    pushed = keeper.push(builder, images["one"], repository, "1")
    assert pushed.scan.startswith("no scan: ")  # moto has no image: it was sent to the registry
    content = fetch(private, f"{repository}/manifests/1", token, "AWS").decode()
    client.put_image(repositoryName=repository, imageManifest=content, imageTag="1")
    listed = client.list_images(repositoryName=repository)["imageIds"][0]["imageDigest"]
    assert keeper._scan(repository, listed) == "scan requested"


@pytest.mark.parametrize("ends_in", [-60.0, 60.0, 6 * 3600.0])
def test_a_token_that_has_ended_or_is_refused_is_renewed(
    aws, client, private, builder, images, repository, ends_in
):
    keeper = ecr(aws, private)
    keeper._token = Credentials("AWS", "of-yesterday", time.time() + ends_in)
    pushed = keeper.push(builder, images["one"], repository, "1")
    assert not pushed.already_there
    assert keeper.credentials().password != "of-yesterday"


def test_a_token_that_ends_between_asking_and_sending_is_renewed(
    aws, client, private, builder, images, repository, monkeypatch
):
    keeper = ecr(aws, private)
    asked = keeper.manifest

    def manifest_then_end(*arguments: str) -> Any:
        found = asked(*arguments)
        keeper._token = Credentials("AWS", "of-yesterday", time.time() + 6 * 3600)
        return found

    monkeypatch.setattr(keeper, "manifest", manifest_then_end)
    pushed = keeper.push(builder, images["one"], repository, "1")
    assert not pushed.already_there


def test_the_secret_that_a_cluster_pulls_with_holds_the_token(aws, token, private):
    keeper = ecr(aws, private)
    content = json.loads(keeper.pull_secret())
    login = content["auths"][keeper.host]["auth"]
    assert base64.b64decode(login).decode() == f"AWS:{token}"


def test_the_registry_is_the_one_amazon_names_unless_another_is_given(aws, client):
    keeper = EcrRegistry(REGION, endpoint_url=aws)
    assert keeper.host.endswith(f".dkr.ecr.{REGION}.amazonaws.com")


def test_amazon_that_cannot_be_reached_is_named(private, builder, images, repository, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    away = f"http://{HOST}:{free_port()}"
    with pytest.raises(RegistryError, match="AWS cannot be asked for"):
        ecr(away, private).push(builder, images["one"], repository, "1")
