"""What the API server refuses in a body, and what it fills in."""

import base64
import json
from functools import cache

import kubernetes_validate  # type: ignore[import-untyped]

from health_predict_tests.kubernetes_double.api import (
    DEPLOYMENT,
    SECRET,
    SERVICE,
    VERSION,
    Kind,
    Object,
    Refusal,
)


@cache
def complaint(text: str) -> str:
    """Returns what the published schema has against an object, empty if nothing."""
    try:
        kubernetes_validate.validate(json.loads(text), VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f".{'.'.join(str(part) for part in error.path)}: {error.message}"
    return ""


def judge(kind: Kind, name: str, live: Object | None, result: Object) -> None:
    """Refuses what a schema cannot express."""
    words = f'{kind[1]}.{kind[0].rpartition("/")[0]} "{name}" is invalid: '
    if kind == DEPLOYMENT:
        spec = result["spec"]
        labels = spec["template"].get("metadata", {}).get("labels", {})
        if live and live["spec"]["selector"] != spec["selector"]:
            raise Refusal(422, "Invalid", f"{words}spec.selector: field is immutable")
        if not spec["selector"].get("matchLabels", {}).items() <= labels.items():
            at = "spec.template.metadata.labels: Invalid value: "
            raise Refusal(422, "Invalid", f"{words}{at}`selector` does not match template `labels`")
    if kind == SECRET:
        words = f'Secret "{name}" is invalid: '
        if live and live["type"] != result["type"]:
            raise Refusal(422, "Invalid", f"{words}type: field is immutable")
        if result["type"] == "kubernetes.io/dockerconfigjson":
            _judge_login(words, result.get("data", {}))


def _judge_login(words: str, data: Object) -> None:
    at = "data[.dockerconfigjson]"
    if ".dockerconfigjson" not in data:
        raise Refusal(422, "Invalid", f"{words}{at}: Required value")
    try:
        is_map = isinstance(json.loads(base64.b64decode(data[".dockerconfigjson"])), dict)
    except ValueError:
        is_map = False
    if not is_map:
        value = "Invalid value: <secret contents redacted>: invalid character"
        raise Refusal(422, "Invalid", f"{words}{at}: {value}")


def complete(kind: Kind, thing: Object) -> None:
    """Fills in what the API server fills in, as far as it matters here."""
    if kind == SECRET:
        thing.setdefault("type", "Opaque")
    if kind == SERVICE:
        thing["spec"].setdefault("type", "ClusterIP")
        for port in thing["spec"].get("ports", []):
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port["port"])
    if kind == DEPLOYMENT:
        spec = thing["spec"]
        spec.setdefault("replicas", 1)
        spec.setdefault("progressDeadlineSeconds", 600)
        spec.setdefault("revisionHistoryLimit", 10)
        update = spec.setdefault("strategy", {}).setdefault("rollingUpdate", {})
        spec["strategy"].setdefault("type", "RollingUpdate")
        update.setdefault("maxSurge", "25%")
        update.setdefault("maxUnavailable", "25%")
        inside = spec["template"]["spec"]
        inside.setdefault("restartPolicy", "Always")
        inside.setdefault("terminationGracePeriodSeconds", 30)
        for container in inside["containers"]:
            container.setdefault("imagePullPolicy", "IfNotPresent")
            for port in container.get("ports", []):
                port.setdefault("protocol", "TCP")
