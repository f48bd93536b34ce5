"""Prometheus metrics of the archive. No UID, host name or patient data becomes a label."""

from prometheus_client import Counter, Histogram

PACS_BYTES = Counter("pacs_bytes_total", "Bytes of DICOM objects that went over the wire", ["direction"])
PACS_REQUEST_SECONDS = Histogram(
    "pacs_request_duration_seconds",
    "Time from sending a request to the PACS until its answer was read",
    ["operation"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
