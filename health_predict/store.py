"""The store: where what passes between assets is kept, a folder or a bucket of S3.

Values are bytes under readable keys; each appears whole or not at all, so a reader never meets
half of what a killed writer left. What the bytes mean is known to who writes them.
"""

import contextlib
import fcntl
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

Change = Callable[[bytes | None], bytes]
"""From what a key holds, None if it holds nothing, to what it shall hold."""

# A sensor's tick is cut at 60 s: nobody holds a lock for longer and lives.
LEASE_SECONDS = 120.0
_POLL_SECONDS = 0.2
_MOST_COLLISIONS = 20


class StoreError(RuntimeError):
    """The store cannot be used as it stands; the message names it and the remedy."""


class StoreMissing(StoreError, FileNotFoundError):
    """A key holds nothing."""


class Store(Protocol):
    """Bytes by key. A key is a relative path of letters, digits, `-`, `_`, `.` and `/`."""

    uri: str

    def read(self, key: str) -> bytes:
        """Returns what a key holds.

        Raises:
            StoreMissing: nothing.
        """

    def write(self, key: str, content: bytes) -> None:
        """Makes a key hold this, whole or not at all."""

    def create(self, key: str, content: bytes) -> bool:
        """Makes a key hold this unless it holds something; returns whether it did."""

    def update(self, key: str, change: Change) -> bytes:
        """Changes what a key holds as one step among all writers; returns what it holds then.

        Args:
            key: what is changed.
            change: called with the newest content, again if another writer came between.
        """

    def remove(self, key: str) -> None:
        """Makes a key hold nothing."""

    def exists(self, key: str) -> bool:
        """Returns whether a key holds something."""

    def keys(self, prefix: str = "") -> list[str]:
        """Returns the keys below a prefix that ends in `/`, or all, in order."""

    def locked(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Returns a lock among all processes, by the name of a key."""

    def where(self, key: str) -> str:
        """Returns where a person finds a key: a path, or an `s3://` address."""

    def link(self, key: str) -> str:
        """Returns its address, for a link."""


def open_store(uri: str | Path) -> Store:
    """Returns the store at a folder or at `s3://bucket/prefix`.

    Nothing is asked of it yet. Credentials, region and the endpoint of S3 come from AWS's own
    chain (`AWS_PROFILE`, `AWS_ENDPOINT_URL_S3`, an instance's role, ...).

    Raises:
        StoreError: the address names no bucket, or is of another kind.
    """
    text = str(uri)
    if "://" not in text:
        return Folder(Path(text))
    parts = urlsplit(text)
    if parts.scheme != "s3" or not parts.netloc:
        raise StoreError(
            f"{text!r} is no store: HEALTH_PREDICT_STORE is a folder or s3://bucket/prefix"
        )
    return Bucket(parts.netloc, parts.path.strip("/"))


class Folder:
    """A store in a folder of this machine, or of a file system it shares."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def read(self, key: str) -> bytes:
        """Returns what a key holds."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise StoreMissing(f"{self.where(key)} is not there") from None

    def write(self, key: str, content: bytes) -> None:
        """Makes a key hold this, whole or not at all; it is on the disk when this returns."""
        path = self._path(key)
        with _partial(path, content) as partial:
            partial.replace(path)
        _flush_folder(path.parent)

    def create(self, key: str, content: bytes) -> bool:
        """Makes a key hold this unless it holds something."""
        path = self._path(key)
        with _partial(path, content) as partial:
            try:
                path.hardlink_to(partial)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
        _flush_folder(path.parent)
        return True

    def update(self, key: str, change: Change) -> bytes:
        """Changes what a key holds as one step."""
        with self.locked(key):
            path = self._path(key)
            content = change(path.read_bytes() if path.exists() else None)
            self.write(key, content)
            return content

    def remove(self, key: str) -> None:
        """Makes a key hold nothing."""
        self._path(key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        """Returns whether a key holds something."""
        return self._path(key).is_file()

    def keys(self, prefix: str = "") -> list[str]:
        """Returns the keys below a prefix; what is hidden is not a key."""
        paths = (path for path in (self.root / prefix).rglob("*") if path.is_file())
        found = (path.relative_to(self.root) for path in paths)
        return sorted(str(path) for path in found if not path.name.startswith("."))

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Holds a lock of the operating system: whoever is killed lets go of it."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def where(self, key: str) -> str:
        """Returns the path."""
        return str(self._path(key))

    def link(self, key: str) -> str:
        """Returns the path as a `file://` address."""
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        return self.root / _checked(key)


class Bucket:
    """A store below a prefix of an S3 bucket.

    S3 itself makes writes whole and orders them; writers that collide are told by its conditional
    requests (`If-Match`, `If-None-Match`), which compatible servers must know too.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client: Any = None

    def read(self, key: str) -> bytes:
        """Returns what a key holds."""
        content, _ = self._get(key)
        if content is None:
            raise StoreMissing(f"{self.where(key)} is not there")
        return content

    def write(self, key: str, content: bytes) -> None:
        """Makes a key hold this."""
        self._put(key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Makes a key hold this unless it holds something."""
        return self._put(key, content, IfNoneMatch="*")

    def update(self, key: str, change: Change) -> bytes:
        """Changes what a key holds; begins anew with what another writer put there meanwhile."""
        for _ in range(_MOST_COLLISIONS):
            before, tag = self._get(key)
            content = change(before)
            condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
            if self._put(key, content, **condition):
                return content
            time.sleep(_POLL_SECONDS * random.random())  # or they collide again
        raise StoreError(
            f"{self.where(key)} was changed by others {_MOST_COLLISIONS} times while it was to be "
            "changed: find out who writes to it"
        )

    def remove(self, key: str) -> None:
        """Makes a key hold nothing."""
        self._ask("delete_object", Key=self._key(key))

    def exists(self, key: str) -> bool:
        """Returns whether a key holds something."""
        return self._ask("head_object", Key=self._key(key)) is not None

    def keys(self, prefix: str = "") -> list[str]:
        """Returns the keys below a prefix."""
        found: list[str] = []
        more: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", Prefix=self._key(prefix), **more) or {}
            found += [entry["Key"] for entry in page.get("Contents", [])]
            if not page.get("IsTruncated"):
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        cut = len(self.prefix) + 1 if self.prefix else 0
        return sorted(key[cut:] for key in found if not PurePosixPath(key).name.startswith("."))

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Holds a lease beside the key; one whose holder was killed passes on when it ends."""
        folder, _, name = key.rpartition("/")
        lease = f"{folder}/.{name}.lock" if folder else f".{name}.lock"
        mine = json.dumps({"holder": f"{os.getpid()}-{time.monotonic_ns()}"}).encode()
        while not self._take(lease, mine):
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            if self._get(lease)[0] == mine:
                self.remove(lease)

    def where(self, key: str) -> str:
        """Returns the `s3://` address."""
        return f"s3://{self.bucket}/{self._key(key)}"

    def link(self, key: str) -> str:
        """Returns the `s3://` address."""
        return self.where(key)

    def _take(self, lease: str, mine: bytes) -> bool:
        if self._put(lease, mine, IfNoneMatch="*"):
            return True
        held = self._ask("head_object", Key=self._key(lease))
        if held is None:
            return False  # let go of just now
        # Both times are S3's own: clocks of machines differ.
        now = _server_time(held)
        if (now - held["LastModified"]).total_seconds() < LEASE_SECONDS:
            return False
        return self._put(lease, mine, IfMatch=held["ETag"])

    def _key(self, key: str) -> str:
        checked = _checked(key) if key else ""
        return f"{self.prefix}/{checked}" if self.prefix else checked

    def _get(self, key: str) -> tuple[bytes | None, str | None]:
        answer = self._ask("get_object", Key=self._key(key))
        return (answer["Body"].read(), answer["ETag"]) if answer else (None, None)

    def _put(self, key: str, content: bytes, **condition: str) -> bool:
        answer = self._ask("put_object", Key=self._key(key), Body=content, **condition)
        return answer is not None

    def _ask(self, operation: str, **what: Any) -> Any:
        """Returns S3's answer; None if nothing is there, or a condition did not hold.

        Raises:
            StoreError: S3 cannot be reached or refuses.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client = self._client or s3_client()
            return getattr(self._client, operation)(Bucket=self.bucket, **what)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _NOTHING_THERE or code in _COLLIDED:
                return None
            raise StoreError(f"{self.uri}: {_REMEDIES.get(code, _refused(error))}") from error
        except BotoCoreError as error:
            raise StoreError(f"{self.uri}: {_unreachable(error)}") from error


_NOTHING_THERE = {"NoSuchKey", "404"}
_COLLIDED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_CREDENTIALS = (
    "the credentials are not accepted: see which ones AWS's chain finds with "
    "`aws sts get-caller-identity` (AWS_PROFILE, AWS_ACCESS_KEY_ID, the instance's role)"
)
_REMEDIES = {
    "NoSuchBucket": "there is no such bucket: make it (Terraform in iac/ does) or correct "
    "HEALTH_PREDICT_STORE",
    "AccessDenied": "access is denied: the role or user needs s3:GetObject, s3:PutObject, "
    "s3:DeleteObject and s3:ListBucket there",
    "403": "access is denied: credentials are wrong, or lack s3:GetObject and s3:ListBucket there",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "ExpiredToken": "the credentials have expired: log in again",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION to its own",
}


def _refused(error: Exception) -> str:
    return f"S3 refused: {error}"


def _unreachable(error: Exception) -> str:
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            "there are no credentials: set AWS_PROFILE, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or run where a role is at hand"
        )
    return f"S3 cannot be reached: {error}; check the network, AWS_REGION and AWS_ENDPOINT_URL_S3"


def s3_client() -> Any:
    """Returns boto3's client for S3, patient with hiccups and not with silence."""
    import boto3
    from botocore.config import Config

    # dagster-aws' S3Resource makes the same client; the command line needs one without Dagster.
    patience = Config(
        connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 4}
    )
    return boto3.session.Session().client("s3", config=patience)


def _server_time(answer: Any) -> Any:
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


def _checked(key: str) -> str:
    """Returns a key that stays inside its store.

    Raises:
        ValueError: it does not.
    """
    if key.startswith("/") or ".." in PurePosixPath(key).parts:
        raise ValueError(f"{key!r} is no key of a store: give a relative path without '..'")
    return key


@contextlib.contextmanager
def _partial(path: Path, content: bytes) -> Iterator[Path]:
    """Yields a hidden file beside the path that holds the content, on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """A new file outlives a power cut only once its folder was written too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
