"""From a judged model to a served one: Bento, image, roll-out, verification, roll-back.

A `Platform` makes an image of a Bento and rolls it out; `LocalPlatform` is the embedded one, with a
supervised process on a stable port in place of a cluster. No Dagster here, and no opinion on which
model deserves to be served: that is `evaluation`.
"""

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from health_predict import supervisor
from health_predict.backend import HOST, READY_SECONDS
from health_predict.compiling import compile_pipeline
from health_predict.prediction_log import VERIFICATION
from health_predict.settings import ROOT
from health_predict.supervisor import Wanted

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

NAME = "readmission"
TOLERANCE = 1e-6
"""Largest difference of a served score from the pipeline's: invariant of the compiled scorer."""

Say = Callable[[str], None]


class ReleaseError(RuntimeError):
    """A release step failed; the message names what and the remedy."""


@dataclass(frozen=True)
class Bento:
    """A built Bento: its tag in BentoML's store, the model version inside, digest and bytes."""

    tag: str
    version: str
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """What a platform runs: a reference by digest, and the model version inside."""

    reference: str
    digest: str
    version: str
    size: int


@dataclass(frozen=True)
class GoldenRow:
    """An encounter and the score the pipeline gave it when the model was judged."""

    encounter: dict[str, Any]
    score: float


@dataclass(frozen=True)
class Deployment:
    """How a roll-out ended.

    Attributes:
        version: the model version that answers now.
        wanted: the version that was to be rolled out.
        url: where it answers.
        rolled_back: whether the wanted version was refused or had to make way again.
        sentence: what happened, in words.
        seconds: from the request to the verified answer.
    """

    version: str | None
    wanted: str
    url: str
    rolled_back: bool
    sentence: str
    seconds: float


class Platform(Protocol):
    """Where the service runs."""

    @property
    def bentoml_home(self) -> Path:
        """BentoML's store."""

    def containerise(self, bento: Bento) -> Image:
        """Returns the image of a Bento, pushed to where the platform pulls from."""

    def roll_out(self, image: Image, golden: Sequence[GoldenRow], say: Say) -> Deployment:
        """Serves the image, verifies the served version, rolls back if it is not right."""

    def served_version(self) -> str | None:
        """Returns the version that answers now, asked of the service itself."""


def build_bento(
    pipeline: "Pipeline", facts: Mapping[str, Any], version: str, bentoml_home: Path
) -> Bento:
    """Builds the Bento of one model version.

    Args:
        pipeline: the fitted pipeline.
        facts: what the service tells of the model; JSON values only.
        version: model version, also the Bento's.
        bentoml_home: BentoML's store.

    Raises:
        ReleaseError: this process already uses another BentoML store.
    """
    bentoml = _bentoml(bentoml_home)
    tag = f"{NAME}:{version}"
    for kept in ("bentos", "models"):
        # Of an attempt that did not end well, perhaps incomplete: BentoML could not even list it.
        left = bentoml_home / kept / NAME / version
        if left.exists():
            shutil.rmtree(left)
    with bentoml.models.create(tag) as model:
        compile_pipeline(pipeline, facts, Path(model.path))
    with tempfile.TemporaryDirectory() as context:
        # Built where it stands, BentoML would look at each of the virtual environment's files.
        _copy_build_context(Path(context))
        bento = bentoml.bentos.build_bentofile(
            str(Path(context, "bentofile.yaml")),
            build_ctx=context,
            version=version,
            args={"model": tag},
        )
    digest, size = _digest([Path(bento.path) / "src", Path(model.path)])
    return Bento(str(bento.tag), version, digest, size)


def _bentoml(home: Path) -> Any:
    os.environ["BENTOML_HOME"] = str(home)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    home.mkdir(parents=True, exist_ok=True)
    import bentoml
    from bentoml._internal.configuration.containers import BentoMLContainer

    if Path(BentoMLContainer.bentoml_home.get()).resolve() != home.resolve():
        raise ReleaseError(
            f"this process already uses the BentoML store {BentoMLContainer.bentoml_home.get()}: "
            f"use {home} from a process of its own"
        )
    return bentoml


