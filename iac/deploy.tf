# How a new commit gets onto the machine: one document that does that and nothing else, and a role
# for GitHub's workflows that may run it. Made only where github_repository is given.

locals {
  deploys            = var.github_repository == null ? 0 : 1
  makes_provider     = var.github_repository != null && var.github_oidc_provider_arn == null ? 1 : 0
  github_provider    = local.makes_provider == 1 ? aws_iam_openid_connect_provider.github[0].arn : var.github_oidc_provider_arn
  github_environment = "production" # where GitHub asks a person before the workflow goes on
}

# A login by GitHub's signed statement of repository and environment: no key of ours to leak.
resource "aws_iam_openid_connect_provider" "github" {
  count = local.makes_provider

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

resource "aws_iam_role" "deploy" {
  count = local.deploys

  name                 = "${var.name}-deploy"
  max_session_duration = 3600

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect    = "Allow"
        Principal = { Federated = local.github_provider }
        Action    = "sts:AssumeRoleWithWebIdentity"
        Condition = {
          StringEquals = {
            "token.actions.githubusercontent.com:aud" = "sts.amazonaws.com"
            "token.actions.githubusercontent.com:sub" = "repo:${var.github_repository}:environment:${local.github_environment}"
          }
        }
      },
    ]
  })
}

resource "aws_iam_role_policy" "deploy" {
  count = local.deploys

  name = "deploy"
  role = aws_iam_role.deploy[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "LogIn"
        Effect   = "Allow"
        Action   = "ecr:GetAuthorizationToken"
        Resource = "*" # AWS knows no narrower one: a token is for the whole registry
      },
      {
        Sid      = "PullAndPushItsImages"
        Effect   = "Allow"
        Action   = local.ecr_pull_and_push
        Resource = aws_ecr_repository.service.arn
      },
      {
        Sid      = "DeployACommit"
        Effect   = "Allow"
        Action   = "ssm:SendCommand"
        Resource = [aws_ssm_document.deploy.arn, aws_instance.host.arn]
      },
      {
        Sid      = "SeeWhatCameOfIt"
        Effect   = "Allow"
        Action   = "ssm:GetCommandInvocation"
        Resource = "*" # AWS knows no narrower one; it shows a command's output to who has its id
      },
    ]
  })
}

resource "aws_ssm_document" "deploy" {
  name            = "${var.name}-deploy"
  document_type   = "Command"
  document_format = "JSON"

  content = jsonencode({
    schemaVersion = "2.2"
    description   = "Brings a commit of ${var.source_url} onto the machine and starts it."
    parameters = {
      revision = {
        type           = "String"
        description    = "Commit, 40 hexadecimal digits"
        allowedPattern = "^[0-9a-f]{40}$"
      }
    }
    mainSteps = [
      {
        action = "aws:runShellScript"
        name   = "deploy"
        inputs = {
          timeoutSeconds = "4200" # the unit's own limit is an hour
          runCommand = [
            "#!/usr/bin/env bash",
            "exec /usr/local/sbin/health-predict-deploy '{{ revision }}'",
          ]
        }
      },
    ]
  })
}
