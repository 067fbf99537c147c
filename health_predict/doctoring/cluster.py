"""Whether a release to a cluster could be made: engine, registry, API server, rights, pull secret.

Asked are reviews and reads; nothing is applied.
"""

import base64
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from health_predict.cluster_link import ClusterError, Link, Object, Unreachable, connect
from health_predict.doctoring.finding import Finding, ago, of_error, told
from health_predict.doctoring.service import PACE
from health_predict.ecr import registry as registry_at
from health_predict.engines import ContainerError, can_run, find_engine
from health_predict.kubernetes_platform import PULL_SECRET
from health_predict.oci_registry import OciRegistry
from health_predict.registry_http import RegistryError, Unauthorised
from health_predict.release import NAME
from health_predict.settings import ROOT, Settings
from health_predict.workloads import find_deployment

CLUSTER, ENGINE, REGISTRY = "cluster", "container engine", "registry"
RIGHTS, SECRET = "cluster rights", "pull secret"
ROLE = ROOT / "k8s" / "deployer-role.yaml"
# Amazon's tokens end after twelve.
_TOKEN_SECONDS = 12 * 3600.0
_MOST_ASKED = 10
_REVIEWS = "/apis/authorization.k8s.io/v1"
_NOBODY = "doctor"
"""A tag that nobody gives: that it is not there is an answer too."""


def engine(settings: Settings) -> Iterator[Finding]:
    """Finds out whether images can be built here."""
    try:
        found = find_engine(settings.container_engine)
    except ContainerError as error:
        remedy = "install podman or buildah, or start Docker"
        yield of_error(ENGINE, error, remedy)
        return
    problem = can_run(found)
    words = f"; images are not tried here: {problem}" if problem else " builds and runs"
    yield Finding(ENGINE, "ok", f"{found.name}{words}")


def registry(settings: Settings) -> Iterator[Finding]:
    """Finds out whether the registry answers and takes the credentials."""
    try:
        there = _registry(settings)
        there.manifest(settings.repository, _NOBODY)
        known = there.credentials()
    except Unauthorised as error:
        remedy = "set HEALTH_PREDICT_REGISTRY_USERNAME and _PASSWORD, or log the engine in again"
        yield of_error(REGISTRY, error, remedy)
    except RegistryError as error:
        yield of_error(REGISTRY, error)
    else:
        who = f"as {known.user}" if known else "without a login, which it does not ask for"
        yield Finding(REGISTRY, "ok", f"{there.host} answers {who}")


def _registry(settings: Settings) -> OciRegistry:
    password = settings.registry_password
    return registry_at(
        settings.registry,
        settings.registry_username,
        password.get_secret_value() if password else "",
        create=False,
        attempts=1,
    )


def cluster(settings: Settings) -> Iterator[Finding]:
    """Finds out whether the API server answers, and whether this user may release there."""
    named = settings.kube_context or "the current one"
    try:
        client = connect(None, settings.kube_context or None)
    except ClusterError as error:
        remedy = "set KUBECONFIG, and HEALTH_PREDICT_KUBE_CONTEXT (kubectl config get-contexts)"
        yield of_error(CLUSTER, error, remedy)
        return
    link = Link(client, settings.namespace, PACE, lambda _: None)
    try:
        version = (link.get("/version") or {}).get("gitVersion", "of an unknown version")
        space = link.get(f"/api/v1/namespaces/{settings.namespace}")
    except Unreachable as error:
        remedy = "start it (k8s/minikube-up), or correct the context (kubectl cluster-info)"
        yield of_error(CLUSTER, error, remedy)
        return
    except ClusterError as error:
        yield _refused(CLUSTER, error)
        return
    seen = f"Kubernetes {version} at {link.host}, context: {named}"
    if space is None:
        remedy = "kubectl apply --server-side -f k8s/base/namespace.yaml, or k8s/minikube-up"
        yield Finding(
            CLUSTER, "wrong", f"{seen}; there is no namespace {settings.namespace}", remedy
        )
        return
    yield Finding(CLUSTER, "ok", f"{seen}, namespace {settings.namespace}")
    for part, look in ((RIGHTS, _rights), (SECRET, _secret)):
        try:
            yield look(settings, link)
        except ClusterError as error:
            yield _refused(part, error)


def _refused(part: str, error: ClusterError) -> Finding:
    seen, remedy = told(error, (": ",))
    return Finding(part, "wrong", seen, remedy or "kubectl auth can-i --list")


