"""For the tests of images: an engine with storage of its own, a base image, a real registry.

What they need is installed by `.ci/container-tools`; where it is missing, tests are skipped with
the reason. Nothing is left behind but the base image's archive, which takes a minute to make and is
kept in `HEALTH_PREDICT_CACHE`, or `var/cache` where that is not set.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from health_predict.engines import Engine, EngineName
from health_predict.settings import ROOT
from health_predict_tests.bentos import HOST, free_port

BASE = "localhost/base:bookworm"
_NEEDED = "run .ci/container-tools"
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_NOT_KEPT = (
    *("var/cache/apt", "var/lib/apt/lists", "var/log", "tmp"),
    *("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"),
)
"""What an official slim image does not have either."""


def require(*programs: str) -> None:
    """Skips the test that asks for programs that are not here."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: {_NEEDED}")
    if os.getuid() != 0:
        pytest.skip("images are built as root in these tests")


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """An engine whose images are in a folder of its own, removed with it."""
    require("buildah", "podman", "runc")
    folder = Path(tempfile.mkdtemp(prefix="ct-"))  # short: sockets have paths of 108 bytes at most
    made = _engine(folder)
    try:
        yield made
    finally:
        for words in (("rm", "--all", "--force"), ("rmi", "--all", "--force")):
            made.call("podman", *words)
        made.call("buildah", "rm", "--all")
        for mounted in reversed(Path("/proc/mounts").read_text().splitlines()):
            if mounted.split()[1].startswith(f"{folder}/"):
                subprocess.run(["umount", "--lazy", mounted.split()[1]], check=True)
        shutil.rmtree(folder)


def _engine(folder: Path) -> Engine:
    (folder / "containers.conf").write_text(
        f"""
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
volumes = [{", ".join(f'"{volume}"' for volume in _index_settings(folder))}]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "{folder}/tmp"
"""
    )
    (folder / "storage.conf").write_text(
        f"""
[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""
    )
    return Engine(
        "buildah",
        "podman",
        {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
        },
    )


def _index_settings(folder: Path) -> list[str]:
    """Returns the mounts by which pip in a build finds packages as pip does on this machine."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", "install", ":env:"):
            value = value.strip("'\"").replace("\\n", " ")
            found = {**found, name: value} if section == ":env:" else {name: value, **found}
    settings = folder / "pip.conf"
    settings.write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in found.items()))
    words = (word.removeprefix("file://") for value in found.values() for word in value.split())
    paths = {Path(word) for word in words if word.startswith("/") and Path(word).exists()}
    # A folder as pip expects an index links to the files beside it.
    mounted = {path.parent if path.name == "simple" else path for path in paths}
    return [f"{settings}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted(mounted))]


def base_image(engine: Engine) -> str:
    """Puts a base image into an engine's storage: Debian's smallest, with Python."""
    return image(engine, BASE, _base_archive())


def image(engine: Engine, name: str, *contents: Path, entrypoint: str = "") -> str:
    """Makes an image of archives or files alone; the same ones give the same image."""
    made = _call(engine, "from", "scratch")
    for content in contents:
        _call(engine, "add", "--quiet", made, str(content), "/")
    if entrypoint:
        _call(engine, "config", "--entrypoint", f'["{entrypoint}"]', made)
    _call(engine, "commit", "--quiet", "--rm", "--timestamp", "0", made, name)
    return name


def _call(engine: Engine, *words: str) -> str:
    name: EngineName = "buildah"
    done = engine.call(name, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _base_archive() -> Path:
    cache = Path(os.environ.get("HEALTH_PREDICT_CACHE", ROOT / "var" / "cache"))
    archive = cache / f"{_SUITE}-{_PACKAGES.replace(',', '-')}.tar"
    if archive.exists():
        return archive
    require("debootstrap", "apt-get")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        root = Path(made, "root")
        done = subprocess.run(
            [
                *("debootstrap", "--variant=minbase", f"--include={_PACKAGES}"),
                *(_SUITE, str(root), _debian()),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"no base image can be made here: {done.stdout[-500:]}{done.stderr[-500:]}")
        for name in _NOT_KEPT:
            for path in (root / name).iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        # The official image of Python has no byte code either.
        for path in (root / "usr/lib").glob("python3*/**/__pycache__"):
            shutil.rmtree(path)
        whole = Path(made, "root.tar")
        with tarfile.open(whole, "w") as tar:
            tar.add(root, "/", filter=lambda member: None if member.isdev() else member)
        whole.replace(archive)
    return archive


def _debian() -> str:
    """Returns the address that this machine has Debian's packages from."""
    form = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
    ).stdout
    for line in listed.splitlines():
        suite, component, address = line.split(maxsplit=2)
        if (suite, component) == (_SUITE, "main"):
            return address
    pytest.skip(f"this machine has no packages of Debian {_SUITE}")


@dataclass
class RegistryServer:
    """A registry process of this machine.

    Attributes:
        folder: where it keeps everything, its log in `log`.
        port: where it listens, on 127.0.0.1.
        process: the process, None while it is stopped.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def requests(self) -> list[str]:
        """Methods of the requests it answered, in order."""
        marker = "http.request.method="
        lines = (self.folder / "log").read_text().splitlines()
        return [
            line.split(marker)[1].split()[0]
            for line in lines
            if "response completed" in line and marker in line
        ]

    def admit(self, users: Mapping[str, str]) -> None:
        """Lets these users in, with these passwords, and nobody else; it has to be started anew."""
        entries = [
            subprocess.run(
                ["htpasswd", "-Bin", user], input=password, capture_output=True, text=True
            ).stdout.strip()
            for user, password in users.items()
        ]
        (self.folder / "htpasswd").write_text("\n".join(entries) + "\n")

    def start(self) -> None:
        program = shutil.which("docker-registry") or "registry"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "serve", str(self.folder / "config.yml")], stdout=log, stderr=log
            )
        for _ in range(200):
            with contextlib.suppress(urllib.error.HTTPError), contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.address}/v2/", timeout=5)
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def registry(users: Mapping[str, str]) -> Iterator[RegistryServer]:
    """A real registry that asks for a password."""
    if not (shutil.which("docker-registry") or shutil.which("registry")):
        pytest.skip(f"no registry installed: {_NEEDED}")
    require("htpasswd")
    with tempfile.TemporaryDirectory(prefix="registry-") as name:
        folder, port = Path(name), free_port()
        (folder / "config.yml").write_text(
            f"""
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, cache: {{blobdescriptor: ""}}}}
http: {{addr: "{HOST}:{port}", secret: only-for-tests}}
auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}
"""
        )
        server = RegistryServer(folder, port)
        server.admit(users)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def failing_first(port: int, failures: int, answer: bytes = b"") -> Iterator[int]:
    """A port that leads to another one once so many connections have failed.

    They are closed at once, or after an answer.
    """
    left = [failures]
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                client, _ = listener.accept()
                if left[0] > 0:
                    left[0] -= 1
                    if answer:
                        client.recv(65536)
                        client.sendall(answer)
                    client.close()
                    continue
                target = socket.create_connection((HOST, port))
                for pair in ((client, target), (target, client)):
                    threading.Thread(target=_carry, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
