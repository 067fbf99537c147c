"""The machine's first boot: `iac/templates/user_data.sh.tftpl`, rendered by Terraform and run.

It runs in a folder that stands for the machine, with stand-ins that write down how they were
called for what would change a real one: apt-get, curl, mkfs, mount, git, systemctl. Ubuntu, Docker
and AWS are not there.
"""

import hashlib
import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from health_predict.settings import ROOT
from health_predict_tests import terraform_program, terraform_provider
from health_predict_tests.terraform_program import Terraform

FIRST = "0123456789abcdef0123456789abcdef01234567"
LATER = "fedcba9876543210fedcba9876543210fedcba98"
MOST_BYTES = 16 * 1024
DISK = "nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"

STAND_IN = """
import json, os, sys
from pathlib import Path

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
machine = Path(sys.argv[0]).parent.parent
with (machine / "calls").open("a") as calls:
    print(json.dumps([name, arguments]), file=calls)

if name == "curl":
    url = arguments[-1]
    tampered = (machine / "tampered").exists() and "minikube" in url
    Path(arguments[arguments.index("--output") + 1]).write_text("x" if tampered else url)
elif name == "blkid":
    if (machine / "unclear").exists():
        sys.exit(8)
    sys.exit(0 if (machine / "formatted").exists() else 2)
elif name == "mkfs.ext4":
    (machine / "formatted").touch()
elif name == "git" and arguments[0] == "init":
    (Path(arguments[-1]) / "iac" / "host").mkdir(parents=True)
    (Path(arguments[-1]) / "iac" / "host" / "health-predict.service").write_text("[Unit]")
elif name == "unzip":
    folder = Path(arguments[-1]) / "aws"
    folder.mkdir()
    (folder / "install").symlink_to(Path(sys.argv[0]).parent / "aws-install")
"""
STOOD_IN = (
    *("apt-get", "apt-mark", "aws-install", "blkid", "curl", "git", "mkfs.ext4", "mount"),
    *("resize2fs", "sleep", "systemctl", "unzip"),
)


@pytest.fixture(scope="module")
def user_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The script as AWS is given it."""
    if not terraform_program.program():
        pytest.skip("terraform is not on PATH: install 1.11 or newer, or name it by TERRAFORM")
    with terraform_provider.serving() as provider:
        folder = tmp_path_factory.mktemp("first-boot") / "iac"
        applied = Terraform.copied(folder, provider).applied(source_revision=FIRST)
        yield applied.resources["aws_instance.host"]["user_data"]


@dataclass(frozen=True)
class Machine:
    """A folder that stands for the root of a machine's file system."""

    folder: Path
    script: str

    def boot(self) -> subprocess.CompletedProcess[str]:
        (self.folder / "user_data").write_text(self._here(self.script))
        return self.run("bash", str(self.folder / "user_data"))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin"
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={"PATH": path}
        )

    def _here(self, script: str) -> str:
        """Moves a script's paths into the folder, and takes what the stand-in sends for right."""
        script = re.sub(
            r"(?<![\w/.])/(etc|srv|opt|dev/disk|usr/local)\b", rf"{self.folder}/\1", script
        )
        for url, digest in re.findall(r"fetch '([^']+)' '([0-9a-f]{64})'", script):
            script = script.replace(digest, hashlib.sha256(url.encode()).hexdigest())
        return script.replace("[[ -b ", "[[ -e ")

    @property
    def calls(self) -> list[tuple[str, list[str]]]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [tuple(json.loads(line)) for line in lines]

    def called(self, name: str) -> list[list[str]]:
        return [arguments for called, arguments in self.calls if called == name]

    @property
    def settings(self) -> dict[str, str]:
        text = (self.folder / "etc/health-predict/env").read_text()
        return dict(line.split("=", 1) for line in text.splitlines())

    def replaced(self) -> None:
        """Takes the machine away; the disk stays."""
        for name in ("etc/health-predict", "opt", "usr", "calls"):
            path = self.folder / name
            path.unlink() if path.is_file() else shutil.rmtree(path)
        self.prepare()

    def prepare(self) -> None:
        for name in ("etc/apt/keyrings", "etc/apt/sources.list.d", "etc/systemd/system", "opt"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("usr/local/bin", "usr/local/sbin", "dev/disk/by-id"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "etc/os-release").write_text("VERSION_ID=26.04\nVERSION_CODENAME=resolute\n")


@pytest.fixture
def machine(user_data: str, tmp_path: Path) -> Machine:
    (tmp_path / "bin").mkdir()
    for name in STOOD_IN:
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable} -IS\n{STAND_IN}")  # starts in a third of the time
        path.chmod(0o755)
    made = Machine(tmp_path, user_data)
    made.prepare()
    (tmp_path / "dev/disk/by-id" / DISK).touch()
    return made