def _copy_build_context(folder: Path) -> None:
    import yaml

    recipe = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    for name in ("bentofile.yaml", recipe["python"]["requirements_txt"], *recipe["include"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def _digest(folders: Sequence[Path]) -> tuple[str, int]:
    """Returns the sha256 over names and contents of all files, and their bytes."""
    total, size = hashlib.sha256(), 0
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if path.suffix == ".pyc" or path.name == "model.yaml":  # holds the time it was made
                continue
            content = path.read_bytes()
            total.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
            size += len(content)
    return total.hexdigest(), size


@dataclass(frozen=True)
class LocalPlatform:
    """The embedded platform: the Bento as a supervised process of this machine.

    Attributes:
        folder: the supervisor's folder.
        port: the stable port, on 127.0.0.1.
        bentoml_home: BentoML's store.
    """

    folder: Path
    port: int
    bentoml_home: Path

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://{HOST}:{self.port}"

    def containerise(self, bento: Bento) -> Image:
        """Returns the Bento under its digest: locally it is the image itself."""
        return Image(f"{bento.tag}@sha256:{bento.digest}", bento.digest, bento.version, bento.size)

    def roll_out(self, image: Image, golden: Sequence[GoldenRow], say: Say) -> Deployment:
        """Serves the image in place of what is served, verifies it, rolls back if it is not right.

        Args:
            image: what `containerise` returned.
            golden: rows the served scores are compared on.
            say: told what happens, a sentence at a time.
        """
        began = time.monotonic()
        previous = supervisor.wanted(self.folder)
        target = Wanted(image.reference.split("@")[0], image.version, image.digest)
        changed = self._changed(target)
        if changed:
            served = self.served_version()
            words = f"Refused: version {target.version} {changed}; {_answers(served)}."
            return Deployment(
                served, target.version, self.url, True, words, time.monotonic() - began
            )
        problem = self._problem(target, golden, say)
        if not problem:
            words = f"Version {target.version} answers at {self.url}, {len(golden)} rows verified."
            return Deployment(
                target.version, target.version, self.url, False, words, time.monotonic() - began
            )
        say(f"Rolling back: {problem}")
        served = self._restore(previous, target, say)
        words = f"Rolled back: version {target.version} {problem}; {_answers(served)}."
        return Deployment(served, target.version, self.url, True, words, time.monotonic() - began)

    def served_version(self) -> str | None:
        """Returns the version that answers now, None if nothing answers."""
        try:
            return str(_get(f"{self.url}/model-info")["version"])
        except _NOT_AN_ANSWER:
            return None

    def _changed(self, target: Wanted) -> str:
        name, version = target.tag.split(":")
        found, _ = _digest(
            [
                self.bentoml_home / "bentos" / name / version / "src",
                self.bentoml_home / "models" / name / version,
            ]
        )
        if found == target.digest:
            return ""
        return (
            f"has digest {found[:12]} in the store, not {target.digest[:12]} as it was built: "
            "build the Bento again"
        )

    def _problem(self, target: Wanted, golden: Sequence[GoldenRow], say: Say) -> str:
        """Rolls out and verifies; returns what is wrong, an empty string if nothing is."""
        try:
            self._serve(target, say)
            status = self._await(target, say)
        except (TimeoutError, ReleaseError) as error:
            return f"was not started: {error}"
        if status.state == "failed":
            return f"did not start: {status.message}"
        return verify(self.url, target.version, golden)

    def _serve(self, target: Wanted, say: Say) -> None:
        supervisor.want(self.folder, target)
        if supervisor.status(self.folder) is not None:
            return
        say(f"Starting the supervisor on port {self.port}.")
        path = self.folder / "supervisor.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "health_predict.supervisor"),
                    *(str(self.folder), str(self.port), str(self.bentoml_home)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while supervisor.status(self.folder) is None:
            if process.poll() is not None:
                raise ReleaseError(path.read_text(errors="replace").strip())
            time.sleep(0.1)

    def _await(self, target: Wanted | None, say: Say) -> supervisor.Status:
        name = f"version {target.version}" if target else "nothing"
        return supervisor.await_version(
            self.folder,
            target,
            seconds=2 * READY_SECONDS,
            tell=lambda status: say(f"Local platform: {status.state}, {name} is wanted."),
        )

    def _restore(self, previous: Wanted | None, failed: Wanted, say: Say) -> str | None:
        """Serves what was served before; returns the version that answers then."""
        if previous == failed:
            return self.served_version()
        overwritten = previous is not None and previous.tag == failed.tag
        target = None if overwritten else previous
        try:
            if target:
                self._serve(target, say)
            else:  # an unverified model does not stay because there is no other one
                supervisor.want(self.folder, None)
            if target or supervisor.status(self.folder):
                self._await(target, say)
        except (TimeoutError, ReleaseError) as error:
            say(str(error))
        return self.served_version() if target else None


def _answers(version: str | None) -> str:
    return f"version {version} answers" if version else "nothing is served"


@dataclass(frozen=True)
class KubernetesPlatform:
    """The cluster: not furnished yet, so each step refuses instead of pretending."""

    bentoml_home: Path

    def containerise(self, bento: Bento) -> Image:
        """Refuses."""
        raise self._refusal()

    def roll_out(self, image: Image, golden: Sequence[GoldenRow], say: Say) -> Deployment:
        """Refuses."""
        raise self._refusal()

    def served_version(self) -> str | None:
        """Refuses."""
        raise self._refusal()

    def _refusal(self) -> ReleaseError:
        return ReleaseError(
            "roll-out to Kubernetes is not part of this version: "
            "set HEALTH_PREDICT_DEPLOYMENT=local to serve on this machine"
        )


def verify(url: str, version: str, golden: Sequence[GoldenRow]) -> str:
    """Asks the service who it is and what it answers.

    Args:
        url: the service's address.
        version: the model version that must answer.
        golden: rows whose scores must be met to 1e-6.

    Returns:
        What is wrong, in words that follow "version n"; an empty string if nothing is.
    """
    try:
        answered = str(_get(f"{url}/model-info")["version"])
        if answered != version:
            return f"was rolled out, but version {answered} answers at {url}"
        for number, row in enumerate(golden):
            answer = post(f"{url}/predict", row.encounter, **{"x-request-id": VERIFICATION})
            served = answer["probability_score"]
            if not abs(served - row.score) <= TOLERANCE:  # also where it is not a number
                return f"scores golden row {number} as {served:.7f}, the pipeline {row.score:.7f}"
    except urllib.error.HTTPError as error:
        return f"answers {error.code} at {error.url}: {error.read(500).decode(errors='replace')}"
    except _NOT_AN_ANSWER as error:
        return f"does not answer at {url} as the service does: {error!r}"
    return ""


_NOT_AN_ANSWER = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError)
"""What it may come to when something else listens on the port, or nothing."""


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def post(url: str, body: Mapping[str, Any], **headers: str) -> Any:
    """Returns the JSON answer to a JSON body."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)
