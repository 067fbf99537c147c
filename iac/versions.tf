# What reads these files, and where what it made is remembered.
terraform {
  required_version = ">= 1.11, < 2.0" # the lock file in the bucket is final from 1.11 on

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.45" # the version whose schema the tests know
    }
  }

  # The bucket and its region come from `backend.hcl`, which is each deployment's own: docs/aws.md.
  backend "s3" {
    key          = "health-predict/terraform.tfstate"
    encrypt      = true
    use_lockfile = true # a lock beside the state, no table to pay for and keep
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = local.tags
  }
}

data "aws_caller_identity" "current" {}

locals {
  account_id = data.aws_caller_identity.current.account_id
  tags = {
    project     = "health-predict"
    deployment  = var.name
    environment = var.environment
    managed-by  = "terraform"
  }
}