@dataclass(frozen=True)
class Right:
    """One thing that a release does: verb, API group, resource with its part, object's name."""

    verb: str
    group: str
    resource: str
    name: str = ""

    def __str__(self) -> str:
        """As `kubectl auth can-i` takes it."""
        resource, _, part = self.resource.partition("/")
        whole = f"{resource}.{self.group}" if self.group else resource
        return f"{self.verb} {whole}{f'/{part}' if part else ''} {self.name}".strip()

    def granted(self, rule: Mapping[str, Any]) -> bool:
        """Returns whether a rule of a role allows it."""
        names = rule.get("resourceNames") or []
        part = self.resource.partition("/")[2]
        return (
            bool({self.verb, "*"} & {*rule["verbs"]})
            and bool({self.group, "*"} & {*(rule.get("apiGroups") or ())})
            and bool({self.resource, "*", f"*/{part}"} & {*(rule.get("resources") or ())})
            and (not names or self.name in names)
        )


def needed() -> list[Right]:
    """Returns what a release needs in its namespace, as the role of the deployer says."""
    role = next(yaml.safe_load_all(ROLE.read_text()))
    return [
        Right(verb, group, resource, name)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    ]


def _rights(settings: Settings, link: Link) -> Finding:
    status = _review(link, "SelfSubjectRulesReview", {"namespace": settings.namespace})
    rules = status.get("resourceRules") or []
    missing = [right for right in needed() if not any(map(right.granted, rules))]
    if status.get("incomplete"):  # an authoriser that cannot list its rules is asked one by one
        asked = missing[:_MOST_ASKED]
        missing = [right for right in asked if not _allowed(settings, link, right)]
    if not missing:
        return Finding(RIGHTS, "ok", f"all that {ROLE.name} grants")
    words = ", ".join(map(str, missing[:5]))
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    remedy = "have an administrator apply k8s/deployer-role.yaml and bind this user to it"
    return Finding(RIGHTS, "wrong", f"not allowed: {words}{more}", remedy)


def _allowed(settings: Settings, link: Link, right: Right) -> bool:
    resource, _, part = right.resource.partition("/")
    wanted = {
        **{"namespace": settings.namespace, "verb": right.verb, "group": right.group},
        **{"resource": resource, "subresource": part, "name": right.name},
    }
    status = _review(link, "SelfSubjectAccessReview", {"resourceAttributes": wanted})
    return bool(status.get("allowed"))


def _review(link: Link, kind: str, spec: Object) -> Object:
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    answer = link.request("POST", f"{_REVIEWS}/{kind.lower()}s", body)
    if answer.status not in (200, 201):
        raise link.refused(f"asking for a {kind}", answer)
    status: Object = answer.json["status"]
    return status


def _secret(settings: Settings, link: Link) -> Finding:
    found = link.get(f"/api/v1/namespaces/{link.namespace}/secrets/{PULL_SECRET}")
    if settings.overlay == "eks":
        return Finding(SECRET, "off", "on EKS the nodes pull by their own role")
    if found is None:
        return _no_secret(settings, link)
    host = _registry(settings).host
    content = json.loads(base64.b64decode(found["data"][".dockerconfigjson"]))
    if host not in content["auths"]:
        seen = f"{PULL_SECRET} is for {', '.join(content['auths'])}, not for {host}"
        return Finding(SECRET, "wrong", seen, _MAKE)
    written = _written(found)
    seen = f"{PULL_SECRET} for {host}, written {ago(written)}"
    if ".ecr." in host and time.time() - written > _TOKEN_SECONDS:
        return Finding(SECRET, "wrong", f"{seen}: Amazon's tokens end after 12 h", _MAKE)
    return Finding(SECRET, "ok", seen)


_MAKE = "k8s/minikube-up, or launch the job deploy: both write it anew"


def _no_secret(settings: Settings, link: Link) -> Finding:
    if find_deployment(link, NAME) is None:
        return Finding(SECRET, "off", "nothing was rolled out yet: the first release makes it")
    if _registry(settings).credentials() is None:
        return Finding(SECRET, "off", "the registry is used without a login")
    return Finding(SECRET, "wrong", f"there is no secret {PULL_SECRET}: no pod can start", _MAKE)


def _written(secret: Object) -> float:
    """Returns when an object was last written, epoch seconds."""
    metadata = secret["metadata"]
    times = [entry.get("time") for entry in metadata.get("managedFields", ())]
    moments = [moment for moment in (*times, metadata["creationTimestamp"]) if moment]
    return max(datetime.fromisoformat(moment).timestamp() for moment in moments)