def booted(machine: Machine) -> str:
    done = machine.boot()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# The script


def test_it_is_within_what_aws_takes(user_data):
    assert user_data.startswith("#!/usr/bin/env bash\n")
    assert len(user_data.encode()) < MOST_BYTES
    assert "${" in user_data  # the shell's own
    assert "%{" not in user_data


def test_shellcheck_finds_nothing(machine):
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not on PATH")
    booted(machine)
    for script in ("user_data", "usr/local/sbin/health-predict-deploy"):
        done = subprocess.run(
            [shellcheck, machine.folder / script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_everything_that_is_fetched_has_a_version_and_a_digest(user_data):
    fetched = re.findall(r"^ +fetch '(\S+)' '([0-9a-f]{64})'", user_data, re.MULTILINE)
    assert len(fetched) == user_data.count("\n  fetch ") == 4
    for url, _ in fetched:
        assert url.startswith("https://")
        assert "latest" not in url
        assert re.search(r"\d+\.\d+\.\d+", url) or url.endswith("/gpg")
    # Nothing is fetched past `fetch`.
    assert user_data.count("curl --") == 1
    assert not re.search(r"\b(wget|pip|snap) ", user_data)


# What it does


def test_the_disk_is_mounted_before_docker_can_write_to_it(machine):
    booted(machine)
    names = [name for name, _ in machine.calls]
    docker = next(i for i, (_, a) in enumerate(machine.calls) if any("docker-ce=" in x for x in a))
    assert names.index("mkfs.ext4") < names.index("mount") < docker
    drop_in = machine.folder / "etc/systemd/system/docker.service.d/data.conf"
    assert drop_in.read_text() == f"[Unit]\nRequiresMountsFor={machine.folder}/srv/health-predict\n"
    daemon = json.loads((machine.folder / "etc/docker/daemon.json").read_text())
    assert daemon["data-root"].startswith(f"{machine.folder}/srv/health-predict/")


def test_docker_is_of_the_pinned_versions_for_this_ubuntu(machine):
    booted(machine)
    [packages] = [a for a in machine.called("apt-get") if any("docker-ce=" in x for x in a)]
    pinned = [x for x in packages if re.match(r"[a-z.-]+=", x)]
    assert len(pinned) == 5
    assert all(x.endswith("~ubuntu.26.04~resolute") for x in pinned)
    [held] = machine.called("apt-mark")
    assert held == ["hold", *sorted(x.partition("=")[0] for x in pinned)]
    source = (machine.folder / "etc/apt/sources.list.d/docker.list").read_text()
    assert "/linux/ubuntu resolute stable" in source
    assert "signed-by=" in source


def test_what_is_not_what_was_pinned_is_not_installed(machine):
    (machine.folder / "tampered").touch()
    done = machine.boot()
    assert done.returncode != 0
    assert re.search(r"\S+minikube-linux-amd64 is not what was pinned", done.stderr)
    assert not list((machine.folder / "usr/local/bin").iterdir())
    assert not machine.called("systemctl")[1:]


def test_a_disk_that_never_comes_ends_it(machine):
    (machine.folder / "dev/disk/by-id" / DISK).unlink()
    done = machine.boot()
    assert done.returncode != 0
    assert "vol-0123456789abcdef0 was not attached within ten minutes" in done.stderr
    assert not machine.called("mkfs.ext4")
    assert not machine.called("apt-get")


def test_a_disk_whose_contents_cannot_be_told_is_not_formatted(machine):
    (machine.folder / "unclear").touch()
    done = machine.boot()
    assert done.returncode != 0
    assert "it is left as it is" in done.stderr
    assert not machine.called("mkfs.ext4")


def test_the_project_is_fetched_at_its_commit_and_its_unit_started(machine):
    booted(machine)
    git = [" ".join(arguments) for arguments in machine.called("git")]
    assert git[1].endswith("remote add origin https://git.example/health/health_predict")
    assert git[2:] == [
        f"fetch --quiet --depth 1 origin {FIRST}",
        f"checkout --quiet --force --detach {FIRST}",
    ]
    assert (machine.folder / "etc/systemd/system/health-predict.service").is_file()
    assert machine.called("systemctl")[-2:] == [
        ["enable", "--quiet", "health-predict"],
        ["restart", "health-predict"],
    ]


def test_the_settings_are_for_root_alone(machine):
    booted(machine)
    path = machine.folder / "etc/health-predict/env"
    assert path.resolve() == machine.folder / "srv/health-predict/env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    settings = machine.settings
    assert settings["HEALTH_PREDICT_DEPLOYMENT"] == "host"
    assert settings["HEALTH_PREDICT_STORE"] == "s3://health-predict-123456789012-eu-west-1/store"
    assert settings["MLFLOW_ARTIFACTS_DESTINATION"] == (
        "s3://health-predict-123456789012-eu-west-1/mlflow"
    )
    assert settings["HEALTH_PREDICT_REGISTRY"] == "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    assert settings["HEALTH_PREDICT_REPOSITORY"] == "health-predict/readmission"
    assert settings["AWS_REGION"] == "eu-west-1"


def test_a_machine_that_takes_its_place_finds_the_disk_and_the_newest_commit(machine):
    booted(machine)
    deploy = str(machine.folder / "usr/local/sbin/health-predict-deploy")
    assert machine.run(deploy, LATER).returncode == 0
    machine.replaced()
    booted(machine)
    assert not machine.called("mkfs.ext4")
    assert machine.called("git")[-1][-1] == LATER


def test_secrets_and_what_a_person_set_outlive_the_machine(machine):
    booted(machine)
    path = machine.folder / "srv/health-predict/env"
    text = path.read_text().replace("AWS_REGION=eu-west-1", "AWS_REGION=elsewhere")
    path.write_text(text + "POSTGRES_PASSWORD=f00\nHEALTH_PREDICT_ALERT_TO=owner@example.org\n")
    machine.replaced()
    said = booted(machine)
    assert machine.settings["POSTGRES_PASSWORD"] == "f00"
    assert machine.settings["HEALTH_PREDICT_ALERT_TO"] == "owner@example.org"
    assert machine.settings["AWS_REGION"] == "eu-west-1"  # as Terraform says
    lines = path.read_text().splitlines()
    assert len(lines) == len({line.split("=")[0] for line in lines})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "f00" not in said + json.dumps(machine.calls)


def test_the_start_scripts_read_the_settings_where_they_are(machine):
    booted(machine)
    common = (ROOT / "iac" / "host" / "common.sh").read_text()
    [path] = re.findall(r"machine=(/\S+)", common)
    assert (machine.folder / path.lstrip("/")).is_file()
    # What is set here is something that compose hands on, or that a script of ours reads.
    host = ROOT / "iac" / "host"
    known = "".join((host / name).read_text() for name in ("compose.yaml", "backup"))
    for key in machine.settings:
        assert key in known or key == "MINIKUBE_HOME", key


def test_only_a_whole_commit_is_deployed(machine):
    booted(machine)
    before = machine.calls
    for wrong in ("main", "", FIRST[:12], f"{FIRST};reboot", "--upload-pack=x"):
        done = machine.run(str(machine.folder / "usr/local/sbin/health-predict-deploy"), wrong)
        assert done.returncode == 2
        assert "give its 40 digits" in done.stderr
    assert machine.calls == before


def test_a_commit_that_does_not_start_is_not_what_the_next_machine_starts_with(machine):
    booted(machine)
    (machine.folder / "bin/systemctl").write_text("#!/bin/sh\nexit 1\n")
    deploy = str(machine.folder / "usr/local/sbin/health-predict-deploy")
    assert machine.run(deploy, LATER).returncode != 0
    kept = machine.folder / "srv/health-predict/revisions" / FIRST
    assert kept.read_text() == f"{FIRST}\n"
