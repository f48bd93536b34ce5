"""Prometheus metrics of inference."""

from prometheus_client import Counter, Gauge, Histogram

REQUEST_DURATION = Histogram(
    "inference_request_duration_seconds",
    "Time from a batch's admission to its answer, repairs included",
    ["model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120),
)
FAILURES = Counter("inference_failures_total", "Failed calls to Triton, repaired ones included", ["model", "reason"])
SERVER_STARTS = Counter("inference_server_starts_total", "Starts of the embedded Triton by this process")
"""More than one in a process's life: the server died, or this process took over from another."""

_VERSION = ["model", "version"]
MODEL_READY = Gauge(
    "pathserve_model_ready",
    "1: this version serves. 0: it should, and does not. NaN: it is no longer wanted",
    _VERSION,
    multiprocess_mode="livemostrecent",
)
LOADS = Counter("pathserve_model_loads_total", "Loads of a version into Triton, failed too", [*_VERSION, "outcome"])
UNLOADS = Counter("pathserve_model_unloads_total", "Versions unloaded because nothing wants them", _VERSION)
STUB_DEATHS = Counter(
    "pathserve_model_stub_deaths_total", "Times that a version's process died, froze or hung", [*_VERSION, "cause"]
)
HEAL_DURATION = Histogram(
    "pathserve_model_heal_duration_seconds",
    "Time from noticing a dead, frozen or hung process to a proven reload",
    _VERSION,
    buckets=(0.5, 1, 2, 3, 5, 10, 20, 60, 120),
)
