"""Segmentation while somebody waits: requests beside the orders, let in here and worked on by a child process.

Nothing of this is in an order's way: the child is a guest of the Triton that the workers keep. The event loop here runs
in a thread of the process that answers requests; it reads no slide and asks no model itself.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import structlog

from gateway.analyses.ledger.choices import Choices
from gateway.analyses.segment_process import SegmentProcess
from gateway.analyses.segment_wire import failed
from gateway.domain.segment import SegmentAnswer, SegmentAsk
from gateway.operations.errors import Cancelled, DeadlineExceeded, PathserveError, StateBusy, TooManyRequests
from gateway.operations.settings import Settings
from gateway.operations.threads import to_the_end

DEADLINE_S = 60.0
"""In which a request is answered, its wait for others included; ending it then may take some seconds more."""
AT_ONCE, MOST_WAITING, MOST_EACH = 2, 16, 4
"""Requests that are worked on at the same time, and those that may be there with the ones that wait for their turn: of
all callers, and of one."""
IDLE_S = 300.0
"""After which without a request the child is ended, and what it kept of regions goes."""
_LOOK_S = 15.0
_ENDING_S, _CLOSE_S = 2.0, 9.0
"""After `stop`, in which requests end by a word, and in which the end has come or is not waited for."""

log = structlog.get_logger("gateway.analyses.interactive")


class Interactive:
    """Thread-safe. The loop starts with the first request and ends with `close`. `choices`: which versions of models
    serve now, read in a thread for each request."""

    def __init__(self, settings: Settings, choices: Callable[[], Choices]) -> None:
        self._starting = threading.RLock()  # a signal's handler may stop it while its thread begins a request
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._over = asyncio.Event()
        self._ends_s: float | None = None
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._process = SegmentProcess(settings, choices)
        self._here: set[asyncio.Task[SegmentAnswer]] = set()
        self._places: Counter[str] = Counter()
        self._used_s = 0.0

    def begin(
        self,
        ask: SegmentAsk,
        caller: str,
        admit: Callable[[], None],
        note: Callable[[PathserveError | None], None],
    ) -> "Future[SegmentAnswer]":
        """The answer to come; this does not block. Cancelling the future stops the work, down to Triton.

        `admit` is called first, in a thread; what it raises is the answer. `note` is called once, in a thread too, with
        what came of one that was let in and got a place, whatever that is: before anybody has it, and also where its
        time or its caller's patience ends before. The other errors: PromptInvalid, InvalidOrder (the region),
        ResolutionTooCoarse and other SlideErrors, IdentityMismatch, ArchiveError, InferenceError, TooManyRequests,
        DeadlineExceeded, StateError; PathserveError itself where nobody foresaw it. Raises StateBusy where the server
        stops.
        """
        with self._starting:
            if self._over.is_set() or self._ends_s is not None:
                raise _stopping()
            if self._loop is None:
                self._loop = asyncio.SelectorEventLoop()
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name="interactive", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(self._answer(ask, caller, admit, note), self._loop)

    def stop(self) -> None:
        """Begin to end what is being answered, and the child."""
        with self._starting:
            self._ends_s = self._ends_s or time.monotonic() + _CLOSE_S
            if self._loop is not None:
                with suppress(RuntimeError):  # it has ended
                    self._loop.call_soon_threadsafe(self._over.set)

    def close(self) -> None:
        """Stop, and wait for the end, within bounds."""
        self.stop()
        if self._thread is not None:
            self._thread.join(max(0.0, (self._ends_s or 0.0) - time.monotonic()))

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        """End the child while nobody asks; at the end, end all requests."""
        while not self._over.is_set():
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._over.wait()
            except TimeoutError:
                if not self._here and time.monotonic() - self._used_s > IDLE_S:
                    await self._rest()
        for task in self._here:
            task.cancel()
        if self._here:
            await asyncio.wait(self._here, timeout=_ENDING_S)
        await self._rest()  # with what has not ended by a word
        await asyncio.gather(*self._here, return_exceptions=True)

    async def _rest(self) -> None:
        try:
            await self._process.close()
        except Exception:  # nobody would begin the loop again
            log.exception("the process of regions could not be ended well")

    async def _answer(
        self,
        ask: SegmentAsk,
        caller: str,
        admit: Callable[[], None],
        note: Callable[[PathserveError | None], None],
    ) -> SegmentAnswer:
        task = asyncio.current_task()
        assert task is not None
        self._here.add(task)
        try:
            return await self._noted(ask, caller, admit, note)
        except asyncio.CancelledError:
            if self._over.is_set():
                raise _stopping() from None
            raise
        finally:
            self._here.discard(task)
            self._used_s = time.monotonic()

    async def _noted(
        self,
        ask: SegmentAsk,
        caller: str,
        admit: Callable[[], None],
        note: Callable[[PathserveError | None], None],
    ) -> SegmentAnswer:
        begun = False
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.to_thread(admit)
                with self._place(caller):
                    begun = True
                    async with self._turns:
                        answer = await self._process.answer(ask)
        except BaseException as error:
            told = self._told(error)
            if begun:
                await to_the_end(lambda: note(told))
            if isinstance(error, TimeoutError):
                raise told from None
            raise
        await to_the_end(lambda: note(None))
        return answer

    def _told(self, error: BaseException) -> PathserveError:
        match error:
            case PathserveError():
                return error
            case TimeoutError():
                return DeadlineExceeded(
                    f"The region was not segmented within {DEADLINE_S:.0f} s. Ask for a smaller one, or order an "
                    "analysis."
                )
            case asyncio.CancelledError():
                return _stopping() if self._over.is_set() else Cancelled("Nobody waits for this region any more.")
            case _:
                return failed()

    @contextmanager
    def _place(self, caller: str) -> Iterator[None]:
        """One of the places. Raises TooManyRequests."""
        if self._places[caller] >= MOST_EACH or self._places.total() >= MOST_WAITING:
            raise TooManyRequests("Too many regions are being segmented. Ask again in some seconds.", 2.0)
        self._places[caller] += 1
        try:
            yield
        finally:
            self._places[caller] -= 1
            if not self._places[caller]:
                del self._places[caller]


def _stopping() -> StateBusy:
    return StateBusy("The server is stopping. Ask again in a moment.")
