"""Prometheus metrics of what leaves, kept by the worker (gateway.operations.metrics gathers them)."""

from prometheus_client import Counter

DELIVERY_ATTEMPTS = Counter("delivery_attempts_total", "Tries of deliveries, by how they ended", ["channel", "outcome"])
