"""The software bill of materials of an image: what it is made of, CycloneDX 1.6.

It is drawn from the lock file the image was built from. What is in the base image its publisher
lists; here it is one part, by name and digest.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    XsUri,
)
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from health_predict.images import Built

_SHA256 = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def sbom(requirements: Path, built: Built, python: str = "3.11") -> bytes:
    """Returns what an image is made of: CycloneDX 1.6, JSON.

    Of the Python packages it lists those the lock file installs on Linux, with the hashes of the
    files that it allows; of the base image its name and digest, since whoever publishes that lists
    what is in it.

    Args:
        requirements: the lock file the image was built from.
        built: the image.
        python: its version of Python.

    Returns:
        The JSON document. The same image gives the same bytes.
    """
    image = _image(built.reference, built.id, "image")
    base = _image(built.base, built.base_digest, "base-image")
    bom = Bom(components=[*_installed(requirements.read_text(), python), base])
    bom.metadata.component = image
    bom.register_dependency(image, bom.components)
    # Left to itself the library names the document by chance and the hour.
    bom.serial_number = uuid5(NAMESPACE_OID, built.id)
    bom.metadata.timestamp = None  # type: ignore[assignment]
    return (JsonV1Dot6(bom).output_as_string(indent=1) + "\n").encode()


def _installed(lock: str, python: str) -> Iterable[Component]:
    """Yields the packages of a lock file that are installed on Linux."""
    image = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_version": python,
    }
    for entry in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE):
        if not entry or entry.startswith("#"):
            continue
        requirement = Requirement(entry.partition("\\")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate(image):
            yield _package(requirement, _SHA256.findall(entry))


def _package(requirement: Requirement, hashes: list[str]) -> Component:
    (pin,) = requirement.specifier
    purl = PackageURL("pypi", name=requirement.name, version=pin.version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(str(purl)),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content) for content in hashes],
    )
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        name=requirement.name,
        version=pin.version,
        purl=purl,
        external_references=[files],
    )


def _image(reference: str, digest: str, ref: str) -> Component:
    name, _, version = reference.partition("@")[0].rpartition(":")
    content = digest.removeprefix("sha256:")
    return Component(
        type=ComponentType.CONTAINER,
        bom_ref=ref,
        name=name,
        version=version,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content)],
    )
