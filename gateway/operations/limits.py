"""How many requests a caller may make: a moving window of one second, in this process's memory."""

from dataclasses import dataclass

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from gateway.operations.errors import TooManyRequests


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left to a caller: `remaining` of `limit` requests in this second."""

    limit: int
    remaining: int


class RequestLimit:
    """`per_s` requests a second for each caller. Thread-safe. Several servers count each for itself."""

    def __init__(self, per_s: int) -> None:
        self._item = RateLimitItemPerSecond(per_s)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def check(self, caller: str) -> Allowance:
        """Count one request of this caller (a principal's `subject`). Raises TooManyRequests."""
        if not self._limiter.hit(self._item, caller):
            raise TooManyRequests(f"At most {self._item.amount} requests a second are taken. Try again after a second.")
        left = self._limiter.get_window_stats(self._item, caller).remaining
        return Allowance(self._item.amount, left)
