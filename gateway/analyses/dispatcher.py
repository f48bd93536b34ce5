"""The dispatcher: turns accepted rows into running workflows, and tells running ones of cancellations."""

import time

import structlog

from gateway.analyses.ledger import Ledger
from gateway.analyses.workflow import AnalysisWorkflow

log = structlog.get_logger("gateway.analyses.dispatcher")

RECONCILE_INTERVAL_S = 2.0
_ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


class Dispatcher:
    """One a worker. `tick` is called every fraction of a second and never blocks for long."""

    def __init__(self, ledger: Ledger, workflow: AnalysisWorkflow, concurrency: int) -> None:
        self._ledger = ledger
        self._workflow = workflow
        self._concurrency = concurrency
        self._reconciled_s = float("-inf")
        self._suspects: frozenset[str] = frozenset()

    def tick(self) -> None:
        running = self._ledger.running()
        self._workflow.request_cancel(frozenset(each for each, cancelled in running.items() if cancelled))
        if time.monotonic() - self._reconciled_s > RECONCILE_INTERVAL_S:
            self._reconcile(running)
        for _ in range(self._concurrency - len(running)):
            claimed = self._ledger.claim()
            if claimed is None:
                return
            log.info("analysis claimed", analysis_id=claimed)
            self._workflow.start(claimed)

    def _reconcile(self, running: dict[str, bool]) -> None:
        """Start what was claimed but never started (a kill between the two), take up again what nobody works on, end
        what the engine has given up.

        The engine notes a begin and an end a moment apart from the ledger, so both count only when they are seen twice.
        """
        self._reconciled_s = time.monotonic()
        suspects = set()
        for analysis_id in running:
            status = self._workflow.status(analysis_id)
            if status is None:
                self._workflow.start(analysis_id)
            elif status in _ENDED or (status == "PENDING" and analysis_id not in self._workflow.active):
                if analysis_id not in self._suspects:
                    suspects.add(analysis_id)
                elif status in _ENDED:
                    self._workflow.abandon(analysis_id)
                else:
                    self._workflow.resume(analysis_id)
        self._suspects = frozenset(suspects)
