# Images of the service, rolled out by digest.

resource "aws_ecr_repository" "service" {
  name                 = "${var.name}/readmission"
  image_tag_mutability = "IMMUTABLE" # a tag names a model version for all time
  force_delete         = !var.protected

  encryption_configuration {
    encryption_type = "KMS"
    kms_key         = aws_kms_key.platform.arn
  }

  image_scanning_configuration {
    scan_on_push = true
  }
}

# Only what has no tag goes. A release pushes every image under a tag and runs it by digest; tags
# are immutable, so no later push can take the tag off an image that runs, or off one a rollback
# would run. Rules that count or age tagged images cannot know which those are. Images without a
# tag are what a broken push left; ECR keeps the parts of a tagged image index by itself. A new model
# adds .2 MB to layers that are shared, so keeping them all costs nothing worth a risk.
resource "aws_ecr_lifecycle_policy" "service" {
  repository = aws_ecr_repository.service.name

  policy = jsonencode({
    rules = [
      {
        rulePriority = 1
        description  = "Without a tag for two weeks: left by a broken push"
        selection = {
          tagStatus   = "untagged"
          countType   = "sinceImagePushed"
          countUnit   = "days"
          countNumber = 14
        }
        action = { type = "expire" }
      },
    ]
  })
}
