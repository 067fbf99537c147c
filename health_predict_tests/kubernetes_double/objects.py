"""The objects of the double: stored, selected, applied, changed and deleted, in its own time."""

import heapq
import json
import math
import re
import time
import uuid
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import RLock
from typing import Any

from health_predict_tests.kubernetes_double.api import (
    KINDS,
    NAMESPACE,
    Kind,
    Object,
    Refusal,
    owners,
)
from health_predict_tests.kubernetes_double.fields import (
    Manager,
    Owned,
    conflicting,
    cut,
    fields_v1,
    owned,
    place,
)
from health_predict_tests.kubernetes_double.validation import complaint, complete, judge

_COUNTED = {"Deployment", "ReplicaSet", "NetworkPolicy", "PodDisruptionBudget"}
_TYPE = {"kind", "apiVersion"}

Key = tuple[Kind, str, str]
"""Kind, namespace and name."""


class Objects:
    """What the API server stores, and the clock by which it moves.

    Attributes:
        speed: seconds of the cluster's a second of the test's.
        lock: to be held by who reads or writes from outside.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.lock = RLock()
        self._objects: dict[Key, Object] = {}
        self._managers: dict[str, dict[Manager, Owned]] = {}
        self._versions, self._serial = count(100), count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._began, self._skipped, self._now = time.monotonic(), 0.0, 0.0
        for name in ("default", NAMESPACE):
            self._create(("v1", "Namespace"), "", name, {})

    def find(self, kind: Kind, name: str, namespace: str = NAMESPACE) -> Object:
        """Returns an object as it is now."""
        with self.lock:
            self.advance()
            return self._shown(self._objects[kind, namespace, name])

    def all(self, kind: Kind) -> list[Object]:
        """Returns all objects of a kind as they are now, in the order they were made."""
        with self.lock:
            self.advance()
            return [self._shown(thing) for key, thing in self._objects.items() if key[0] == kind]

    # Time.

    def advance(self) -> None:
        """Does what was due since the last time."""
        target = (time.monotonic() - self._began) * self.speed + self._skipped
        while self._due and self._due[0][0] <= target:
            self._now, _, do = heapq.heappop(self._due)
            do()
        self._now = max(self._now, target)

    def skip(self, seconds: float) -> None:
        """Lets time pass; with a `speed` of 0 none passes otherwise."""
        with self.lock:
            self._skipped += seconds
            self.advance()

    def _in(self, seconds: float, do: Callable[[], None]) -> None:
        if math.isfinite(seconds):
            heapq.heappush(self._due, (self._now + seconds, next(self._serial), do))

    def _clock(self) -> str:
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    # Objects.

    def _create(self, kind: Kind, namespace: str, name: str, content: Object) -> Object:
        thing = {"apiVersion": kind[0], "kind": kind[1], **deepcopy(content)}
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        thing["metadata"] = {**metadata, **thing.get("metadata", {}), "uid": str(uuid.uuid4())}
        thing["metadata"]["creationTimestamp"] = self._clock()
        if kind[1] in _COUNTED:
            thing["metadata"]["generation"] = 1
        self._managers[thing["metadata"]["uid"]] = {}
        self._objects[kind, namespace, name] = thing
        self._touch(thing)
        return thing

    def _touch(self, thing: Object) -> None:
        thing["metadata"]["resourceVersion"] = str(next(self._versions))

    def _shown(self, thing: Object) -> Object:
        shown = deepcopy(thing)
        shown["metadata"]["managedFields"] = [
            {
                **{"manager": manager.name, "operation": manager.operation},
                **{"apiVersion": manager.version, "time": held.time, "fieldsType": "FieldsV1"},
                "fieldsV1": fields_v1(held.fields),
            }
            for manager, held in self._managers[thing["metadata"]["uid"]].items()
        ]
        return shown

    def read(self, kind: Kind, namespace: str, name: str) -> Object:
        """Returns an object, or refuses."""
        thing = self._objects.get((kind, namespace, name))
        if thing is None:
            plural = KINDS[kind][0]
            group = kind[0].rpartition("/")[0]
            resource = f"{plural}.{group.partition('/')[0]}" if group else plural
            words = f'{resource} "{name}" not found'
            raise Refusal(404, "NotFound", words, name=name, kind=plural)
        return thing

    def listed(self, kind: Kind, namespace: str, query: dict[str, str]) -> Object:
        """Returns a list, its items without kind and version as the real one leaves them out."""
        chosen = [
            {name: part for name, part in self._shown(thing).items() if name not in _TYPE}
            for (each, where, _), thing in self._objects.items()
            if each == kind
            and namespace in ("", where)
            and selected(thing["metadata"].get("labels", {}), query.get("labelSelector", ""))
            and _field_selected(thing, query.get("fieldSelector", ""))
        ]
        version = str(next(self._versions))
        metadata = {"resourceVersion": version}
        return {"kind": f"{kind[1]}List", "apiVersion": kind[0], "metadata": metadata} | {
            "items": chosen
        }

    def apply(
        self, kind: Kind, namespace: str, name: str, body: Object, query: dict[str, str]
    ) -> tuple[int, Object]:
        """Server-side apply."""
        if not query.get("fieldManager"):
            words = "fieldManager: Required value: is required for apply patch"
            raise Refusal(422, "Invalid", f'PatchOptions.meta.k8s.io "" is invalid: {words}')
        if "managedFields" in body.get("metadata", {}):
            raise Refusal(400, "BadRequest", "metadata.managedFields must be nil")
        self._check(kind, namespace, name, body)
        live = self._objects.get((kind, namespace, name))
        manager = Manager(query["fieldManager"], "Apply", kind[0])
        managers = dict(self._managers[live["metadata"]["uid"]]) if live else {}
        new, present = owned(body), owned(live) if live else {}
        claims = [
            (other, path)
            for other, held in managers.items()
            for path, value in new.items()
            if other != manager and path in held.fields and present.get(path) != value
        ]
        if claims and query.get("force") != "true":
            raise conflicting(claims)
        for other, path in claims:
            held = managers[other]
            managers[other] = Owned(held.fields - {path}, held.time)
        result = deepcopy(live) if live else {"metadata": {}}
        for path, value in new.items():
            place(result, path, deepcopy(value))
        before = managers[manager].fields if manager in managers else set()
        others = {p for other, held in managers.items() if other != manager for p in held.fields}
        for path in sorted(before - new.keys() - others, key=len):
            cut(result, path)
        if new.keys() != before or any(present.get(path) != value for path, value in new.items()):
            managers[manager] = Owned(set(new), self._clock())
        return self._store(kind, namespace, name, result, managers)

    def change(
        self, kind: Kind, namespace: str, name: str, patch: Object, query: dict[str, str]
    ) -> tuple[int, Object]:
        """Merges a patch as `kubectl set image` and `kubectl edit` send it: by keys of lists."""
        live = self.read(kind, namespace, name)
        result = deepcopy(live)
        patch = {"metadata": {}, **_ordered(patch), "apiVersion": kind[0], "kind": kind[1]}
        for path, value in owned(patch).items():
            if value is None and path[-1][0] == "f":
                cut(result, path)
            else:
                place(result, path, value)
        self._check(kind, namespace, name, result)
        return self._update(kind, namespace, name, result, query.get("fieldManager", "unknown"))

    def delete(self, kind: Kind, namespace: str, name: str) -> tuple[int, Object]:
        """Deletes an object, and what belongs to it."""
        thing = self.read(kind, namespace, name)
        del self._objects[kind, namespace, name]
        uid = thing["metadata"]["uid"]
        for (each, where, other), dependent in list(self._objects.items()):
            if uid in owners(dependent) and (each, where, other) in self._objects:
                self.delete(each, where, other)
        return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def _update(
        self, kind: Kind, namespace: str, name: str, result: Object, by: str
    ) -> tuple[int, Object]:
        live = self._objects.get((kind, namespace, name))
        before, after = owned(live) if live else {}, owned(result)
        touched = {path for path, value in after.items() if before.get(path, self) != value}
        touched -= {path for path in touched if path[-1][0] == "k" and path in before}
        gone = before.keys() - after.keys()
        managers = dict(self._managers[live["metadata"]["uid"]]) if live else {}
        for other, held in managers.items():
            managers[other] = Owned(held.fields - touched - gone, held.time)
        manager = Manager(by, "Update", kind[0])
        had = managers[manager].fields if manager in managers else set()
        managers[manager] = Owned(had | touched, self._clock())
        return self._store(kind, namespace, name, result, managers)

    def _check(self, kind: Kind, namespace: str, name: str, body: Object) -> None:
        """Refuses what the schema does not allow, and what was sent elsewhere than it says."""
        against = complaint(json.dumps(body))
        if against:
            words = f"{kind[1]} in version {kind[0]!r} cannot be handled: {against}"
            raise Refusal(400, "BadRequest", words)
        metadata = body["metadata"]
        if metadata.get("name", name) != name:
            words = (
                f"the name of the object ({metadata['name']}) does not match the name on the URL"
            )
            raise Refusal(400, "BadRequest", f"{words} ({name})")
        if metadata.get("namespace", namespace) != namespace:
            words = "the namespace of the provided object does not match the namespace sent"
            raise Refusal(400, "BadRequest", f"{words} on the request")
        if namespace and (("v1", "Namespace"), "", namespace) not in self._objects:
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found', name=namespace)

    def _store(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        result: Object,
        managers: dict[Manager, Owned],
    ) -> tuple[int, Object]:
        live = self._objects.get((kind, namespace, name))
        complete(kind, result)
        judge(kind, name, live, result)
        made = live is None
        if live is None:
            live = self._create(kind, namespace, name, result)
        uid = live["metadata"]["uid"]
        managers = {manager: held for manager, held in managers.items() if held.fields}
        changed = made or result != live
        if changed or managers != self._managers[uid]:
            self._managers[uid] = managers
            if not made and kind[1] in _COUNTED and result["spec"] != live["spec"]:
                result["metadata"]["generation"] += 1
            if not made:
                live.clear()
                live.update(result)
            self._touch(live)
            if changed:
                self._changed(live)
        return 201 if made else 200, self._shown(live)

    def _changed(self, thing: Object) -> None:
        """For who moves something when an object is made or changed."""

    def _is_there(self, uid: str, key: Key) -> bool:
        return key in self._objects and self._objects[key]["metadata"]["uid"] == uid


def selected(labels: dict[str, str], selector: str) -> bool:
    return all(_fits(labels, part.strip()) for part in re.split(r",(?![^(]*\))", selector) if part)


def _fits(labels: dict[str, str], part: str) -> bool:
    if among := re.fullmatch(r"(\S+) (in|notin) \((.*)\)", part):
        name, operator, values = among.groups()
        return (labels.get(name) in values.split(",")) == (operator == "in")
    if compared := re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", part):
        name, operator, value = compared.groups()
        return (labels.get(name) == value) == (operator != "!=")
    return (part.lstrip("!") in labels) != part.startswith("!")


def _field_selected(thing: Object, selector: str) -> bool:
    for part in filter(None, selector.split(",")):
        name, _, value = part.partition("=")
        if not re.fullmatch(r"metadata\.name(space)?|involvedObject\.\w+|reason|type", name):
            raise Refusal(400, "BadRequest", f'field label not supported: "{name}"')
        node: Any = thing
        for step in name.split("."):
            node = node.get(step, {})
        if node != value:
            return False
    return True


def _ordered(patch: Any) -> Any:
    """Returns a patch without the order of lists, which kubectl sends along."""
    if isinstance(patch, list):
        return [_ordered(part) for part in patch]
    if not isinstance(patch, dict):
        return patch
    return {k: _ordered(v) for k, v in patch.items() if not k.startswith("$setElementOrder/")}
