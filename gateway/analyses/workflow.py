"""The durable workflow: fetch, infer, report, deliver as steps that a restart does not repeat (DBOS Transact).

A step's outcome is a small JSON object in the workflow database; the case's data lie in its folder. Errors never pass
through the workflow engine: a step returns how it ended, so that what is stored stays readable by any version.
"""

import asyncio
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from dbos import DBOS, SetWorkflowID
from sqlalchemy.exc import SQLAlchemyError

from gateway.analyses.ledger import Ledger
from gateway.analyses.metrics import DEAD_LETTERS, STEP_ATTEMPTS, STEP_SECONDS, TURNAROUND_SECONDS
from gateway.domain.analysis import Failure, Progress, State, Step
from gateway.domain.order import Order
from gateway.operations.errors import Cancelled, KillsWorker, PathserveError, StateError

APPLICATION_VERSION = "pathserve-analysis-1"
"""Ours, never derived: a worker takes up only the workflows of its own version, and a library update must not strand
orders. Change it only together with a migration of what is in flight."""

QUEUE = "analyses"
MAX_ATTEMPTS = 5
INTERRUPT_GRACE_S = 5.0
PROGRESS_INTERVAL_S = 0.25
INTERNAL = Failure("internal", "An internal error stopped the analysis; the server's log names it under this id.")

log = structlog.get_logger("gateway.analyses.workflow")

T = TypeVar("T")


class Case(Protocol):
    """One analysis at work. Every step may be repeated after a kill; what it had finished is not done again."""

    async def fetch(self) -> dict[str, Any]: ...
    async def infer(self) -> dict[str, Any]: ...
    async def report(self) -> dict[str, Any]: ...
    async def deliver(self) -> dict[str, Any]: ...


MakeCase = Callable[[str, Order, Path, Callable[[Progress], None], Callable[[], bool]], Case]
"""(analysis id, order, folder, progress, cancelled) -> Case."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and after which pauses, a step is tried again whose error may pass.

    An error that says when another try may succeed is waited for, and where it ends the last try, there is one more:
    an archive that is left alone for some seconds may be well for long.
    """

    attempts: int = 5
    delay_s: float = 2.0

    def again(self, attempt: int, error: PathserveError) -> bool:
        """Whether another try follows this one (counted from 1)."""
        return error.retryable and attempt < self.attempts + (error.after_s > 0)

    def pause_s(self, attempt: int, after_s: float = 0.0) -> float:
        """The seconds before the next try."""
        return min(60.0, max(after_s, self.delay_s * 2.0 ** (attempt - 1)))


