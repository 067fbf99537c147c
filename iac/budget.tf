# An alarm before the bill.
#
# It watches the whole account: a budget of this deployment's tags alone would see nothing until
# somebody has activated them as cost allocation tags in the billing console, and a day has passed.

resource "aws_budgets_budget" "monthly" {
  name         = "${var.name}-monthly"
  budget_type  = "COST"
  limit_amount = tostring(var.budget_usd)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"

  dynamic "notification" {
    for_each = [
      { percent = 80, type = "ACTUAL" },
      { percent = 100, type = "FORECASTED" },
      { percent = 100, type = "ACTUAL" },
    ]

    content {
      comparison_operator        = "GREATER_THAN"
      threshold                  = notification.value.percent
      threshold_type             = "PERCENTAGE"
      notification_type          = notification.value.type
      subscriber_email_addresses = var.budget_emails
    }
  }
}
