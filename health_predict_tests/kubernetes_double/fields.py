"""Fields as the schema cuts an object into them, and who manages which.

The published schema of Kubernetes says what is merged by key, as a set or whole.
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from health_predict_tests.kubernetes_double.api import VERSION, Object, Refusal

FieldPath = tuple[tuple[str, Any], ...]


@cache
def _definitions() -> Object:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    text = (folder / f"v{VERSION}.0-local-strict" / "_definitions.json").read_text()
    definitions: Object = json.loads(text)["$defs"]
    return definitions


@cache
def _schema(version: str, kind: str) -> Object:
    group, _, version = version.rpartition("/")
    wanted = {"group": group, "version": version, "kind": kind}
    for definition in _definitions().values():
        if wanted in definition.get("x-kubernetes-group-version-kind", []):
            return definition
    raise LookupError(kind)


def _resolved(schema: Object) -> Object:
    return _definitions()[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _part(schema: Object, name: str) -> Object:
    inside = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
    return inside if isinstance(inside, dict) else {}


def _key(item: Object, schema: Object) -> tuple[tuple[str, Any], ...]:
    # Of all keys only a port's protocol may be left out.
    return tuple((name, item.get(name, "TCP")) for name in schema["x-kubernetes-list-map-keys"])


def leaves(value: Any, schema: Object, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    """Yields what a manager can own of a value: path and value, None for an item of a list."""
    schema = _resolved(schema)
    list_type = schema.get("x-kubernetes-list-type")
    is_struct = "properties" in schema or isinstance(schema.get("additionalProperties"), dict)
    is_whole = schema.get("x-kubernetes-map-type") == "atomic" or not is_struct
    if value and isinstance(value, dict) and not is_whole:
        for name, inside in value.items():
            yield from leaves(inside, _part(schema, name), (*path, ("f", name)))
        return
    if value and isinstance(value, list) and list_type == "map":
        for item in value:
            at = (*path, ("k", _key(item, schema)))
            yield at, None
            yield from leaves(item, schema["items"], at)
        return
    if value and isinstance(value, list) and list_type == "set":
        yield from (((*path, ("v", item)), item) for item in value)
        return
    yield path, value


def _is_item(node: Any, key: tuple[tuple[str, Any], ...]) -> bool:
    return all(node.get(name, "TCP") == value for name, value in key)


def place(node: Any, path: FieldPath, value: Any) -> None:
    """Puts a value at a path, and makes what is missing on the way."""
    for (kind, key), (after, _) in zip(path, (*path[1:], ("end", None)), strict=True):
        if kind == "v":
            node += [] if key in node else [key]
        elif kind == "k":
            item = next((each for each in node if _is_item(each, key)), None)
            if item is None:
                item = dict(key)
                node.append(item)
            if after == "end" and value is not None:
                item.update(value)
            node = item
        elif after == "end":
            node[key] = value
        else:
            node = node.setdefault(key, {} if after == "f" else [])


def cut(node: Any, path: FieldPath) -> None:
    """Removes what is at a path, and what is empty on the way then."""
    (kind, key), rest = path[0], path[1:]
    if kind == "v":
        node[:] = [each for each in node if each != key]
    elif kind == "k":
        item = next((each for each in node if _is_item(each, key)), None)
        if item is not None and rest:
            cut(item, rest)
        elif item is not None:
            node.remove(item)
    elif rest and key in node:
        cut(node[key], rest)
        if not node[key]:
            del node[key]
    elif not rest:
        node.pop(key, None)


def written(path: FieldPath) -> str:
    """Returns a path as conflicts write it."""
    parts = []
    for kind, key in path:
        if kind == "k":
            parts.append(f"[{','.join(f'{name}={json.dumps(value)}' for name, value in key)}]")
        else:
            parts.append(f".{key}" if kind == "f" else f"[={json.dumps(key)}]")
    return "".join(parts)


def fields_v1(paths: set[FieldPath]) -> Object:
    """Returns paths as `managedFields` writes them."""
    root: Object = {}
    for path in sorted(paths, key=repr):
        node = root
        for kind, key in path:
            value = dict(key) if kind == "k" else key
            name = key if kind == "f" else json.dumps(value, separators=(",", ":"))
            node = node.setdefault(f"{kind}:{name}", {})
        if path[-1][0] == "k":
            node["."] = {}
    return root


_NOBODYS = {"name", "namespace", "uid", "creationTimestamp", "generation", "managedFields"}
_NOBODYS |= {"resourceVersion", "deletionTimestamp"}


def owned(thing: Object) -> dict[FieldPath, Any]:
    """Returns what a manager can own of an object, with its values."""
    part = {name: deepcopy(thing[name]) for name in thing.keys() - {"apiVersion", "kind", "status"}}
    part["metadata"] = {k: v for k, v in part["metadata"].items() if k not in _NOBODYS}
    if not part["metadata"]:
        del part["metadata"]
    return dict(leaves(part, _schema(thing["apiVersion"], thing["kind"]))) if part else {}


@dataclass(frozen=True)
class Manager:
    """Who owns fields, and by which operation."""

    name: str
    operation: str
    version: str

    def __str__(self) -> str:
        using = f" using {self.version}" if self.operation == "Update" else ""
        return f"{json.dumps(self.name)}{using}"


@dataclass
class Owned:
    """The fields of a manager, since when."""

    fields: set[FieldPath]
    time: str


def conflicting(claims: Sequence[tuple[Manager, FieldPath]]) -> Refusal:
    """Returns the refusal in the words of apimachinery's `NewConflictError`."""
    claims = sorted(claims, key=lambda claim: _before_its_children(claim[1]))
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {manager}",
            "field": written(path),
        }
        for manager, path in claims
    ]
    if len(claims) == 1:
        manager, path = claims[0]
        words = f"Apply failed with 1 conflict: conflict with {manager}: {written(path)}"
    else:
        lines = []
        for name in sorted({str(manager) for manager, _ in claims}):
            lines.append(f"conflicts with {name}:")
            lines += [f"- {written(path)}" for other, path in claims if str(other) == name]
        words = f"Apply failed with {len(claims)} conflicts: " + "\n".join(lines)
    return Refusal(409, "Conflict", words, causes=causes)


def _before_its_children(path: FieldPath) -> list[tuple[bool, str]]:
    return [(depth < len(path) - 1, repr(step)) for depth, step in enumerate(path)]
