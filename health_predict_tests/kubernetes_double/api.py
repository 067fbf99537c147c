"""The words of the API that all parts of the double share: kinds, objects, refusals."""

from typing import Any

VERSION = "1.36"
TOKEN = "t0ken-of-the-cluster"
NAMESPACE = "health-predict"

Object = dict[str, Any]
Kind = tuple[str, str]
"""API version and kind."""

KINDS = {
    ("v1", "ConfigMap"): ("configmaps", True),
    ("v1", "Event"): ("events", True),
    ("v1", "Namespace"): ("namespaces", False),
    ("v1", "Pod"): ("pods", True),
    ("v1", "Secret"): ("secrets", True),
    ("v1", "Service"): ("services", True),
    ("v1", "ServiceAccount"): ("serviceaccounts", True),
    ("apps/v1", "Deployment"): ("deployments", True),
    ("apps/v1", "ReplicaSet"): ("replicasets", True),
    ("autoscaling/v2", "HorizontalPodAutoscaler"): ("horizontalpodautoscalers", True),
    ("batch/v1", "CronJob"): ("cronjobs", True),
    ("batch/v1", "Job"): ("jobs", True),
    ("networking.k8s.io/v1", "NetworkPolicy"): ("networkpolicies", True),
    ("policy/v1", "PodDisruptionBudget"): ("poddisruptionbudgets", True),
}
"""Plural, and whether it lives in a namespace, by API version and kind."""

DEPLOYMENT, REPLICA_SET = ("apps/v1", "Deployment"), ("apps/v1", "ReplicaSet")
POD, EVENT, SERVICE, SECRET = ("v1", "Pod"), ("v1", "Event"), ("v1", "Service"), ("v1", "Secret")


class Refusal(Exception):
    """A request the API server refuses, as it says so."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            **{"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"},
            **{"message": message, "reason": reason, "details": details, "code": code},
        }


def owner(thing: Object) -> Object:
    metadata = thing["metadata"]
    about = {"apiVersion": thing["apiVersion"], "kind": thing["kind"], "controller": True}
    return {**about, "name": metadata["name"], "uid": metadata["uid"]}


def owners(thing: Object) -> set[str]:
    return {each["uid"] for each in thing["metadata"].get("ownerReferences", [])}
