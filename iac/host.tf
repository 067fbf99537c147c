# The machine, and the disk that outlives it.

locals {
  # Where the disk is mounted. All state is below: container volumes, Minikube, settings.
  data = "/srv/health-predict"

  # What user_data installs. Docker comes from its signed package archive, by version; the key that
  # signs it, and everything else, by digest. Versions and digests change together, here alone.
  docker = {
    key_url    = "https://download.docker.com/linux/ubuntu/gpg"
    key_sha256 = "1500c1f56fa9e26b9b8f42452a553675796ade0807cdce11975eb98170b3a570"
    # Without what Docker puts behind it for each Ubuntu, `~ubuntu.26.04~resolute`.
    packages = {
      "docker-ce"             = "5:29.7.2-1"
      "docker-ce-cli"         = "5:29.7.2-1"
      "containerd.io"         = "2.3.3-1"
      "docker-buildx-plugin"  = "0.36.1-1"
      "docker-compose-plugin" = "5.4.0-1"
    }
  }
  downloads = {
    kubectl = {
      url    = "https://dl.k8s.io/release/v1.36.1/bin/linux/amd64/kubectl"
      sha256 = "629d3f410e09bf49b64ae7079f7f0bda1191efed311f7d37fdbab0ad5b0ec2b7"
    }
    minikube = {
      url    = "https://github.com/kubernetes/minikube/releases/download/v1.38.1/minikube-linux-amd64"
      sha256 = "099477eaf248bcb5bcea8ce78a2898e93ac01461c35189da1848c3de82ecd22e"
    }
    # k8s/minikube-up asks it for the registry's token.
    awscli = {
      url    = "https://awscli.amazonaws.com/awscli-exe-linux-x86_64-2.36.11.zip"
      sha256 = "50fbb7a2f44a78eab4a210088040e8f0bc4b9937cac8043c2354269d58614df6"
    }
  }

  user_data = templatefile("${path.module}/templates/user_data.sh.tftpl", {
    bucket     = aws_s3_bucket.store.bucket
    data       = local.data
    deployment = var.deployment
    docker     = local.docker
    downloads  = local.downloads
    log_group  = aws_cloudwatch_log_group.containers.name
    region     = var.region
    registry   = split("/", aws_ecr_repository.service.repository_url)[0]
    repository = aws_ecr_repository.service.name
    revision   = var.source_revision
    source_url = var.source_url
    volume_id  = aws_ebs_volume.data.id
  })
}

data "aws_ssm_parameter" "ubuntu" {
  name = "/aws/service/canonical/ubuntu/server/${var.ubuntu_release}/stable/current/amd64/hvm/ebs-gp3/ami-id"
}

data "aws_ec2_instance_type" "host" {
  instance_type = var.instance_type

  lifecycle {
    postcondition {
      condition     = contains(self.supported_architectures, "x86_64") && self.memory_size >= 8192
      error_message = "instance_type is '${var.instance_type}': it has ${self.memory_size} MiB and ${jsonencode(self.supported_architectures)}; take one of x86_64 with 8192 MiB or more, such as t3.xlarge."
    }
  }
}

resource "aws_instance" "host" {
  ami                         = nonsensitive(data.aws_ssm_parameter.ubuntu.value) # public, as is the parameter
  instance_type               = data.aws_ec2_instance_type.host.instance_type
  subnet_id                   = aws_subnet.public.id
  vpc_security_group_ids      = [aws_security_group.host.id]
  associate_public_ip_address = true # the way out; nothing is let in (network.tf)
  iam_instance_profile        = aws_iam_instance_profile.host.name
  ebs_optimized               = true
  disable_api_termination     = true # from the console; Terraform may replace it,
  force_destroy               = true # for its data is elsewhere

  user_data                   = local.user_data
  user_data_replace_on_change = true # it runs once: a machine that did not run it is another one

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
    # Containers take the machine's role through the metadata service, and the bridge between is
    # one hop more. Pods in Minikube are behind a second bridge: two hops do not reach them, and
    # the service needs no AWS.
    http_put_response_hop_limit = 2
    instance_metadata_tags      = "disabled"
  }

  root_block_device {
    volume_type           = "gp3"
    volume_size           = var.root_volume_gib
    encrypted             = true
    kms_key_id            = aws_kms_key.platform.arn
    delete_on_termination = true
  }

  # Of a burstable type: what its credits do not cover is slower, not billed.
  dynamic "credit_specification" {
    for_each = startswith(var.instance_type, "t") ? ["standard"] : []

    content {
      cpu_credits = credit_specification.value
    }
  }

  tags = { Name = var.name }

  lifecycle {
    # Canonical publishes an image every few weeks. When the machine is made anew, which replaces
    # it, is for a person to say: docs/aws.md.
    ignore_changes = [ami]
  }

  # What the first boot needs: a way out, and what the role may do.
  depends_on = [
    aws_route.internet,
    aws_route_table_association.public,
    aws_vpc_security_group_egress_rule.named_ports,
    aws_iam_role_policy.logs,
    aws_iam_role_policy.registry,
    aws_iam_role_policy.session_manager,
    aws_iam_role_policy.store,
  ]
}

# A disk of its own: the machine can be replaced, for a new Ubuntu or a mended user_data, and finds
# its databases, settings and secrets again.
resource "aws_ebs_volume" "data" {
  availability_zone = aws_subnet.public.availability_zone
  type              = "gp3"
  size              = var.data_volume_gib
  encrypted         = true
  kms_key_id        = aws_kms_key.platform.arn
  final_snapshot    = var.protected

  tags = { Name = "${var.name}-data" }
}

resource "aws_volume_attachment" "data" {
  device_name                    = "/dev/sdf"
  volume_id                      = aws_ebs_volume.data.id
  instance_id                    = aws_instance.host.id
  stop_instance_before_detaching = true # Postgres ends in order
}
