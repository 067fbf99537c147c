"""How the pods of an image fare: what becomes of their containers, and when."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from health_predict_tests.kubernetes_double.api import Object


@dataclass(frozen=True)
class Stage:
    """What becomes of a pod's container, `at` seconds after the pod was made.

    In texts, `{pod}`, `{uid}`, `{namespace}`, `{container}`, `{image}` and `{now}` are filled in.
    """

    at: float
    state: Object
    ready: bool = False
    restarts: int = 0
    last: Object = field(default_factory=dict)
    event: tuple[str, str, str] | None = None
    scheduled: bool = True


def _waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


_RUNNING: Object = {"running": {"startedAt": "{now}"}}
_EXITED: Object = {
    "terminated": {
        "exitCode": 1,
        "reason": "Error",
        "startedAt": "{now}",
        "finishedAt": "{now}",
        "containerID": "containerd://{uid}",
    }
}


@dataclass(frozen=True)
class Behaviour:
    """How the pods of an image fare.

    Attributes:
        stages: of each pod.
        log: of the container that runs.
        previous: of the one that ended before it.
        observed_after: seconds until the controller has seen a Deployment with this image.
        forbidden: why no pod can be made; empty if pods can.
    """

    stages: tuple[Stage, ...] = ()
    log: str = ""
    previous: str = ""
    observed_after: float = 0.4
    forbidden: str = ""


_CREATING = Stage(0, _waiting("ContainerCreating"), event=("Normal", "Scheduled", "Assigned {pod}"))
_STARTED = ("Normal", "Started", "Container started")
HEALTHY = Behaviour(
    (_CREATING, Stage(1.0, _RUNNING, event=_STARTED), Stage(5.0, _RUNNING, ready=True)),
    log="ready\n",
)
"""Of two replicas this makes the roll-out that was recorded: observed at 0.4 s, done at ten."""


def _crash(delay: int) -> Object:
    words = "restarting failed container={container} pod={pod}_{namespace}({uid})"
    return _waiting("CrashLoopBackOff", f"back-off {delay}s {words}")


_BACK_OFF = ("Warning", "BackOff", "Back-off restarting failed container {container} in pod {pod}")
CRASH_LOOP = Behaviour(
    (
        _CREATING,
        Stage(1.0, _RUNNING, event=_STARTED),
        Stage(2.0, _EXITED),
        Stage(2.5, _RUNNING, restarts=1, last=_EXITED, event=_STARTED),
        Stage(3.5, _crash(10), restarts=1, last=_EXITED, event=_BACK_OFF),
        Stage(13.5, _RUNNING, restarts=2, last=_EXITED, event=_STARTED),
        Stage(14.5, _crash(20), restarts=2, last=_EXITED, event=_BACK_OFF),
    ),
    log="loading the model\n",
    previous="loading the model\nValueError: model.ubj: bad magic number\n",
)


def _pulls(why: str, times: Sequence[float]) -> tuple[Stage, ...]:
    words = 'Failed to pull image "{image}": ' + why
    tried = ("Warning", "Failed", words)
    backs_off = ("Normal", "BackOff", 'Back-off pulling image "{image}"')
    message = 'Back-off pulling image "{image}": ErrImagePull: ' + why
    stages = [_CREATING]
    for at in times:
        stages.append(Stage(at, _waiting("ErrImagePull", why), event=tried))
        stages.append(Stage(at + 1, _waiting("ImagePullBackOff", message), event=backs_off))
    return tuple(stages)


_NOT_FOUND = 'failed to pull and unpack image "{image}": {image}: not found'
_DENIED = 'failed to resolve reference "{image}": unexpected status: 401 Unauthorized'
PULL_ERROR = Behaviour(_pulls(_NOT_FOUND, (1, 12, 33, 74)))
PULL_DENIED = Behaviour(_pulls(_DENIED, (1, 12, 33, 74)))
PULL_HICCUP = Behaviour((*_pulls(_NOT_FOUND, (1,)), Stage(12, _RUNNING), Stage(15, _RUNNING, True)))
BAD_NAME = Behaviour(
    (
        _CREATING,
        Stage(0.5, _waiting("InvalidImageName", 'couldn\'t parse image name "{image}"')),
    )
)
NO_CONFIG = Behaviour(
    (
        _CREATING,
        Stage(
            0.5,
            _waiting("CreateContainerConfigError", 'configmap "readmission" not found'),
            event=("Warning", "Failed", 'Error: configmap "readmission" not found'),
        ),
    )
)
NO_NODE = Behaviour(
    (
        Stage(
            0,
            {},
            scheduled=False,
            event=(
                "Warning",
                "FailedScheduling",
                "0/1 nodes are available: 1 Insufficient memory.",
            ),
        ),
    )
)
NEVER_READY = Behaviour(
    (
        _CREATING,
        Stage(1.0, _RUNNING, event=_STARTED),
        Stage(4.0, _RUNNING, event=("Warning", "Unhealthy", "Readiness probe failed: 503")),
        Stage(9.0, _RUNNING, event=("Warning", "Unhealthy", "Readiness probe failed: 503")),
    ),
    log="loading the model\nstill loading the model\n",
)
NO_QUOTA = Behaviour(forbidden="exceeded quota: small, requested: memory=2Gi, used: 2Gi of 2Gi")
UNSEEN = Behaviour(observed_after=math.inf)
