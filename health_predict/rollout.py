"""The wait for a roll-out: how it went, when it is over, and what keeps it.

The Deployment is told what to run elsewhere; what follows from a roll-out that failed is not
decided here.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from health_predict.cluster_link import Link, Object, Pace
from health_predict.workloads import (
    LOG_LINES,
    condition,
    container_statuses,
    events_of,
    find_deployment,
    is_ready,
    log_of,
    new_pods,
    service_container,
)

_EVENTS, _LINE = 5, 1000


@dataclass(frozen=True)
class Snapshot:
    """A Deployment's status, `seconds` after the wait began; counts are of pods."""

    seconds: float
    observed_generation: int
    replicas: int
    updated: int
    ready: int
    available: int
    unavailable: int


@dataclass(frozen=True)
class Rollout:
    """How a roll-out went.

    Attributes:
        generation: of the Deployment, when the wait ended.
        seconds: waited.
        timeline: the status as it changed, at the precision of a look (`Pace.poll`).
        problem: why it did not succeed, with the pod's events and last log lines; empty if it did.
        overtaken: whether it was given up because the Deployment names another image by now.
    """

    generation: int
    seconds: float
    timeline: tuple[Snapshot, ...]
    problem: str
    overtaken: bool = False


@dataclass(frozen=True)
class _Trouble:
    """What keeps a roll-out, and for how long that may be so; `pod` None if it is none's."""

    key: str
    words: str
    patience: float
    pod: Object | None = None


class Wait:
    """The wait for one roll-out: what was seen, and since when."""

    def __init__(self, link: Link, deployment: str, image: str) -> None:
        self._link, self._name, self._image = link, deployment, image
        self._began = time.monotonic()
        self._timeline: list[Snapshot] = []
        self._since: dict[str, float] = {}
        self._said = ""
        self._before: Object | None = None

    def end(self, seconds: float) -> Rollout:
        """Waits, and returns how it ended."""
        while True:
            found = find_deployment(self._link, self._name)
            if found is None:
                return self._result(0, f"the Deployment {self._name} is gone: apply it again")
            generation, running = found["metadata"]["generation"], service_container(found)["image"]
            self._note(found)
            if self._image and running != self._image:
                words = f"overtaken by another release: {self._name} names {running} by now"
                return self._result(generation, words, overtaken=True)
            missing = _progress(found)
            problem = self._problem(found, missing)
            if not missing and not problem:
                return self._result(generation, "")
            self._tell(f"Roll-out of {self._name}: {missing}.")
            if not problem and self._seconds() > seconds:
                problem = self._told(found, f"not rolled out within {seconds:.0f} s: {missing}")
            if problem:
                return self._result(generation, problem)
            time.sleep(self._link.pace.poll)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _result(self, generation: int, problem: str, *, overtaken: bool = False) -> Rollout:
        return Rollout(generation, self._seconds(), tuple(self._timeline), problem, overtaken)

    def _tell(self, sentence: str) -> None:
        if sentence != self._said:
            self._link.say(sentence)
        self._said = sentence

    def _note(self, deployment: Object) -> None:
        snapshot = _snapshot(deployment, self._seconds())
        if not self._timeline or replace(self._timeline[-1], seconds=snapshot.seconds) != snapshot:
            self._timeline.append(snapshot)

    def _problem(self, deployment: Object, missing: str) -> str:
        """Returns what waiting does not mend, in words; empty if there is no such thing."""
        if self._before is None:
            self._before = _deadline(deployment)
        if not _is_observed(deployment) or not missing:
            return ""
        now, troubles = self._seconds(), list(self._troubles(deployment))
        self._since = {each.key: self._since.get(each.key, now) for each in troubles}
        for each in troubles:
            if now - self._since[each.key] >= each.patience:
                return self._told(deployment, each.words, each.pod)
        return ""

    def _troubles(self, deployment: Object) -> Iterable[_Trouble]:
        pace, deadline = self._link.pace, _deadline(deployment)
        for pod in new_pods(self._link, deployment):
            yield from _pod_troubles(pod, pace)
        if deadline:
            words = f"the progress deadline has passed: {deadline.get('message', '')}"
            # After a roll-back the condition of the roll-out that failed stands for a moment more.
            patience = pace.config if deadline == self._before else 0.0
            yield _Trouble("deadline", words, patience)
        failure = condition(deployment, "ReplicaFailure")
        if failure.get("status") == "True":
            words = f"pods cannot be made: {failure.get('message', '')}"
            yield _Trouble("replicas", words, pace.config)
        if deployment["spec"].get("paused"):
            words = f"the Deployment is paused: kubectl rollout resume deployment/{self._name}"
            yield _Trouble("paused", words, pace.config)

    def _told(self, deployment: Object, words: str, pod: Object | None = None) -> str:
        """Returns what is wrong, and what the pod it is wrong with has to say."""
        if pod is None and _is_observed(deployment):
            unready = (each for each in new_pods(self._link, deployment) if not is_ready(each))
            pod = next(unready, None)
            words = f"{words}; pod {pod['metadata']['name']} is not ready" if pod else words
        if pod is None:
            return words
        events = [f"event {_event(event)}"[:_LINE] for event in events_of(self._link, pod)]
        return "\n".join([words, *events[-_EVENTS:], *self._log(pod)])

    def _log(self, pod: Object) -> list[str]:
        lines = []
        for status in container_statuses(pod):
            ended = status.get("lastState", {}).get("terminated")
            began = {"running", "terminated"} & status.get("state", {}).keys()
            name = pod["metadata"]["name"], status["name"]
            texts = [log_of(self._link, *name, previous=True)] if ended else []
            texts += [log_of(self._link, *name, previous=False)] if began else []
            for text in dict.fromkeys(texts):
                lines += [f"log {line}"[:_LINE] for line in text.splitlines()[-LOG_LINES:]]
        return lines


