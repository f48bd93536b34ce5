"""A breaker: while a PACS is down, its callers fail at once, and only now and then one of them looks again."""

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache

from gateway.archive.metrics import PACS_BREAKER_OPEN, PACS_BREAKER_OPENS
from gateway.operations.errors import ArchiveUnavailable

FAILURES, WINDOW_S, PROBE_S = 5, 30.0, 10.0
_PROBE_TAKES_S = 2.0


class Breaker:
    """Opens after FAILURES in WINDOW_S seconds; lets one request through each PROBE_S; closes at its first answer.

    Thread-safe. A probe that never comes back does not keep it open: the next one is due by the clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._failed_at: deque[float] = deque(maxlen=FAILURES)
        self._probed_at: float | None = None  # None = closed
        self._probing = False

    def admit(self) -> None:
        """Return where a request may be sent. Raises ArchiveUnavailable while it may not, with the seconds until then.

        Who comes while a probe is under way waits for it a moment: of many who all come when the next one is due, one
        is the probe, and what it finds holds for all.
        """
        with self._changed:
            if self._probed_at is None:
                return
            if self._since(self._probed_at) >= PROBE_S:
                self._probed_at = self._clock()
                self._probing = True
                return
            self._changed.wait_for(lambda: not self._probing, _PROBE_TAKES_S)
            if self._probed_at is not None:
                raise ArchiveUnavailable(
                    "The PACS failed again and again and is left alone for some seconds: try again when it is well.",
                    after_s=max(0.1, PROBE_S - self._since(self._probed_at)),
                )

    def _since(self, moment: float) -> float:
        return self._clock() - moment

    def failed(self) -> None:
        """Note that a request brought no answer, or the server's own error."""
        with self._changed:
            now = self._clock()
            self._failed_at.append(now)
            many = len(self._failed_at) == FAILURES and now - self._failed_at[0] <= WINDOW_S
            if self._probed_at is None and many:
                self._probed_at = now
                PACS_BREAKER_OPENS.inc()
                PACS_BREAKER_OPEN.inc()
            self._probing = False
            self._changed.notify_all()

    def answered(self) -> None:
        """Note that the server answered: it is well, whatever it said."""
        with self._changed:
            if self._probed_at is not None:
                self._probed_at = None
                self._failed_at.clear()
                PACS_BREAKER_OPEN.dec()
            self._probing = False
            self._changed.notify_all()


@cache
def breaker_of(address: str) -> Breaker:
    """The one breaker of an archive's address in this process."""
    return Breaker()
