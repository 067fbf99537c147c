"""The workflows that GitHub runs: what they call exists, what they may do is little and bounded.

GitHub itself is not asked. The step that deploys is run as it stands, against a stand-in for AWS's
command line.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

from health_predict import loop, processes
from health_predict.defs.resources import resources
from health_predict.settings import ROOT, Settings
from health_predict.story import LoopStory

FOLDER = ROOT / ".github" / "workflows"
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
TAGGED = re.compile(r"uses: \S+ # v\d+\.\d+\.\d+$")
# Beside reading the code: deploying takes a login by GitHub's statement, and looking at ci's runs.
MOST = {"contents": "read", "actions": "read", "id-token": "write"}
LONGEST_MINUTES = 75
COMMIT = "0f" * 20

AWS = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$CALLS"
case "$2" in
  send-command) echo c-1 ;;
  get-command-invocation)
    case "$*" in
      *Status*)
        status=$(head -n 1 "$STATUSES")
        sed -i 1d "$STATUSES"
        [ "$status" != Unknown ] || exit 254
        echo "$status"
        ;;
      *) echo 'what the machine said' ;;
    esac
    ;;
esac
"""


def workflows() -> dict[str, dict[Any, Any]]:
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, workflow in workflows().items():
        for job, content in workflow["jobs"].items():
            yield f"{name}:{job}", content


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs():
        for step in job["steps"]:
            yield name, step


def scripts() -> Iterator[tuple[str, str]]:
    for name, step in steps():
        if "run" in step:
            yield name, step["run"]


def outputs() -> set[str]:
    """Returns the names of Terraform's outputs."""
    with (ROOT / "iac" / "outputs.tf").open() as file:
        return {name.strip('"') for output in hcl2.load(file)["output"] for name in output}


def deploying() -> dict[str, Any]:
    job: dict[str, Any] = workflows()["deploy.yml"]["jobs"]["deploy"]
    return job


def test_there_is_a_workflow_that_checks_and_one_that_deploys() -> None:
    assert {"ci.yml", "deploy.yml"} <= set(workflows())


def test_every_make_target_that_is_called_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    called = {(name, t) for name, run in scripts() for t in re.findall(r"\bmake ([a-z0-9-]+)", run)}
    assert called
    assert {(name, target) for name, target in called if target not in targets} == set()


def test_ci_checks_style_types_definitions_tests_graph_image_manifests_and_infrastructure() -> None:
    run = "\n".join(script for name, script in scripts() if name.startswith("ci.yml"))
    for target in ("lint", "validate", "test", "check-graph", "lint-k8s", "lint-iac", "demo"):
        assert re.search(rf"\bmake {target}$", run, re.MULTILINE), target
    assert 'make test TESTS="-m container"' in run
    (dockerfile, target) = re.findall(r"docker build .*--file (\S+) --target (\w+) \.$", run, re.M)[
        0
    ]
    assert f" AS {target}\n" in (ROOT / dockerfile).read_text()
    for command in ("fmt -check", "validate"):
        assert re.search(rf"^terraform -chdir=iac {command}", run, re.MULTILINE), command


def test_the_demo_runs_every_week() -> None:
    ci = workflows()["ci.yml"]
    cron = ci[True]["schedule"][0]["cron"]  # YAML: on is true
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", cron)
    assert "schedule" in ci["jobs"]["demo"]["if"]
    for name, job in ci["jobs"].items():
        assert name == "demo" or "if" not in job, f"{name} is left out now and then"


def test_every_action_is_pinned_by_commit_with_its_tag_beside_it_and_the_same_everywhere() -> None:
    pins: dict[str, set[str]] = {}
    for path in FOLDER.glob("*.yml"):
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert TAGGED.search(line), line
                pinned = line.split("uses: ")[1].split(" #")[0]
                assert PINNED.fullmatch(pinned), pinned
                pins.setdefault(pinned.split("@")[0], set()).add(line.split("@")[1])
    assert pins
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


def test_no_job_may_do_more_than_its_task() -> None:
    for name, workflow in workflows().items():
        assert workflow["permissions"] in ({}, {"contents": "read"}), name
    for name, job in jobs():
        allowed = job.get("permissions", {})
        assert allowed.items() <= MOST.items(), name
        if "id-token" in allowed:
            assert job.get("environment") == "production", name


def test_the_code_is_checked_out_without_leaving_a_credential() -> None:
    for name, step in steps():
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, name


def test_no_secret_is_kept_for_a_workflow() -> None:
    for path in FOLDER.glob("*.yml"):
        text = path.read_text()
        assert "secrets." not in text, path.name
        assert "AWS_SECRET" not in text, path.name
    for name, step in steps():
        for value in step.get("env", {}).values():
            assert re.fullmatch(r"\$\{\{ (vars\.\w+|github\.token) \}\}", value), (name, value)


def test_nothing_is_pasted_into_a_script() -> None:
    # What GitHub fills in could hold a command; the environment cannot.
    assert [name for name, script in scripts() if "${{" in script] == []


def test_every_job_ends_and_runs_give_way_in_a_said_order() -> None:
    for name, job in jobs():
        assert 0 < job["timeout-minutes"] <= LONGEST_MINUTES, name
        assert re.fullmatch(r"ubuntu-\d\d\.\d\d", job["runs-on"]), name
    for name, workflow in workflows().items():
        assert workflow["concurrency"]["group"], name
    assert workflows()["deploy.yml"]["concurrency"]["cancel-in-progress"] is False