class AnalysisWorkflow:
    """The workflow of one worker process. Made before `DBOS.launch()`, which may start recovered runs at once."""

    def __init__(self, ledger: Ledger, analyses: Path, make_case: MakeCase, retry: Retry) -> None:
        self._ledger = ledger
        self._analyses = analyses
        self._make_case = make_case
        self._retry = retry
        self._stopping = threading.Event()
        self._cancelled: frozenset[str] = frozenset()
        self._active: set[str] = set()

        async def analysis(analysis_id: str) -> str:
            return await self._run(analysis_id)

        # The worker's own count decides when to give up (`MAX_ATTEMPTS`), because it knows of progress in between.
        self._workflow = DBOS.workflow(name="analysis", max_recovery_attempts=None)(analysis)

    @property
    def active(self) -> frozenset[str]:
        """The analyses that this process works on now."""
        return frozenset(self._active)

    def start(self, analysis_id: str) -> None:
        """Start the durable workflow under the analysis id; where it exists already, nothing happens."""
        # By the queue, never by `start_workflow`: that waits in a thread, which takes the cancellation of a stop for
        # the workflow's own error and stores it; what the queue starts is left resumable.
        with SetWorkflowID(analysis_id):
            DBOS.enqueue_workflow(QUEUE, self._workflow, analysis_id)

    def status(self, analysis_id: str) -> str | None:
        """What the engine says of the workflow (PENDING, SUCCESS, ERROR, …); None where it has never been started."""
        found = DBOS.get_workflow_status(analysis_id)
        return None if found is None else str(found.status)

    def resume(self, analysis_id: str) -> None:
        """Put a workflow that is begun, not ended and not at work here back into the queue."""
        log.warning("analysis is taken up again", analysis_id=analysis_id)
        DBOS.resume_workflow(analysis_id, queue_name=QUEUE)

    def request_cancel(self, analysis_ids: frozenset[str]) -> None:
        """Tell the running steps which analyses are to end."""
        self._cancelled = analysis_ids

    def stop(self) -> None:
        """Ask every running step to stop at its next batch; the analyses stay resumable."""
        self._stopping.set()

    async def _run(self, analysis_id: str) -> str:
        self._active.add(analysis_id)
        structlog.contextvars.bind_contextvars(analysis_id=analysis_id)
        try:
            # Counted at every begin, recovered ones included, so it is no durable step.
            attempt = await self._noted(self._ledger.count_attempt, analysis_id)
            log.info("analysis begins", attempt=attempt)
            end = await self._steps(analysis_id, attempt)
            return await self._noted(self._finish, analysis_id, end)
        except asyncio.CancelledError:
            log.info("analysis interrupted, to be resumed")
            if self._stopping.is_set():
                # Synchronous on purpose: this task is being cancelled and must not wait again.
                with suppress(StateError):
                    self._ledger.forgive_attempt(analysis_id)
            raise
        except SQLAlchemyError:
            # The engine could not write a step's outcome down (its disk is full, say). The case is not to blame, and
            # the engine stores nothing of a run that is cancelled: the dispatcher takes it up again.
            log.exception("the workflow engine's database cannot be used; trying again")
            await self._noted(self._ledger.forgive_attempt, analysis_id)
            raise asyncio.CancelledError from None
        finally:
            self._active.discard(analysis_id)

    async def _steps(self, analysis_id: str, attempt: int) -> dict[str, Any]:
        if attempt > MAX_ATTEMPTS:
            DEAD_LETTERS.inc()
            return {
                "state": State.FAILED.value,
                "reason": KillsWorker.reason,
                "detail": f"The worker process died {MAX_ATTEMPTS} times on this analysis without getting any further; "
                "see the server's log, and order it again once the cause is removed.",
            }
        record = await self._noted(self._ledger.get, analysis_id)
        if record.analysis.state.final:
            return {"state": record.analysis.state.value, "reason": "", "detail": ""}
        throttle = _Throttle(lambda progress: self._record_progress(analysis_id, progress))
        case: Case | None = None

        def make() -> Case:
            nonlocal case
            if case is None:
                case = self._make_case(
                    analysis_id,
                    record.analysis.order,
                    self._analyses / analysis_id,
                    throttle,
                    lambda: self._interrupted(analysis_id),
                )
            return case

        for step in Step:

            async def body(step: Step = step) -> dict[str, Any]:
                return await self._step(analysis_id, step, make, throttle)

            outcome: dict[str, Any] = await DBOS.run_step_async({"name": step.value}, body)
            if "state" in outcome:
                return outcome
            # Told only now that the engine has it on disk: what is told as finished is never done again.
            await self._noted(self._ledger.record_finished, analysis_id, step, outcome["seconds"])
        return {"state": State.COMPLETED.value}

    async def _step(
        self, analysis_id: str, step: Step, make: Callable[[], Case], throttle: "_Throttle"
    ) -> dict[str, Any]:
        """One durable step: {"summary", "seconds"}, or {"state", "reason", "detail"} where the analysis ends."""
        structlog.contextvars.bind_contextvars(analysis_id=analysis_id, step=step.value)
        attempt = 0
        while True:
            attempt += 1
            began = time.monotonic()
            try:
                if step is Step.DELIVER:
                    await self._noted(self._ledger.begin_delivery, analysis_id)
                await self._event(analysis_id, step, "started", attempt=attempt)
                summary = await self._watched(analysis_id, getattr(make(), step.value))
                await asyncio.to_thread(throttle.flush)
            except Cancelled:
                self._leave_resumable_when_stopping(analysis_id)
                STEP_ATTEMPTS.labels(step.value, "cancelled").inc()
                return {"state": State.CANCELLED.value}
            except PathserveError as error:
                self._leave_resumable_when_stopping(analysis_id)
                outcome = "retry" if self._retry.again(attempt, error) else "failed"
                STEP_ATTEMPTS.labels(step.value, outcome).inc()
                # The sentence may name a study or series; it is kept with the analysis, not in the log.
                log.warning("step did not succeed", reason=error.reason, attempt=attempt)
                if outcome == "failed":
                    return {"state": State.FAILED.value, "reason": error.reason, "detail": error.detail}
                await self._event(analysis_id, step, "retry", attempt=attempt, reason=error.reason)
                await self._pause(analysis_id, self._retry.pause_s(attempt, error.after_s))
            except Exception:
                self._leave_resumable_when_stopping(analysis_id)
                STEP_ATTEMPTS.labels(step.value, "error").inc()
                log.exception("step ended by an unexpected error")
                return {"state": State.FAILED.value, "reason": INTERNAL.reason, "detail": INTERNAL.detail}
            else:
                seconds = time.monotonic() - began
                STEP_SECONDS.labels(step.value).observe(seconds)
                STEP_ATTEMPTS.labels(step.value, "ok").inc()
                return {"summary": summary, "seconds": round(seconds, 3)}

    async def _watched(self, analysis_id: str, step: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Run a step; where it does not heed an interruption by itself within a grace time, cancel it."""
        if self._interrupted(analysis_id):
            raise Cancelled("The analysis was cancelled.")
        task = asyncio.ensure_future(step())
        interrupted_at: float | None = None
        try:
            while not (await asyncio.wait({task}, timeout=0.2))[0]:
                if not self._interrupted(analysis_id):
                    continue
                interrupted_at = interrupted_at or time.monotonic()
                if time.monotonic() - interrupted_at > INTERRUPT_GRACE_S:
                    task.cancel()
                    await asyncio.wait({task}, timeout=1.0)
                    raise Cancelled("The analysis was cancelled.")
            if task.cancelled():
                # Passed on as it is, it would look like a stop of this process, and nobody would take the case up.
                if self._interrupted(analysis_id):
                    raise Cancelled("The analysis was cancelled.")
                raise RuntimeError("the step cancelled itself")
            return task.result()
        finally:
            task.cancel()

    async def _pause(self, analysis_id: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._interrupted(analysis_id):
            await asyncio.sleep(min(0.2, seconds))

    def _interrupted(self, analysis_id: str) -> bool:
        return self._stopping.is_set() or analysis_id in self._cancelled

    def _leave_resumable_when_stopping(self, analysis_id: str) -> None:
        # Raised out of a step, this alone makes the engine record nothing: the step runs again at the next start.
        if self._stopping.is_set() and analysis_id not in self._cancelled:
            raise asyncio.CancelledError

    async def _event(self, analysis_id: str, step: Step, status: str, **more: Any) -> None:
        data = {"step": step.value, "status": status} | more
        await self._noted(self._ledger.record_event, analysis_id, "step", data)

    def _record_progress(self, analysis_id: str, progress: Progress) -> None:
        try:
            self._ledger.record_progress(analysis_id, progress)
        except StateError as error:
            # The next note says it as well; a step must not end for it.
            log.warning("progress could not be noted", reason=error.reason)

    async def _noted(self, note: Callable[..., T], *arguments: Any) -> T:
        """Call the ledger, as often as it takes: what cannot be written now must not end an analysis otherwise.

        Raises CancelledError, which leaves the analysis resumable, where the worker stops meanwhile.
        """
        attempt = 0
        while True:
            try:
                return await asyncio.to_thread(note, *arguments)
            except StateError as error:
                attempt += 1
                pause_s = max(0.2, self._retry.pause_s(min(attempt, 10)))
                log.warning("the ledger cannot be used; trying again", reason=error.reason, seconds=pause_s)
                until = time.monotonic() + pause_s
                while time.monotonic() < until:
                    if self._stopping.is_set():
                        raise asyncio.CancelledError from None
                    await asyncio.sleep(0.1)

    def _finish(self, analysis_id: str, end: dict[str, Any]) -> str:
        state = State(end["state"])
        failure = Failure(end["reason"], end["detail"]) if state is State.FAILED else None
        held = self._ledger.finish(analysis_id, state, failure)
        if held is not State.COMPLETED:  # a report only stays where its analysis completed
            for name in ("artifacts", "artifacts.part"):
                shutil.rmtree(self._analyses / analysis_id / name, ignore_errors=True)
        record = self._ledger.get(analysis_id).analysis
        seconds = (record.updated - record.created).total_seconds()
        TURNAROUND_SECONDS.labels(record.order.protocol, record.order.priority.value, held.value).observe(seconds)
        log.info("analysis ends", state=held.value, reason=end.get("reason"), seconds=round(seconds, 3))
        return held.value

    def abandon(self, analysis_id: str) -> None:
        """End an analysis whose workflow the engine has given up (a fault of ours, not of the slide)."""
        log.error("workflow ended without ending its analysis", analysis_id=analysis_id)
        self._finish(analysis_id, {"state": State.FAILED.value, "reason": INTERNAL.reason, "detail": INTERNAL.detail})


class _Throttle:
    """Passes at most one progress note per interval on, and on `flush` the last one. Called from any thread."""

    def __init__(self, sink: Callable[[Progress], None]) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._last_s = 0.0
        self._waiting: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._waiting = progress
            if time.monotonic() - self._last_s < PROGRESS_INTERVAL_S:
                return
        self.flush()

    def flush(self) -> None:
        with self._lock:
            progress, self._waiting = self._waiting, None
            if progress is None:
                return
            self._last_s = time.monotonic()
            self._sink(progress)
