"""The worker's heart: beats into the ledger, and says what it found of its parts."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from gateway.analyses.ledger.workers import Workers
from gateway.analyses.worker.processes import this_host
from gateway.analyses.worker.pulse import Pulse
from gateway.operations.errors import PathserveError

log = structlog.get_logger("gateway.analyses.worker.heart")

BEAT_S = 1.0
CHECK_S = 5.0


class Heart:
    """Two threads: one beats whatever happens, one looks at the parts; a slow part does not look like a dead worker.

    Each check raises PathserveError where its part is not ready; `models` never waits.
    """

    def __init__(
        self,
        workers: Workers,
        worker: str,
        pulse: Pulse,
        checks: Mapping[str, Callable[[], object]],
        models: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        self._workers = workers
        self._worker = worker
        self._pulse = pulse
        self._checks = checks
        self._models = models
        self._started = datetime.now(UTC)
        self._host = this_host()
        self._passes: dict[str, bool] = dict.fromkeys(checks, False)
        self._reasons: dict[str, str] = {}
        self._stop = threading.Event()
        self._looked = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
            threading.Thread(target=self._look, name="checks", daemon=True),
        ]

    def start(self) -> None:
        """Beat once, then on: nobody has a turn whom the others do not know. Raises StateError."""
        self._beat_once()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and take the heartbeat away: the worker stops in good order."""
        self._stop.set()
        self._looked.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=1.0)
        try:
            self._workers.leave(self._worker)
        except PathserveError as error:
            log.error("heartbeat could not be taken away", reason=error.reason)

    def _beat(self) -> None:
        while not self._stop.is_set():
            try:
                self._beat_once()
            except PathserveError as error:
                log.error("heartbeat could not be written", reason=error.reason)
            # Beat again at once when the parts have been looked at, so that readiness is not late.
            self._looked.wait(BEAT_S)
            self._looked.clear()

    def _beat_once(self) -> None:
        self._workers.beat(
            self._worker,
            started=self._started,
            host=self._host,
            pid=os.getpid(),
            parts=self._passes,
            models=self._models(),
        )
        self._pulse.written()

    def _look(self) -> None:
        while not self._stop.is_set():
            self._passes = {name: self._pass(name, check) for name, check in self._checks.items()}
            self._looked.set()
            # Until all is well, look more often: that is when somebody waits for it.
            self._stop.wait(CHECK_S if all(self._passes.values()) else 1.0)

    def _pass(self, name: str, check: Callable[[], object]) -> bool:
        """Whether a part is ready; a reason is logged once, not every second."""
        try:
            check()
        except PathserveError as error:
            if self._reasons.get(name) != error.detail:
                log.warning("part is not ready", name=name, reason=error.reason, detail=error.detail)
            self._reasons[name] = error.detail
            return False
        except Exception:
            log.exception("the check of a part failed", name=name)
            return False
        if self._reasons.pop(name, None) is not None:
            log.info("part is ready again", name=name)
        return True
