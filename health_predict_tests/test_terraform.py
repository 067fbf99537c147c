"""The Terraform of the one-machine deployment: what it says, checked by Terraform itself.

The AWS provider cannot be had here; its schema can (`terraform_schema`, `terraform_provider`), and
values for what AWS would answer are made up by `deployment.tftest.hcl`. What only a plan against
AWS shows is listed in `iac/README.md`.
"""

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from botocore.exceptions import ClientError
from moto.core import set_initial_no_auth_action_count

from health_predict.settings import ROOT
from health_predict.store import _REMEDIES, StoreError, open_store
from health_predict_tests import terraform_program, terraform_provider
from health_predict_tests.terraform_program import Applied, Terraform
from health_predict_tests.terraform_schema import IAC, SCHEMA, used

FILES = sorted(IAC.glob("*.tf"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    if not terraform_program.program():
        pytest.skip("terraform is not on PATH: install 1.11 or newer, or name it by TERRAFORM")
    with terraform_provider.serving() as address:
        yield address


@pytest.fixture
def terraform(provider: str, tmp_path: Path) -> Terraform:
    return Terraform.copied(tmp_path / "iac", provider)


@pytest.fixture(scope="module")
def everything(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Applied:
    """A deployment with all that is optional."""
    folder = tmp_path_factory.mktemp("everything") / "iac"
    return Terraform.copied(folder, provider).applied(
        tls_cidrs=["203.0.113.0/24"], github_repository="health/health_predict"
    )


def plain(value: Any) -> Any:
    """What the parser gives, without the quotes and marks it leaves on."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items() if not k.startswith("__")}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.strip('"') if isinstance(value, str) else value


@functools.cache
def parsed() -> dict[str, list[Any]]:
    """All blocks of all files, by kind."""
    found: dict[str, list[Any]] = {}
    for path in FILES:
        for kind, blocks in plain(hcl2.loads(path.read_text())).items():
            found.setdefault(kind, []).extend(blocks)
    return found


def named(kind: str) -> dict[str, dict[str, Any]]:
    """Blocks of one kind by name."""
    return {name: body for block in parsed()[kind] for name, body in block.items()}


# The language


def test_every_file_parses():
    assert len(FILES) >= 10
    assert set(parsed()) == {
        *("terraform", "provider", "locals", "variable", "data", "resource", "output")
    }


def test_terraform_finds_every_file_formatted():
    if not terraform_program.program():
        pytest.skip("terraform is not on PATH: install 1.11 or newer, or name it by TERRAFORM")
    done = subprocess.run(
        [str(terraform_program.program()), "fmt", "-check", "-diff", "-recursive", str(IAC)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_terraform_finds_it_valid_by_the_schema_of_the_provider(terraform):
    assert terraform.complaints() == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "said"),
    [
        ("host.tf", "http_tokens ", "http_token ", "http_token"),
        ("host.tf", "metadata_options {", "metadata_option {", "metadata_option"),
        ("host.tf", 'type              = "gp3"', "type = []", "type"),
        ("host.tf", "aws_subnet.public.id", "aws_subnet.public.idd", "idd"),
        ("host.tf", "aws_subnet.public.id", "aws_subnet.private.id", "private"),
        ("host.tf", "var.instance_type", "var.instance_typ", "instance_typ"),
        ("host.tf", "local.downloads\n", "local.download\n", "download"),
        ("host.tf", "  root_block_device {", "  root_block_device {}\n  root_block_device {", ""),
        ("registry.tf", "    scan_on_push = true\n", "", "scan_on_push"),
        ("storage.tf", 'resource "aws_s3_bucket" ', 'resource "aws_s3_buckets" ', "s3_buckets"),
    ],
)
def test_terraform_would_name_what_is_wrong(terraform, name, right, wrong, said):
    path = terraform.folder / name
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    complaints = terraform.complaints()
    assert complaints
    assert said in "".join(complaints)


def test_the_schema_is_of_a_version_that_is_asked_for_and_has_every_type():
    schema = json.loads(SCHEMA.read_text())
    major, minor, _ = schema["provider_version"].split(".")
    assert f'version = "~> {major}.{minor}"' in (IAC / "versions.tf").read_text()
    assert "MPL-2.0" in schema["licence"]
    known = {("resource", name) for name in schema["resource_schemas"]}
    known |= {("data", name) for name in schema["data_source_schemas"]}
    assert known == used()


def test_its_own_tests_pass(terraform):
    done = terraform.run("test", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = re.findall(r'^run "(\w+)"', (IAC / terraform_program.TESTFILE).read_text(), re.M)
    assert f"{len(runs)} passed, 0 failed" in done.stdout


def test_state_is_kept_in_a_bucket_with_a_lock_and_the_bucket_is_named_elsewhere():
    [block] = parsed()["terraform"]
    [backend] = block["backend"]
    assert backend["s3"]["encrypt"] is backend["s3"]["use_lockfile"] is True
    assert "bucket" not in backend["s3"]


# Variables


def test_every_variable_is_typed_described_and_checked():
    for name, body in named("variable").items():
        assert body["type"], name
        assert len(body["description"]) > 20, name
        if "bool" not in body["type"]:
            assert body.get("validation"), f"{name} takes any value"


def test_every_message_names_the_value():
    for name, body in named("variable").items():
        for validation in body.get("validation", []):
            assert f"var.{name}" in validation["error_message"], name
            assert ": " in validation["error_message"], name


def test_everything_that_is_named_is_used():
    text = "".join(path.read_text() for path in FILES)
    outside = re.sub(r'^variable "\w+" \{.*?^\}', "", text, flags=re.MULTILINE | re.DOTALL)
    names = [f"var.{name}" for name in named("variable")]
    names += [f"local.{name}" for name in named("locals")]
    names += [f"data.{kind}.{name}" for kind, block in named("data").items() for name in block]
    assert [name for name in names if not re.search(rf"\b{name}\b", outside)] == []


WRONG = [
    ("source_url", "git@git.example:health/health_predict", "give the address of the repository"),
    ("source_url", "https://user:secret@git.example/x", "without user, password"),
    ("source_revision", "main", "git rev-parse HEAD"),
    ("budget_emails", [], "name 1 to 10"),
    ("budget_emails", ["nobody"], "name@example.org"),
    ("name", "Health Predict", "3 to 24 small letters"),
    ("name", "a" * 25, "3 to 24 small letters"),
    ("environment", "prod", "use production"),
    ("deployment", "local", "use host or kubernetes"),
    ("region", "Ireland", "eu-west-1"),
    ("zone", "eu-west-1a", "from a to f"),
    ("vpc_cidr", "8.8.0.0/16", "private range"),
    ("vpc_cidr", "10.20.0.0/28", "between /16 and /24"),
    ("tls_cidrs", ["0.0.0.0/0"], "Session Manager"),
    ("tls_cidrs", ["128.0.0.0/1"], "Session Manager"),
    ("tls_cidrs", ["203.0.113.7"], "203.0.113.7/32"),
    ("tls_cidrs", ["::/0"], "IPv4"),
    ("egress_ports", [80], "443 among them"),
    ("egress_ports", [443, 70000], "1 to 65535"),
    ("instance_type", "large", "t3.xlarge"),
    ("ubuntu_release", "20.04", "26.04"),
    ("root_volume_gib", 8, "30 to 1000"),
    ("data_volume_gib", 1.5, "whole number"),
    ("noncurrent_days", 0, "7 to 3650"),
    ("log_retention_days", 100, "90, 180"),
    ("budget_usd", 0, "above 0"),
    ("github_repository", "health/*", "owner/name"),
    ("github_oidc_provider_arn", "arn:aws:iam::1:oidc-provider/x", "list-open-id-connect"),
]


def test_a_wrong_value_is_named_with_the_remedy(terraform):
    refusals = terraform.refusals([(variable, value) for variable, value, _ in WRONG])
    for (variable, value, remedy), said in zip(WRONG, refusals, strict=True):
        shown = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        if variable == "budget_emails" and not value:
            shown = "0 addresses"
        flat = " ".join(said.split())
        assert f"{variable} is " in flat or f"{variable} has " in flat, (variable, value)
        assert shown in flat, flat
        assert remedy in flat, flat


# The network


def test_nothing_comes_in_but_tls_from_named_networks(everything):
    group = everything.resources["aws_security_group.host"]
    assert not group["ingress"]
    rules = everything.of("aws_vpc_security_group_ingress_rule").values()
    assert [(r["cidr_ipv4"], r["from_port"], r["to_port"]) for r in rules] == [
        ("203.0.113.0/24", 443, 443)
    ]
    # No rule stands where this does not look: groups and rules are only these.
    groups = [k for k in everything.resources if "security_group" in k]
    assert {re.sub(r"\[.*", "", k) for k in groups} == {
        "aws_default_security_group.closed",
        "aws_security_group.host",
        "aws_vpc_security_group_ingress_rule.tls",
        "aws_vpc_security_group_egress_rule.named_ports",
    }
    assert not everything.resources["aws_default_security_group.closed"]["ingress"]


def test_it_goes_out_by_named_ports_alone(everything):
    rules = everything.of("aws_vpc_security_group_egress_rule").values()
    assert sorted((r["from_port"], r["to_port"], r["ip_protocol"]) for r in rules) == [
        (80, 80, "tcp"),
        (443, 443, "tcp"),
    ]


def test_the_machine_is_reached_by_session_manager_alone(everything):
    host = everything.resources["aws_instance.host"]
    assert host["key_name"] is None
    for command in (everything.outputs["shell"], *everything.outputs["tunnels"].values()):
        assert command.startswith("aws ssm start-session --region eu-west-1 --target i-")
    assert "portNumber=3000," in everything.outputs["tunnels"]["dagit"]
    assert "portNumber=5000," in everything.outputs["tunnels"]["mlflow"]
    assert "portNumber=3500," in everything.outputs["tunnels"]["service"]


# The machine


def test_the_metadata_service_wants_a_token_and_reaches_containers(everything):
    [options] = everything.resources["aws_instance.host"]["metadata_options"]
    assert options["http_tokens"] == "required"
    assert options["http_put_response_hop_limit"] == 2


def test_disks_are_encrypted_with_the_key_of_the_deployment(everything):
    key = everything.resources["aws_kms_key.platform"]
    assert key["enable_key_rotation"] is True
    [root] = everything.resources["aws_instance.host"]["root_block_device"]
    for disk in (root, everything.resources["aws_ebs_volume.data"]):
        assert disk["encrypted"] is True
        assert disk["kms_key_id"] == key["arn"]
        assert "gp3" in (disk.get("volume_type"), disk.get("type"))


def test_the_image_is_the_newest_of_a_supported_ubuntu(everything):
    assert everything.resources["data.aws_ssm_parameter.ubuntu"]["name"] == (
        "/aws/service/canonical/ubuntu/server/26.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    )


def test_everything_that_can_be_is_tagged_by_the_provider():
    tags = named("locals")["tags"]
    assert set(tags) >= {"project", "deployment", "environment", "managed-by"}
    assert "tags = local.tags" in (IAC / "versions.tf").read_text()


# The bucket, the images, the logs, the bill


def test_objects_are_versioned_encrypted_and_nobody_elses(everything):
    got = everything.resources
    [versioning] = got["aws_s3_bucket_versioning.store"]["versioning_configuration"]
    assert versioning["status"] == "Enabled"
    block = got["aws_s3_bucket_public_access_block.store"]
    assert all(block[k] is True for k in block if k.startswith(("block_", "ignore_", "restrict_")))
    [rule] = got["aws_s3_bucket_server_side_encryption_configuration.store"]["rule"]
    assert rule["bucket_key_enabled"] is True
    [default] = rule["apply_server_side_encryption_by_default"]
    assert default["sse_algorithm"] == "aws:kms"
    assert default["kms_master_key_id"] == got["aws_kms_key.platform"]["arn"]
    [owner] = got["aws_s3_bucket_ownership_controls.store"]["rule"]
    assert owner["object_ownership"] == "BucketOwnerEnforced"


def test_unfinished_uploads_and_old_versions_go(everything):
    rules = everything.resources["aws_s3_bucket_lifecycle_configuration.store"]["rule"]
    assert all(rule["status"] == "Enabled" for rule in rules)
    uploads, versions = rules
    assert uploads["abort_incomplete_multipart_upload"][0]["days_after_initiation"] <= 7
    assert versions["noncurrent_version_expiration"][0]["noncurrent_days"] == 30
    # What is current is never deleted by a rule.
    assert not any(e.get("days") or e.get("date") for r in rules for e in r["expiration"])


def test_no_image_with_a_tag_ever_expires(everything):
    repository = everything.resources["aws_ecr_repository.service"]
    assert repository["image_tag_mutability"] == "IMMUTABLE"
    assert repository["image_scanning_configuration"][0]["scan_on_push"] is True
    assert repository["encryption_configuration"][0]["encryption_type"] == "KMS"
    policy = json.loads(everything.resources["aws_ecr_lifecycle_policy.service"]["policy"])
    assert [rule["selection"]["tagStatus"] for rule in policy["rules"]] == ["untagged"]


def test_logs_are_kept_for_a_time_and_encrypted(everything):
    groups = everything.of("aws_cloudwatch_log_group")
    assert len(groups) == 2
    for group in groups.values():
        assert group["retention_in_days"] == 365
        assert group["kms_key_id"] == everything.resources["aws_kms_key.platform"]["arn"]


def test_somebody_is_told_before_the_budget_is_spent(everything):
    told = everything.resources["aws_budgets_budget.monthly"]["notification"]
    assert {(n["threshold"], n["notification_type"]) for n in told} == {
        (80, "ACTUAL"),
        (100, "FORECASTED"),
        (100, "ACTUAL"),
    }
    assert all(n["subscriber_email_addresses"] == ["owner@example.org"] for n in told)


# Who may do what

# Where a statement is for every resource or every action, each with its reason beside it.
WIDE = {
    ("aws_kms_key.platform", "AccountAdministers"),
    ("aws_kms_key.platform", "LogsOfThisDeployment"),
    ("aws_iam_role_policy.registry", "LogIn"),
    ("aws_iam_role_policy.session_manager", "BeReached"),
    ("aws_iam_role_policy.deploy[0]", "LogIn"),
    ("aws_iam_role_policy.deploy[0]", "SeeWhatCameOfIt"),
}


def statements(applied: Applied) -> list[tuple[str, dict[str, Any]]]:
    """Every statement of every policy that is attached to something, with where it is."""
    found = []
    for address, values in applied.resources.items():
        for argument in ("policy", "assume_role_policy"):
            text = values.get(argument)
            if text and not address.startswith("aws_ecr_lifecycle_policy"):
                found += [(address, each) for each in json.loads(text)["Statement"]]
    return found


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_no_statement_is_wider_than_it_says(everything):
    wide = set()
    for address, statement in statements(everything):
        if statement["Effect"] == "Deny":
            continue
        assert not {"NotAction", "NotResource", "NotPrincipal"} & statement.keys()
        actions = listed(statement["Action"])
        assert "*" not in actions
        stars = [action for action in actions if action.endswith(":*")]
        if stars or "*" in listed(statement.get("Resource", [])):
            wide.add((address, statement["Sid"]))
        assert not stars or statement["Sid"] == "AccountAdministers"
    assert wide == WIDE


def test_every_wide_resource_has_its_reason_beside_it():
    for path in FILES:
        for line in path.read_text().splitlines():
            if re.search(r'\bResource += "\*"', line):
                assert re.search(r"# \w+", line), f"{path.name}: {line}"


def test_nobody_outside_the_account_is_let_in(everything):
    for address, statement in statements(everything):
        if "*" in json.dumps(statement.get("Principal", "")):
            assert statement["Effect"] == "Deny", address
    [trust] = [s for a, s in statements(everything) if s["Action"] == SIGNED_IN]
    assert trust["Condition"] == {
        "StringEquals": {
            "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
            "token.actions.githubusercontent.com:sub": (
                "repo:health/health_predict:environment:production"
            ),
        }
    }


SIGNED_IN = "sts:AssumeRoleWithWebIdentity"


def test_the_store_refuses_whoever_comes_without_tls(everything):
    policy = json.loads(everything.resources["aws_s3_bucket_policy.store"]["policy"])
    bucket = everything.resources["aws_s3_bucket.store"]["arn"]
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Deny"
        assert statement["Resource"] == [bucket, f"{bucket}/*"]
        assert (statement["Principal"], statement["Action"]) == ("*", "s3:*")
    assert [statement["Condition"] for statement in policy["Statement"]] == [
        {"Bool": {"aws:SecureTransport": "false"}},
        {"NumericLessThan": {"s3:TlsVersion": "1.2"}},
    ]


def test_the_machine_may_do_what_the_store_asks_of_it(everything):
    allowed = {
        action
        for address, statement in statements(everything)
        if address == "aws_iam_role_policy.store"
        for action in listed(statement["Action"])
    }
    assert set(re.findall(r"s3:\w+", _REMEDIES["AccessDenied"])) <= allowed
    # What is deleted or overwritten by mistake, or on purpose, can be brought back.
    assert not {"s3:DeleteObjectVersion", "s3:PutBucketVersioning", "s3:*"} & allowed


def test_a_workflow_runs_the_one_document_on_the_one_machine(everything):
    [sending] = [s for _, s in statements(everything) if s.get("Action") == "ssm:SendCommand"]
    assert sending["Resource"] == [
        everything.resources["aws_ssm_document.deploy"]["arn"],
        everything.resources["aws_instance.host"]["arn"],
    ]
    document = json.loads(everything.resources["aws_ssm_document.deploy"]["content"])
    pattern = document["parameters"]["revision"]["allowedPattern"]
    assert re.search(pattern, COMMIT)
    for wrong in ("main", COMMIT + "; reboot", "'" + COMMIT, COMMIT.upper(), COMMIT[:7]):
        assert not re.search(pattern, wrong)


# What AWS would take, as far as moto knows


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Clients of an AWS that is this process."""
    import boto3
    from moto import mock_aws

    for name in [k for k in os.environ if k.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "testing")
    with mock_aws():
        # A session of its own each: the default one keeps the credentials it began with.
        yield lambda name: boto3.session.Session(region_name="eu-west-1").client(name)


def test_aws_takes_the_bucket_s_policy_and_rules(everything, aws):
    s3, got = aws("s3"), everything.resources
    bucket = got["aws_s3_bucket.store"]["bucket"]
    place = {"LocationConstraint": "eu-west-1"}
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
    s3.put_bucket_policy(Bucket=bucket, Policy=got["aws_s3_bucket_policy.store"]["policy"])
    uploads, versions = got["aws_s3_bucket_lifecycle_configuration.store"]["rule"]
    days = uploads["abort_incomplete_multipart_upload"][0]["days_after_initiation"]
    kept = versions["noncurrent_version_expiration"][0]["noncurrent_days"]
    rules = [
        {
            "ID": uploads["id"],
            "Status": uploads["status"],
            "Filter": {},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": days},
        },
        {
            "ID": versions["id"],
            "Status": versions["status"],
            "Filter": {},
            "NoncurrentVersionExpiration": {"NoncurrentDays": kept},
            "Expiration": {"ExpiredObjectDeleteMarker": True},
        },
    ]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    assert len(s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]) == 2


def test_aws_takes_the_registry_s_lifecycle(everything, aws):
    ecr, got = aws("ecr"), everything.resources
    name = got["aws_ecr_repository.service"]["name"]
    ecr.create_repository(repositoryName=name)
    policy = got["aws_ecr_lifecycle_policy.service"]["policy"]
    ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=policy)
    assert ecr.get_lifecycle_policy(repositoryName=name)["lifecyclePolicyText"] == policy


def test_aws_takes_every_role_and_policy(everything, aws):
    iam = aws("iam")
    make_roles(everything, iam)
    assert len(iam.list_roles()["Roles"]) == 3
    assert len(iam.list_role_policies(RoleName="health-predict-host")["PolicyNames"]) == 4


def make_roles(applied: Applied, iam: Any) -> None:
    names = {}
    for role in applied.of("aws_iam_role").values():
        names[role["id"]] = role["name"]
        trust = role["assume_role_policy"]
        iam.create_role(RoleName=role["name"], AssumeRolePolicyDocument=trust)
    for policy in applied.of("aws_iam_role_policy").values():
        iam.put_role_policy(
            RoleName=names[policy["role"]],
            PolicyName=policy["name"],
            PolicyDocument=policy["policy"],
        )


def test_the_machine_s_role_keeps_the_store_and_no_other_bucket(everything, aws, monkeypatch):
    s3, sts = aws("s3"), aws("sts")
    own, other = everything.outputs["bucket"], "another-bucket"
    for bucket in (own, other):
        place = {"LocationConstraint": "eu-west-1"}
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
    s3.put_object(Bucket=own, Key="store/kept", Body=b"kept")
    make_roles(everything, aws("iam"))
    role = "arn:aws:iam::123456789012:role/health-predict-host"
    given = sts.assume_role(RoleArn=role, RoleSessionName="machine")["Credentials"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", given["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", given["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", given["SessionToken"])

    @set_initial_no_auth_action_count(0)
    def as_the_machine() -> None:
        store = open_store(f"s3://{own}/store")
        store.write("a/b.json", b"{}")
        assert store.create("a/c.json", b"{}")
        assert store.read("a/b.json") == b"{}"
        assert sorted(store.keys("a")) == ["a/b.json", "a/c.json"]
        store.remove("a/b.json")
        assert not store.exists("a/b.json")
        with pytest.raises(StoreError, match="access is denied"):
            open_store(f"s3://{other}/store").write("a", b"")
        client = aws("s3")
        for forbidden in (
            lambda: client.put_bucket_policy(Bucket=own, Policy="{}"),
            lambda: client.delete_object(Bucket=own, Key="store/kept", VersionId="null"),
            lambda: client.list_buckets(),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                forbidden()

    as_the_machine()


# Secrets


SECRET_LIKE = re.compile(
    r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_\w{20,}"
    r"|xox[abp]-\w+|eyJ[\w-]{20,}\.|://[^/\s:]+:[^/\s@]+@"
    r"|(?i:password|secret|token|passphrase)\w*[\"']?\s*[=:]\s*[\"']?[^\s\"'${(]{6,}"
)


def test_no_file_has_anything_like_a_secret():
    for path in (*FILES, *(IAC / "templates").iterdir(), IAC / "teardown", IAC / "README.md"):
        for line in path.read_text().splitlines():
            found = SECRET_LIKE.search(line)
            assert not found or "http_tokens" in line, f"{path.name}: {line}"


@pytest.mark.parametrize(
    "line",
    [
        'password = "hunter22"',
        "POSTGRES_PASSWORD=hunter22",
        "postgresql://dagster:hunter22@postgres/dagster",
        "access_key = AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_what_is_like_a_secret_would_be_seen(line):
    assert SECRET_LIKE.search(line)


def test_state_holds_no_secret(everything):
    # What Terraform knows, its state tells whoever can read it: it knows none.
    kinds = {re.sub(r"^data\.|\..*", "", address) for address in everything.resources}
    assert not {k for k in kinds if re.search(r"password|secret|access_key|random", k)}


def test_git_takes_neither_state_nor_plan_nor_a_deployment_s_own_values():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    for name in (
        *("terraform.tfstate", "terraform.tfstate.backup", "deployment.tfplan", "crash.log"),
        *("terraform.tfvars", "staging.auto.tfvars", "backend.hcl", ".terraform/environment"),
    ):
        done = subprocess.run(["git", "check-ignore", "-q", f"iac/{name}"], cwd=ROOT, check=False)
        assert done.returncode == 0, f"iac/{name} would be committed: .gitignore lacks it"
    for name in ("host.tf", ".terraform.lock.hcl", "deployment.tftest.hcl"):
        done = subprocess.run(["git", "check-ignore", "-q", f"iac/{name}"], cwd=ROOT, check=False)
        assert done.returncode == 1, f"iac/{name} would not be committed"


# checkov


def checkov(folder: Path, *arguments: str) -> set[str]:
    """The checks that a folder's Terraform fails."""
    own = ROOT / "var" / "tools" / "checkov" / "bin" / "checkov"
    command = os.environ.get("CHECKOV") or shutil.which("checkov") or (str(own) * own.is_file())
    if not command:
        pytest.skip(
            "checkov is not at hand: name it by CHECKOV, or install it into var/tools/checkov"
        )
    done = subprocess.run(
        [command, "--directory", str(folder), "--output", "json", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0, done.stderr
    assert report["summary"]["passed"] > 100
    return {check["check_id"] for check in report["results"]["failed_checks"]}


def test_checkov_finds_nothing_but_the_exceptions_and_each_is_needed(tmp_path):
    settings = IAC / ".checkov.yaml"
    assert checkov(IAC, "--config-file", str(settings)) == set()
    for path in FILES:  # where checkov does not find its settings by itself
        shutil.copy(path, tmp_path)
    bare = checkov(tmp_path, "--framework", "terraform", "--skip-download")
    assert bare == set(yaml.safe_load(settings.read_text())["skip-check"])


def test_every_exception_has_its_reason():
    lines = (IAC / ".checkov.yaml").read_text().splitlines()
    entries = [number for number, line in enumerate(lines) if line.startswith("  - CKV")]
    assert entries
    assert all(lines[number - 1].lstrip().startswith("# ") for number in entries)
