# What those who use a deployment need to know of it.

output "instance_id" {
  description = "The machine."
  value       = aws_instance.host.id
}

output "shell" {
  description = "A shell on the machine, through Session Manager."
  value       = "aws ssm start-session --region ${var.region} --target ${aws_instance.host.id}"
}

output "tunnels" {
  description = "Commands that bring the machine's user interfaces to http://127.0.0.1, one each; they run until ended."
  value = {
    for name, port in { dagit = 3000, mlflow = 5000, service = 3500 } : name => join(" ", [
      "aws ssm start-session --region ${var.region} --target ${aws_instance.host.id}",
      "--document-name AWS-StartPortForwardingSession",
      "--parameters 'portNumber=${port},localPortNumber=${port}'",
    ])
  }
}

output "store" {
  description = "HEALTH_PREDICT_STORE of this deployment."
  value       = "s3://${aws_s3_bucket.store.bucket}/store"
}

output "bucket" {
  description = "The bucket."
  value       = aws_s3_bucket.store.bucket
}

output "repository" {
  description = "The image repository, by name."
  value       = aws_ecr_repository.service.name
}

output "repository_url" {
  description = "The image repository, as images are pushed and pulled."
  value       = aws_ecr_repository.service.repository_url
}

output "region" {
  description = "Region of everything."
  value       = var.region
}

output "name" {
  description = "Name of the deployment."
  value       = var.name
}

output "deploy_document" {
  description = "Document of Systems Manager that brings a commit onto the machine."
  value       = aws_ssm_document.deploy.name
}

output "deploy_role_arn" {
  description = "Role of GitHub's deploy workflow; null where github_repository is not given."
  value       = one(aws_iam_role.deploy[*].arn)
}
