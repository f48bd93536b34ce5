"""What another server says of when to come again."""

import time
from email.utils import parsedate_to_datetime


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a Retry-After field asks for (RFC 9110 10.2.3: seconds, or a date); None where there is none
    that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:12])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
