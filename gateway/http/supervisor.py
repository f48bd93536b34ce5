"""Keeps worker processes alive beside the server, and ends them with it."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import structlog

log = structlog.get_logger("gateway.http.supervisor")

STOP_S = 13.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _SETTLED_S = 0.5, 30.0, 60.0


class Supervisor:
    """Keeps `count` workers running, each by the same command."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], count: int = 1) -> None:
        self._workers = tuple(_Supervised(command, environment) for _ in range(count))

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that run now."""
        return tuple(pid for worker in self._workers if (pid := worker.pid) is not None)

    @property
    def since(self) -> datetime | None:
        """When the first of those that run now was started; None while none runs."""
        return min((since for worker in self._workers if (since := worker.since) is not None), default=None)

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def terminate(self) -> None:
        """Ask the workers to end (they leave their work to others); returns at once, also in a signal handler."""
        for worker in self._workers:
            worker.terminate()

    def join(self) -> None:
        """After `terminate`: wait for the ends; what is left `STOP_S` after the first `terminate` is killed."""
        for worker in self._workers:
            worker.join()


class _Supervised:
    """Starts the command, starts it again (after growing pauses) whenever it ends, until `terminate`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = datetime.now(UTC)
        self._ends_s: float | None = None
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def pid(self) -> int | None:
        """The worker's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def since(self) -> datetime | None:
        """When the worker that runs now was started; None while none runs."""
        with self._lock:
            return self._started if self.pid is not None else None

    def start(self) -> None:
        self._thread.start()

    def terminate(self) -> None:
        self._stop.set()
        self._ends_s = self._ends_s or time.monotonic() + STOP_S
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    def join(self) -> None:
        self._thread.join(max(0.0, (self._ends_s or 0.0) - time.monotonic()))
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            log.warning("worker did not end in time; killing it", pid=process.pid)
            process.kill()
            process.wait()

    def _watch(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            began = time.monotonic()
            status: int | None = None
            # No room for one more process is no reason to have no worker ever after.
            with contextlib.suppress(OSError), self._lock:
                self._started = datetime.now(UTC)
                # Its own session: a Ctrl-C at the terminal reaches the server alone, which then ends the worker.
                self._process = subprocess.Popen(
                    self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
                )
            if self._process is not None:
                if self._stop.is_set():
                    self._process.terminate()
                status = self._process.wait()
            if self._stop.is_set():
                return
            pause_s = _FIRST_PAUSE_S if time.monotonic() - began > _SETTLED_S else pause_s
            log.error("worker ended; starting it again", exit_status=status, seconds=pause_s)
            self._stop.wait(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
