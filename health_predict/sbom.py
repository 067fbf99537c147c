"""The software bill of materials of an image: what it is made of, CycloneDX 1.6.

It is drawn from the lock file the image was built from. What is in the base image its publisher
lists; here it is one part, by name and digest.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from health_predict.engines import ContainerError, last_lines
from health_predict.images import Built


def sbom(requirements: Path, built: Built, python: str = "3.11") -> bytes:
    """Returns what an image is made of: CycloneDX 1.6, JSON, by `cyclonedx-py`.

    Of the Python packages it lists those the lock file installs on Linux, with hashes; of the base
    image its name and digest, since whoever publishes that lists what is in it.

    Args:
        requirements: the lock file the image was built from.
        built: the image.
        python: its version of Python.

    Returns:
        The JSON document. The same image gives the same bytes.

    Raises:
        ContainerError: `cyclonedx-py` refused.
    """
    lock = "".join(_installed(requirements.read_text(), python))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cyclonedx_py", "requirements", "--short-PURLs"),
            *("--output-reproducible", "--sv", "1.6", "--of", "JSON", "--output-file", "-", "-"),
        ],
        input=lock,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ContainerError(f"no list of the image's parts: {last_lines(done.stderr)}")
    document = json.loads(done.stdout)
    document["metadata"]["component"] = _component(built.reference, built.id, "image")
    document["components"].append(_component(built.base, built.base_digest, "base-image"))
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _installed(lock: str, python: str) -> Iterable[str]:
    """Yields the entries of a lock file that are installed on Linux, without their conditions."""
    from packaging.requirements import Requirement

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
        head, _, hashes = entry.partition("\\")
        requirement = Requirement(head.strip())
        if requirement.marker is None or requirement.marker.evaluate(image):
            yield f"{requirement.name}{requirement.specifier} \\{hashes}"


def _component(reference: str, digest: str, ref: str) -> dict[str, Any]:
    name, _, version = reference.partition("@")[0].rpartition(":")
    return {
        "type": "container",
        "bom-ref": ref,
        "name": name,
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}],
    }
