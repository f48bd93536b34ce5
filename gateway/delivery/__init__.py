"""Delivery: how one try of one delivery goes, to the archive or to a webhook's target."""

from gateway.delivery.outcome import Again, Dead, Delivered, Held, Outcome, outcome_of
from gateway.delivery.stow import send_stow
from gateway.delivery.webhook import WebhookTargets, send_webhook

__all__ = [
    "Again",
    "Dead",
    "Delivered",
    "Held",
    "Outcome",
    "WebhookTargets",
    "outcome_of",
    "send_stow",
    "send_webhook",
]
