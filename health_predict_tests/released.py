"""The cluster's platform on the double of Kubernetes, with real Bentos that answer in its pods.

Run as a command it makes one roll-out, for the tests that kill it in the middle:
`python -m health_predict_tests.released KUBECONFIG VERSION GOLDEN`.
"""

import contextlib
import hashlib
import http.client
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from health_predict.cluster import Cluster, Pace
from health_predict.kubernetes_platform import KubernetesPlatform
from health_predict.registry_credentials import Credentials
from health_predict.release import NAME, Deployment, Image
from health_predict.release_records import ReleaseRecords
from health_predict.serving.options import TOKENS
from health_predict.settings import ROOT
from health_predict.store import open_store
from health_predict.verification import GoldenRow
from health_predict_tests import bentos, served_bento
from health_predict_tests.kubernetes_double import (
    DEPLOYMENT,
    NAMESPACE,
    POD,
    KubernetesDouble,
    image,
    kubernetes,
)
from health_predict_tests.receivers import serving
from health_predict_tests.served_bento import Served

TOKEN = "token-of-the-service"
PASSWORD = "password-of-the-registry"
OVERLAY = ROOT / "k8s" / "overlays" / "minikube"
BASE = "localhost/base:bookworm"
SPEED = 80.0
PACE = Pace(poll=0.02, answer=10, unreachable=20, pull=0.1, config=0.1, unschedulable=0.1)


@dataclass(frozen=True)
class Keeper:
    """Of a registry what a roll-out asks for: who may pull."""

    host: str = "registry.test:5000"

    def credentials(self) -> Credentials:
        return Credentials("AWS", PASSWORD)


@dataclass(frozen=True)
class Bentos:
    """Bentos that run, by version, and rows with their scores."""

    home: Path
    made: Mapping[str, bentos.Built]
    served: Mapping[str, Served]

    def golden(self, version: str) -> list[GoldenRow]:
        return self.made[version].golden

    def shifted(self, version: str) -> list[GoldenRow]:
        """Golden rows that the Bento answers otherwise."""
        return [replace(row, score=row.score + 0.01) for row in self.golden(version)]


@contextmanager
def running(folder: Path, *versions: str) -> Iterator[Bentos]:
    """Serves Bentos that ask for a token, for as long as the block runs."""
    home, made = bentos.store(folder)
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    with ExitStack() as stack:
        served = {}
        for version in versions:
            tag, place = made[version].bento.tag, folder / f"served-{version}"
            serve = served_bento.serve(home, tag, place, **{TOKENS: digest})
            served[version] = stack.enter_context(serve)
        yield Bentos(home, made, served)


@dataclass
class Place:
    """A platform, the double behind it, and what was said.

    Attributes:
        heard: called with each sentence as it is said.
    """

    double: KubernetesDouble
    platform: KubernetesPlatform
    bentos: Bentos
    kubeconfig: Path
    said: list[str] = field(default_factory=list)
    heard: Callable[[str], None] = lambda _: None

    def say(self, sentence: str) -> None:
        self.said.append(sentence)
        self.heard(sentence)

    def with_platform(self, **changes: Any) -> "Place":
        return replace(self, platform=replace(self.platform, **changes))

    def with_cluster(self, **changes: Any) -> "Place":
        return self.with_platform(cluster=replace(self.platform.cluster, **changes))

    def roll_out(self, version: str, golden: list[GoldenRow] | None = None) -> Deployment:
        rows = self.bentos.golden(version) if golden is None else golden
        return self.platform.roll_out(released(version), rows, self.say)

    def deployment(self) -> dict[str, Any]:
        return self.double.find(DEPLOYMENT, NAME)

    def asked(self, part: str) -> int:
        """Returns how many requests had a part in method and path."""
        return sum(part in request for request in self.double.requests)

    def images(self) -> set[str]:
        """Returns the images of the pods that are not being ended."""
        pods = [p for p in self.double.all(POD) if "deletionTimestamp" not in p["metadata"]]
        return {pod["spec"]["containers"][0]["image"] for pod in pods}

    def serves(self, version: str) -> bool:
        """Whether a version, and nothing else, is declared, run and answered with."""
        names = [thing["metadata"]["name"] for thing in self.double.all(DEPLOYMENT)]
        declared = self.deployment()["spec"]["template"]["spec"]["containers"][0]["image"]
        assert names == [NAME]
        assert declared == image(version)
        assert self.images() == {image(version)}
        assert self.platform.declared_version() == version
        assert self.platform.served_version() == version
        return True

    def is_empty(self) -> bool:
        """Whether nothing is declared, run or answered with."""
        assert self.double.all(DEPLOYMENT) == []
        assert self.images() == set()
        assert self.platform.declared_version() is None
        assert self.platform.served_version() is None
        return True


def released(version: str, problem: str = "") -> Image:
    """Returns an image as a push leaves it."""
    reference = image(version)
    return Image(reference, reference.partition("@")[2], version, 1, problem=problem)


@contextmanager
def placed(folder: Path, running: Bentos, overlay: Path = OVERLAY) -> Iterator[Place]:
    """A cluster of its own whose pods answer by the Bentos that run."""
    with kubernetes(SPEED) as double:
        double.backends = {image(v): served.url for v, served in running.served.items()}
        double.registries = {Keeper().host: ("AWS", PASSWORD)}
        kubeconfig = double.kubeconfig(folder)
        yield Place(double, platform(kubeconfig, running.home, overlay), running, kubeconfig)


def platform(kubeconfig: Path, home: Path, overlay: Path = OVERLAY) -> KubernetesPlatform:
    return KubernetesPlatform(
        bentoml_home=home,
        cluster=Cluster(NAMESPACE, "double", kubeconfig, pace=PACE),
        overlay=overlay,
        registry=Keeper(),  # type: ignore[arg-type]  nothing is pushed
        repository="readmission",
        base_image=BASE,
        records=ReleaseRecords(open_store(kubeconfig.parent / "records")),
        token=TOKEN,
        seconds=30,
    )


@contextmanager
def between(choose: Callable[[str], str | int]) -> Iterator[str]:
    """An address that leads where `choose` says for each path, for as long as the block runs.

    To an address, or to an answer with that status; with nothing said the connection is closed.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            chosen = choose(self.path)
            if not chosen:
                self.close_connection = True
                return
            status, content = (chosen, b'{"detail": "tired"}')
            if isinstance(chosen, str):
                status, content = self._ask(chosen, sent)
            self.send_response(int(status))
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def _ask(self, url: str, sent: bytes) -> tuple[int, bytes]:
            parts = urlsplit(url)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
            with contextlib.closing(connection):
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                connection.request(self.command, self.path, sent or None, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((bentos.HOST, 0), Handler) as server:
        server.daemon_threads = True
        with serving(server):
            yield f"http://{bentos.HOST}:{server.server_port}"


def command(place: Place, version: str, golden: list[GoldenRow], folder: Path) -> list[str]:
    """Returns the command that makes a roll-out."""
    path = folder / "golden.json"
    path.write_text(json.dumps([asdict(row) for row in golden]))
    module = ("-m", "health_predict_tests.released")
    return [sys.executable, *module, str(place.kubeconfig), version, str(path)]


def _main() -> None:
    kubeconfig, version, path = sys.argv[1:]
    golden = [GoldenRow(**row) for row in json.loads(Path(path).read_text())]
    ended = platform(Path(kubeconfig), Path(kubeconfig).parent).roll_out(
        released(version), golden, lambda _: None
    )
    sys.stdout.write(ended.sentence)


if __name__ == "__main__":
    _main()
