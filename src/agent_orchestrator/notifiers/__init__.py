"""The channels of notices: a webhook, an ntfy topic, a program."""
