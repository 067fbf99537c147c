"""What a release is made of: Bento, image, deployment, and the platform that brings one about.

A `Platform` makes an image of a Bento, rolls it out, verifies what then answers and rolls back if
it is not right: `local_platform` on this machine, `kubernetes_platform` in a cluster. No Dagster
here, and no opinion on which model deserves to be served: that is `evaluation`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from health_predict.verification import GoldenRow

NAME = "readmission"
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
    """What a platform runs.

    Attributes:
        reference: by digest.
        digest: as the registry reports it; locally that of the Bento.
        version: the model version inside.
        size: bytes.
        facts: how it was made and tried: JSON values, for the release record.
        problem: why it was not pushed and is not to be rolled out; empty if nothing is wrong.
    """

    reference: str
    digest: str
    version: str
    size: int
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


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
        facts: what was seen on the way: JSON values, for the release record.
    """

    version: str | None
    wanted: str
    url: str
    rolled_back: bool
    sentence: str
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


class Platform(Protocol):
    """Where the service runs."""

    @property
    def bentoml_home(self) -> Path:
        """BentoML's store."""

    def containerise(self, bento: Bento, golden: Sequence[GoldenRow], say: Say) -> Image:
        """Returns the image of a Bento, tried and pushed to where the platform pulls from."""

    def roll_out(self, image: Image, golden: Sequence[GoldenRow], say: Say) -> Deployment:
        """Serves the image, verifies the served version, rolls back if it is not right."""

    def served_version(self) -> str | None:
        """Returns the version that answers now, asked of the service itself."""

    def declared_version(self) -> str | None:
        """Returns the version the platform was told to run."""


def answers(version: str | None) -> str:
    """Returns who answers, in words."""
    return f"version {version} answers" if version else "nothing is served"
