"""How many requests a caller may make: a moving window of one second, in this process's memory."""

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from gateway.operations.errors import TooManyRequests


class RequestLimit:
    """`per_s` requests a second for each caller. Thread-safe. Several servers count each for itself."""

    def __init__(self, per_s: int) -> None:
        self.per_s = per_s
        self._item = RateLimitItemPerSecond(per_s)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def check(self, caller: str) -> int:
        """Count one request of this caller (a principal's `subject`); how many are left to it in this second.

        Raises TooManyRequests.
        """
        if not self._limiter.hit(self._item, caller):
            raise TooManyRequests(f"At most {self.per_s} requests a second are taken. Try again after a second.")
        return self._limiter.get_window_stats(self._item, caller).remaining
