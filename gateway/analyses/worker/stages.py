"""One turn at work: the steps of a stage with their retries, until they are done, or the turn is to end."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from gateway.analyses.identity import IdentityHeld
from gateway.analyses.ledger.runs import Runs
from gateway.analyses.ledger.turns import Turn
from gateway.analyses.metrics import STEP_ATTEMPTS, STEP_SECONDS
from gateway.domain.analysis import Failure, Progress, State, Step
from gateway.operations.errors import Cancelled, PathserveError, StateError, TurnLost

INTERRUPT_GRACE_S = 5.0
PROGRESS_INTERVAL_S = 0.25
LEDGER_RETRY_S = 0.5
INTERNAL = Failure("internal", "An internal error stopped the analysis; the server's log names it under this id.")

log = structlog.get_logger("gateway.analyses.worker.stages")

T = TypeVar("T")


class Case(Protocol):
    """One analysis at work. Every step may be repeated after a kill; what it had finished is not done again.

    `report` leaves the report's files in the folder `artifacts` of the analysis's own.
    """

    async def fetch(self) -> dict[str, Any]: ...
    async def infer(self) -> dict[str, Any]: ...
    async def report(self) -> dict[str, Any]: ...


MakeCase = Callable[[Turn, Path, Callable[[Progress], None], Callable[[], bool]], Case]
"""(turn, folder, progress, cancelled) -> Case."""


class Interruption(Enum):
    """Why a turn is to end before its work is done."""

    CANCELLED = auto()
    """Somebody asked for it."""
    LEFT = auto()
    """The work is another's, or is left to others: nothing is to be said of it."""


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


class StageWork:
    """The steps of one turn. `interrupted` says at any moment, from any thread, whether it is to end."""

    def __init__(
        self,
        turn: Turn,
        folder: Path,
        *,
        runs: Runs,
        make_case: MakeCase,
        retry: Retry,
        interrupted: Callable[[], Interruption | None],
    ) -> None:
        self._turn = turn
        self._folder = folder
        self._runs = runs
        self._make_case = make_case
        self._retry = retry
        self._interrupted = interrupted
        self._throttle = _Throttle(self._note_progress)
        self._lost = False
        self._case: Case | None = None

    async def step(self, step: Step) -> dict[str, Any]:
        """One step: {"summary", "seconds"}, or {"state", "reason", "detail"} where the analysis ends, or is held.

        Raises TurnLost; asyncio.CancelledError where the work is left to others.
        """
        structlog.contextvars.bind_contextvars(step=step.value)
        attempt = 0
        while True:
            attempt += 1
            began = time.monotonic()
            try:
                await self.noted(self._runs.note, self._turn, step, "started", attempt=attempt)
                summary = await self._watched(step)
                await asyncio.to_thread(self._throttle.flush)
            except TurnLost:
                raise
            except IdentityHeld as held:
                await self.noted(self._runs.hold, self._turn, held.differences)
                return {"state": State.HELD_IDENTITY.value}
            except Cancelled:
                self._leave_where_others_go_on()
                STEP_ATTEMPTS.labels(step.value, "cancelled").inc()
                return {"state": State.CANCELLED.value}
            except PathserveError as error:
                self._leave_where_others_go_on()
                outcome = "retry" if self._retry.again(attempt, error) else "failed"
                STEP_ATTEMPTS.labels(step.value, outcome).inc()
                # The sentence may name a study or series; it is kept with the analysis, not in the log.
                log.warning("step did not succeed", reason=error.reason, attempt=attempt)
                if outcome == "failed":
                    return {"state": State.FAILED.value, "reason": error.reason, "detail": error.detail}
                await self.noted(self._runs.note, self._turn, step, "retry", attempt=attempt, reason=error.reason)
                await self._pause(self._retry.pause_s(attempt, error.after_s))
            except Exception:
                self._leave_where_others_go_on()
                STEP_ATTEMPTS.labels(step.value, "error").inc()
                log.exception("step ended by an unexpected error")
                return {"state": State.FAILED.value, "reason": INTERNAL.reason, "detail": INTERNAL.detail}
            else:
                seconds = time.monotonic() - began
                STEP_SECONDS.labels(step.value).observe(seconds)
                STEP_ATTEMPTS.labels(step.value, "ok").inc()
                return {"summary": summary, "seconds": round(seconds, 3)}

    async def noted(self, note: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """Write to the ledger, as often as it takes: a database that is away ends no analysis.

        Raises what `note` raises but StateError; asyncio.CancelledError where the work is left to others meanwhile.
        """
        while True:
            try:
                return await asyncio.to_thread(note, *arguments, **more)
            except StateError as error:
                log.warning("the ledger cannot be written; trying again", reason=error.reason, seconds=LEDGER_RETRY_S)
                until = time.monotonic() + LEDGER_RETRY_S
                while time.monotonic() < until:
                    self._leave_where_others_go_on()
                    await asyncio.sleep(0.1)

    async def _watched(self, step: Step) -> dict[str, Any]:
        """Run a step; where it does not heed an interruption by itself within a grace time, cancel it."""
        if self._case is None:
            self._case = self._make_case(self._turn, self._folder, self._throttle, self._is_over)
        if self._is_over():
            raise Cancelled("The analysis was cancelled.")
        work: Awaitable[dict[str, Any]] = getattr(self._case, step.value)()
        task = asyncio.ensure_future(work)
        interrupted_at: float | None = None
        try:
            while not (await asyncio.wait({task}, timeout=0.2))[0]:
                if not self._is_over():
                    continue
                interrupted_at = interrupted_at or time.monotonic()
                if time.monotonic() - interrupted_at > INTERRUPT_GRACE_S:
                    task.cancel()
                    await asyncio.wait({task}, timeout=1.0)
                    raise Cancelled("The analysis was cancelled.")
            if task.cancelled():
                # Passed on as it is, it would look like a stop of this process, and nobody would take the case up.
                if self._is_over():
                    raise Cancelled("The analysis was cancelled.")
                raise RuntimeError("the step cancelled itself")
            return task.result()
        finally:
            task.cancel()

    async def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._is_over():
            await asyncio.sleep(min(0.2, seconds))

    def _is_over(self) -> bool:
        return self._lost or self._interrupted() is not None

    def _leave_where_others_go_on(self) -> None:
        if self._lost:
            raise TurnLost("The analysis was taken over by another worker, or has ended meanwhile.")
        if self._interrupted() is Interruption.LEFT:
            # Raised out of a step, this alone makes the engine record nothing: the step runs again, here or elsewhere.
            raise asyncio.CancelledError

    def _note_progress(self, progress: Progress) -> None:
        try:
            self._runs.progress(self._turn, progress)
        except TurnLost:
            self._lost = True
        except StateError as error:
            # The next note says it as well; a step must not end for it.
            log.warning("progress could not be noted", reason=error.reason)


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
