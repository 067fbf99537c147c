"""A Kubernetes API server over real HTTP, with what moves behind it: Deployments and their pods.

It does what the real one does in what a release meets: server-side apply with field managers and
conflicts, label and field selectors, `resourceVersion`, a `generation` that is observed with a lag,
roll-outs pod by pod as their images behave, Events, logs, pull secrets, and the proxy to pods and
Services. Lists, sets and keys are merged as the published schema of Kubernetes says, and every body
is checked against it strictly. There is no watch, no authorisation beyond one token, no admission,
no node that fills up.

Nothing runs in the background: what should have happened since the last request happens at the
next one, in order. `speed` is how many seconds of the cluster's pass in one of the test's.

Each module knows those above it: `api` and `behaviours` the words, `fields` who manages what,
`validation` what is refused, `objects` what is stored and when, `pods` the kubelet, `deployments`
their controller, `server` HTTP. `releases` is what tests roll out.
"""

from health_predict_tests.kubernetes_double.api import (
    DEPLOYMENT,
    EVENT,
    KINDS,
    NAMESPACE,
    POD,
    REPLICA_SET,
    SECRET,
    SERVICE,
    TOKEN,
    VERSION,
)
from health_predict_tests.kubernetes_double.behaviours import (
    BAD_NAME,
    CRASH_LOOP,
    HEALTHY,
    NEVER_READY,
    NO_CONFIG,
    NO_NODE,
    NO_QUOTA,
    PULL_DENIED,
    PULL_ERROR,
    PULL_HICCUP,
    UNSEEN,
    Behaviour,
    Stage,
)
from health_predict_tests.kubernetes_double.releases import Service, answering, image, manifests
from health_predict_tests.kubernetes_double.server import Fault, KubernetesDouble, kubernetes

__all__ = [
    "BAD_NAME",
    "CRASH_LOOP",
    "DEPLOYMENT",
    "EVENT",
    "HEALTHY",
    "KINDS",
    "NAMESPACE",
    "NEVER_READY",
    "NO_CONFIG",
    "NO_NODE",
    "NO_QUOTA",
    "POD",
    "PULL_DENIED",
    "PULL_ERROR",
    "PULL_HICCUP",
    "REPLICA_SET",
    "SECRET",
    "SERVICE",
    "TOKEN",
    "UNSEEN",
    "VERSION",
    "Behaviour",
    "Fault",
    "KubernetesDouble",
    "Service",
    "Stage",
    "answering",
    "image",
    "kubernetes",
    "manifests",
]