def test_the_version_of_python_has_its_packages_cached_by_the_lock_file() -> None:
    used = [step for _, step in steps() if step.get("uses", "").startswith("actions/setup-python@")]
    assert used
    for step in used:
        assert step["with"]["cache"] == "pip"
        assert (ROOT / step["with"]["cache-dependency-path"]).is_file()


def test_what_is_kept_of_a_demo_is_what_a_demo_makes(tmp_path: Path) -> None:
    (step,) = (s for _, s in steps() if s.get("uses", "").startswith("actions/upload-artifact@"))
    settings = Settings(var=tmp_path)
    loop.write(LoopStory("", "", [], [], [], [], None), settings)
    made = {
        *tmp_path.iterdir(),
        processes.Processes(settings, {}).log("daemon").parent,
        Path(resources(settings)["report_page"].path),
    }
    kept = {tmp_path / path.removeprefix("var/") for path in step["with"]["path"].split()}
    assert kept == made


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_of_the_steps_are_sound_shell() -> None:
    for name, script in scripts():
        done = subprocess.run(
            ["shellcheck", "--shell", "bash", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}\n{done.stdout}"


def test_terraform_is_of_a_version_that_its_files_ask_for() -> None:
    (step,) = (s for _, s in steps() if "hashicorp/setup-terraform" in s.get("uses", ""))
    asked = re.search(
        r'required_version = ">= (\d+\.\d+)', (ROOT / "iac" / "versions.tf").read_text()
    )
    assert asked
    assert step["with"]["terraform_version"] == f"~> {asked[1]}"


def test_a_deployment_waits_for_ci_and_for_a_person() -> None:
    deploy = workflows()["deploy.yml"]
    assert set(deploy[True]) == {"workflow_dispatch"}  # YAML: on is true
    assert "refs/heads/main" in deploy["jobs"]["checked"]["if"]
    assert deploying()["needs"] == "checked"
    assert deploying()["environment"] == "production"


def test_the_role_trusts_the_environment_that_asks_a_person() -> None:
    trusted = re.search(r'github_environment = "(\w+)"', (ROOT / "iac" / "deploy.tf").read_text())
    assert trusted
    assert deploying()["environment"] == trusted[1]


def test_what_a_deployment_is_told_are_outputs_of_terraform() -> None:
    text = (FOLDER / "deploy.yml").read_text()
    used = set(re.findall(r"vars\.(\w+)", text))
    assert used
    assert {name.lower() for name in used} <= outputs()
    for name in used:
        assert name in text.split("\nname:")[0], f"{name} is not named at the top"


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of the step that deploys: AWS's command line and sleep are stand-ins."""
    for name, content in {"aws": AWS, "sleep": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "STATUSES": str(tmp_path / "statuses"),
        "DOCUMENT": "health-predict-deploy",
        "INSTANCE": "i-0123456789abcdef0",
        "GITHUB_SHA": COMMIT,
        "GITHUB_RUN_ID": "17",
    }


def deploy(machine: dict[str, str], *statuses: str) -> subprocess.CompletedProcess[str]:
    Path(machine["STATUSES"]).write_text("".join(f"{status}\n" for status in statuses))
    (script,) = (step["run"] for step in deploying()["steps"] if "run" in step)
    # As GitHub runs a step without a shell of its own.
    return subprocess.run(
        ["bash", "-e", "-c", script], env=machine, capture_output=True, text=True, check=False
    )


def test_a_deployment_sends_its_own_commit_and_waits_until_the_machine_has_it(
    machine: dict[str, str],
) -> None:
    done = deploy(machine, "Unknown", "Pending", "InProgress", "Success")
    assert done.returncode == 0, done.stderr
    sent, *asked = Path(machine["CALLS"]).read_text().splitlines()
    assert sent.startswith("ssm send-command")
    assert "--document-name health-predict-deploy" in sent
    assert "--instance-ids i-0123456789abcdef0" in sent
    assert f"--parameters revision={COMMIT}" in sent
    assert len(asked) == 5
    assert "what the machine said" in done.stdout


@pytest.mark.parametrize("status", ["Failed", "TimedOut", "Cancelled"])
def test_a_deployment_that_the_machine_did_not_finish_fails_with_its_words(
    machine: dict[str, str], status: str
) -> None:
    done = deploy(machine, "InProgress", status)
    assert done.returncode == 1
    assert f"the machine says {status}" in done.stdout
    assert "what the machine said" in done.stdout


def test_a_machine_that_never_answers_fails_the_deployment(machine: dict[str, str]) -> None:
    done = deploy(machine, *["Unknown"] * 1_000)
    assert done.returncode == 1
    assert "the machine says Pending" in done.stdout


def test_the_commands_of_a_deployment_are_those_its_role_may_give() -> None:
    (script,) = (step["run"] for step in deploying()["steps"] if "run" in step)
    verbs = set(re.findall(r"\baws (\w+ [a-z-]+)", script))
    policy = (ROOT / "iac" / "deploy.tf").read_text()
    for verb in verbs:
        service, words = verb.split()
        action = "".join(word.title() for word in words.split("-"))
        assert f'"{service}:{action}"' in policy, verb
