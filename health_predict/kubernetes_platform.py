"""The cluster as a platform: image built, tried and pushed, rolled out by digest, verified, undone.

Each step is a module of its own: `images`, `containers`, `sbom`, `oci_registry`, `manifests`,
`cluster`, `verification`, `shadow`. Here is their order, and what follows when one of them says no.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from health_predict import containers, images, manifests, shadow
from health_predict.backend import free_port
from health_predict.cluster import (
    VERSION_ANNOTATION,
    Cluster,
    ClusterError,
    Deployed,
    Rollout,
    Unreachable,
)
from health_predict.cluster_link import Link, connect
from health_predict.engines import Engine, find_engine
from health_predict.local_platform import try_bento
from health_predict.manifests import ManifestError
from health_predict.oci_registry import OciRegistry
from health_predict.prediction_log import VERIFICATION
from health_predict.release import NAME, Bento, Deployment, Image, Say, answers
from health_predict.release_records import ReleaseRecords
from health_predict.sbom import sbom
from health_predict.scorer import FACTS
from health_predict.settings import ROOT
from health_predict.verification import (
    LOAD_REQUESTS,
    Ask,
    GoldenRow,
    hold,
    over_http,
    served_version,
    verify,
)
from health_predict.workloads import find_deployment

PULL_SECRET = f"{NAME}-pull"
IMAGE_DIGEST = "HEALTH_PREDICT_IMAGE_DIGEST"
VERIFIED_IMAGE = "health-predict/verified-image"
VERIFIED_VERSION = "health-predict/verified-version"
"""Annotations of the Deployment: what was verified last, empty if nothing was.

