"""`iac/teardown` against stand-ins for terraform and aws that remember what is there.

Neither program's cloud is there. The steps in `docs/aws.md` are the script's own.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from health_predict.settings import ROOT

TEARDOWN = ROOT / "iac" / "teardown"
NAME = "health-predict"

STAND_IN = """
import json, os, sys

folder = os.path.dirname(os.path.dirname(sys.argv[0]))
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
cloud_path = os.path.join(folder, "cloud")
with open(cloud_path) as file:
    cloud = json.load(file)
with open(os.path.join(folder, "calls"), "a") as calls:
    print(json.dumps([name, arguments, os.environ.get("AWS_REGION")]), file=calls)


def keep():
    with open(cloud_path, "w") as file:
        json.dump(cloud, file)


def after(option):
    return arguments[arguments.index(option) + 1]


def terraform():
    verb = arguments[1]
    if verb == "output":
        if arguments[-1] not in cloud["outputs"]:
            sys.exit("Error: No outputs found")
        print(cloud["outputs"][arguments[-1]], end="")
    elif verb == "apply":
        cloud["protected"] = False
    elif verb == "destroy":
        cloud["outputs"] = {}  # forgotten first
        keep()
        if cloud["protected"]:
            sys.exit("Error: BucketNotEmpty")
        if cloud["broken"]:
            sys.exit("Error: DependencyViolation")
        cloud.update(instance="terminated", resources=[], bucket=False, repository=False)
    elif verb == "state" and arguments[2] == "show":
        print("    force_destroy = " + json.dumps(not cloud["protected"]))
    elif verb == "state":
        print("\\n".join(cloud["resources"]), end="")
    keep()


def aws():
    what = " ".join(arguments[:2])
    if what == "ec2 describe-instances":
        print(cloud["instance"])
    elif what == "ssm send-command":
        [command] = json.loads(after("--parameters"))["commands"]
        cloud["commands"].append(command)
        keep()
        print(f"command-{len(cloud['commands'])}")
    elif what == "ssm get-command-invocation":
        command = cloud["commands"][int(after("--command-id").split("-")[1]) - 1]
        failed = cloud["fails"] and cloud["fails"] in command
        if after("--query") == "Status":
            cloud["polled"] += 1
            keep()
            if cloud["polled"] % 3 == 1:
                sys.exit("An error occurred (InvocationDoesNotExist)")
            print("InProgress" if cloud["polled"] % 3 == 2 else "Failed" if failed else "Success")
    elif what == "s3api head-bucket":
        if not cloud["bucket"]:
            sys.exit("An error occurred (404) when calling the HeadBucket operation: Not Found")
    elif what == "ecr describe-repositories":
        if not cloud["repository"]:
            sys.exit("An error occurred (RepositoryNotFoundException) when calling")
    elif what in ("ec2 describe-volumes", "ec2 describe-snapshots", "logs describe-log-groups"):
        if cloud["no_login"]:
            sys.exit("Unable to locate credentials")
        print("\\t".join(cloud["left"].get(what, [])), end="")
    else:
        sys.exit(f"unknown: {arguments}")


