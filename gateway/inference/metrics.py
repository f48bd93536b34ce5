"""Prometheus metrics of inference."""

from prometheus_client import Counter, Histogram

REQUEST_DURATION = Histogram(
    "inference_request_duration_seconds",
    "Time from a batch's admission to its answer, repairs included",
    ["model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120),
)
FAILURES = Counter("inference_failures_total", "Failed calls to Triton, repaired ones included", ["model", "reason"])
SERVER_STARTS = Counter("inference_server_starts_total", "Starts of the embedded Triton by this process")
"""More than one in a process's life: the server died, or this process took over from another."""
