# One public subnet, and nothing that listens to the world: people come in through Session Manager.
#
# The machine has a public address because the way out without one, a NAT gateway, costs more than
# a quarter of the machine itself. An address that no rule lets in answers nobody.

resource "aws_vpc" "this" {
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true

  tags = { Name = var.name }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id

  tags = { Name = var.name }
}

resource "aws_subnet" "public" {
  vpc_id                  = aws_vpc.this.id
  cidr_block              = cidrsubnet(var.vpc_cidr, 24 - tonumber(split("/", var.vpc_cidr)[1]), 0)
  availability_zone       = "${var.region}${var.zone}"
  map_public_ip_on_launch = false # the one machine asks for its address itself

  tags = { Name = "${var.name}-public" }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id

  tags = { Name = "${var.name}-public" }
}

resource "aws_route" "internet" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route_table_association" "public" {
  route_table_id = aws_route_table.public.id
  subnet_id      = aws_subnet.public.id
}

# The store's traffic stays inside AWS; a gateway endpoint costs nothing.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.public.id]

  tags = { Name = "${var.name}-s3" }
}

# Whatever is put into this network without a group of its own can reach nothing.
resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.this.id

  tags = { Name = "${var.name}-closed" }
}

resource "aws_security_group" "host" {
  name_prefix = "${var.name}-host-"
  description = "The machine: nothing in but TLS from named networks, out to named ports."
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-host" }

  lifecycle {
    create_before_destroy = true # a group in use cannot go before its successor is there
  }
}

resource "aws_vpc_security_group_ingress_rule" "tls" {
  for_each = var.tls_cidrs

  security_group_id = aws_security_group.host.id
  description       = "TLS to the reverse proxy"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

# Amazon's own resolver and clock, at 169.254.169.x, are not subject to security groups.
resource "aws_vpc_security_group_egress_rule" "named_ports" {
  for_each = { for port in var.egress_ports : tostring(port) => port }

  security_group_id = aws_security_group.host.id
  description       = "TCP ${each.key}: AWS, registries, packages"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = each.value
  to_port           = each.value
}
