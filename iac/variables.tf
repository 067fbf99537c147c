# Everything a deployment may choose. Without a default: what only its owner can know.

variable "source_url" {
  description = "Repository of this project, read over https without a login: what a fresh machine fetches."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^https://[A-Za-z0-9._~/-]+$", var.source_url))
    error_message = "source_url is '${var.source_url}': give the address of the repository, https://host/owner/name, without user, password or query."
  }
}

variable "source_revision" {
  description = "Commit a fresh machine starts with: its whole id, so that what runs is what was reviewed."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[0-9a-f]{40}$", var.source_revision))
    error_message = "source_revision is '${var.source_revision}': give the 40 hexadecimal digits that `git rev-parse HEAD` prints; a branch or tag moves."
  }
}

variable "budget_emails" {
  description = "Who is told when the month's cost nears or passes the budget."
  type        = set(string)
  nullable    = false

  validation {
    condition     = length(var.budget_emails) > 0 && length(var.budget_emails) <= 10
    error_message = "budget_emails has ${length(var.budget_emails)} addresses: name 1 to 10, or nobody learns what this costs."
  }

  validation {
    condition     = alltrue([for email in var.budget_emails : can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", email))])
    error_message = "budget_emails is ${jsonencode(var.budget_emails)}: give addresses like name@example.org."
  }
}

variable "name" {
  description = "Name of the deployment: every resource begins with it, so two fit one account."
  type        = string
  default     = "health-predict"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "name is '${var.name}': use 3 to 24 small letters, digits and hyphens, first a letter, last no hyphen; the bucket's name is made of it."
  }
}

variable "environment" {
  description = "What the deployment is for; a tag, and what bills can be told apart by."
  type        = string
  default     = "production"
  nullable    = false

  validation {
    condition     = contains(["production", "staging", "development"], var.environment)
    error_message = "environment is '${var.environment}': use production, staging or development."
  }
}

variable "deployment" {
  description = "Where the service runs on the machine: `host`, supervised beside Dagster, or `kubernetes`, in Minikube."
  type        = string
  default     = "host"
  nullable    = false

  validation {
    condition     = contains(["host", "kubernetes"], var.deployment)
    error_message = "deployment is '${var.deployment}': use host or kubernetes."
  }
}

variable "region" {
  description = "AWS region of everything."
  type        = string
  default     = "eu-west-1"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region is '${var.region}': give a region's code, such as eu-west-1; `aws account list-regions` lists yours."
  }
}

variable "zone" {
  description = "Availability zone of the machine and its disk, by its letter. Moving it makes both anew, the data lost but for its last snapshot."
  type        = string
  default     = "a"
  nullable    = false

  validation {
    condition     = can(regex("^[a-f]$", var.zone))
    error_message = "zone is '${var.zone}': give a letter from a to f; `aws ec2 describe-availability-zones` lists those of a region."
  }
}

variable "vpc_cidr" {
  description = "Private IPv4 range of the network; its first /24 is the public subnet."
  type        = string
  default     = "10.20.0.0/16"
  nullable    = false

  validation {
    condition     = can(cidrsubnet(var.vpc_cidr, 24 - tonumber(split("/", var.vpc_cidr)[1]), 0)) && can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.).*/(1[6-9]|2[0-4])$", var.vpc_cidr))
    error_message = "vpc_cidr is '${var.vpc_cidr}': give a private range between /16 and /24, such as 10.20.0.0/16."
  }
}

variable "tls_cidrs" {
  description = "IPv4 ranges that may reach port 443 of the machine; none: only Session Manager reaches it."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for cidr in var.tls_cidrs : can(cidrnetmask(cidr))])
    error_message = "tls_cidrs is ${jsonencode(var.tls_cidrs)}: give IPv4 ranges such as 203.0.113.0/24; one address is 203.0.113.7/32."
  }

  validation {
    condition     = alltrue([for cidr in var.tls_cidrs : !can(cidrnetmask(cidr)) || try(tonumber(split("/", cidr)[1]) >= 8, true)])
    error_message = "tls_cidrs is ${jsonencode(var.tls_cidrs)}: a range wider than /8 is the world; name the networks of those who use it, or leave it empty and use Session Manager."
  }
}

