# Plans and applies the whole deployment with values made up for what AWS would answer: no account
# is needed, nothing is made.
#
#   terraform -chdir=iac init -backend=false && terraform -chdir=iac test

mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_ssm_parameter" {
    defaults = { value = "ami-0123456789abcdef0" }
  }

  mock_data "aws_ec2_instance_type" {
    defaults = { supported_architectures = ["x86_64"], memory_size = 16384 }
  }

  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::health-predict-123456789012-eu-west-1" }
  }

  mock_resource "aws_ecr_repository" {
    defaults = {
      arn            = "arn:aws:ecr:eu-west-1:123456789012:repository/health-predict/readmission"
      repository_url = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/health-predict/readmission"
    }
  }

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-west-1:123456789012:key/01234567-89ab-cdef-0123-456789abcdef" }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/health-predict/some" }
  }

  mock_resource "aws_ebs_volume" {
    defaults = { id = "vol-0123456789abcdef0" }
  }

  mock_resource "aws_instance" {
    defaults = {
      arn = "arn:aws:ec2:eu-west-1:123456789012:instance/i-0123456789abcdef0"
      id  = "i-0123456789abcdef0"
    }
  }

  mock_resource "aws_ssm_document" {
    defaults = { arn = "arn:aws:ssm:eu-west-1:123456789012:document/health-predict-deploy" }
  }

  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/some" }
  }
}

variables {
  source_url      = "https://git.example/health/health_predict"
  source_revision = "0123456789abcdef0123456789abcdef01234567"
  budget_emails   = ["owner@example.org"]
}

run "nothing_comes_in_and_nobody_deploys_by_default" {
  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.tls) == 0
    error_message = "the security group lets somebody in"
  }

  assert {
    condition     = length(aws_iam_role.deploy) == 0 && output.deploy_role_arn == null
    error_message = "there is a deploy role that nobody asked for"
  }
}

run "data_does_not_go_with_a_mere_destroy" {
  assert {
    condition     = !aws_s3_bucket.store.force_destroy && !aws_ecr_repository.service.force_delete && aws_ebs_volume.data.final_snapshot
    error_message = "objects, images or the disk go with a mere destroy"
  }
}

run "teardown_leaves_nothing_behind" {
  variables {
    protected = false
  }

  assert {
    condition     = aws_instance.host.force_destroy && aws_s3_bucket.store.force_destroy && aws_ecr_repository.service.force_delete && !aws_ebs_volume.data.final_snapshot
    error_message = "a destroy would stop half way, or leave a snapshot that costs"
  }
}

run "tls_is_open_to_the_named_networks_alone" {
  variables {
    tls_cidrs = ["203.0.113.0/24", "198.51.100.7/32"]
  }

  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.tls : rule.cidr_ipv4]) == var.tls_cidrs
    error_message = "other networks than those named may come in"
  }

  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_ingress_rule.tls : rule.from_port == 443 && rule.to_port == 443])
    error_message = "another port than 443 is open"
  }
}

run "only_the_named_repository_deploys_from_production" {
  variables {
    github_repository = "health/health_predict"
  }

  assert {
    condition     = jsondecode(aws_iam_role.deploy[0].assume_role_policy).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"] == "repo:health/health_predict:environment:production"
    error_message = "somebody else may deploy"
  }
}

run "an_identity_provider_that_is_there_is_used" {
  variables {
    github_repository        = "health/health_predict"
    github_oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com"
  }

  assert {
    condition     = length(aws_iam_openid_connect_provider.github) == 0
    error_message = "an account can have only one provider of an address"
  }
}

run "a_machine_that_cannot_hold_it_is_refused" {
  command = plan

  override_data {
    target = data.aws_ec2_instance_type.host
    values = { supported_architectures = ["arm64"], memory_size = 4096 }
  }

  expect_failures = [data.aws_ec2_instance_type.host]
}
