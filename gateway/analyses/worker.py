"""The worker process: holds the state folder's lock, runs the durable workflows, beats its heart into the ledger."""

import errno
import fcntl
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer
from prometheus_client import REGISTRY
from sqlalchemy.exc import SQLAlchemyError

from gateway.analyses.dispatcher import Dispatcher
from gateway.analyses.ledger import Ledger
from gateway.analyses.workflow import APPLICATION_VERSION, QUEUE, AnalysisWorkflow, MakeCase, Retry
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import PathserveError, StateError, StateLocked
from gateway.operations.logging import configure_logging
from gateway.operations.metrics import MetricsListener
from gateway.operations.settings import Settings
from gateway.operations.settings import settings as load_settings
from gateway.operations.state import prepare_state

log = structlog.get_logger("gateway.analyses.worker")

TICK_S = 0.2
BEAT_S = 1.0
CHECK_S = 5.0
STOP_S = 8.0
"""How long running steps have to stop; with what follows it stays inside the 15 s of a SIGTERM."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker works with: how a case is made, what to look at now and then, and the models it serves.

    Each check raises PathserveError where its part is not ready. `models` is asked at every heartbeat: it never waits.
    """

    make_case: MakeCase
    checks: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    models: Callable[[], Sequence[Mapping[str, Any]]] = tuple


def run_worker(
    settings: Settings,
    open_parts: Callable[[Settings], AbstractContextManager[Parts]],
    *,
    lock_wait_s: float = 0.0,
    parent_pid: int | None = None,
) -> None:
    """Work until SIGTERM or SIGINT, or until the parent process is gone. Call it from the main thread.

    Raises StateLocked where another worker holds the state folder for longer than `lock_wait_s`; StateError, DiskFull.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def orphaned() -> bool:
        return parent_pid is not None and os.getppid() != parent_pid

    with _locked(settings.state, lock_wait_s, lambda: stop.is_set() or orphaned()) as locked:
        if not locked:
            return
        with open_parts(settings) as parts:
            _work(settings, parts, lambda: stop.wait(TICK_S) or orphaned())


def _work(settings: Settings, parts: Parts, ended: Callable[[], bool]) -> None:
    ledger = Ledger.open(settings.ledger_url, settings.state)
    analyses = settings.state / "analyses"
    with disk_errors():
        analyses.mkdir(mode=0o700, exist_ok=True)
        executor_id = _executor_id(settings.state)
    retry = Retry(settings.retry_attempts, settings.retry_delay_s)
    workflow = AnalysisWorkflow(ledger, analyses, parts.make_case, retry)
    heart = _Heart(ledger, executor_id, parts)
    dispatcher = Dispatcher(ledger, workflow, settings.infer_limit)
    try:
        _launch(settings.state, executor_id)
        heart.start()
        log.info("worker is ready", pid=os.getpid())
        while not ended():
            try:
                dispatcher.tick()
            except PathserveError as error:
                log.error("dispatcher could not reach the ledger", reason=error.reason)
            except SQLAlchemyError:
                log.exception("dispatcher could not reach the workflow engine's database")
    finally:
        log.info("worker stops", count=len(workflow.active))
        # A thread stuck in a foreign call must not hold the process beyond its time.
        last_resort = threading.Timer(STOP_S + 4.0, os._exit, (1,))
        last_resort.daemon = True
        last_resort.start()
        workflow.stop()
        until = time.monotonic() + STOP_S
        while workflow.active and time.monotonic() < until:
            time.sleep(0.05)
        heart.stop()
        DBOS.destroy()
        ledger.close()


def _launch(state: Path, executor_id: str) -> None:
    config = DBOSConfig(
        name="pathserve",
        system_database_url=f"sqlite:///{state / 'dbos.db'}",
        application_version=APPLICATION_VERSION,
        executor_id=executor_id,
        serializer=DBOSPortableJSONSerializer(),
        # No telemetry leaves the process, and no conductor is contacted (no key is given).
        enable_otlp=False,
        log_level="WARNING",
    )
    DBOS(config=config)
    _own_dbos_logging()
    try:
        DBOS.launch()
    except SQLAlchemyError as error:
        raise StateError(
            "The workflow engine's database dbos.db in the state folder cannot be used. Make room or restore it; where "
            "it is lost, move it away: the analyses that it knew then begin anew."
        ) from error
    # Nothing is limited here: the dispatcher starts no more analyses than may run.
    DBOS.register_queue(QUEUE, polling_interval_sec=0.2)


def _own_dbos_logging() -> None:
    """Let the engine's messages go through our logging instead of its own console handler."""
    logger = logging.getLogger("dbos")
    logger.handlers.clear()
    logger.propagate = True


