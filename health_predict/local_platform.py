"""The embedded platform: the Bento as a supervised process on a stable port of this machine.

It deploys, verifies and rolls back as a cluster does; the process itself is in `supervisor`.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from health_predict import backend, supervisor
from health_predict.backend import HOST, READY_SECONDS
from health_predict.bundling import digest
from health_predict.release import Bento, Deployment, Image, ReleaseError, Say, answers
from health_predict.supervisor import Wanted
from health_predict.verification import (
    LOAD_REQUESTS,
    Ask,
    GoldenRow,
    hold,
    over_http,
    served_version,
    verify,
)


@dataclass(frozen=True)
class LocalPlatform:
    """The embedded platform: the Bento as a supervised process of this machine.

    Attributes:
        folder: the supervisor's folder.
        port: the stable port, on 127.0.0.1.
        bentoml_home: BentoML's store.
        token: bearer token the service asks for, empty where it asks for none.
    """

    folder: Path
    port: int
    bentoml_home: Path
    token: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://{HOST}:{self.port}"

    @property
    def ask(self) -> Ask:
        """How the service is asked."""
        return over_http(self.url, self.token)

    def containerise(self, bento: Bento, golden: Sequence[GoldenRow], say: Say) -> Image:
        """Returns the Bento under its digest: locally it is the image itself.

        It is tried when it is rolled out, as a process beside the one that serves.
        """
        return Image(
            reference=f"{bento.tag}@sha256:{bento.digest}",
            digest=bento.digest,
            version=bento.version,
            size=bento.size,
            facts={"made": "the Bento is served as it is; no container on this platform"},
        )

    def roll_out(
        self, image: Image, golden: Sequence[GoldenRow], say: Say, *, trial: bool = True
    ) -> Deployment:
        """Serves the image in place of what is served, verifies it, rolls back if it is not right.

        The new process takes the port over only after it has met the golden rows on a port of its
        own. It is then asked again where clients ask, and held under a short load.

        Args:
            image: what `containerise` returned.
            golden: rows the served scores are compared on.
            say: told what happens, a sentence at a time.
            trial: whether the golden rows are met before it takes over.
        """
        began = time.monotonic()
        previous = supervisor.wanted(self.folder)
        target = Wanted(
            image.reference.split("@")[0],
            image.version,
            image.digest,
            golden=self._kept(image.version, golden) if trial else "",
        )

        def ended(version: str | None, words: str, **facts: Any) -> Deployment:
            seconds = time.monotonic() - began
            return Deployment(
                version, target.version, self.url, version != target.version, words, seconds, facts
            )

        changed = self._changed(target)
        if changed:
            served = self.served_version()
            return ended(served, f"Refused: version {target.version} {changed}; {answers(served)}.")
        problem = self._problem(target, golden, say)
        if not problem:
            words = f"Version {target.version} answers at {self.url}, {len(golden)} rows verified."
            seen = {"golden_rows": len(golden), "load_requests": LOAD_REQUESTS, "failed": 0}
            return ended(target.version, words, **seen)
        say(f"Rolling back: {problem}")
        served = self._restore(previous, target, say)
        words = f"Rolled back: version {target.version} {problem}; {answers(served)}."
        return replace(ended(served, words, problem=problem), rolled_back=True)

    def served_version(self) -> str | None:
        """Returns the version that answers now, None if nothing answers."""
        return served_version(self.ask)

    def declared_version(self) -> str | None:
        """Returns the version the supervisor was told to run, None if none."""
        found = supervisor.wanted(self.folder)
        return found.version if found else None

    def _kept(self, version: str, golden: Sequence[GoldenRow]) -> str:
        """Writes the golden rows for the supervisor; returns the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"golden-{version}.json"
        path.write_text(json.dumps([asdict(row) for row in golden]))
        return str(path)

    def _changed(self, target: Wanted) -> str:
        found, _ = digest(self.bentoml_home, target.tag)
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
            return f"did not take over: {status.message}"
        return verify(self.ask, target.version, golden) or hold(self.ask, golden)

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


def try_bento(bento: Bento, golden: Sequence[GoldenRow], folder: Path, bentoml_home: Path) -> str:
    """Serves a Bento on a free port, verifies it, and ends it; returns what is wrong.

    Args:
        bento: what is tried.
        golden: rows whose scores must be met.
        folder: where its log goes.
        bentoml_home: BentoML's store.
    """

    async def trial() -> str:
        running = await backend.start(bento.tag, bento.version, folder, bentoml_home)
        try:
            problem = await running.until_ready(lambda: False)
            if problem:
                return problem
            ask = over_http(f"http://{HOST}:{running.port}")
            return await asyncio.to_thread(verify, ask, bento.version, golden)
        finally:
            await running.end()

    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(trial())
