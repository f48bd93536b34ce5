"""Metrics of the gRPC server: the twin of `http_request_duration_seconds`."""

from prometheus_client import CollectorRegistry, Gauge, Histogram

REGISTRY = CollectorRegistry()
CALL_SECONDS = Histogram(
    "grpc_request_duration_seconds",
    "Time of a call that is no stream until its answer was sent",
    ["service", "method", "code"],
    registry=REGISTRY,
    buckets=(0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60),
)
STREAMS = Gauge("grpc_open_streams", "Streams that are open now", ["service", "method"], registry=REGISTRY)
