"""The controller of Deployments: ReplicaSets, pods made and ended by the strategy, the status."""

import hashlib
import json
import math
import uuid
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

from health_predict_tests.kubernetes_double.api import (
    DEPLOYMENT,
    REPLICA_SET,
    Object,
    owner,
    owners,
)
from health_predict_tests.kubernetes_double.pods import Pods, is_ready

_REVISION = "deployment.kubernetes.io/revision"


@dataclass
class Watched:
    """What the Deployment controller remembers of a Deployment."""

    progress_at: float = 0.0
    conditions: dict[str, Object] = field(default_factory=dict)


class Deployments(Pods):
    """The API server's objects with one kubelet and the controller of Deployments."""

    def __init__(self, speed: float) -> None:
        super().__init__(speed)
        self._watched: dict[str, Watched] = {}

    def _changed(self, thing: Object) -> None:
        if thing["kind"] == "Deployment":
            metadata = thing["metadata"]
            uid, namespace, name = metadata["uid"], metadata["namespace"], metadata["name"]
            after = self._behaviour(thing["spec"]["template"]).observed_after
            self._in(after, lambda: self._observe(uid, namespace, name))

    def _pod_changed(self, pod: Object) -> None:
        for (kind, namespace, name), thing in list(self._objects.items()):
            sets = {each["metadata"]["uid"] for each in self._sets(thing)}
            if kind == DEPLOYMENT and sets & owners(pod) and "status" in thing:
                uid = thing["metadata"]["uid"]
                self._reconcile(uid, namespace, name)
                again = partial(self._reconcile, uid, namespace, name)
                self._in(thing["spec"].get("minReadySeconds", 0), again)

    def _observe(self, uid: str, namespace: str, name: str) -> None:
        if not self._is_there(uid, (DEPLOYMENT, namespace, name)):
            return
        deployment = self._objects[DEPLOYMENT, namespace, name]
        watched = self._watched.setdefault(uid, Watched())
        watched.progress_at = self._now
        sets = self._sets(deployment)
        present = self._present(deployment)
        newest = max((int(_revision(each)) for each in sets), default=0)
        # With a ReplicaSet that is there already, the status is written before pods are ended.
        pause = 0.0 if present is None else 0.4
        if present is None:
            present = self._make_set(deployment, newest + 1)
            self._conclude(watched, "Progressing", "True", "NewReplicaSetCreated", "Created")
        elif int(_revision(present)) < newest:
            present["metadata"]["annotations"][_REVISION] = str(newest + 1)
            self._touch(present)
        deployment["metadata"].setdefault("annotations", {})[_REVISION] = _revision(present)
        status = deployment.setdefault("status", {})
        status["observedGeneration"] = deployment["metadata"]["generation"]
        self._write_status(deployment, present)
        self._in(pause, lambda: self._reconcile(uid, namespace, name))

    def _make_set(self, deployment: Object, revision: int) -> Object:
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        template = deepcopy(spec["template"])
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        labels = {**template["metadata"]["labels"], "pod-template-hash": digest}
        template["metadata"]["labels"] = labels
        selector = deepcopy(spec["selector"])
        selector.setdefault("matchLabels", {})["pod-template-hash"] = digest
        metadata: Object = {"labels": labels, "annotations": {_REVISION: str(revision)}}
        metadata["ownerReferences"] = [owner(deployment)]
        content = {"metadata": metadata, "spec": {"selector": selector, "template": template}}
        namespace = deployment["metadata"]["namespace"]
        return self._create(REPLICA_SET, namespace, f"{name}-{digest}", content)

    def _sets(self, deployment: Object) -> list[Object]:
        uid = deployment["metadata"]["uid"]
        return [t for k, t in self._objects.items() if k[0] == REPLICA_SET and uid in owners(t)]

    def _present(self, deployment: Object) -> Object | None:
        """Returns the ReplicaSet of the Deployment's template."""
        for each in self._sets(deployment):
            template = deepcopy(each["spec"]["template"])
            del template["metadata"]["labels"]["pod-template-hash"]
            if template == deployment["spec"]["template"]:
                return each
        return None

    def _available(self, deployment: Object, pods: list[Object]) -> int:
        """Returns how many pods have been ready for long enough."""
        least = deployment["spec"].get("minReadySeconds", 0)
        since = [self._ready_at.get(pod["metadata"]["uid"], math.inf) for pod in pods]
        return sum(self._now - each >= least - 0.01 for each in since)

    def _reconcile(self, uid: str, namespace: str, name: str) -> None:
        """Makes and ends pods until the strategy allows no more, and writes the status."""
        if not self._is_there(uid, (DEPLOYMENT, namespace, name)):
            return
        deployment = self._objects[DEPLOYMENT, namespace, name]
        present = self._present(deployment)
        if present is None or deployment["spec"].get("paused"):  # or not observed yet
            return
        wanted = deployment["spec"]["replicas"]
        limits = deployment["spec"]["strategy"]["rollingUpdate"]
        surge, least = _of(limits["maxSurge"], wanted, math.ceil), _least(deployment)
        before = deepcopy(deployment["status"])
        while True:
            new = self._pods(present)
            old = [p for s in self._sets(deployment) if s is not present for p in self._pods(s)]
            # Those that never came up go first: nobody misses them.
            old.sort(key=is_ready)
            spare = len(old) + self._available(deployment, new) - least
            if len(new) > wanted:
                self._end_pod(new[-1])
            elif old and spare > 0:
                self._end_pod(old[0])
            elif len(new) < wanted and len(new) + len(old) < wanted + surge:
                if not self._add_pod(deployment, present):
                    break
            else:
                break
        self._write_status(deployment, present, before)

    def _add_pod(self, deployment: Object, present: Object) -> bool:
        """Makes a pod, unless that is forbidden; returns whether it did."""
        behaviour = self._behaviour(present["spec"]["template"])
        watched = self._watched[deployment["metadata"]["uid"]]
        name = f"{present['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        if behaviour.forbidden:
            words = f'pods "{name}" is forbidden: {behaviour.forbidden}'
            self._conclude(watched, "ReplicaFailure", "True", "FailedCreate", words)
            return False
        watched.conditions.pop("ReplicaFailure", None)
        self._make_pod(present, name)
        return True

    def _write_status(
        self, deployment: Object, present: Object, before: Object | None = None
    ) -> None:
        watched = self._watched[deployment["metadata"]["uid"]]
        new = self._pods(present)
        pods = [pod for each in self._sets(deployment) for pod in self._pods(each)]
        ready, wanted = sum(map(is_ready, pods)), deployment["spec"]["replicas"]
        available = self._available(deployment, pods)
        counts = {
            **{"replicas": len(pods), "updatedReplicas": len(new), "readyReplicas": ready},
            **{"availableReplicas": available, "unavailableReplicas": len(pods) - available},
        }
        if before is not None and _has_progressed(before, counts):
            watched.progress_at = self._now
            self._conclude(watched, "Progressing", "True", "ReplicaSetUpdated", "Progressing")
            seconds = deployment["spec"]["progressDeadlineSeconds"]
            uid, namespace = deployment["metadata"]["uid"], deployment["metadata"]["namespace"]
            name = deployment["metadata"]["name"]
            self._in(seconds, lambda: self._overdue(uid, namespace, name))
        if len(pods) == len(new) == available == wanted:
            self._conclude(watched, "Progressing", "True", "NewReplicaSetAvailable", "Complete")
        enough = "True" if available >= _least(deployment) else "False"
        self._conclude(watched, "Available", enough, "MinimumReplicas", "As wanted")
        status = {name: number for name, number in counts.items() if number}
        observed = deployment["status"]["observedGeneration"]
        conditions = list(map(dict, watched.conditions.values()))
        present_status = {"observedGeneration": observed, **status, "conditions": conditions}
        if present_status != deployment["status"]:
            deployment["status"] = present_status
            self._touch(deployment)
        for each in self._sets(deployment):
            size = len(self._pods(each))
            if each["spec"].get("replicas") != size:
                each["spec"]["replicas"] = size
                each["status"] = {"replicas": size}
                self._touch(each)

    def _conclude(self, watched: Watched, kind: str, status: str, reason: str, words: str) -> None:
        held = watched.conditions.get(kind, {})
        if (held.get("status"), held.get("reason")) != (status, reason):
            times = {"lastUpdateTime": self._clock(), "lastTransitionTime": self._clock()}
            content = {"type": kind, "status": status, "reason": reason, "message": words}
            watched.conditions[kind] = content | times

    def _overdue(self, uid: str, namespace: str, name: str) -> None:
        if not self._is_there(uid, (DEPLOYMENT, namespace, name)):
            return
        deployment, watched = self._objects[DEPLOYMENT, namespace, name], self._watched[uid]
        # One progress made later is later by far; sums of seconds are not exact.
        late = self._now - watched.progress_at > deployment["spec"]["progressDeadlineSeconds"] - 0.1
        present = self._present(deployment)
        reason = watched.conditions["Progressing"]["reason"]
        if late and present is not None and reason != "NewReplicaSetAvailable":
            words = f'ReplicaSet "{present["metadata"]["name"]}" has timed out progressing.'
            reason = "ProgressDeadlineExceeded"
            self._conclude(watched, "Progressing", "False", reason, words)
            deployment["status"]["conditions"] = list(map(dict, watched.conditions.values()))
            self._touch(deployment)


def _of(value: int | str, whole: int, rounded: Callable[[float], int]) -> int:
    return value if isinstance(value, int) else rounded(whole * int(value.rstrip("%")) / 100)


def _least(deployment: Object) -> int:
    """Returns how many pods are to be available while a roll-out goes on."""
    wanted: int = deployment["spec"]["replicas"]
    most = deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"]
    return wanted - _of(most, wanted, math.floor)


def _has_progressed(before: Object, counts: Object) -> bool:
    old = before.get("replicas", 0) - before.get("updatedReplicas", 0)
    return counts["replicas"] - counts["updatedReplicas"] < old or any(
        counts[name] > before.get(name, 0)
        for name in ("updatedReplicas", "readyReplicas", "availableReplicas")
    )


def _revision(thing: Object) -> str:
    revision: str = thing["metadata"].get("annotations", {}).get(_REVISION, "0")
    return revision
