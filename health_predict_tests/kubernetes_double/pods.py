"""The kubelet of the double: pods fare as their images behave, and answer as they run."""

import base64
import hashlib
import json
import uuid
from copy import deepcopy
from typing import Any
from urllib.parse import urlsplit

from health_predict_tests.kubernetes_double.api import (
    EVENT,
    POD,
    SECRET,
    SERVICE,
    Object,
    Refusal,
    owner,
    owners,
)
from health_predict_tests.kubernetes_double.behaviours import (
    HEALTHY,
    PULL_DENIED,
    Behaviour,
    Stage,
)
from health_predict_tests.kubernetes_double.objects import Key, Objects, selected


class Pods(Objects):
    """The API server's objects with one kubelet.

    Attributes:
        behaviours: by image; `HEALTHY` where none is named.
        backends: by image, the URL of what answers in its pods.
        registries: user and password by host: pods need a pull secret with them for its images.
    """

    def __init__(self, speed: float) -> None:
        super().__init__(speed)
        self.behaviours: dict[str, Behaviour] = {}
        self.backends: dict[str, str] = {}
        self.registries: dict[str, tuple[str, str]] = {}
        self._ready_at: dict[str, float] = {}

    def _behaviour(self, template: Object) -> Behaviour:
        return self.behaviours.get(template["spec"]["containers"][0]["image"], HEALTHY)

    def _pods(self, made_by: Object) -> list[Object]:
        uid = made_by["metadata"]["uid"]
        return [
            thing
            for key, thing in self._objects.items()
            if key[0] == POD
            and uid in owners(thing)
            and "deletionTimestamp" not in thing["metadata"]
        ]

    def _make_pod(self, made_by: Object, name: str) -> None:
        template = deepcopy(made_by["spec"]["template"])
        metadata = {**template["metadata"], "ownerReferences": [owner(made_by)]}
        namespace = made_by["metadata"]["namespace"]
        content = {"metadata": metadata, "spec": template["spec"]}
        pod = self._create(POD, namespace, name, content)
        image = template["spec"]["containers"][0]["image"]
        behaviour = self._behaviour(template) if self._may_pull(image, pod) else PULL_DENIED
        for stage in behaviour.stages:
            self._in(stage.at, lambda stage=stage: self._come(pod, stage))  # type: ignore[misc]
        pod["status"] = {"phase": "Pending"}
        if behaviour.stages and behaviour.stages[0].at == 0:
            self._live(pod, behaviour.stages[0])

    def _come(self, pod: Object, stage: Stage) -> None:
        metadata = pod["metadata"]
        key = (POD, metadata["namespace"], metadata["name"])
        if not self._is_there(metadata["uid"], key) or "deletionTimestamp" in metadata:
            return
        self._live(pod, stage)
        if stage.event:
            self._event(pod, *_filled(list(stage.event), pod, self._clock()))
        self._pod_changed(pod)

    def _pod_changed(self, pod: Object) -> None:
        """For who makes and ends pods."""

    def _live(self, pod: Object, stage: Stage) -> None:
        container = pod["spec"]["containers"][0]
        scheduled = {"type": "PodScheduled", "status": "True" if stage.scheduled else "False"}
        if not stage.scheduled and stage.event:
            scheduled |= {"reason": "Unschedulable", "message": stage.event[2]}
        started = "running" in stage.state
        ready = "True" if stage.ready else "False"
        status: Object = {"phase": "Running" if started or stage.last else "Pending"}
        status["conditions"] = [scheduled, {"type": "Ready", "status": ready}]
        if stage.scheduled:
            address = f"10.244.0.{int(pod['metadata']['uid'][:2], 16)}"
            status |= {"podIP": address, "startTime": self._clock()}
            image = container["image"]
            image_id = _image_id(image) if started or stage.last else ""
            held = {"name": container["name"], "image": image, "imageID": image_id}
            held |= {"ready": stage.ready, "restartCount": stage.restarts, "started": started}
            held |= {"state": deepcopy(stage.state), "lastState": deepcopy(stage.last)}
            status["containerStatuses"] = [_filled(held, pod, self._clock())]
        pod["status"] = status
        if stage.ready:
            self._ready_at.setdefault(pod["metadata"]["uid"], self._now)
        else:
            self._ready_at.pop(pod["metadata"]["uid"], None)
        self._touch(pod)

    def _end_pod(self, pod: Object) -> None:
        key = (POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
        pod["metadata"]["deletionTimestamp"] = self._clock()
        pod["metadata"]["deletionGracePeriodSeconds"] = 30
        self._touch(pod)
        self._in(3.0, lambda: self._forget(key))

    def _forget(self, key: Key) -> None:
        self._objects.pop(key, None)

    def _event(self, thing: Object, kind: str, reason: str, message: str) -> None:
        metadata, clock = thing["metadata"], self._clock()
        about = {name: metadata[name] for name in ("name", "namespace", "uid")}
        for (each, _, _), event in self._objects.items():
            same = each == EVENT and event["involvedObject"]["uid"] == metadata["uid"]
            if same and (event["reason"], event["message"]) == (reason, message):
                event["count"], event["lastTimestamp"] = event["count"] + 1, clock
                return
        content = {
            **{"type": kind, "reason": reason, "message": message, "count": 1},
            "involvedObject": {"kind": thing["kind"], "apiVersion": thing["apiVersion"], **about},
            **{"firstTimestamp": clock, "lastTimestamp": clock, "eventTime": None},
            "source": {"component": "kubelet"},
        }
        name = f"{metadata['name']}.{uuid.uuid4().hex[:16]}"
        self._create(EVENT, metadata["namespace"], name, content)

    def _may_pull(self, image: str, pod: Object) -> bool:
        registry = image.partition("/")[0]
        if registry not in self.registries:
            return True
        for named in pod["spec"].get("imagePullSecrets", []):
            key = (SECRET, pod["metadata"]["namespace"], named["name"])
            secret = self._objects.get(key, {})
            if secret.get("type") == "kubernetes.io/dockerconfigjson":
                config = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
                login = config["auths"].get(registry, {})
                if (login.get("username"), login.get("password")) == self.registries[registry]:
                    return True
        return False

    def log(self, namespace: str, name: str, query: dict[str, str]) -> str:
        """Returns a container's log as the kubelet finds it."""
        pod = self.read(POD, namespace, name)
        container = query.get("container", pod["spec"]["containers"][0]["name"])
        if container not in [each["name"] for each in pod["spec"]["containers"]]:
            words = f"container {container} is not valid for pod {name}"
            raise Refusal(400, "BadRequest", words)
        statuses = pod["status"].get("containerStatuses")
        if not statuses:
            return ""
        state, last = statuses[0]["state"], statuses[0]["lastState"]
        behaviour = self._behaviour(pod)
        if query.get("previous") == "true":
            if not last:
                words = f'previous terminated container "{container}" in pod "{name}" not found'
                raise Refusal(400, "BadRequest", words)
            text = behaviour.previous
        elif "waiting" in state and not last:
            why = state["waiting"]["reason"]
            why = {"ErrImagePull": "image can't be pulled"}.get(why, why)
            why = {"ImagePullBackOff": "trying and failing to pull image"}.get(why, why)
            words = f'container "{container}" in pod "{name}" is waiting to start: {why}'
            raise Refusal(400, "BadRequest", words)
        else:
            text = behaviour.log if "running" in state else behaviour.previous
        lines = text.splitlines(keepends=True)
        return "".join(lines[-int(query.get("tailLines", len(lines) or 1)) :])

    def backend(self, resource: str, namespace: str, target: str) -> tuple[str, int, str]:
        """Returns host and port that a proxied request goes to, and the pod's address."""
        parts = target.split(":")
        scheme, name, port = parts if len(parts) == 3 else ("", parts[0], "".join(parts[1:]))
        if scheme not in ("", "http", "https"):
            raise Refusal(400, "BadRequest", f'invalid {resource} request "{target}"')
        if resource == "services":
            pod, port = self._endpoint(namespace, name, port)
        else:
            pod = self.read(POD, namespace, name)
        container = pod["spec"]["containers"][0]
        ports = {str(each["containerPort"]) for each in container.get("ports", [])}
        address = f"{pod['status'].get('podIP', '')}:{port}"
        url = self.backends.get(container["image"])
        statuses = pod["status"].get("containerStatuses", [])
        runs = any("running" in each["state"] for each in statuses)
        if url is None or not runs or port not in ports:
            words = (
                f"error trying to reach service: dial tcp {address}: connect: connection refused"
            )
            raise Refusal(503, "ServiceUnavailable", words)
        return (urlsplit(url).hostname or "", urlsplit(url).port or 80, address)

    def _endpoint(self, namespace: str, name: str, port: str) -> tuple[Object, str]:
        service = self.read(SERVICE, namespace, name)
        chosen = [
            each
            for each in service["spec"]["ports"]
            if port in (each.get("name", ""), str(each["port"]))
        ]
        if not chosen and port.isdigit():
            words = f'no service port {port} found for service "{name}"'
            raise Refusal(503, "ServiceUnavailable", words)
        selector = ",".join(f"{k}={v}" for k, v in service["spec"]["selector"].items())
        pods = [
            thing
            for key, thing in self._objects.items()
            if key[:2] == (POD, namespace)
            and is_ready(thing)
            and "deletionTimestamp" not in thing["metadata"]
            and selected(thing["metadata"]["labels"], selector)
        ]
        if not pods or not chosen:
            words = f'no endpoints available for service "{name}"'
            raise Refusal(503, "ServiceUnavailable", words)
        pod = pods[next(self._serial) % len(pods)]
        wanted = chosen[0]["targetPort"]
        for each in pod["spec"]["containers"][0].get("ports", []):
            if each.get("name") == wanted:
                wanted = each["containerPort"]
        return pod, str(wanted)


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _filled(value: Any, pod: Object, now: str) -> Any:
    if isinstance(value, dict):
        return {name: _filled(part, pod, now) for name, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, pod, now) for part in value]
    if not isinstance(value, str):
        return value
    metadata, container = pod["metadata"], pod["spec"]["containers"][0]
    for name, filling in {
        **{"pod": metadata["name"], "uid": metadata["uid"], "namespace": metadata["namespace"]},
        **{"container": container["name"], "image": container["image"], "now": now},
    }.items():
        value = value.replace(f"{{{name}}}", filling)
    return value


def _image_id(image: str) -> str:
    if "@" in image:
        return image
    repository = image.rpartition(":")[0] if ":" in image.rpartition("/")[2] else image
    return f"{repository}@sha256:{hashlib.sha256(image.encode()).hexdigest()}"
