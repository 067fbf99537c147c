"""Images of Bentos on this machine: built, labelled, looked at, removed.

How an image is made stands in `image/Dockerfile`, which every Bento carries. What its parts are is
listed by `sbom`, whether it works is tried by `containers`, who keeps it for others is
`oci_registry`.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from health_predict.engines import ContainerError, Engine, last_lines, run_to_end

_OCI = "org.opencontainers.image."


@dataclass(frozen=True)
class Kept:
    """An image as this machine keeps it.

    Attributes:
        id: digest of its configuration, which names all its content; `sha256:...`.
        digest: digest of its manifest if it came from a registry, else of the local one; a push
            compresses the layers and makes another one.
        size: bytes of its layers, uncompressed.
        labels: what it says of itself.
    """

    id: str
    digest: str
    size: int
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Built:
    """An image that was built.

    Attributes:
        reference: its name on this machine.
        id: digest of its configuration, `sha256:...`.
        size: bytes of its layers, uncompressed.
        base: the base image it was built on, by name.
        base_digest: digest of that.
        seconds: what it took.
    """

    reference: str
    id: str
    size: int
    base: str
    base_digest: str
    seconds: float


def image_tag(version: str, bento_digest: str) -> str:
    """Returns an image's tag: the model version, and which Bento of it."""
    return f"{version}-{bento_digest.removeprefix('sha256:')[:12]}"


def labels(
    version: str, bento_digest: str, revision: str, source: str, created: datetime
) -> dict[str, str]:
    """Returns the labels an image tells of itself.

    Args:
        version: the model version inside.
        bento_digest: of the Bento.
        revision: of the source, as Git names it; empty if unknown.
        source: address of the source repository; empty if unknown.
        created: when the model was registered, not when the image is built: or no two builds of
            one Bento would be the same image.
    """
    given = {
        f"{_OCI}title": "readmission",
        f"{_OCI}version": image_tag(version, bento_digest),
        f"{_OCI}revision": revision,
        f"{_OCI}source": source,
        f"{_OCI}created": created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "health-predict.model-version": version,
        "health-predict.bento-digest": bento_digest,
    }
    return {key: value for key, value in given.items() if value}


def containerise(
    bento_tag: str,
    bentoml_home: Path,
    engine: Engine,
    base_image: str,
    labels: Mapping[str, str],
    tag: str,
) -> Built:
    """Builds the image of a Bento by `bentoml containerize`.

    Args:
        bento_tag: the Bento's, `name:version`.
        bentoml_home: BentoML's store.
        engine: what builds it.
        base_image: what it is built on: Python of the lock file's version with `venv`, and glibc.
            Pulled if it is not on this machine.
        labels: of the image; the base image's name and digest are added.
        tag: the image's name on this machine, `name:tag`.

    Raises:
        ContainerError: the Bento is not what its tag says, there is no such base image, or the
            build failed: the last lines of its output are in the message.
    """
    began = time.monotonic()
    _check(bento_tag, bentoml_home)
    base = _base(engine, base_image)
    told = {
        **labels,
        f"{_OCI}base.name": base_image.partition("@")[0],
        f"{_OCI}base.digest": base.digest,
    }
    _build(bento_tag, bentoml_home, engine, base_image, told, tag)
    kept = inspect(engine, tag)
    took = time.monotonic() - began
    return Built(tag, kept.id, kept.size, base_image, base.digest, took)


def inspect(engine: Engine, image: str) -> Kept:
    """Returns what the engine knows of an image.

    Raises:
        ContainerError: it has no such image.
    """
    if engine.keeper == "buildah":
        return _inspect_by_buildah(engine, image)
    found = json.loads(engine.ask("image", "inspect", image))[0]
    # Docker knows a manifest only of what came from a registry, Podman makes one.
    pulled = [name.partition("@")[2] for name in found.get("RepoDigests") or []]
    digest = found.get("Digest") or (pulled[0] if pulled else found["Id"])
    told = (found.get("Config") or {}).get("Labels") or found.get("Labels") or {}
    return Kept(_digest(found["Id"]), digest, int(found["Size"]), told)


