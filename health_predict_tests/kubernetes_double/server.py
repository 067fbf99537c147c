"""The API server over HTTP: routes, faults, discovery and the proxy to what runs in the pods."""

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from health_predict_tests.kubernetes_double.api import KINDS, TOKEN, Kind, Object, Refusal
from health_predict_tests.kubernetes_double.deployments import Deployments
from health_predict_tests.receivers import serving

_JSON = {"content-type": "application/json"}
_ROUTE = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"(?:/(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+)(?P<rest>/.*)?)?)?)?"
)


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match.

    Attributes:
        what: `drop`: the connection is closed unanswered; `lose`: it is done, and then closed; a
            number: that status is answered.
        times: how often.
        where: regular expression of method and path.
        retry_after: header of the answer.
    """

    what: str | int
    times: float = 1
    where: str = ""
    retry_after: str = ""


class KubernetesDouble(Deployments):
    """The API server, its controller of Deployments and its one kubelet.

    Attributes:
        faults: what goes wrong next.
        requests: method and path of all that was asked.
        port: where it listens.
    """

    def __init__(self, speed: float, scheme: str) -> None:
        super().__init__(speed)
        self.scheme = scheme
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def kubeconfig(self, folder: Path, user: Object | None = None, **cluster: Any) -> Path:
        """Returns a kubeconfig that names this cluster in a context `double`."""
        path = folder / "kubeconfig"
        context = {"cluster": "double", "user": "deployer"}
        content = {
            **{"apiVersion": "v1", "kind": "Config", "current-context": "double"},
            "clusters": [{"name": "double", "cluster": {"server": self.url, **cluster}}],
            "users": [{"name": "deployer", "user": user or {"token": TOKEN}}],
            "contexts": [{"name": "double", "context": context}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def fail(self, what: str | int, times: float = 1, where: str = "", after: str = "") -> None:
        """Has requests fail; see `Fault`."""
        self.faults.append(Fault(what, times, where, after))


class _Gone(Exception):
    """The connection is to be closed without an answer."""


@contextmanager
def kubernetes(
    speed: float = 40.0, tls: ssl.SSLContext | None = None
) -> Iterator[KubernetesDouble]:
    """Yields a cluster that listens on a free port for as long as the block runs."""
    double = KubernetesDouble(speed, "https" if tls else "http")

    class Handler(_Handler):
        cluster = double

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        double.port = server.server_port
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        with serving(server):
            yield double


class _Handler(BaseHTTPRequestHandler):
    cluster: KubernetesDouble
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        length = int(self.headers.get("content-length", 0))
        sent = self.rfile.read(length)
        asked = f"{self.command} {self.path}"
        self.cluster.requests.append(asked)
        try:
            fault = self._fault(asked)
            if fault is not None and fault.what == "drop":
                raise _Gone
            if fault is not None and isinstance(fault.what, int):
                self._answer(*_refused_plainly(fault))
                return
            try:
                status, content, headers = self._handle(sent)
            except Refusal as refusal:
                body = json.dumps(refusal.body).encode()
                status, content, headers = refusal.code, body, _JSON
            if fault is not None:
                raise _Gone
            self._answer(status, content, headers)
        except _Gone:
            self.close_connection = True

    def _fault(self, asked: str) -> Fault | None:
        with self.cluster.lock:
            for fault in self.cluster.faults:
                if fault.times > 0 and re.search(fault.where, asked):
                    fault.times -= 1
                    return fault
        return None

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _handle(self, sent: bytes) -> tuple[int, bytes, dict[str, str]]:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        if (scheme.lower(), token) != ("bearer", TOKEN):
            raise Refusal(401, "Unauthorized", "Unauthorized")
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        route = _ROUTE.fullmatch(unquote(url.path))
        if route is None:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        version, at = route["core"] or route["group"], route.groupdict(default="")
        known = {KINDS[each][0]: each for each in KINDS if each[0] == version}
        if at["sub"] == "proxy":
            return self._proxied(at, url.query, sent)
        with self.cluster.lock:
            self.cluster.advance()
            if at["sub"] == "log":
                text = self.cluster.log(at["namespace"], at["name"], query)
                return 200, text.encode(), {"content-type": "text/plain"}
            if not known or (at["plural"] and at["plural"] not in known) or at["sub"]:
                raise Refusal(404, "NotFound", "the server could not find the requested resource")
            if at["plural"]:
                status, answer = self._object(known[at["plural"]], at, query, sent)
            else:
                status, answer = 200, _discovered(version)
            return status, json.dumps(answer).encode(), _JSON

    def _object(
        self, kind: Kind, at: dict[str, str], query: dict[str, str], sent: bytes
    ) -> tuple[int, Object]:
        cluster, where = self.cluster, (kind, at["namespace"], at["name"])
        if self.command == "GET" and at["name"]:
            return 200, cluster._shown(cluster.read(*where))
        if self.command == "GET":
            return 200, cluster.listed(kind, at["namespace"], query)
        if self.command == "DELETE":
            return cluster.delete(*where)
        body = yaml.safe_load(sent)
        content_type = self.headers.get("content-type", "")
        if self.command == "PATCH" and content_type == "application/apply-patch+yaml":
            return cluster.apply(*where, body, query)
        if self.command == "PATCH" and content_type == "application/strategic-merge-patch+json":
            return cluster.change(*where, body, query)
        raise Refusal(415, "UnsupportedMediaType", f"{self.command} {content_type}")

    def _proxied(
        self, at: dict[str, str], query: str, sent: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        with self.cluster.lock:
            self.cluster.advance()
            host, port, address = self.cluster.backend(at["plural"], at["namespace"], at["name"])
        # The API server's authentication takes this header away, whatever is in it.
        left_out = {"authorization", "host", "connection", "content-length", "accept-encoding"}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
        headers |= {"X-Forwarded-Uri": self.path, "X-Forwarded-Proto": "http"}
        connection = http.client.HTTPConnection(host, port, timeout=10)
        try:
            path = (at["rest"] or "/") + (f"?{query}" if query else "")
            connection.request(self.command, path, sent or None, headers)
            answer = connection.getresponse()
            kind = {"content-type": answer.headers.get("content-type", "")}
            return answer.status, answer.read(), kind
        except (OSError, http.client.HTTPException) as error:
            words = f"error trying to reach service: dial tcp {address}: {error}"
            raise Refusal(503, "ServiceUnavailable", words) from error
        finally:
            connection.close()


def _refused_plainly(fault: Fault) -> tuple[int, bytes, dict[str, str]]:
    """Returns what an API server with too much to do, or a load balancer before it, answers."""
    words = {429: "Too many requests, please try again later.", 410: "too old resource version"}
    after = {"retry-after": fault.retry_after} if fault.retry_after else {}
    status = int(fault.what)
    text = words.get(status, "upstream connect error")
    return status, text.encode(), {"content-type": "text/plain", **after}


def _discovered(version: str) -> Object:
    found = []
    for (each, kind), (plural, namespaced) in KINDS.items():
        if each == version:
            about = {"kind": kind, "namespaced": namespaced, "singularName": kind.lower()}
            verbs = ["create", "delete", "get", "list", "patch"]
            found.append({"name": plural, **about, "verbs": verbs})
            found.append({"name": f"{plural}/status", **about, "verbs": ["get"]})
    about = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version}
    return {**about, "resources": found}
