"""What tests roll out: manifests of a version, and a service that answers in its pods."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from health_predict_tests.kubernetes_double.api import Object
from health_predict_tests.receivers import serving


def manifests(version: str, *, replicas: int = 2, **spec: Any) -> list[Object]:
    """Returns a Deployment of the image `image(version)`, and what belongs to it."""
    labels = {"app.kubernetes.io/name": "readmission"}
    metadata = {"name": "readmission", "labels": labels}
    container = {
        **{"name": "service", "image": image(version)},
        "ports": [{"name": "http", "containerPort": 3000}],
        "env": [{"name": "HEALTH_PREDICT_AUTH", "value": "on"}],
    }
    annotations = {"health-predict/model-version": version}
    template = {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {"containers": [container], "imagePullSecrets": [{"name": "registry"}]},
    }
    update = {"maxSurge": 1, "maxUnavailable": 0}
    wanted = {
        **{"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
        **{"strategy": {"type": "RollingUpdate", "rollingUpdate": update}, **spec},
    }
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    things = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "1"}},
        {
            **{"apiVersion": "v1", "kind": "Service", "metadata": metadata},
            "spec": {"selector": labels, "ports": ports},
        },
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": wanted},
    ]
    apart: list[Object] = json.loads(json.dumps(things))
    return apart


def image(version: str) -> str:
    """Returns the reference of an image, by digest."""
    digest = hashlib.sha256(version.encode()).hexdigest()
    return f"registry.test:5000/readmission@sha256:{digest}"


@dataclass
class Service:
    """What answers in a pod: who it is, and what it was asked, to whom it may concern."""

    url: str
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


@contextmanager
def answering(version: str, status: int = 200) -> Iterator[Service]:
    """Yields a service that names its version at `/model-info` and echoes what is posted."""
    service = Service("")

    class Answerer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.loads(sent) if sent else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            service.asked.append((self.path, headers, body))
            is_page = self.path == "/"
            answer = "<html>" if is_page else json.dumps(body or {"version": version})
            self.send_response(status)
            self.send_header("content-type", "text/html" if is_page else "application/json")
            self.end_headers()
            self.wfile.write(answer.encode())

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answerer) as server:
        service.url = f"http://127.0.0.1:{server.server_port}"
        with serving(server):
            yield service
