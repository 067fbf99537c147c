"""Credentials of registries: what they are, and where the engines of this machine keep theirs.

How a registry is asked with them is `registry_http`, where Amazon's come from `ecr`.
"""

import base64
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Credentials:
    """A user and password of a registry.

    Attributes:
        user: the user.
        password: the password or token; not shown.
        expires: when it ends, seconds since 1970; None: it does not.
    """

    user: str
    password: str = field(repr=False)
    expires: float | None = None

    @property
    def encoded(self) -> str:
        """As HTTP and the engines' files have them."""
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def auths(host: str, credentials: Credentials | None) -> dict[str, Any]:
    """Returns credentials as the engines' and Kubernetes' files have them."""
    return {"auths": {host: {"auth": credentials.encoded}} if credentials else {}}


def logged_in(host: str) -> Credentials | None:
    """Returns what an engine of this machine was logged in with, None if it was not."""
    for path in _auth_files():
        if not path.is_file():
            continue
        content = json.loads(path.read_text())
        helper = content.get("credHelpers", {}).get(host) or content.get("credsStore")
        entry = content.get("auths", {}).get(host)
        if entry and entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            return Credentials(user, password)
        if helper and (found := _of_helper(helper, host)):
            return found
    return None


def _auth_files() -> list[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    configured = os.environ.get("REGISTRY_AUTH_FILE")
    docker = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker"))
    return [
        *([Path(configured)] if configured else []),
        Path(runtime, "containers", "auth.json"),
        Path(f"/run/containers/{os.getuid()}/auth.json"),  # Podman's as root
        Path.home() / ".config" / "containers" / "auth.json",
        docker / "config.json",
    ]


def _of_helper(helper: str, host: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    if shutil.which(program) is None:
        return None
    done = subprocess.run([program, "get"], input=host, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    answer = json.loads(done.stdout)
    return Credentials(answer["Username"], answer["Secret"])
