"""The manifests of `k8s/` as objects: a strict reader of the part of kustomize they use.

Rendered here, so that a release needs no kubectl; kustomize renders the same objects. What these
files do not use of it is refused by name. Nothing here talks to a cluster: that is `release`.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object."""

ORDER = (
    "Namespace",
    "ServiceAccount",
    "ConfigMap",
    "NetworkPolicy",
    "Service",
    "Deployment",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
)
"""The kinds, in the order they are applied: what a pod stands on comes before it."""

CONFIG_DIGEST = "health-predict/config-digest"
"""Annotation of the pods: sha256 of the ConfigMaps, so that a changed value rolls out too."""

_CLUSTER_SCOPED = {"Namespace"}
_RECIPE = "kustomization.yaml"
_RECIPE_KEYS = {"apiVersion", "kind", "resources", "namespace", "patches"}
_BY_DIGEST = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")


class ManifestError(ValueError):
    """A manifest cannot be used; the message names the file or the value and the remedy."""


def render(overlay: Path) -> list[Object]:
    """Returns the objects of a kustomize folder, in the order they are to be applied.

    Args:
        overlay: a folder with a `kustomization.yaml` that uses `resources`, `namespace` and
            `patches` (JSON 6902: add, remove, replace; target by kind and name), and no more.

    Raises:
        ManifestError: the folder uses more, or kustomize would not take it either.
    """
    return sorted(_folder(overlay.resolve(), ()), key=lambda o: ORDER.index(o["kind"]))


def with_image(
    objects: Sequence[Object],
    reference: str,
    env: Mapping[str, str],
    annotations: Mapping[str, str],
) -> list[Object]:
    """Returns the objects with an image in their Deployment; those given stay as they are.

    Args:
        objects: what `render` returned.
        reference: the image by the digest its registry reports, `registry/name@sha256:...`.
        env: variables of the container, in place of those of the same name.
        annotations: of the pods.

    Raises:
        ManifestError: the reference is not by digest, or there is not one Deployment with one
            container.
    """
    if not _BY_DIGEST.fullmatch(reference):
        raise ManifestError(
            f"image {reference!r} is not by digest: give registry/name@sha256:..., the digest as "
            "the registry reports it after the push"
        )
    changed = [copy.deepcopy(found) for found in objects]
    deployment = _only("Deployment", [o for o in changed if o["kind"] == "Deployment"])
    template = deployment["spec"]["template"]
    container = _only("container", template["spec"]["containers"])
    container["image"] = reference
    kept = [entry for entry in container.get("env", []) if entry["name"] not in env]
    container["env"] = [*kept, *({"name": name, "value": env[name]} for name in sorted(env))]
    config = [o["data"] for o in changed if o["kind"] == "ConfigMap"]
    template["metadata"].setdefault("annotations", {}).update(
        {CONFIG_DIGEST: hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()},
        **annotations,
    )
    return changed


def _only(what: str, found: Sequence[Object]) -> Object:
    if len(found) != 1:
        raise ManifestError(
            f"{len(found)} times a {what}: a release sets the image of the one container of the "
            "one Deployment; render an overlay of k8s/"
        )
    return found[0]


def _folder(folder: Path, via: tuple[Path, ...]) -> list[Object]:
    path = folder / _RECIPE
    if folder in via:
        raise ManifestError(f"{path} is among its own resources: take the circle out")
    recipe = _recipe(path)
    objects = [
        found
        for name in recipe.get("resources", [])
        for found in _resource(path, name, (*via, folder))
    ]
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    for kind, name in names:
        if names.count((kind, name)) > 1:
            raise ManifestError(f"{path} has {kind} {name} twice: keep one of them")
    for patch in recipe.get("patches", []):
        _patch(path, patch, objects)
    if "namespace" in recipe:
        _set_namespace(path, recipe["namespace"], objects)
    return objects


def _recipe(path: Path) -> Object:
    if not path.is_file():
        raise ManifestError(f"{path} is not there: name a folder that has one")
    documents = _documents(path)
    if len(documents) != 1 or documents[0].get("kind") != "Kustomization":
        raise ManifestError(f"{path} is not one document of kind Kustomization")
    _refuse_others(
        path,
        documents[0],
        _RECIPE_KEYS,
        "write it into the manifests themselves, or as a JSON 6902 operation under `patches`",
    )
    return documents[0]


def _resource(recipe: Path, name: str, via: tuple[Path, ...]) -> list[Object]:
    folder = (recipe.parent / name).resolve()
    if folder.is_dir():
        return _folder(folder, via)
    path = _beside(recipe, name)
    return [_checked(path, found) for found in _documents(path)]


def _beside(recipe: Path, name: str) -> Path:
    """Returns a file that a recipe names; of other places kustomize reads folders alone."""
    path = (recipe.parent / name).resolve()
    if not path.is_file() or not path.is_relative_to(recipe.parent):
        raise ManifestError(
            f"{recipe}: {name!r} is no folder here and no file beside it: copy the file there"
        )
    return path


