"""The cluster a release rolls out to: apply manifests, await the roll-out, ask the pods.

Everything here is what the Kubernetes API answers. What the manifests say, which image they name,
whether the answers of the pods are right and what happens when they are not is not decided here.
How each is done lives in `cluster_link`, `server_side_apply`, `workloads`, `rollout` and
`service_proxy`; their names that others need are found here.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from health_predict.cluster_link import (
    FIELD_MANAGER,
    ClusterError,
    Conflict,
    Link,
    Pace,
    Say,
    Unreachable,
    connect,
)
from health_predict.rollout import Rollout, Snapshot, Wait
from health_predict.server_side_apply import Applied, FieldConflict, apply
from health_predict.service_proxy import TOKEN_HEADER, ask_at, ask_through
from health_predict.workloads import (
    VERSION_ANNOTATION,
    Deployed,
    Pod,
    as_deployed,
    as_pod,
    deployment_path,
    find_deployment,
    is_ready,
    new_pods,
    service_container,
)

__all__ = [
    "FIELD_MANAGER",
    "TOKEN_HEADER",
    "VERSION_ANNOTATION",
    "Applied",
    "Cluster",
    "ClusterError",
    "Conflict",
    "Deployed",
    "FieldConflict",
    "Pace",
    "Pod",
    "Rollout",
    "Snapshot",
    "Unreachable",
]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Cluster:
    """A namespace of a cluster.

    Requests that fail in passing (a lost connection, 410, 429, 5xx) are made again for as long as
    `Pace.unreachable`; everything asked here may be asked twice.

    Attributes:
        namespace: where objects go that do not name one.
        context: of the kubeconfig; None for its current one.
        kubeconfig: a file; None for `KUBECONFIG`, `~/.kube/config` or, where there is neither, the
            service account of the pod this runs in. Credentials are what the official client makes
            of it, commands that fetch tokens included.
        service_url: where `ask_service` finds the service, when not through the API server.
        pace: how long is waited for what.
    """

    namespace: str
    context: str | None = None
    kubeconfig: Path | None = None
    service_url: str = ""
    pace: Pace = field(default_factory=Pace)

    def apply(
        self, objects: Iterable[Mapping[str, Any]], say: Say, *, force: bool = False
    ) -> tuple[Applied, ...]:
        """Applies manifests, in the order given, by server-side apply.

        What another manager holds is left to it: a horizontal autoscaler its replicas, a person
        what they changed by hand, until they are asked. Applying is idempotent.

        Args:
            objects: manifests; those without a namespace go to this one.
            say: told what happens, a sentence a manifest.
            force: take over fields that others manage.

        Raises:
            FieldConflict: others manage fields that are given other values here. Manifests before
                this one stay applied.
            ClusterError: a manifest is refused.
            Unreachable: the API server does not answer.
        """
        return apply(self._link(say), objects, force)

    def roll_back_to(self, objects: Iterable[Mapping[str, Any]], say: Say) -> tuple[Applied, ...]:
        """Applies the manifests that were applied before.

        The pods of the former template still run, or their ReplicaSet is still there: they are
        kept, not made anew. `kubectl rollout undo` would put the template back as another manager,
        with which the next apply conflicts, and would leave everything else as it is.
        """
        return self.apply(objects, say)

    def take_away(self, deployment: str) -> bool:
        """Deletes a Deployment with its pods; returns whether there was one.

        For a first release that failed: there is nothing to roll back to, and what is not verified
        shall not serve.
        """
        link = self._link()
        path = f"{deployment_path(link, deployment)}?propagationPolicy=Background"
        answer = link.request("DELETE", path)
        if answer.status not in (200, 202, 404):
            raise link.refused(f"deleting Deployment {deployment}", answer)
        return answer.status != 404

    def ensure_pull_secret(self, name: str, registry: str, user: str, password: str) -> Applied:
        """Writes the Secret that lets the kubelet pull from a registry.

        To be called before every roll-out: ECR's passwords are good for twelve hours. A pod placed
        anew after that, on a node that has not the image yet, waits in ImagePullBackOff until the
        next roll-out; on EKS nodes pull by their own role, and on Minikube the one node has the
        image. Whoever wrote this Secret before, it is taken over.

        Args:
            name: of the Secret, as the pods' `imagePullSecrets` name it.
            registry: host, with a port if it has one.
            user: of the registry; ECR's is `AWS`.
            password: neither logged nor in any message.

        Raises:
            ClusterError: the Secret is refused.
        """
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        content = {"auths": {registry: {"username": user, "password": password, "auth": login}}}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER}},
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": base64.b64encode(json.dumps(content).encode()).decode()},
        }
        (applied,) = apply(self._link(), [secret], force=True)
        return applied

    def deployed(self, deployment: str) -> Deployed | None:
        """Returns what a Deployment is told to run, None if there is no such Deployment."""
        found = find_deployment(self._link(), deployment)
        return None if found is None else as_deployed(found)

    def ready_pods(self, deployment: str) -> tuple[Pod, ...]:
        """Returns the ready pods of a Deployment's present template.

        None while the Deployment's controller has not seen the template yet; pods that are being
        ended do not count, ready or not.
        """
        link = self._link()
        found = find_deployment(link, deployment)
        if found is None:
            return ()
        ready = filter(is_ready, new_pods(link, found))
        return tuple(as_pod(pod, service_container(found)["name"]) for pod in ready)

    def await_rollout(self, deployment: str, say: Say, seconds: float, image: str = "") -> Rollout:
        """Waits until a Deployment's template runs everywhere and nothing else does.

        The rule is that of `kubectl rollout status`: the generation is observed, all replicas are
        of it, none of another is left, all are available. What cannot get better by waiting ends
        the wait early: a crash loop, an image that cannot be pulled, a missing ConfigMap, no node
        to run on, a quota, the Deployment's own progress deadline.

        Args:
            deployment: its name.
            say: told what happens, a sentence at a time.
            seconds: to wait at the most, not counting an API server that does not answer.
            image: reference that is rolled out; the wait ends when the Deployment names another.

        Raises:
            Unreachable: the API server does not answer; the roll-out goes on without us.
        """
        return Wait(self._link(say), deployment, image).end(seconds)

    def ask_pod(
        self, pod: Pod, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Asks one pod, through the API server.

        The API server takes the `Authorization` header for itself and never passes it on: a token
        in it is sent as `x-health-predict-token` instead. Needs `get` and `create` on `pods/proxy`.

        Args:
            pod: whom to ask.
            path: with its query.
            body: JSON value to POST; None to GET.
            headers: passed on.

        Returns:
            The service's status and JSON, whatever the status is.

        Raises:
            ClusterError: the pod does not answer, or not with JSON.
        """
        return ask_through(self._link(), f"pods/http:{pod.name}:{pod.port}", path, body, headers)

    def ask_service(
        self,
        service: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        port: str = "http",
    ) -> tuple[int, Any]:
        """Asks a Service: at `service_url` if that is set, otherwise through the API server.

        Like `ask_pod`; `port` is the Service's port by its name or number, and not used at a
        `service_url`, where nothing is asked twice either.
        """
        if self.service_url:
            return ask_at(f"{self.service_url.rstrip('/')}/{path.lstrip('/')}", body, headers)
        return ask_through(self._link(), f"services/http:{service}:{port}", path, body, headers)

    def _link(self, say: Say = _silent) -> Link:
        return replace(self._connected, say=say)

    @cached_property
    def _connected(self) -> Link:
        client = connect(self.kubeconfig, self.context)
        return Link(client, self.namespace, self.pace, _silent)
