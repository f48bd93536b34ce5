"""Prometheus metrics of the archive. No UID, host name or patient data becomes a label."""

from prometheus_client import Counter, Gauge, Histogram

PACS_BYTES = Counter("pacs_bytes_total", "Bytes of DICOM objects that went over the wire", ["direction"])
PACS_REQUEST_SECONDS = Histogram(
    "pacs_request_duration_seconds",
    "Time from sending a request to the PACS until its answer was read",
    ["operation"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
PACS_BREAKER_OPEN = Gauge(
    "pacs_breaker_open",
    "Archives that failed so often that this process leaves them alone for now",
    multiprocess_mode="livesum",
)
PACS_BREAKER_OPENS = Counter("pacs_breaker_opens_total", "Times that an archive began to be left alone")
PACS_RESULTS_ALTERED = Counter(
    "pacs_results_altered_total",
    "Stored results that the archive warned about, or whose patient or study attributes it replaced",
)
PACS_TOKENS = Counter("pacs_token_requests_total", "Tokens asked for at the archive's token server", ["outcome"])
FRAMES = Counter("pacs_frames_total", "Frames that were pulled, by the way in which they came", ["way"])
CACHE_BYTES = Gauge("frame_cache_bytes", "Bytes in the frame cache when last measured", multiprocess_mode="mostrecent")
CACHE_EVICTIONS = Counter("frame_cache_evictions_total", "Series that left the frame cache to make room")
CACHE_FRAMES = Counter("frame_cache_frames_total", "Frames asked of the cache: a hit was there already", ["result"])
