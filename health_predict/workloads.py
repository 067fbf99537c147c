"""A Deployment and its pods as the API server has them: which are of the template, what they say.

Only what is read: how a roll-out fares is told by `rollout`, and nothing is changed here.
"""

from copy import deepcopy
from dataclasses import dataclass
from urllib.parse import urlencode

from health_predict.cluster_link import Link, Object

VERSION_ANNOTATION = "health-predict/model-version"
"""Of a Deployment's pod template: the model version inside the image."""
LOG_LINES = 20
"""Of a container's log, the last ones."""


@dataclass(frozen=True)
class Deployed:
    """What a Deployment is told to run: the image, its model version, and the generation."""

    image: str
    version: str | None
    generation: int


@dataclass(frozen=True)
class Pod:
    """A ready pod.

    Attributes:
        name: of the pod.
        image: reference in the pod's specification.
        image_id: what runs, in the container runtime's words.
        port: first port of the service's container.
    """

    name: str
    image: str
    image_id: str
    port: int

    @property
    def digest(self) -> str:
        """The image's digest in its registry; empty if the image was not pulled from one."""
        return self.image_id.partition("@")[2]


def deployment_path(link: Link, name: str) -> str:
    """Returns where a Deployment is found."""
    return f"/apis/apps/v1/namespaces/{link.namespace}/deployments/{name}"


def find_deployment(link: Link, name: str) -> Object | None:
    """Returns a Deployment, None if there is no such."""
    return link.get(deployment_path(link, name))


def as_deployed(deployment: Object) -> Deployed:
    """Returns what a Deployment is told to run."""
    annotations = deployment["spec"]["template"].get("metadata", {}).get("annotations") or {}
    generation = deployment["metadata"]["generation"]
    return Deployed(
        service_container(deployment)["image"], annotations.get(VERSION_ANNOTATION), generation
    )


def new_pods(link: Link, deployment: Object) -> list[Object]:
    """Returns the pods of the present template that are not being ended.

    Which ReplicaSet is the present template's is told by the template, as the Deployment's
    controller tells it; the newest one may still be that of the template before.
    """
    selector = _selector(deployment["spec"]["selector"])
    sets = link.items("apis/apps/v1", "replicasets", labelSelector=selector)
    uids = {
        each["metadata"]["uid"]
        for each in sets
        if deployment["metadata"]["uid"] in _owners(each)
        and _template(each) == _template(deployment)
    }
    pods = link.items("api/v1", "pods", labelSelector=selector)
    pods = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return [pod for pod in pods if uids & _owners(pod)]


def events_of(link: Link, thing: Object) -> list[Object]:
    """Returns what happened to an object, in order."""
    selector = f"involvedObject.uid={thing['metadata']['uid']}"
    return sorted(link.items("api/v1", "events", fieldSelector=selector), key=_when)


def log_of(link: Link, pod: str, container: str, *, previous: bool) -> str:
    """Returns the last lines of a container, or of the one that ended before it.

    In place of a log that cannot be read it returns why, in the cluster's words.
    """
    query = {"container": container, "tailLines": LOG_LINES, "previous": str(previous).lower()}
    path = f"/api/v1/namespaces/{link.namespace}/pods/{pod}/log?{urlencode(query)}"
    # A node that is away answers 500 here for as long as it is: that is no reason to wait.
    answer = link.request("GET", path, passes=lambda answer: answer.status == 429)
    return answer.data.decode(errors="replace") if answer.status == 200 else answer.message


def as_pod(pod: Object, container: str) -> Pod:
    """Returns a pod as one container of it: others may have been put beside that."""
    inside = next(each for each in pod["spec"]["containers"] if each["name"] == container)
    status = next(each for each in container_statuses(pod) if each["name"] == container)
    ports = inside.get("ports") or [{}]
    port = ports[0].get("containerPort", 80)
    return Pod(pod["metadata"]["name"], inside["image"], status.get("imageID", ""), port)


def service_container(deployment: Object) -> Object:
    """Returns the container of the service in a Deployment's template: the first."""
    container: Object = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def container_statuses(pod: Object) -> list[Object]:
    """Returns the statuses of a pod's containers, those that run first ahead."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def condition(thing: Object, kind: str) -> Object:
    """Returns a condition of an object, empty if it has none of this kind."""
    conditions = thing.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind), {})


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready."""
    return condition(pod, "Ready").get("status") == "True"


def _when(event: Object) -> str:
    last = (event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp")
    return str(last or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def _template(thing: Object) -> Object:
    """Returns a pod template without what a ReplicaSet adds to it."""
    template: Object = deepcopy(thing["spec"]["template"])
    template.get("metadata", {}).get("labels", {}).pop("pod-template-hash", None)
    return template


def _owners(thing: Object) -> set[str]:
    return {owner["uid"] for owner in thing["metadata"].get("ownerReferences", [])}


def _selector(selector: Object) -> str:
    """Returns a label selector as a query writes it."""
    parts = [f"{key}={value}" for key, value in selector.get("matchLabels", {}).items()]
    for each in selector.get("matchExpressions", []):
        values = ",".join(each.get("values", []))
        parts.append(
            {
                "In": f"{each['key']} in ({values})",
                "NotIn": f"{each['key']} notin ({values})",
                "Exists": each["key"],
                "DoesNotExist": f"!{each['key']}",
            }[each["operator"]]
        )
    return ",".join(parts)
