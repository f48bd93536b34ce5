"""Whether this worker may still believe that the others take it for alive."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import psutil

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


def new_worker_id() -> str:
    """A name for this start of a worker, never used again."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


def this_host() -> str:
    """Names what process ids are unique in: a machine since its start, or a container."""
    parts = [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return f"{socket.gethostname()}-{sha256(''.join(parts).encode()).hexdigest()[:8]}"


def is_gone(host: str, pid: int) -> bool:
    """True where a process is surely gone: it was on this host, and no such process runs here."""
    if host != this_host():
        return False
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
