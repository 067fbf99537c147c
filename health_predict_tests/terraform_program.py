"""Terraform on a copy of `iac/`, for the tests: the real program, the schema of the real provider.

Nothing leaves this machine: `terraform_provider` answers for the plugin, the test file's
`mock_provider` for AWS.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from health_predict_tests.terraform_schema import IAC

TESTFILE = "deployment.tftest.hcl"


def program() -> str | None:
    """Returns where Terraform is, None if it is not at hand."""
    return os.environ.get("TERRAFORM") or shutil.which("terraform")


@dataclass(frozen=True)
class Applied:
    """What an applied deployment consists of.

    Attributes:
        resources: the values of each resource and data source by its address.
        outputs: by name.
    """

    resources: dict[str, dict[str, Any]]
    outputs: dict[str, Any]

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Returns the resources of one type, by address."""
        return {k: v for k, v in self.resources.items() if re.match(rf"{kind}\.", k)}


@dataclass(frozen=True)
class Terraform:
    """Terraform in a folder that holds a configuration.

    Attributes:
        folder: its own copy, which may be changed.
        provider: value of TF_REATTACH_PROVIDERS.
    """

    folder: Path
    provider: str

    @classmethod
    def copied(cls, folder: Path, provider: str) -> "Terraform":
        """Returns one with a copy of `iac/` in a new folder."""
        folder.mkdir()
        for path in (*IAC.glob("*.tf"), IAC / TESTFILE):
            shutil.copy(path, folder)
        shutil.copytree(IAC / "templates", folder / "templates")
        return cls(folder, provider)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        found = program()
        assert found
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "AWS_"))}
        return subprocess.run(
            [found, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={**kept, "TF_REATTACH_PROVIDERS": self.provider, "CHECKPOINT_DISABLE": "1"},
        )

    def complaints(self) -> list[str]:
        """Returns what `terraform validate` holds against the configuration."""
        found = json.loads(self.run("validate", "-json").stdout)
        return [_said(diagnostic) for diagnostic in found["diagnostics"]]

    def applied(self, **variables: Any) -> Applied:
        """Applies with values made up for AWS' answers; returns what there is then."""
        (self.folder / TESTFILE).write_text(self._head() + _run("applied", variables))
        messages = self._test("-verbose")
        assert not _failures(messages), _failures(messages)
        [state] = [m["test_state"] for m in messages if m["type"] == "test_state"]
        resources = {r["address"]: r["values"] for r in state["root_module"]["resources"]}
        return Applied(resources, {k: v.get("value") for k, v in state["outputs"].items()})

    def refusals(self, wrong: Iterable[tuple[str, Any]]) -> list[str]:
        """Returns what is said to each variable and value, planned one by one; empty: nothing."""
        head = self._head()
        (self.folder / TESTFILE).unlink()
        names = []
        for number, (variable, value) in enumerate(wrong):
            names.append(f"wrong{number:03}.tftest.hcl")
            text = head + _run("wrong", {variable: value}, command="plan")
            (self.folder / names[-1]).write_text(text)
        failures = _failures(self._test())
        return [failures.get(name, "") for name in names]

    def _head(self) -> str:
        text = (IAC / TESTFILE).read_text()
        return text[: text.index("\nrun ")] + "\n"

    def _test(self, *arguments: str) -> list[dict[str, Any]]:
        done = self.run("test", "-json", *arguments)
        assert done.stdout, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def _run(name: str, variables: dict[str, Any], command: str = "apply") -> str:
    given = "".join(f"    {key} = {json.dumps(value)}\n" for key, value in variables.items())
    return f'run "{name}" {{\n  command = {command}\n\n  variables {{\n{given}  }}\n}}\n'


def _failures(messages: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for message in messages:
        if message["type"] == "diagnostic" and message["diagnostic"]["severity"] == "error":
            file = message.get("@testfile", "")
            found[file] = f"{found.get(file, '')}{_said(message['diagnostic'])}\n"
    return found


def _said(diagnostic: dict[str, Any]) -> str:
    return f"{diagnostic['summary']}: {diagnostic.get('detail', '')}"
