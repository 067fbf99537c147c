"""Server-side apply: manifests go in, what came of each comes out, others keep their fields.

What the manifests say and in which order they come is not decided here, nor what follows when
others manage a field.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

from health_predict.cluster_link import FIELD_MANAGER, ClusterError, Conflict, Link, Object

_REVISION = "deployment.kubernetes.io/revision"
_WRITTEN_FOR_US = {"resourceVersion", "managedFields", "generation"}

Kinds = dict[str, dict[str, Object]]
"""What a cluster knows of kinds: resource by kind, by API version."""


class FieldConflict(ClusterError):
    """Fields of a manifest are managed by others, and nothing of this manifest was applied."""

    def __init__(self, message: str, conflicts: Sequence[Conflict]) -> None:
        super().__init__(message)
        self.conflicts = tuple(conflicts)


@dataclass(frozen=True)
class Applied:
    """What applying one manifest came to."""

    kind: str
    name: str
    outcome: Literal["created", "changed", "unchanged"]


def apply(link: Link, manifests: Iterable[Mapping[str, Any]], force: bool) -> tuple[Applied, ...]:
    """Applies manifests in the order given; see `health_predict.cluster.Cluster.apply`."""
    kinds: Kinds = {}
    return tuple(_apply(link, kinds, manifest, force) for manifest in manifests)


def _apply(link: Link, kinds: Kinds, manifest: Mapping[str, Any], force: bool) -> Applied:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    resource = _resource(link, kinds, manifest["apiVersion"], kind)
    if resource["namespaced"]:
        metadata = {"namespace": link.namespace, **manifest["metadata"]}
        manifest = {**manifest, "metadata": metadata}
    path = _path(manifest, resource)
    before = link.get(path)
    query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}
    query["fieldValidation"] = "Strict"
    content = {"content-type": "application/apply-patch+yaml"}  # of which JSON is a part
    answer = link.request("PATCH", f"{path}?{urlencode(query)}", manifest, content)
    if answer.conflicts:
        raise _conflict(kind, name, answer.conflicts)
    if answer.status not in (200, 201):
        raise link.refused(f"applying {kind} {name}", answer)
    outcome: Literal["created", "changed", "unchanged"] = "created"
    if before is not None:
        outcome = "unchanged" if _same(before, answer.json) else "changed"
    link.say(f"{kind} {name}: {outcome}.")
    return Applied(kind, name, outcome)


def _resource(link: Link, kinds: Kinds, version: str, kind: str) -> Object:
    """Returns what the cluster calls a kind, and whether it lives in a namespace."""
    if version not in kinds:
        resources = (link.get(_root(version)) or {}).get("resources", [])
        kinds[version] = {each["kind"]: each for each in resources if "/" not in each["name"]}
    if kind not in kinds[version]:
        raise ClusterError(
            f"the cluster knows no {kind} of {version}: "
            "install what defines it, or leave it out of the manifests"
        )
    return kinds[version][kind]


def _path(manifest: Mapping[str, Any], resource: Object) -> str:
    root, metadata = _root(manifest["apiVersion"]), manifest["metadata"]
    if resource["namespaced"]:
        root += f"/namespaces/{metadata['namespace']}"
    return f"{root}/{resource['name']}/{metadata['name']}"


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _conflict(kind: str, name: str, conflicts: Sequence[Conflict]) -> FieldConflict:
    fields = "; ".join(f"{each.field} by {each.manager}" for each in conflicts)
    return FieldConflict(
        f"{kind} {name} was not applied, others manage fields of it: {fields}. Leave these fields "
        "out of the manifest, have the other manager give them up, or apply with force to take "
        f"them over (kubectl get {kind.lower()} {name} -o yaml --show-managed-fields)",
        conflicts,
    )


def _same(before: Object, after: Object) -> bool:
    """Whether two readings of an object differ in nothing that was applied."""
    if before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]:
        return True
    # A controller writes in between, and the API server itself may write for nothing:
    # https://github.com/kubernetes/kubernetes/issues/121404.
    return _applied_part(before) == _applied_part(after)


def _applied_part(thing: Object) -> Object:
    kept = {name: part for name, part in thing["metadata"].items() if name not in _WRITTEN_FOR_US}
    annotations = {k: v for k, v in (kept.get("annotations") or {}).items() if k != _REVISION}
    return {**thing, "metadata": {**kept, "annotations": annotations}, "status": None}
