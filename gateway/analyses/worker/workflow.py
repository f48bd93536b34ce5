"""The durable workflows of one worker process: fetch, infer (with report) and deliver, each a queue (DBOS Transact).

They are the queue and nothing more: the ledger says what is due, and a turn that begins asks it first. A step's outcome
is a small JSON object in the workflow database; the case's data lie in its folder. Errors never pass through the
engine: a step returns how it ended, so that what is stored stays readable by any version.
"""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from dbos import DBOS, SetEnqueueOptions, SetWorkflowID, WorkflowStatus
from sqlalchemy.exc import SQLAlchemyError

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.revisions import first_revision
from gateway.analyses.ledger.runs import Held
from gateway.analyses.ledger.turns import Stage, Turn, parsed
from gateway.analyses.metrics import TURNAROUND_SECONDS, TURNS, TURNS_LOST
from gateway.analyses.worker.gate import Gate
from gateway.analyses.worker.pulse import Pulse
from gateway.analyses.worker.stages import Interruption, MakeCase, Retry, StageWork
from gateway.domain.analysis import Failure, State, Step
from gateway.operations.errors import Cancelled, StateError, TurnLost

APPLICATION_VERSION = "pathserve-analysis-2"
"""Ours, never derived: a worker takes up only the workflows of its own version, and a library update must not strand
orders. What another version has left is taken up by the ledger's word."""

_FORMER_VERSIONS = ("pathserve-analysis-1",)

ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

_KEPT = timedelta(days=1)
"""How long what has ended is kept, by its beginning: for whoever looks why."""
_PRUNED = 500

log = structlog.get_logger("gateway.analyses.worker.workflow")

Attempt = Callable[[str, Callable[[], bool]], None]
"""(workflow, stopped): one try of a delivery, from its beginning to its settlement."""


@dataclass(slots=True)
class _AtWork:
    """What this process works on now. `interruption` is told from outside."""

    turn: Turn | None
    silences: int
    interruption: Interruption | None = field(default=None)


