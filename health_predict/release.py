"""From a judged model to a served one: Bento, image, roll-out, verification, roll-back.

A `Platform` makes an image of a Bento and rolls it out; `LocalPlatform` is the embedded one, with a
supervised process on a stable port in place of a cluster. No Dagster here, and no opinion on which
model deserves to be served: that is `evaluation`.
"""

import hashlib
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
from health_predict.scorer import compile_pipeline
from health_predict.supervisor import Wanted

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

NAME = "readmission"
TOLERANCE = 1e-6
"""Largest difference of a served score from the pipeline's: invariant of the compiled scorer."""

ROOT = Path(__file__).parent.parent
"""The project's root, where `bentofile.yaml` stands."""

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
        rolled_back: whether the previous version had to be brought back.
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
    for kept in (bentoml.bentos, bentoml.models):  # left by an attempt that did not end well
        if any(str(found.tag) == tag for found in kept.list()):
            kept.delete(tag)
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
        return f"http://{supervisor.HOST}:{self.port}"

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
        target = Wanted(image.reference.split("@")[0], image.version)
        problem = self._problem(image, target, golden, say)
        if not problem:
            words = f"Version {target.version} answers at {self.url}, {len(golden)} rows verified."
            return Deployment(
                target.version, target.version, self.url, False, words, time.monotonic() - began
            )
        say(f"Rolling back: {problem}")
        served = self._restore(previous, target, say)
        back = f"version {served} answers again" if served else "nothing is served"
        words = f"Rolled back: version {target.version} {problem}; {back}."
        return Deployment(served, target.version, self.url, True, words, time.monotonic() - began)

    def served_version(self) -> str | None:
        """Returns the version that answers now, None if nothing answers."""
        try:
            return str(_get(f"{self.url}/model-info")["version"])
        except OSError:
            return None

    def _problem(self, image: Image, target: Wanted, golden: Sequence[GoldenRow], say: Say) -> str:
        """Rolls out and verifies; returns what is wrong, an empty string if nothing is."""
        name, version = target.tag.split(":")
        found, _ = _digest(
            [
                self.bentoml_home / "bentos" / name / version / "src",
                self.bentoml_home / "models" / name / version,
            ]
        )
        if found != image.digest:
            return f"has digest {found[:12]} in the store, not {image.digest[:12]} as it was built"
        self._serve(target, say)
        try:
            status = self._await(target, say)
        except TimeoutError as error:
            return str(error)
        if status.state == "failed":
            return f"did not start: {status.message}"
        return verify(self.url, target.version, golden)

    def _serve(self, target: Wanted, say: Say) -> None:
        supervisor.want(self.folder, target)
        if supervisor.status(self.folder) is None:
            say(f"Starting the supervisor on port {self.port}.")
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "health_predict.supervisor"),
                    *(str(self.folder), str(self.port), str(self.bentoml_home)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _await(self, target: Wanted, say: Say) -> supervisor.Status:
        return supervisor.await_version(
            self.folder,
            target,
            seconds=2 * supervisor.READY_SECONDS,
            tell=lambda status: say(f"Local platform: {status.state} version {target.version}."),
        )

    def _restore(self, previous: Wanted | None, failed: Wanted, say: Say) -> str | None:
        if previous is None or previous == failed:
            return self.served_version()
        self._serve(previous, say)
        try:
            self._await(previous, say)
        except TimeoutError as error:
            say(str(error))
        return self.served_version()


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
            served = _post(f"{url}/predict", row.encounter)["probability_score"]
            if abs(served - row.score) > TOLERANCE:
                return f"scores golden row {number} as {served:.7f}, the pipeline {row.score:.7f}"
    except urllib.error.HTTPError as error:
        return f"answers {error.code} at {error.url}: {error.read(500).decode(errors='replace')}"
    except OSError as error:
        return f"does not answer at {url}: {error}"
    return ""


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def _post(url: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)
