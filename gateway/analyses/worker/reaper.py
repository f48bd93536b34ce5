"""The reaper: finds workers that are dead, lets others take over what they had in hand, and ends what is out of time.

Every worker has one, and the one that holds the lease acts. No wall clock decides who lives: a heartbeat's count that
has not moved for DEAD_S of the reaper's own monotonic clock is a dead worker's; a process of this machine that is gone
is one at once, and everybody on the machine may say so.
"""

import time
from collections.abc import Callable, Set
from dataclasses import dataclass

import structlog

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.workers import WATCH_S, Liveness
from gateway.analyses.metrics import DEAD_LETTERS, DEATHS_COUNTED, TAKEN_OVER, WORKERS_DIED
from gateway.analyses.worker.processes import is_gone
from gateway.analyses.worker.pulse import DEAD_S
from gateway.analyses.worker.workflow import Workflows
from gateway.domain.analysis import State

log = structlog.get_logger("gateway.analyses.worker.reaper")

LEASE = "reaper"
JUMP_S = 30.0
"""A wall clock that goes so far away from the monotonic one between two ticks was set."""
PRUNE_S = 20.0
"""How often workflows that ended long ago are forgotten."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks, in seconds."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class Reaper:
    """One a worker. `tick` is called every second or so."""

    def __init__(self, ledger: Ledger, workflows: Workflows, worker: str, clock: Clock = Clock()) -> None:
        self._ledger = ledger
        self._workflows = workflows
        self._worker = worker
        self._clock = clock
        self._liveness = Liveness(WATCH_S, clock.monotonic)
        self._offset_s = clock.wall() - clock.monotonic()
        self._elected = False
        self._living = 1
        self._prune_s = 0.0

    @property
    def elected(self) -> bool:
        """Whether this one held the lease at the last tick."""
        return self._elected

    @property
    def living(self) -> int:
        """How many workers lived at the last tick, this one among them."""
        return self._living

    def tick(self) -> None:
        workers = {each.id: each for each in self._ledger.workers.all()}
        silent_s = self._liveness.silent_s({each.id: each.beats for each in workers.values()})
        gone = {each.id for each in workers.values() if each.id != self._worker and is_gone(each.host, each.pid)}
        for worker in sorted(gone):
            self._bury(worker)
        self._elected = self._ledger.workers.lease(LEASE, self._worker)
        silent = {each for each, seconds in silent_s.items() if seconds > DEAD_S} - gone - {self._worker}
        self._living = max(1, len(workers) - len(gone) - len(silent))
        jump_s = self._jump_s()
        if not self._elected:
            return
        for worker in sorted(silent):
            self._bury(worker)
        if jump_s:
            log.warning("the wall clock was set; deadlines move with it", seconds=round(jump_s))
            self._ledger.rescues.shift(jump_s)
            self._ledger.outbox.shift(jump_s)
        self._ledger.rescues.free_left()
        for analysis_id in self._ledger.rescues.expire():
            self._workflows.note_end(analysis_id)
        self._sweep(gone | silent)
        if self._clock.monotonic() >= self._prune_s:
            self._prune_s = self._clock.monotonic() + PRUNE_S
            self._workflows.prune()

    def _bury(self, worker: str) -> None:
        """Free what a dead worker had in hand. May be repeated: its heartbeat goes last."""
        log.warning("worker is dead; others take over", worker_id=worker)
        rescued = self._ledger.rescues.take_over(worker)
        self._ledger.outbox.free(worker)
        self._ledger.workers.leave(worker)
        WORKERS_DIED.inc()
        for each in rescued:
            TAKEN_OVER.inc()
            DEATHS_COUNTED.inc(each.counted)
            log.warning("analysis is taken over", analysis_id=each.analysis, state=each.state.value)
            if each.state.final:
                DEAD_LETTERS.inc(each.state is State.FAILED)
                self._workflows.note_end(each.analysis)

    def _sweep(self, dead: Set[str]) -> None:
        """Put back into the queues what the engine believes to be at work in workers that are no more."""
        at_work = self._workflows.pending()
        # Read after it: a worker beats before it takes anything up.
        living = {each.id for each in self._ledger.workers.all()} - dead
        for each in at_work:
            if each.executor_id not in living:
                self._workflows.put_back(each.workflow_id, each.executor_id)

    def _jump_s(self) -> float:
        offset_s = self._clock.wall() - self._clock.monotonic()
        jump_s = offset_s - self._offset_s
        self._offset_s = offset_s
        return jump_s if abs(jump_s) > JUMP_S else 0.0
