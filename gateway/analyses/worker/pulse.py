"""Whether this worker may still believe that the others take it for alive."""

import threading
import time
from collections.abc import Callable

LOST_S = 15.0
"""A worker that could not write its heartbeat for so long leaves its work to others; they take it after DEAD_S."""
DEAD_S = 20.0


class Pulse:
    """Notes the heartbeats that were written. Thread-safe.

    A silence is remembered: whoever began before it has lost its turn, though the heart beats again (a process that was
    stopped and continued, a database that was away).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._written_s = clock()
        self._silences = 0

    def written(self) -> None:
        """A heartbeat has just been written."""
        with self._lock:
            self._silences += self._clock() - self._written_s > LOST_S
            self._written_s = self._clock()

    def silences(self) -> int:
        """How often it has been silent for too long, now included."""
        with self._lock:
            return self._silences + (self._clock() - self._written_s > LOST_S)
