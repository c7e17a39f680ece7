# Two namespaces on AWS, test and prod, each with a role that reads what is under its own name and nothing else: what
# `setup` does, for Terraform. The namespaces themselves are in namespaces.yaml.
#
#   terraform apply -var cluster=CLUSTER
terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.81" # before, a provider of identities wanted a thumbprint_list
    }
  }
}

variable "cluster" {
  description = "The EKS cluster's name."
  type        = string
}

variable "namespaces" {
  description = "Namespaces, each with a service account named app."
  type        = set(string)
  default     = ["test", "prod"]
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

data "aws_eks_cluster" "this" {
  name = var.cluster
}

# Once for each account and cluster; import it if it is there.
resource "aws_iam_openid_connect_provider" "cluster" {
  url            = data.aws_eks_cluster.this.identity[0].oidc[0].issuer
  client_id_list = ["sts.amazonaws.com"]
}

locals {
  host = replace(data.aws_eks_cluster.this.identity[0].oidc[0].issuer, "https://", "")
}

# Who may take the role on. This is the whole of the isolation between namespaces.
data "aws_iam_policy_document" "trust" {
  for_each = var.namespaces

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.cluster.arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.host}:sub"
      values   = ["system:serviceaccount:${each.key}:app"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.host}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "read" {
  for_each = var.namespaces

  statement {
    actions   = ["secretsmanager:GetSecretValue"]
    resources = ["arn:${data.aws_partition.current.partition}:secretsmanager:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}:secret:${each.key}/*"]
  }
}

resource "aws_iam_role" "app" {
  for_each = var.namespaces

  name               = "${each.key}-app"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

resource "aws_iam_role_policy" "read" {
  for_each = var.namespaces

  name   = "read-secrets"
  role   = aws_iam_role.app[each.key].id
  policy = data.aws_iam_policy_document.read[each.key].json
}

# The secret without a value: one in Terraform would lie in its state.
resource "aws_secretsmanager_secret" "database_password" {
  for_each = var.namespaces

  name = "${each.key}/database-password"
}

output "roles" {
  description = "For the annotation eks.amazonaws.com/role-arn of each namespace's service account app."
  value       = { for namespace, role in aws_iam_role.app : namespace => role.arn }
}