def _snapshot(deployment: Object, seconds: float) -> Snapshot:
    status = deployment.get("status", {})
    return Snapshot(
        seconds,
        status.get("observedGeneration", 0),
        status.get("replicas", 0),
        status.get("updatedReplicas", 0),
        status.get("readyReplicas", 0),
        status.get("availableReplicas", 0),
        status.get("unavailableReplicas", 0),
    )


def _progress(deployment: Object) -> str:
    """Returns what is still missing, in words; empty when the roll-out is complete."""
    status = deployment.get("status", {})
    wanted = deployment["spec"].get("replicas", 1)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    old = status.get("replicas", 0) - updated
    if not _is_observed(deployment):
        return "the change is not observed yet"
    if updated < wanted:
        return f"{updated} of {wanted} new replicas made"
    if old > 0:
        return f"{old} old replicas still to end"
    if available < updated:
        return f"{available} of {updated} new replicas available"
    return ""


def _is_observed(deployment: Object) -> bool:
    observed: int = deployment.get("status", {}).get("observedGeneration", 0)
    return observed >= int(deployment["metadata"]["generation"])


def _deadline(deployment: Object) -> Object:
    """Returns the condition that says the progress deadline has passed, empty if none does."""
    progress = condition(deployment, "Progressing")
    return progress if progress.get("reason") == "ProgressDeadlineExceeded" else {}


def _pod_troubles(pod: Object, pace: Pace) -> Iterable[_Trouble]:
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        words = f"pod {name} is Unschedulable: {scheduled.get('message', '')}"
        yield _Trouble(f"{uid} scheduling", words, pace.unschedulable, pod)
    for status in container_statuses(pod):
        waiting = status.get("state", {}).get("waiting", {})
        patience = _patience(pace, waiting.get("reason", ""))
        if patience is not None:
            words = f"pod {name} is in {waiting['reason']}: {waiting.get('message', '')}"
            words = f"{words[:_LINE]}{_ended(status)}"
            # ErrImagePull and ImagePullBackOff take turns: one trouble, not a new one each time.
            yield _Trouble(f"{uid} {status['name']} {patience}", words, patience, pod)


def _patience(pace: Pace, reason: str) -> float | None:
    """Returns how long a container may wait for a reason, None if for as long as it takes."""
    return {
        "CrashLoopBackOff": 0.0,
        "InvalidImageName": 0.0,
        "ErrImageNeverPull": 0.0,
        "ErrImagePull": pace.pull,
        "ImagePullBackOff": pace.pull,
        "CreateContainerConfigError": pace.config,
        "CreateContainerError": pace.config,
        "RunContainerError": pace.config,
    }.get(reason)


def _ended(status: Object) -> str:
    ended = status.get("lastState", {}).get("terminated")
    if not ended:
        return ""
    reason = f"{ended.get('reason', '')}, exit code {ended.get('exitCode')}"
    return f"; it ended before ({reason}) and was restarted {status.get('restartCount', 0)} times"


def _event(event: Object) -> str:
    times = f" ({event['count']} times)" if (event.get("count") or 1) > 1 else ""
    return f"{event.get('reason', '')}: {event.get('message', '')}{times}"