{"terraform": terraform, "aws": aws}[name]()
"""


@dataclass(frozen=True)
class Cloud:
    """A machine whose terraform and aws are stand-ins, and what they remember."""

    folder: Path

    def teardown(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TEARDOWN, *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={
                "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
                "HEALTH_PREDICT_VAR": str(self.folder / "var"),
                "TEARDOWN_POLL_SECONDS": "0",
            },
        )

    @property
    def remembered(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "cloud").read_text())
        return found

    def change(self, **what: Any) -> None:
        (self.folder / "cloud").write_text(json.dumps(self.remembered | what))

    @property
    def calls(self) -> list[tuple[str, list[str], str | None]]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    @property
    def changes(self) -> list[str]:
        """What Terraform was told to change, and what was run on the machine, in order."""
        found = []
        for name, arguments, _ in self.calls:
            if name == "terraform" and arguments[1] in ("apply", "destroy"):
                found.append(arguments[1])
            elif arguments[:2] == ["ssm", "send-command"]:
                found.append("machine")
        return found


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    (tmp_path / "bin").mkdir()
    for name in ("terraform", "aws"):
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable} -IS\n{STAND_IN}")
        path.chmod(0o755)
    (tmp_path / "cloud").write_text(
        json.dumps(
            {
                "outputs": {
                    "name": NAME,
                    "instance_id": "i-0123456789abcdef0",
                    "bucket": "health-predict-123456789012-eu-west-1",
                    "repository": "health-predict/readmission",
                    "region": "eu-west-1",
                },
                "protected": True,
                "broken": False,
                "no_login": False,
                "instance": "running",
                "resources": ["aws_instance.host"],
                "bucket": True,
                "repository": True,
                "commands": [],
                "polled": 0,
                "fails": "",
                "left": {},
            }
        )
    )
    return Cloud(tmp_path)


def printed() -> str:
    return subprocess.run([TEARDOWN, "--print"], capture_output=True, text=True, check=True).stdout


def test_the_documentation_has_the_steps_of_the_script():
    text = (ROOT / "docs" / "aws.md").read_text()
    [block] = re.findall(r"^## Teardown$.*^```sh\n(# 1\..*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block == printed()


def test_the_estimate_of_costs_adds_up():
    text = (ROOT / "docs" / "aws.md").read_text()
    table = text[text.index("## What it costs") : text.index("## Teardown")]
    rows = re.findall(r"^\| (.+?) \| *(.*?) \| *(.*?) \| +([\d.]+) \|$", table, re.MULTILINE)
    *items, (together, _, _, total) = rows
    assert together == "together"
    assert len(items) == 10
    assert sum(float(each) for *_, each in items) == pytest.approx(float(total), abs=0.005)
    for what, amount, price, each in items[:-1]:
        number = float(amount.split(" ")[0].replace(",", "")) / (1000 if "thousand" in price else 1)
        assert number * float(price.split(" ")[0]) == pytest.approx(float(each), abs=0.005), what


def test_every_step_ends_with_a_check():
    steps = printed().strip().split("\n\n")
    assert [step.split(" ")[1] for step in steps] == ["1.", "2.", "3.", "4.", "5."]
    for step in steps:
        title, *commands = step.splitlines()
        assert title.startswith("# ")
        assert re.search(r'&& test -z "\$left"$|\| grep ', commands[-1]), step


def test_the_scripts_it_calls_take_what_they_are_given():
    calls = re.findall(r"^(?:\w+=\S+ )?((?:iac|k8s)/\S+) (--\w+)$", printed(), re.MULTILINE)
    assert [script for script, _ in calls] == ["iac/host/down", "k8s/minikube-down"]
    for script, option in calls:
        assert re.search(rf"^ *(--\w+ \| )*{option}\b.*\)", (ROOT / script).read_text(), re.M)


def test_everything_goes_in_order(cloud):
    done = cloud.teardown(NAME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cloud.changes == ["machine"] * 5 + ["apply", "destroy"]
    commands = cloud.remembered["commands"]
    start = "cd /opt/health-predict && "
    lines = [line for line in printed().splitlines() if line and not line.startswith("#")]
    assert commands == [start + line for line in lines[:5]]
    assert "Gone: health-predict" in done.stdout
    assert not (cloud.folder / "var" / "teardown").exists()


def test_every_question_to_aws_is_about_the_region_of_the_deployment(cloud):
    cloud.teardown(NAME)
    assert {region for name, _, region in cloud.calls if name == "aws"} == {"eu-west-1"}


@pytest.mark.parametrize("arguments", [(), ("other",), ("--yes",)])
def test_nothing_goes_unless_it_is_named(cloud, arguments):
    done = cloud.teardown(*arguments)
    assert done.returncode == 1
    assert "iac/teardown" in done.stderr
    assert cloud.changes == []


def test_where_nothing_was_applied_nothing_is_done(cloud):
    cloud.change(outputs={})
    done = cloud.teardown(NAME)
    assert done.returncode == 1
    assert "Terraform does not know name" in done.stderr
    assert cloud.changes == []


def test_what_fails_on_the_machine_stops_it(cloud):
    cloud.change(fails="minikube-down")
    done = cloud.teardown(NAME)
    assert done.returncode == 1
    assert "that failed and nothing after it was done" in done.stderr
    assert cloud.changes == ["machine"] * 4


def test_run_again_it_goes_on_where_it_stopped(cloud):
    cloud.change(broken=True)
    assert cloud.teardown(NAME).returncode == 1
    assert cloud.changes[-1] == "destroy"
    cloud.change(broken=False)
    done = cloud.teardown(NAME)
    assert done.returncode == 0, done.stderr
    # Not applied once more: that would make anew what is gone already.
    assert cloud.changes == ["machine"] * 5 + ["apply", "destroy", "destroy"]


def test_a_machine_that_does_not_run_keeps_nothing_from_going(cloud):
    cloud.change(instance="stopped")
    done = cloud.teardown(NAME)
    assert done.returncode == 0, done.stderr
    assert "its disks go with step 4" in done.stdout
    assert cloud.changes == ["apply", "destroy"]


@pytest.mark.parametrize(
    "what", ["ec2 describe-volumes", "ec2 describe-snapshots", "logs describe-log-groups"]
)
def test_what_is_left_is_found(cloud, what):
    cloud.change(left={what: ["something"]})
    done = cloud.teardown(NAME)
    assert done.returncode == 1
    assert "Gone" not in done.stdout
    assert what in done.stdout.splitlines()[-1]


def test_a_check_that_cannot_ask_does_not_pass(cloud):
    cloud.change(no_login=True)
    assert cloud.teardown(NAME).returncode == 1


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not on PATH")
    done = subprocess.run([shellcheck, TEARDOWN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