def remove(engine: Engine, image: str) -> None:
    """Removes an image of this machine, if it is there."""
    if engine.call(engine.keeper, "inspect", "--type", "image", image).returncode == 0:
        engine.ask("rmi", image)


def _check(bento_tag: str, bentoml_home: Path) -> None:
    """Raises `ContainerError` if a Bento names another model than its own.

    BentoML copies into the image what the Bento's manifest names, and that is what the service
    named when its module was imported: in a process that built another one before, that one's.
    """
    import yaml

    name, _, version = bento_tag.partition(":")
    path = bentoml_home / "bentos" / name / version / "bento.yaml"
    if not path.is_file():
        raise ContainerError(f"there is no Bento {bento_tag} in {bentoml_home}: build it first")
    manifest = yaml.safe_load(path.read_text())
    named = {model["tag"] for each in manifest["services"] for model in each["models"]}
    if named != {bento_tag}:
        raise ContainerError(
            f"the Bento {bento_tag} names {', '.join(sorted(named)) or 'no model'}: "
            "build it again in a process of its own"
        )


def _base(engine: Engine, base_image: str) -> Kept:
    try:
        return inspect(engine, base_image)
    except ContainerError:
        done = engine.call(engine.keeper, "pull", base_image)
    if done.returncode:
        raise ContainerError(
            f"there is no base image {base_image} on this machine and it cannot be pulled "
            f"({last_lines(done.stderr)}): set HEALTH_PREDICT_BASE_IMAGE to one that can"
        )
    return inspect(engine, base_image)


def _build(
    bento_tag: str,
    bentoml_home: Path,
    engine: Engine,
    base_image: str,
    told: Mapping[str, str],
    tag: str,
) -> None:
    options = [
        f"build-arg=BASE_IMAGE={base_image}",
        *(f"label={key}={value}" for key, value in told.items()),
        # One time for all files, or each build would make other layers.
        "build-arg=SOURCE_DATE_EPOCH=0" if engine.name == "docker" else "timestamp=0",
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = run_to_end(
            [
                *(sys.executable, "-W", "ignore", "-m", "bentoml", "containerize", bento_tag),
                *("--backend", engine.name, "--image-tag", tag),
                *(part for option in options for part in ("--opt", option)),
            ],
            # BentoML reads no template outside of the folder it runs in, and copies the Bento's
            # into a temporary one.
            cwd=folder,
            env={
                "BUILDAH_LAYERS": "true",
                **os.environ,
                **engine.environment,
                "BENTOML_HOME": str(bentoml_home.resolve()),
                "BENTOML_DO_NOT_TRACK": "True",
                "TMPDIR": folder,
            },
        )
    if done.returncode:
        said = _failure(done.stdout + done.stderr)
        raise ContainerError(f"{engine.name} did not build {tag}: {said}")


def _failure(output: str) -> str:
    """Returns the engine's own words of a failed build: BentoML repeats them with its own stack."""
    own, _, _ = output.partition("Encountered exception while trying to building image")
    lines = [line for line in own.splitlines() if "WARNING:" not in line and line != "ERROR: "]
    return last_lines("\n".join(line.removeprefix("INFO: ") for line in lines))


def _inspect_by_buildah(engine: Engine, image: str) -> Kept:
    found = json.loads(engine.ask("inspect", "--type", "image", image))
    told = found["OCIv1"].get("config", {}).get("Labels") or {}
    digest = _digest(found["FromImageID"])
    listed = json.loads(engine.ask("images", "--all", "--no-trunc", "--json"))
    size = next(each["size"] for each in listed if _digest(each["id"]) == digest)
    return Kept(digest, found["FromImageDigest"], _bytes(size), told)


def _bytes(text: str) -> int:
    """Returns the bytes of `403 MB`, as Buildah writes them."""
    number, unit = text.split()
    return round(float(number) * 1000 ** ("B", "KB", "MB", "GB", "TB").index(unit.upper()))


def _digest(id_: str) -> str:
    return id_ if id_.startswith("sha256:") else f"sha256:{id_}"
