"""A breaker: while a PACS is down, its callers fail at once, and only now and then one of them looks again."""

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache

from gateway.archive.metrics import PACS_BREAKER_OPEN, PACS_BREAKER_OPENS
from gateway.operations.errors import ArchiveUnavailable

FAILURES, WINDOW_S, PROBE_S = 5, 30.0, 10.0


class Breaker:
    """Opens after FAILURES in WINDOW_S seconds; lets one request through each PROBE_S; closes at its first answer.

    Thread-safe. A probe that never comes back does not keep it open: the next one is due by the clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed_at: deque[float] = deque(maxlen=FAILURES)
        self._probed_at: float | None = None  # None = closed

    def admit(self) -> None:
        """Return where a request may be sent. Raises ArchiveUnavailable while it may not."""
        with self._lock:
            if self._probed_at is None:
                return
            now = self._clock()
            if now - self._probed_at < PROBE_S:
                raise ArchiveUnavailable(
                    "The PACS failed again and again and is left alone for some seconds: try again when it is well."
                )
            self._probed_at = now

    def failed(self) -> None:
        """Note that a request brought no answer, or the server's own error."""
        with self._lock:
            now = self._clock()
            self._failed_at.append(now)
            many = len(self._failed_at) == FAILURES and now - self._failed_at[0] <= WINDOW_S
            if self._probed_at is None and many:
                self._probed_at = now
                PACS_BREAKER_OPENS.inc()
                PACS_BREAKER_OPEN.inc()

    def answered(self) -> None:
        """Note that the server answered: it is well, whatever it said."""
        with self._lock:
            if self._probed_at is not None:
                self._probed_at = None
                self._failed_at.clear()
                PACS_BREAKER_OPEN.dec()


@cache
def breaker_of(address: str) -> Breaker:
    """The one breaker of an archive's address in this process."""
    return Breaker()
