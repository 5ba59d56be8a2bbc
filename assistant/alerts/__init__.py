"""Alerts that arrive diagnosed: from Alertmanager's webhook to one message for each group of them."""
