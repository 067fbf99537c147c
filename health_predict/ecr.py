"""Amazon's registry, and which registry an address is.

Amazon's has tokens of twelve hours, repositories that are made beforehand, and scans by request:
those are asked of AWS. Images are pushed as to any other, by `oci_registry`.
"""

import base64
import contextlib
import re
import time
from functools import cached_property
from typing import Any

from health_predict.oci_registry import ATTEMPTS, OciRegistry, Say
from health_predict.registry_credentials import Credentials
from health_predict.registry_http import RegistryError, checked

_RENEW_SECONDS = 15 * 60
"""A token is renewed when this little is left of it: a push may take a while."""
_AMAZON = re.compile(r"\d{12}\.dkr[.-]ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.(amazonaws|on)\.[a-z.]+")


class EcrRegistry(OciRegistry):
    """Amazon's registry: tokens of twelve hours, repositories made beforehand, scans by request."""

    def __init__(
        self,
        region: str,
        *,
        address: str = "",
        endpoint_url: str | None = None,
        create: bool = False,
        attempts: int = ATTEMPTS,
        pause: float = 1.0,
    ) -> None:
        """Reaches the registry of the account whose AWS credentials boto3 finds.

        Args:
            region: AWS region.
            address: the registry's; empty: what AWS names with the token.
            endpoint_url: address of AWS's interface, for a private link or a test; None: AWS's.
            create: whether a repository that is missing is made: with immutable tags, scanned on
                every push.
            attempts: how often a request is tried while the registry fails.
            pause: seconds before the second attempt.
        """
        super().__init__(address, attempts=attempts, pause=pause)
        self._region, self._endpoint_url, self._create = region, endpoint_url, create
        self._attempts = attempts
        self._token: Credentials | None = None

    @property
    def place(self) -> str:
        """Scheme, host and port."""
        if not self._address:
            self.credentials()
        return self._address

    def credentials(self) -> Credentials:
        """Returns a token that is valid for a quarter of an hour at least.

        Raises:
            RegistryError: AWS gives none.
        """
        token = self._token
        if token is None or (token.expires or 0) - time.time() < _RENEW_SECONDS:
            token = self._token = self._new_token()
        return token

    def renew(self) -> bool:
        """Has AWS asked for another token; there always is one to try."""
        self._token = None
        return True

    def _accepted(self, address: str) -> str:
        return checked(address) if address else ""

    def _new_token(self) -> Credentials:
        data = self._aws("get_authorization_token")["authorizationData"][0]
        self._address = self._address or checked(data["proxyEndpoint"])
        decoded = base64.b64decode(data["authorizationToken"]).decode()
        user, _, password = decoded.partition(":")
        return Credentials(user, password, data["expiresAt"].timestamp())

    @property
    def _own_login(self) -> bool:
        return True

    def _prepare(self, repository: str, say: Say) -> None:
        if self._repository(repository) is not None:
            return
        if not self._create:
            raise RegistryError(
                f"{self.host} has no repository {repository}: make it (iac/ does, with immutable "
                "tags), or set HEALTH_PREDICT_CREATE_REPOSITORY=true to have it made"
            )
        say(f"Making the repository {repository} with immutable tags.")
        with contextlib.suppress(_Exists):  # another process was faster
            self._aws(
                "create_repository",
                repositoryName=repository,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )

    def _immutable(self, repository: str) -> bool:
        found = self._repository(repository) or {}
        # Also IMMUTABLE_WITH_EXCLUSION: which tags it excludes is not ours to guess.
        return str(found.get("imageTagMutability", "IMMUTABLE")).startswith("IMMUTABLE")

    def _scan(self, repository: str, digest: str) -> str:
        found = self._repository(repository) or {}
        if found.get("imageScanningConfiguration", {}).get("scanOnPush"):
            return "scanned on push"
        try:
            self._aws(
                "start_image_scan", repositoryName=repository, imageId={"imageDigest": digest}
            )
        except RegistryError as error:  # an image is no worse for it: who looks is told
            return f"no scan: {error}"
        return "scan requested"

    def _repository(self, name: str) -> dict[str, Any] | None:
        try:
            answer = self._aws("describe_repositories", repositoryNames=[name])
        except _Missing:
            return None
        found: dict[str, Any] = answer["repositories"][0]
        return found

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "ecr",
            region_name=self._region,
            endpoint_url=self._endpoint_url,
            config=Config(retries={"total_max_attempts": self._attempts, "mode": "standard"}),
        )

    def _aws(self, action: str, **arguments: Any) -> Any:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
        )

        try:
            return getattr(self._client, action)(**arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            failure = _AWS.get(code, RegistryError)
            said = error.response["Error"]["Message"]
            raise failure(f"AWS refuses {action} in {self._region}: {code}, {said}") from None
        except BotoCoreError as error:
            raise RegistryError(
                f"AWS cannot be asked for {action} in {self._region}: {error}; see whether the "
                "AWS credentials of this process are right and its address can be reached"
            ) from None


def registry(
    address: str, user: str = "", password: str = "", *, create: bool, attempts: int = ATTEMPTS
) -> OciRegistry:
    """Returns the registry at an address, Amazon's by its name.

    Args:
        address: `host[:port]`.
        user: for a registry that is not Amazon's, as for `OciRegistry`.
        password: the user's.
        create: as for `EcrRegistry`.
        attempts: as for both.

    Raises:
        RegistryError: that is no address.
    """
    if not address:
        raise RegistryError(
            "no registry to push to: set HEALTH_PREDICT_REGISTRY to the one the cluster pulls from"
        )
    amazon = _AMAZON.fullmatch(address.removeprefix("https://").rstrip("/"))
    if amazon:
        return EcrRegistry(amazon["region"], address=address, create=create, attempts=attempts)
    return OciRegistry(address, user, password, attempts=attempts)


class _Missing(RegistryError):
    """There is no such repository."""


class _Exists(RegistryError):
    """There is one already."""


_AWS: dict[str, type[RegistryError]] = {
    "RepositoryNotFoundException": _Missing,
    "RepositoryAlreadyExistsException": _Exists,
}