def _checked(path: Path, found: Object) -> Object:
    kind = found.get("kind")
    if kind not in ORDER:
        raise ManifestError(
            f"{path}: a release does not apply kind {kind!r} (it does: {', '.join(ORDER)}): apply "
            "it apart, or give it its place in manifests.ORDER and in k8s/deployer-role.yaml"
        )
    if not found.get("apiVersion") or not found.get("metadata", {}).get("name"):
        raise ManifestError(f"{path}: a {kind} lacks apiVersion or metadata.name")
    return found


def _set_namespace(path: Path, namespace: str, objects: Sequence[Object]) -> None:
    for found in objects:
        if found["kind"] not in _CLUSTER_SCOPED:
            found["metadata"]["namespace"] = namespace
        elif found["metadata"]["name"] != namespace:
            raise ManifestError(
                f"{path} puts everything into {namespace!r}, but its Namespace is "
                f"{found['metadata']['name']!r}: write one name at both places"
            )


def _patch(path: Path, patch: Object, objects: Sequence[Object]) -> None:
    _refuse_others(path, patch, {"target", "patch", "path"}, "leave it out of the patch")
    target = patch.get("target", {})
    _refuse_others(path, target, {"kind", "name"}, "name the object by kind and name")
    kind, name = target.get("kind"), target.get("name")
    found = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    if not found:
        raise ManifestError(
            f"{path}: a patch is for {kind} {name}, which is not among the resources: mend its "
            "target, kind and name"
        )
    for operation in _operations(path, patch):
        _apply(path, operation, found[0])


def _operations(path: Path, patch: Object) -> list[Object]:
    if ("patch" in patch) == ("path" in patch):
        raise ManifestError(f"{path}: a patch takes its operations from `patch` or from `path`")
    text = patch.get("patch")
    if text is None:
        path = _beside(path, patch["path"])
        text = path.read_text()
    found = _parsed(path, text)
    operations = found[0] if len(found) == 1 else None
    if not isinstance(operations, list) or not all(isinstance(o, dict) for o in operations):
        raise ManifestError(
            f"{path}: a patch is no list of JSON 6902 operations; a strategic merge is not read "
            "here: write it as op, path, value"
        )
    return operations


def _apply(path: Path, operation: Object, target: Object) -> None:
    """Applies one operation of RFC 6902 in place."""
    op, pointer = operation.get("op"), str(operation.get("path", ""))
    where = f"{path}: {op} {pointer} in {target['kind']} {target['metadata']['name']}"
    if op not in ("add", "remove", "replace") or ("value" in operation) == (op == "remove"):
        raise ManifestError(f"{where}: the operations are add and replace with a value, and remove")
    tokens = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
    if len(tokens) < 2 or tokens[0]:
        raise ManifestError(f"{where}: the path begins with a slash and names a field")
    parent: Any = target
    try:
        for token in tokens[1:-1]:
            parent = parent[_key(parent, token)]
        key = _key(parent, tokens[-1])
        if op != "add":
            _ = parent[key]  # must be there
    except (LookupError, TypeError, ValueError):
        raise ManifestError(f"{where}: there is no such place; mend the path") from None
    if op == "remove":
        del parent[key]
    elif op == "add" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(operation["value"]))
    else:
        parent[key] = copy.deepcopy(operation["value"])


def _key(parent: Any, token: str) -> Any:
    """Returns the key or index a token of a pointer means; `-` is behind a list's end.

    Raises:
        TypeError: a scalar has no keys.
        ValueError: not the index of a list.
        IndexError: beyond the list.
    """
    if isinstance(parent, dict):
        return token
    if not isinstance(parent, list):
        raise TypeError(parent)
    index = len(parent) if token == "-" else int(token)
    if not 0 <= index <= len(parent):
        raise IndexError(index)
    return index


def _refuse_others(path: Path, given: Object, known: set[str], remedy: str) -> None:
    for key in given:
        if key not in known:
            raise ManifestError(f"{path}: `{key}` is not read here: {remedy}")


def _documents(path: Path) -> list[Object]:
    documents = [found for found in _parsed(path, path.read_text()) if found is not None]
    if not all(isinstance(found, dict) for found in documents):
        raise ManifestError(f"{path}: a document is no object")
    return documents


def _parsed(path: Path, text: str) -> list[Any]:
    """Returns the documents of a YAML text; a key that stands twice is refused, as by kustomize."""
    import yaml

    try:
        pending = list(yaml.compose_all(text, yaml.SafeLoader))
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ManifestError(f"{path} is no YAML: {error}") from None
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise ManifestError(f"{path}: `{key}` stands twice in one place: keep one")
            pending += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
    return documents