variable "egress_ports" {
  description = "TCP ports the machine may reach outside: 443 for AWS, registries and packages, 80 for Ubuntu's signed packages. Add that of your mail server for alerts by e-mail."
  type        = set(number)
  default     = [80, 443]
  nullable    = false

  validation {
    condition     = contains(var.egress_ports, 443) && alltrue([for port in var.egress_ports : port >= 1 && port <= 65535 && floor(port) == port])
    error_message = "egress_ports is ${jsonencode(var.egress_ports)}: give ports from 1 to 65535, 443 among them: Session Manager needs it."
  }
}

variable "instance_type" {
  description = "Machine, x86-64 with 8 GiB of memory or more: Postgres, Dagster, MLflow, a search and Minikube run on it."
  type        = string
  default     = "t3.xlarge"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", var.instance_type))
    error_message = "instance_type is '${var.instance_type}': give a type such as t3.xlarge or m7i.xlarge."
  }
}

variable "ubuntu_release" {
  description = "Ubuntu LTS of the machine. AWS's public parameter names its newest image."
  type        = string
  default     = "26.04"
  nullable    = false

  validation {
    condition     = contains(["24.04", "26.04"], var.ubuntu_release)
    error_message = "ubuntu_release is '${var.ubuntu_release}': use 26.04 (supported until 2031) or 24.04 (until 2029)."
  }
}

variable "root_volume_gib" {
  description = "Size of the system's disk, GiB: the system, tools and container images."
  type        = number
  default     = 50
  nullable    = false

  validation {
    condition     = var.root_volume_gib >= 30 && var.root_volume_gib <= 1000 && floor(var.root_volume_gib) == var.root_volume_gib
    error_message = "root_volume_gib is ${var.root_volume_gib}: give a whole number from 30 to 1000; container images alone take about 10."
  }
}

variable "data_volume_gib" {
  description = "Size of the disk that outlives the machine, GiB: container volumes, Minikube, settings with secrets. It can grow, never shrink."
  type        = number
  default     = 100
  nullable    = false

  validation {
    condition     = var.data_volume_gib >= 20 && var.data_volume_gib <= 16384 && floor(var.data_volume_gib) == var.data_volume_gib
    error_message = "data_volume_gib is ${var.data_volume_gib}: give a whole number from 20 to 16384."
  }
}

variable "noncurrent_days" {
  description = "Days an overwritten or deleted object can still be brought back."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = var.noncurrent_days >= 7 && var.noncurrent_days <= 3650 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "noncurrent_days is ${var.noncurrent_days}: give whole days from 7 to 3650; a mistake of Friday is found on Monday."
  }
}

variable "log_retention_days" {
  description = "Days that logs are kept; CloudWatch takes only some numbers."
  type        = number
  default     = 365
  nullable    = false

  validation {
    condition     = contains([90, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days is ${var.log_retention_days}: use 90, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653."
  }
}

variable "budget_usd" {
  description = "What the account may cost in a month, US dollars: warned at 80 %, and when 100 % is foreseen or reached."
  type        = number
  default     = 200
  nullable    = false

  validation {
    condition     = var.budget_usd > 0
    error_message = "budget_usd is ${var.budget_usd}: give what a month may cost, above 0; docs/aws.md has an estimate."
  }
}

variable "github_repository" {
  description = "Repository whose workflows may deploy from the GitHub environment `production`, owner/name; null: no such role is made."
  type        = string
  default     = null

  validation {
    condition     = var.github_repository == null || can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "github_repository is '${coalesce(var.github_repository, "empty")}': give owner/name without a wildcard, or leave it out."
  }
}

variable "github_oidc_provider_arn" {
  description = "GitHub's identity provider, where the account has it already (it can have only one); null: it is made with the role."
  type        = string
  default     = null

  validation {
    condition     = var.github_oidc_provider_arn == null || can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:oidc-provider/token\\.actions\\.githubusercontent\\.com$", var.github_oidc_provider_arn))
    error_message = "github_oidc_provider_arn is '${coalesce(var.github_oidc_provider_arn, "empty")}': give what `aws iam list-open-id-connect-providers` shows for token.actions.githubusercontent.com, or leave it out."
  }
}

variable "protected" {
  description = "Whether objects and images keep `terraform destroy` from going through, and the data disk leaves a snapshot. Only iac/teardown turns it off."
  type        = bool
  default     = true
  nullable    = false
}
