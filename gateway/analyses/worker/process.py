"""The worker process: runs the durable workflows, beats its heart into the ledger, and watches the other workers."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer
from prometheus_client import REGISTRY
from sqlalchemy.exc import SQLAlchemyError

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.turns import Stage
from gateway.analyses.worker.dispatcher import Dispatcher
from gateway.analyses.worker.heart import Heart
from gateway.analyses.worker.processes import new_worker_id
from gateway.analyses.worker.pulse import Pulse
from gateway.analyses.worker.reaper import Reaper
from gateway.analyses.worker.stages import MakeCase, Retry
from gateway.analyses.worker.workflow import APPLICATION_VERSION, Attempt, Workflows
from gateway.operations.audit import AuditLife
from gateway.operations.disk import disk_errors
from gateway.operations.errors import PathserveError, StateError
from gateway.operations.logging import configure_logging
from gateway.operations.metrics import MetricsListener
from gateway.operations.settings import Settings
from gateway.operations.settings import settings as load_settings
from gateway.operations.state import prepare_state

log = structlog.get_logger("gateway.analyses.worker")

TICK_S = 0.2
REAP_S = 1.0
POLL_S = 0.1
"""How often a queue is looked into."""
STOP_S = 8.0
"""How long running steps have to stop; with what follows it stays inside the 15 s of a SIGTERM."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker works with: how a case is made, how a delivery is tried, what to look at now and then, and the
    models it serves.

    Each check raises PathserveError where its part is not ready. `models` is asked at every heartbeat: it never waits.
    """

    make_case: MakeCase
    attempt: Attempt
    checks: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    models: Callable[[], Sequence[Mapping[str, Any]]] = tuple


OpenParts = Callable[[Settings, Ledger, str], AbstractContextManager[Parts]]
"""(settings, ledger, worker id) -> the parts, for as long as the context."""


def run_worker(settings: Settings, open_parts: OpenParts, *, parent_pid: int | None = None) -> None:
    """Work until SIGTERM or SIGINT, or until the parent process is gone. Call it from the main thread.

    Any number of workers may share a state folder, or a database. Raises StateError, DiskFull.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_end_in_time, args=(stop,), name="end", daemon=True).start()

    def ended() -> bool:
        if parent_pid is not None and os.getppid() != parent_pid:
            stop.set()
        return stop.is_set()

    ledger = Ledger.open(settings.ledger_url, settings.state, settings.webhooks)
    try:
        worker = new_worker_id()
        with (
            AuditLife(ledger.trail, settings.state, "worker", worker),
            open_parts(settings, ledger, worker) as parts,
        ):
            _work(settings, ledger, worker, parts, ended)
    finally:
        ledger.close()


def _end_in_time(stop: threading.Event) -> None:
    """A thread that is stuck in a foreign call must not hold the process beyond its time."""
    stop.wait()
    time.sleep(STOP_S + 4.0)
    os._exit(1)


def _work(settings: Settings, ledger: Ledger, worker: str, parts: Parts, ended: Callable[[], bool]) -> None:
    analyses = settings.state / "analyses"
    with disk_errors():
        analyses.mkdir(mode=0o700, exist_ok=True)
    pulse, moved = Pulse(), threading.Event()
    workflows = Workflows(
        ledger,
        analyses,
        worker,
        make_case=parts.make_case,
        attempt=parts.attempt,
        retry=Retry(settings.retry_attempts, settings.retry_delay_s),
        pulse=pulse,
        moved=moved.set,
    )
    heart = Heart(ledger.workers, worker, pulse, parts.checks, parts.models)
    reaper = Reaper(ledger, workflows, worker)
    dispatcher = Dispatcher(
        ledger, workflows, worker, settings, workers=lambda: reaper.living, elected=lambda: reaper.elected
    )
    heart.start()
    try:
        _launch(settings, worker)
        log.info("worker is ready", pid=os.getpid(), worker_id=worker)
        reap_s = 0.0
        while not ended():
            if time.monotonic() >= reap_s:
                _patiently(reaper.tick)
                reap_s = time.monotonic() + REAP_S
            _patiently(dispatcher.tick)
            # What has just moved on goes into its next queue at once.
            moved.wait(TICK_S)
            moved.clear()
    finally:
        log.info("worker stops", count=workflows.count)
        workflows.stop()
        until = time.monotonic() + STOP_S
        while workflows.count and time.monotonic() < until:
            time.sleep(0.05)
        heart.stop()
        DBOS.destroy()


def _patiently(tick: Callable[[], None]) -> None:
    try:
        tick()
    except PathserveError as error:
        log.error("the ledger cannot be used now", reason=error.reason)
    except SQLAlchemyError:
        log.exception("the workflow engine's database cannot be used now")


def _launch(settings: Settings, worker: str) -> None:
    config = DBOSConfig(
        name="pathserve",
        # In the ledger's database, where that can be shared by several machines; in a schema of its own.
        system_database_url=settings.ledger_url
        if settings.ledger_url.startswith("postgres")
        else f"sqlite:///{settings.state / 'dbos.db'}",
        application_version=APPLICATION_VERSION,
        executor_id=worker,
        serializer=DBOSPortableJSONSerializer(),
        # As of the ledger: what a stopped worker has locked is free again before it is dead.
        sys_db_idle_transaction_timeout_sec=10.0,
        # No telemetry leaves the process, and no conductor is contacted (no key is given).
        enable_otlp=False,
        log_level="WARNING",
    )
    DBOS(config=config)
    _own_dbos_logging()
    try:
        DBOS.launch()
        limits = {
            Stage.FETCH: settings.fetch_limit,
            Stage.INFER: settings.infer_limit,
            Stage.DELIVER: settings.deliver_limit,
        }
        for stage, limit in limits.items():
            DBOS.register_queue(
                stage.value, worker_concurrency=limit, polling_interval_sec=POLL_S, on_conflict="always_update"
            )
    except SQLAlchemyError as error:
        raise StateError(
            "The workflow engine's tables (dbos.db in the state folder, or the schema dbos) cannot be used. Make room "
            "or restore them; where they are lost, move them away: what was in hand is taken up by the ledger's word."
        ) from error


def _own_dbos_logging() -> None:
    """Let the engine's messages go through our logging instead of its own console handler."""
    logger = logging.getLogger("dbos")
    logger.handlers.clear()
    logger.propagate = True


def worker(metrics_port: int | None = None, parent_pid: int | None = None) -> int:
    """`pathserve worker`: the real cases, archive and Triton. Returns the exit status. Raises PathserveError."""
    settings = load_settings()
    prepare_state(settings)
    configure_logging("worker", settings.log_level, settings.state / "logs")
    metrics = None if metrics_port is None else MetricsListener(metrics_port, REGISTRY)
    try:
        # Imported here: this module is the parts' own, and tests bring other parts without the decoders.
        from gateway.analyses.worker.parts import open_parts

        run_worker(settings, open_parts, parent_pid=parent_pid)
    finally:
        if metrics is not None:
            metrics.close()
    return 0


def main(arguments: Sequence[str]) -> int:
    """The worker as `serve` starts it: the argument is the server's process id."""
    try:
        return worker(parent_pid=int(arguments[0]))
    except PathserveError as error:
        print(f"pathserve worker: {error.detail}", file=sys.stderr)
        return 1