def _executor_id(state: Path) -> str:
    """The stable name of this state folder's worker; the lock makes sure that only one process uses it."""
    path = state / "executor-id"
    if not path.exists():
        with written_whole(path) as out:
            out.write(f"worker-{uuid.uuid4()}\n".encode())
    return path.read_text().strip()


@contextmanager
def _locked(state: Path, wait_s: float, give_up: Callable[[], bool]) -> Iterator[bool]:
    """Hold STATE/worker.lock exclusively. Yields False where `give_up` said so while waiting. Raises StateLocked."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = (state / "worker.lock").open("a")
    except OSError as error:
        raise StateError("The state folder cannot be written; check its owner and mode.") from error
    with handle:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise StateError("The state folder cannot be locked; use a local file system.") from error
            if give_up():
                yield False
                return
            if time.monotonic() >= until:
                raise StateLocked(
                    "Another worker already uses this state folder; stop it first, or set PATHSERVE_STATE to another."
                )
            time.sleep(0.1)
        yield True


class _Heart:
    """Two threads: one beats whatever happens, one looks at the parts; a slow part does not look like a dead worker."""

    def __init__(self, ledger: Ledger, worker_id: str, parts: Parts) -> None:
        self._ledger = ledger
        self._worker_id = worker_id
        self._checks = parts.checks
        self._list_models = parts.models
        self._passes: dict[str, bool] = dict.fromkeys(parts.checks, False)
        self._reasons: dict[str, str] = {}
        self._stop = threading.Event()
        self._looked = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
            threading.Thread(target=self._look, name="checks", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._looked.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=1.0)
        try:
            self._ledger.leave(self._worker_id)
        except PathserveError as error:
            log.error("heartbeat could not be taken away", reason=error.reason)

    def _beat(self) -> None:
        started = datetime.now(UTC)
        while not self._stop.is_set():
            try:
                self._ledger.beat(self._worker_id, started, self._passes, self._list_models())
            except PathserveError as error:
                log.error("heartbeat could not be written", reason=error.reason)
            # Beat again at once when the parts have been looked at, so that readiness is not late.
            self._looked.wait(BEAT_S)
            self._looked.clear()

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


def worker(metrics_port: int | None = None, parent_pid: int | None = None, lock_wait_s: float = 0.0) -> int:
    """`pathserve worker`: the real cases, archive and Triton. Returns the exit status. Raises PathserveError."""
    settings = load_settings()
    prepare_state(settings)
    configure_logging("worker", settings.log_level, settings.state / "logs")
    metrics = None if metrics_port is None else MetricsListener(metrics_port, REGISTRY)
    try:
        # Imported here: this module is the parts' own, and tests bring other parts without the decoders.
        from gateway.analyses.parts import open_parts

        run_worker(settings, open_parts, parent_pid=parent_pid, lock_wait_s=lock_wait_s)
    finally:
        if metrics is not None:
            metrics.close()
    return 0


def main(arguments: Sequence[str]) -> int:
    """The worker as `serve` starts it: arguments are the server's process id and the seconds to wait for the lock."""
    try:
        return worker(parent_pid=int(arguments[0]), lock_wait_s=float(arguments[1]))
    except PathserveError as error:
        print(f"pathserve worker: {error.detail}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