class Workflows:
    """The workflows of one worker. Made before `DBOS.launch()`, which looks for them."""

    def __init__(
        self,
        ledger: Ledger,
        analyses: Path,
        worker: str,
        *,
        make_case: MakeCase,
        attempt: Attempt,
        retry: Retry,
        pulse: Pulse,
        moved: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._analyses = analyses
        self._worker = worker
        self._make_case = make_case
        self._attempt = attempt
        self._retry = retry
        self._pulse = pulse
        self._moved = moved
        self._gate = Gate()
        self._stopping = threading.Event()
        self._active: dict[str, _AtWork] = {}
        # At work, or at the gate.
        self._inside: set[str] = set()

        async def fetch(workflow: str) -> str:
            return await self._stage(workflow, self._fetch)

        async def infer(workflow: str) -> str:
            return await self._stage(workflow, self._infer)

        async def deliver(workflow: str) -> str:
            return await self._deliver(workflow)

        # Deaths are counted in the ledger, which knows whether the analysis is to blame.
        self._bodies = {
            Stage(body.__name__): DBOS.workflow(name=body.__name__, max_recovery_attempts=None)(body)
            for body in (fetch, infer, deliver)
        }

    # The queue

    def enqueue(self, workflow: str, stage: Stage, rank: int) -> None:
        """Put a workflow into its queue; where it exists already, nothing happens."""
        with SetWorkflowID(workflow), SetEnqueueOptions(priority=rank + 1):
            DBOS.enqueue_workflow(stage.value, self._bodies[stage], workflow)

    def statuses(self, workflows: Sequence[str]) -> Mapping[str, WorkflowStatus]:
        """What the engine knows of them."""
        found = DBOS.list_workflows(workflow_ids=list(workflows), load_input=False, load_output=False)
        return {each.workflow_id: each for each in found}

    def forgotten(self) -> frozenset[str]:
        """The workflows that the engine believes to be at work here, and that neither are nor wait for the gate."""
        pending = DBOS.list_workflows(status="PENDING", executor_id=self._worker, load_input=False, load_output=False)
        return frozenset(each.workflow_id for each in pending) - self._inside

    def pending(self) -> tuple[WorkflowStatus, ...]:
        """Everything that the engine believes to be at work anywhere, and what other versions have left."""
        at_work = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
        waiting = DBOS.list_workflows(
            status="ENQUEUED", app_version=list(_FORMER_VERSIONS), load_input=False, load_output=False
        )
        return (*at_work, *waiting)

    def put_back(self, workflow: str, executor: str) -> None:
        """Put a workflow that nobody works on back into its queue; one that is no longer due ends.

        Nothing is done where the engine has meanwhile given it to another executor.
        """
        status = self.statuses([workflow]).get(workflow)
        if status is None or status.executor_id != executor or status.status in ENDED:
            return
        if status.app_version == APPLICATION_VERSION and self._ledger.runs.is_due(workflow):
            log.info("a stage is taken up again", workflow=workflow)
            DBOS.resume_workflow(workflow, queue_name=parsed(workflow)[2])
        else:
            DBOS.cancel_workflow(workflow)

    def renew(self, workflow: str, stage: Stage, rank: int) -> None:
        """Put a stage that is due into its queue anew, though a workflow of that name has ended."""
        DBOS.delete_workflow(workflow)
        self.enqueue(workflow, stage, rank)

    def prune(self) -> None:
        """Forget workflows that ended long ago, some at a time: the ledger alone decides what is due, so that nothing
        depends on them."""
        before = (datetime.now(UTC) - _KEPT).isoformat()
        ended = DBOS.list_workflows(
            status=list(ENDED), end_time=before, limit=_PRUNED, load_input=False, load_output=False
        )
        if ended:
            DBOS.delete_workflows([each.workflow_id for each in ended])

    # What the dispatcher tells

    @property
    def turns(self) -> Mapping[str, Turn]:
        """The turns at work now, by workflow."""
        return {workflow: at.turn for workflow, at in list(self._active.items()) if at.turn is not None}

    @property
    def count(self) -> int:
        """How many workflows are at work now."""
        return len(self._active)

    def heed(self, turns: Mapping[str, Turn], held: Mapping[str, Held]) -> None:
        """End the turns that the ledger, asked after they had begun, no longer knows, or that somebody cancels."""
        for workflow, turn in turns.items():
            at, seen = self._active.get(workflow), held.get(turn.analysis)
            if at is None:
                continue
            if seen is None or seen.attempt != turn.attempt:
                at.interruption = Interruption.LEFT
            elif seen.cancel_requested:
                at.interruption = at.interruption or Interruption.CANCELLED

    def stop(self) -> None:
        """Ask everything at work to stop at its next batch; the work is left to others."""
        self._stopping.set()

    def _interrupted(self, at: _AtWork) -> Interruption | None:
        if self._stopping.is_set() or self._pulse.silences() != at.silences:
            return Interruption.LEFT
        return at.interruption

    # The bodies

    @asynccontextmanager
    async def _let_in(self, workflow: str, *, may_be_alone: bool) -> AsyncIterator[None]:
        """Wait at the gate, known as one that waits: it is not forgotten, however long that takes."""
        self._inside.add(workflow)
        try:
            alone = may_be_alone and await self._patiently(self._ledger.runs.is_alone, workflow)
            async with self._gate.entered(alone):
                if self._stopping.is_set():
                    raise asyncio.CancelledError
                yield
        finally:
            self._inside.discard(workflow)

    async def _stage(self, workflow: str, work: Callable[[Turn, StageWork], Awaitable[dict[str, Any]]]) -> str:
        structlog.contextvars.bind_contextvars(analysis_id=workflow.partition(".")[0])
        runs = self._ledger.runs
        async with self._let_in(workflow, may_be_alone=True):
            at = self._active[workflow] = _AtWork(None, self._pulse.silences())
            try:
                turn = at.turn = await self._patiently(runs.begin, workflow, self._worker)
                if turn is None:
                    return "not due"
                TURNS.labels(turn.stage.value).inc()
                log.info("turn begins", stage=turn.stage.value, attempt=turn.attempt)
                stage_work = StageWork(
                    turn,
                    self._analyses / turn.analysis,
                    runs=runs,
                    make_case=self._make_case,
                    retry=self._retry,
                    interrupted=lambda: self._interrupted(at),
                )
                return await self._ended(turn, stage_work, await work(turn, stage_work))
            except TurnLost:
                TURNS_LOST.inc()
                log.warning("turn is lost")
                if await self._patiently(runs.is_due, workflow):
                    raise asyncio.CancelledError from None
                await asyncio.to_thread(self._tidy, workflow.partition(".")[0])
                return "lost"
            except asyncio.CancelledError:
                log.info("turn is left to others")
                if at.turn is not None and self._stopping.is_set():
                    # Synchronous on purpose: this task may be being cancelled and must not wait again.
                    with suppress(StateError):
                        runs.give_back(at.turn.analysis, self._worker, at.turn.attempt)
                raise
            except SQLAlchemyError:
                # The engine could not write a step's outcome down (its disk is full, say). The case is not to blame,
                # and the engine stores nothing of a workflow that is cancelled: the dispatcher takes it up again.
                log.exception("the workflow engine's database cannot be used; trying again")
                raise asyncio.CancelledError from None
            finally:
                del self._active[workflow]
                self._moved()

    async def _fetch(self, turn: Turn, work: StageWork) -> dict[str, Any]:
        outcome = await work.step(Step.FETCH)
        if "state" not in outcome:
            await work.noted(self._ledger.runs.finished_step, turn, Step.FETCH, outcome["seconds"])
            await work.noted(self._ledger.runs.advance, turn)
        return outcome

    async def _infer(self, turn: Turn, work: StageWork) -> dict[str, Any]:
        outcome: dict[str, Any] = {}
        for step in (Step.INFER, Step.REPORT):

            async def body(step: Step = step) -> dict[str, Any]:
                return await work.step(step)

            outcome = await DBOS.run_step_async({"name": step.value}, body)
            if "state" in outcome:
                return outcome
            # Told only now that the engine has it on disk: what is told as finished is never done again.
            await work.noted(self._ledger.runs.finished_step, turn, step, outcome["seconds"])
        try:
            report = await asyncio.to_thread(
                first_revision, turn.analysis, self._analyses / turn.analysis / "artifacts"
            )
        except StateError as error:
            return {"state": State.FAILED.value, "reason": error.reason, "detail": error.detail}
        try:
            await work.noted(self._ledger.runs.reported, turn, report)
        except Cancelled:
            return {"state": State.CANCELLED.value}
        return outcome

    async def _ended(self, turn: Turn, work: StageWork, outcome: dict[str, Any]) -> str:
        """Carry out how a stage ended."""
        state = State(outcome.get("state", State.RUNNING))
        if not state.final:
            return state.value
        failure = Failure(outcome["reason"], outcome["detail"]) if state is State.FAILED else None
        held = await work.noted(self._ledger.runs.finish, turn, state, failure)
        await asyncio.to_thread(self._tidy, turn.analysis)
        await self._patiently(self.note_end, turn.analysis)
        return held.value

    async def _deliver(self, workflow: str) -> str:
        async with self._let_in(workflow, may_be_alone=False):
            at = self._active[workflow] = _AtWork(None, self._pulse.silences())
            try:
                await asyncio.to_thread(self._attempt, workflow, lambda: self._interrupted(at) is not None)
            except (TurnLost, StateError) as error:
                # The outbox says what is due; this try is over in any case.
                log.warning("delivery is left to others", reason=error.reason)
            finally:
                del self._active[workflow]
                self._moved()
        return "tried"

    def _tidy(self, analysis_id: str) -> None:
        """A report only stays where its analysis may complete."""
        with suppress(StateError):
            if self._ledger.get(analysis_id).analysis.state in (State.FAILED, State.CANCELLED):
                for name in ("artifacts", "artifacts.part"):
                    shutil.rmtree(self._analyses / analysis_id / name, ignore_errors=True)

    def note_end(self, analysis_id: str) -> None:
        """Tell log and metrics of an analysis that has just ended."""
        analysis = self._ledger.get(analysis_id).analysis
        seconds = (analysis.updated - analysis.created).total_seconds()
        order, reason = analysis.order, analysis.failure.reason if analysis.failure else None
        TURNAROUND_SECONDS.labels(order.protocol, order.priority.value, analysis.state.value).observe(max(0.0, seconds))
        log.info(
            "analysis ends",
            analysis_id=analysis_id,
            state=analysis.state.value,
            reason=reason,
            seconds=round(seconds, 3),
        )

    async def _patiently(self, use: Callable[..., Any], *arguments: Any) -> Any:
        """Use the ledger before, or after, a turn, as often as it takes; a worker that stops waits no longer."""
        while True:
            if self._stopping.is_set():
                raise asyncio.CancelledError
            try:
                return await asyncio.to_thread(use, *arguments)
            except StateError as error:
                log.warning("the ledger cannot be used; trying again", reason=error.reason, seconds=0.5)
                await asyncio.sleep(0.5)