When a run is killed in the middle, the next one finds an image that nobody has verified, and must
know what to go back to.
"""
LOCK = ROOT / "requirements-serving.lock"
# A node that pulls the image for the first time takes a minute or two, two pods one after another.
ROLLOUT_SECONDS = 600.0
# Proxies take a pod out of the Service a moment after the Deployment says that it is gone.
_SETTLE_SECONDS = 10.0
_SETTLED_ANSWERS = 10


@dataclass(frozen=True)
class KubernetesPlatform:
    """A namespace of a cluster, and the registry it pulls from.

    Attributes:
        bentoml_home: BentoML's store.
        cluster: the namespace.
        overlay: folder of the kustomize overlay that is applied.
        registry: where images are pushed.
        repository: name of theirs in the registry.
        records: keep the lists of parts (SBOM).
        base_image: what images are built on.
        engine: `docker`, `podman`, `buildah`; empty: the first that works.
        source: address of the source repository, empty if unknown.
        token: bearer token the service asks for.
        traffic: folder of the prediction log for a shadow; None: no shadow runs.
        seconds: longest roll-out.
    """

    bentoml_home: Path
    cluster: Cluster
    overlay: Path
    registry: OciRegistry
    repository: str
    records: ReleaseRecords
    base_image: str
    engine: str = ""
    source: str = ""
    token: str = field(default="", repr=False)
    traffic: Path | None = None
    seconds: float = ROLLOUT_SECONDS

    @property
    def url(self) -> str:
        """Where the service answers."""
        return self.cluster.service_url or f"service {NAME} in namespace {self.cluster.namespace}"

    @property
    def ask(self) -> Ask:
        """How the service is asked."""
        return self._answered(
            lambda path, body: self.cluster.ask_service(NAME, path, body, self._headers)
        )

    def containerise(self, bento: Bento, golden: Sequence[GoldenRow], say: Say) -> Image:
        """Builds the image of a Bento, tries it, lists its parts, and pushes it.

        One that does not answer as the pipeline is not pushed: `Image.problem` says why.
        """
        engine = find_engine(self.engine)
        tag = images.image_tag(bento.version, bento.digest)
        say(f"Building the image {NAME}:{tag} with {engine.name}.")
        built = images.containerise(
            bento.tag,
            self.bentoml_home,
            engine,
            self.base_image,
            self._labels(bento),
            f"{NAME}:{tag}",
        )
        tried, smoke = self._try(bento, built, engine, golden)
        say(f"Tried {tried}: {smoke['problem'] or 'it answers as the pipeline'}.")
        facts = {"build": asdict(built), "tried": tried, "smoke": smoke}
        if smoke["problem"]:
            return Image(
                built.reference, built.id, bento.version, built.size, facts, smoke["problem"]
            )
        parts = self.records.keep_parts(f"{NAME}-{tag}", sbom(LOCK, built))
        pushed = self.registry.push(engine, built.reference, self.repository, tag, say)
        facts |= {"sbom": parts, "push": asdict(pushed)}
        return Image(pushed.reference, pushed.digest, bento.version, built.size, facts)

    def roll_out(self, image: Image, golden: Sequence[GoldenRow], say: Say) -> Deployment:
        """Applies the manifests with the image by digest, verifies what answers, or goes back.

        Args:
            image: what `containerise` returned.
            golden: rows the served scores are compared on.
            say: told what happens, a sentence at a time.

        Raises:
            Unreachable: the cluster did not answer; the run is to be made again, which finds what
                is there.
        """
        began = time.monotonic()
        facts: dict[str, Any] = {}

        def ended(version: str | None, words: str, *, undone: bool = True) -> Deployment:
            seconds = time.monotonic() - began
            return Deployment(version, image.version, self.url, undone, words, seconds, facts)

        if image.problem:
            served = self.served_version()
            words = f"Refused: version {image.version} {image.problem}; {answers(served)}."
            return ended(served, words)
        before = self.cluster.deployed(NAME)
        good = self._verified_last(before)
        facts |= {"before": before and asdict(before), "verified_last": good and asdict(good)}
        if before:
            problem = self._shadowed(image, golden, facts, say)
            if problem:
                facts["problem"], served = problem, self.served_version()
                words = f"Refused: version {image.version} {problem}; {answers(served)}."
                return ended(served, words)
        problem = self._switch(image.reference, image.version, good, golden, facts, say)
        if not problem:
            words = f"Version {image.version} answers at {self.url}, {len(golden)} rows verified."
            return ended(image.version, words, undone=False)
        facts["problem"] = problem
        if facts.get("overtaken"):
            served = self.served_version()
            return ended(served, f"Yielded: version {image.version} {problem}; {answers(served)}.")
        say(f"Rolling back: {problem}")
        wrong = self._restore(before, good, image, facts, say)
        served = self.served_version()
        words = f"Rolled back: version {image.version} {problem}"
        if wrong:
            words = f"Not rolled back: version {image.version} {problem}; then {wrong}"
        return ended(served, f"{words}; {answers(served)}.")

    def served_version(self) -> str | None:
        """Returns the version that answers through the Service, None if nothing answers.

        Raises:
            Unreachable: the cluster does not answer: nobody knows.
        """
        return served_version(self.ask)

    def declared_version(self) -> str | None:
        """Returns the version the cluster is told to run, None if none."""
        found = self.cluster.deployed(NAME)
        return found.version if found else None

    @property
    def _headers(self) -> dict[str, str]:
        known = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return {"x-request-id": VERIFICATION, **known}

    def _answered(self, ask: Ask) -> Ask:
        """Returns how to ask what may not answer, which is what verification is to find out."""

        def asked(path: str, body: Any) -> tuple[int, Any]:
            try:
                return ask(path, body)
            except ClusterError as error:
                self.cluster.deployed(NAME)  # raises if it is the cluster that does not answer
                raise ConnectionError(str(error)) from error

        return asked

    def _labels(self, bento: Bento) -> dict[str, str]:
        path = self.bentoml_home / "models" / NAME / bento.version / FACTS
        known = json.loads(path.read_text())
        created = datetime.fromisoformat(known["trained_at"])
        return images.labels(
            bento.version, bento.digest, known["git_revision"], self.source, created
        )

    def _try(
        self,
        bento: Bento,
        built: images.Built,
        engine: Engine,
        golden: Sequence[GoldenRow],
    ) -> tuple[str, dict[str, Any]]:
        """Runs the image where one can be run, the Bento itself elsewhere; says which."""

        def right(url: str) -> str:
            return verify(over_http(url), bento.version, golden)

        try:
            smoke = containers.smoke(built.reference, engine, right, free_port())
            return f"the image, run by {engine.keeper}", asdict(smoke)
        except containers.CannotRun as error:
            began = time.monotonic()
            with TemporaryDirectory() as folder:
                problem = try_bento(bento, golden, Path(folder), self.bentoml_home)
            tried = f"the Bento by `bentoml serve`, not its image: {error}"
            return tried, {"problem": problem, "seconds": time.monotonic() - began}

    def _shadowed(
        self, image: Image, golden: Sequence[GoldenRow], facts: dict[str, Any], say: Say
    ) -> str:
        if self.traffic is None:
            return ""
        self._let_pull()
        objects = shadow.beside(self._objects(image.reference, image.version))
        found = shadow.run(self.cluster, objects, self.traffic, golden, self._headers, say)
        facts["shadow"] = asdict(found)
        return found.problem

    def _objects(
        self, reference: str, version: str, good: Deployed | None = None
    ) -> list[dict[str, Any]]:
        objects = manifests.with_image(
            manifests.render(self.overlay),
            reference,
            {IMAGE_DIGEST: reference.partition("@")[2]},
            {VERSION_ANNOTATION: version},
        )
        (deployment,) = [one for one in objects if one["kind"] == "Deployment"]
        deployment["metadata"].setdefault("annotations", {}).update(
            {
                VERIFIED_IMAGE: good.image if good else "",
                VERIFIED_VERSION: (good.version if good else None) or "",
            }
        )
        return objects

    def _verified_last(self, before: Deployed | None) -> Deployed | None:
        """Returns what to go back to: what was verified last, else what is there."""
        if before is None:
            return None
        access = connect(self.cluster.kubeconfig, self.cluster.context)
        link = Link(access, self.cluster.namespace, self.cluster.pace, lambda _: None)
        found = find_deployment(link, NAME) or {"metadata": {}}
        told = found["metadata"].get("annotations") or {}
        if VERIFIED_IMAGE not in told:  # rolled out by other means
            return before
        if not told[VERIFIED_IMAGE]:
            return None
        return replace(before, image=told[VERIFIED_IMAGE], version=told[VERIFIED_VERSION])

    def _switch(
        self,
        reference: str,
        version: str,
        good: Deployed | None,
        golden: Sequence[GoldenRow],
        facts: dict[str, Any],
        say: Say,
    ) -> str:
        """Rolls an image out and verifies it; returns what is wrong, an empty string if nothing."""
        try:
            self._let_pull()
            applied = self.cluster.apply(self._objects(reference, version, good), say)
            facts["applied"] = [asdict(one) for one in applied]
            rollout = self.cluster.await_rollout(NAME, say, self.seconds, image=reference)
            facts["rollout"] = asdict(rollout)
            problem = _problem(rollout) or self._verify(version, golden, facts)
            found = self.cluster.deployed(NAME)
            if found and found.image != reference:
                facts["overtaken"] = True
                return f"makes way for a release that began later: {NAME} names {found.image}"
            if not problem:
                objects = self._objects(reference, version, Deployed(reference, version, 0))
                self.cluster.apply([one for one in objects if one["kind"] == "Deployment"], say)
        except Unreachable:
            raise
        except ClusterError as error:
            return f"was not rolled out: {error}"
        return problem

    def _let_pull(self) -> None:
        """Writes the pull secret anew: what it held may have ended since the last roll-out."""
        known = self.registry.credentials()
        if known:
            self.cluster.ensure_pull_secret(
                PULL_SECRET, self.registry.host, known.user, known.password
            )

    def _verify(self, version: str, golden: Sequence[GoldenRow], facts: dict[str, Any]) -> str:
        pods = self.cluster.ready_pods(NAME)
        facts["pods"] = {pod.name: pod.digest for pod in pods}
        for pod in pods:

            def asked(path: str, body: Any, pod: Any = pod) -> tuple[int, Any]:
                return self.cluster.ask_pod(pod, path, body, self._headers)

            problem = verify(self._answered(asked), version, golden)
            if problem:
                return f"{problem} (pod {pod.name})"
        if not pods:
            return "has no ready pod"
        facts |= {"golden_rows": len(golden), "load_requests": LOAD_REQUESTS if golden else 0}
        self._settle(version)
        return verify(self.ask, version, golden) or hold(self.ask, golden)

    def _settle(self, version: str) -> None:
        """Asks the Service until only a version answers, or until there is no use to wait."""
        deadline, answered = time.monotonic() + _SETTLE_SECONDS, 0
        while answered < _SETTLED_ANSWERS and time.monotonic() < deadline:
            answered = answered + 1 if served_version(self.ask) == version else 0
            if not answered:
                time.sleep(self.cluster.pace.poll)

    def _restore(
        self,
        before: Deployed | None,
        good: Deployed | None,
        failed: Image,
        facts: dict[str, Any],
        say: Say,
    ) -> str:
        """Brings back what was verified; returns what is wrong then, empty if nothing is."""
        untouched = self.cluster.deployed(NAME) == before
        if untouched and (before is None or before.image != failed.reference):
            return ""
        if good is None or good.version is None:
            # An unverified model does not stay because there is no other one.
            self.cluster.take_away(NAME)
            return ""
        if good.image == failed.reference:
            return ""
        undone: dict[str, Any] = {}
        try:
            problem = self._switch(good.image, good.version, good, [], undone, say)
        except ManifestError as error:
            problem = f"cannot be rolled out: {error}"
        facts["roll_back"] = {**undone, "problem": problem}
        return f"version {good.version} {problem}" if problem else ""


def _problem(rollout: Rollout) -> str:
    return f"did not become ready: {rollout.problem}" if rollout.problem else ""
