"""Registries that keep images: pushed once, known by the digest the registry reports.

Any registry of the OCI distribution specification 1.1; Amazon's, which is one with more to ask for,
is `ecr`. The engine sends the layers; what is there already, and whether what arrived is what was
sent, is asked by `registry_http`. What is in an image, and who pulls it, is not known here.
"""

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from health_predict.engines import Engine, last_lines
from health_predict.images import inspect
from health_predict.registry_credentials import Credentials, auths, logged_in
from health_predict.registry_http import (
    Manifest,
    Passing,
    RegistryError,
    RegistryHttp,
    Unauthorised,
    checked,
)

Say = Callable[[str], None]

ATTEMPTS = 4
_UNAUTHORISED = re.compile(
    r"unauthorized|authentication required|access .*denied|denied:|status:? 40[13]", re.IGNORECASE
)
_PASSING = re.compile(
    r"connection refused|connection reset|broken pipe|EOF|time-?out|timed out|no route to host"
    r"|status:? 5\d\d|service unavailable|too many requests",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Pushed:
    """An image in a registry.

    Attributes:
        reference: by digest, what a cluster is told to pull.
        digest: of its manifest, as the registry reports it.
        size: compressed bytes of its layers.
        layers: compressed bytes of each layer, the base's first.
        seconds: what it took.
        already_there: whether the registry had it, so that nothing was sent.
        scan: what was asked of the registry's vulnerability scanner, in words; empty if it has
            none that is known here.
    """

    reference: str
    digest: str
    size: int
    layers: tuple[int, ...]
    seconds: float
    already_there: bool
    scan: str


class OciRegistry:
    """A registry of the OCI distribution specification."""

    def __init__(
        self,
        address: str,
        user: str = "",
        password: str = "",
        *,
        attempts: int = ATTEMPTS,
        pause: float = 1.0,
    ) -> None:
        """Reaches a registry.

        Args:
            address: `host[:port]`; with `http://` before it nothing is encrypted.
            user: the user; empty: whoever the engine was logged in as.
            password: the user's.
            attempts: how often a request is tried while the registry fails.
            pause: seconds before the second attempt, twice as long before each further one.

        Raises:
            RegistryError: that is no address, or a password comes without its user.
        """
        if bool(user) != bool(password):
            raise RegistryError("a registry's user and password are given together or not at all")
        self._address = self._accepted(address)
        self._given = Credentials(user, password) if user else None
        self._http = RegistryHttp(self, attempts, pause)

    @property
    def host(self) -> str:
        """Host and port, as references to its images begin."""
        return self._http.host

    @property
    def place(self) -> str:
        """Scheme, host and port."""
        return self._address

    def credentials(self) -> Credentials | None:
        """Returns the credentials given, or those this machine's engines are logged in with."""
        return self._given or logged_in(self.host)

    def renew(self) -> bool:
        """Returns whether there are other credentials to try after some were refused."""
        return False

    def pull_secret(self) -> str:
        """Returns the `.dockerconfigjson` by which a cluster pulls, JSON; it holds the password."""
        return json.dumps(auths(self.host, self.credentials()))

    def push(
        self, engine: Engine, image: str, repository: str, tag: str, say: Say = lambda _: None
    ) -> Pushed:
        """Makes an image of this machine available under a tag.

        What is there already is not sent again, and a tag whose image is another one is refused
        where tags are immutable.

        Args:
            engine: who has the image.
            image: its name on this machine.
            repository: where it goes in the registry.
            tag: its tag there.
            say: told what happens, a sentence at a time.

        Raises:
            ContainerError: the engine has no such image.
            RegistryError: it was refused, or the registry reports other content than was sent.
        """
        began = time.monotonic()
        kept = inspect(engine, image)
        self._prepare(repository, say)
        there, sent = self.manifest(repository, tag), False
        if there is None or kept.id not in (there.config, there.digest):
            if there is not None:
                self._check_mutable(repository, tag, there)
            say(f"Pushing {image} to {self.host}/{repository}:{tag}.")
            self._send(engine, image, f"{repository}:{tag}")
            there, sent = self.manifest(repository, tag), True
        if there is None or kept.id not in (there.config, there.digest):
            raise RegistryError(
                f"{self.host}/{repository}:{tag} is {there.digest if there else 'not there'} after "
                f"the push and not the image {kept.id} that was sent: somebody else pushes to this "
                "tag, or the registry is broken; nothing may be rolled out from it"
            )
        return Pushed(
            reference=f"{self.host}/{repository}@{there.digest}",
            digest=there.digest,
            size=sum(there.layers),
            layers=there.layers,
            seconds=time.monotonic() - began,
            already_there=not sent,
            scan=self._scan(repository, there.digest) if sent else "",
        )

    def pull(self, engine: Engine, repository: str, digest: str) -> str:
        """Brings an image to this machine; returns its name here.

        Raises:
            RegistryError: it is not there, or cannot be had.
        """
        reference = f"{self.host}/{repository}@{digest}"
        self._run(engine, "pull", *self._insecure(engine), reference)
        return reference

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """Returns what is under a tag or digest, None if nothing is.

        Raises:
            RegistryError: it cannot be had, or is not what its digest says.
        """
        return self._http.manifest(repository, reference)

    def _accepted(self, address: str) -> str:
        """Returns an address with its scheme, if it is one."""
        return checked(address)

    def _prepare(self, repository: str, say: Say) -> None:
        """Makes sure that the repository is there."""

    def _immutable(self, repository: str) -> bool:
        """Whether a tag may not be given to another image: a tag of ours names a model version."""
        return True

    def _scan(self, repository: str, digest: str) -> str:
        """Asks for a vulnerability scan; returns what came of it, in words."""
        return ""

    @property
    def _own_login(self) -> bool:
        """Whether the credentials are not those that the engine has itself."""
        return self._given is not None

    def _check_mutable(self, repository: str, tag: str, there: Manifest) -> None:
        if self._immutable(repository):
            raise RegistryError(
                f"{self.host}/{repository}:{tag} is another image ({there.digest}), and tags are "
                "immutable: a rebuilt image of the same model version needs a tag of its own"
            )

    def _send(self, engine: Engine, image: str, name: str) -> None:
        target = f"{self.host}/{name}"
        if engine.keeper != "docker":
            self._run(engine, "push", *self._insecure(engine), image, f"docker://{target}")
            return
        engine.ask("tag", image, target)  # Docker sends by the name an image has here
        try:
            self._run(engine, "push", "--quiet", target)
        finally:
            engine.ask("rmi", target)

    def _run(self, engine: Engine, *words: str) -> None:
        """Runs an engine's command with credentials, renewed once if they are refused."""
        try:
            self._http.attempt(lambda: self._run_once(engine, *words))
        except Unauthorised:
            if not self.renew():
                raise
            self._http.attempt(lambda: self._run_once(engine, *words))

    def _run_once(self, engine: Engine, *words: str) -> None:
        with self._logged_in_engine(engine) as environment:
            done = engine.call(engine.keeper, *words, **environment)
        if done.returncode == 0:
            return
        said = last_lines(done.stderr or done.stdout)
        if _UNAUTHORISED.search(said):
            raise self._http.unauthorised()
        failure = Passing if _PASSING.search(said) else RegistryError
        raise failure(f"{engine.keeper} {words[0]} failed at {self.host}: {said}")

    def _insecure(self, engine: Engine) -> list[str]:
        # Docker takes a registry on this machine without TLS by itself, others by its daemon.
        return ["--tls-verify=false"] if self._http.plain and engine.keeper != "docker" else []

    @contextlib.contextmanager
    def _logged_in_engine(self, engine: Engine) -> Iterator[dict[str, str]]:
        """Yields the environment by which an engine finds credentials, in a file of their own.

        A command line can be read by everybody on this machine, and so could the engine's own file
        be left behind.
        """
        credentials = self.credentials()
        if credentials is None or not self._own_login:
            yield {}
            return
        with tempfile.TemporaryDirectory() as folder:  # for its owner alone
            path = Path(folder, "config.json")
            path.touch(mode=0o600)
            path.write_text(json.dumps(auths(self.host, credentials)))
            if engine.keeper == "docker":
                yield {"DOCKER_CONFIG": folder, **_docker_host(engine)}
            else:
                yield {"REGISTRY_AUTH_FILE": str(path)}


def _docker_host(engine: Engine) -> dict[str, str]:
    """Returns where Docker's daemon is: a configuration of our own does not say."""
    if "DOCKER_HOST" in {**os.environ, **engine.environment}:
        return {}
    form = "{{.Endpoints.docker.Host}}"
    return {"DOCKER_HOST": engine.ask("context", "inspect", "--format", form)}
