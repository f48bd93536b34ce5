"""The dispatcher: puts what the ledger says is due into the queues, and tells running turns of what has changed."""

import time
from collections.abc import Callable, Mapping

import structlog

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.runs import Due
from gateway.analyses.ledger.turns import Stage
from gateway.analyses.worker.workflow import ENDED, Workflows
from gateway.domain.order import Priority
from gateway.operations.settings import Settings

log = structlog.get_logger("gateway.analyses.worker.dispatcher")

CHECK_S = 2.0
"""How long what was put into a queue may still be due before the engine is asked what it knows of it."""


class Dispatcher:
    """One a worker; several may put the same workflow into a queue, where it is once.

    `workers` says how many live, `elected` whether this one decides what only one may. `tick` is called every fraction
    of a second and never blocks for long.
    """

    def __init__(
        self,
        ledger: Ledger,
        workflows: Workflows,
        worker: str,
        settings: Settings,
        *,
        workers: Callable[[], int],
        elected: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._workflows = workflows
        self._worker = worker
        self._settings = settings
        self._workers = workers
        self._elected = elected
        self._asked: dict[str, float] = {}
        self._checked_s = time.monotonic()
        self._suspects: frozenset[str] = frozenset()
        self._idle: frozenset[tuple[str, int]] = frozenset()

    def tick(self) -> None:
        turns = self._workflows.turns
        held = self._ledger.runs.held_by(self._worker)
        self._workflows.heed(turns, held)
        for analysis_id in self._ledger.runs.complete_delivered(self._settings.delivery_wait_s):
            self._workflows.note_end(analysis_id)
        stages, deliveries = self._due(), self._ledger.outbox.due(4 * self._settings.deliver_limit * self._workers())
        self._put(
            [*stages, *(Due(each.workflow, Stage.DELIVER, each.rank) for each in deliveries)],
        )
        if time.monotonic() - self._checked_s > CHECK_S:
            self._checked_s = time.monotonic()
            self._take_up_forgotten(
                {each: seen.attempt for each, seen in held.items()} | {each.analysis: None for each in turns.values()}
            )

    def _due(self) -> list[Due]:
        """What has begun, and of each priority the next few that have not: what is in a queue keeps its place there.

        No more is fetched than inference can follow, or the frame cache would lose what it has just got.
        """
        begun = self._ledger.runs.begun()
        workers = self._workers()
        due = list(begun)
        for rank in range(len(Priority)):
            before = sum(each.stage is Stage.INFER and each.rank <= rank for each in begun)
            room = 2 * self._settings.infer_limit * workers + 1 - before
            if room > 0:
                due += self._ledger.runs.waiting(rank, min(room, 2 * self._settings.fetch_limit * workers))
        return due

    def _put(self, due: list[Due]) -> None:
        now = time.monotonic()
        self._asked = {each.workflow: self._asked.get(each.workflow, 0.0) for each in due}
        stale = []
        for each in due:
            asked_s = self._asked[each.workflow]
            if asked_s and now - asked_s <= CHECK_S:
                continue
            if asked_s:
                stale.append(each)
            else:
                self._workflows.enqueue(each.workflow, each.stage, each.rank)
            self._asked[each.workflow] = now
        if stale:
            self._check(stale)

    def _check(self, stale: list[Due]) -> None:
        """Mend what is due for long: the engine has lost it, or believes that it has ended."""
        known = self._workflows.statuses([each.workflow for each in stale])
        for each in stale:
            status = known.get(each.workflow)
            if status is None:
                self._workflows.enqueue(each.workflow, each.stage, each.rank)
            elif status.status in ENDED and self._elected():
                if each.stage is Stage.DELIVER:
                    self._ledger.outbox.renew(each.workflow)
                elif self._ledger.runs.is_due(each.workflow):
                    log.info("a stage is put into its queue again", workflow=each.workflow)
                    self._workflows.renew(each.workflow, each.stage, each.rank)

    def _take_up_forgotten(self, held: Mapping[str, int | None]) -> None:
        """Put back what this worker has in hand by the word of the engine or of the ledger, and does not work on.

        Both note a begin a moment before it is at work here, so it counts only when it is seen twice. `held`: the
        analyses that the ledger says are in its hands -> the turn's number; None where it is at work.
        """
        forgotten = self._workflows.forgotten()
        for workflow in forgotten & self._suspects:
            self._workflows.put_back(workflow, self._worker)
        idle = frozenset((analysis, attempt) for analysis, attempt in held.items() if attempt is not None)
        for analysis, attempt in idle & self._idle:
            self._ledger.runs.give_back(analysis, self._worker, attempt)
        self._suspects, self._idle = forgotten, idle
