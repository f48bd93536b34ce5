"""What is counted of logins; `serve` puts it beside the metrics of its requests."""

from prometheus_client import Counter

LOGINS_REFUSED = Counter(
    "logins_refused_total",
    "Logins that were refused, by what was shown and why",
    ["credential", "reason"],
    registry=None,
)
