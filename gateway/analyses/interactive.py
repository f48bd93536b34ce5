"""Segmentation while somebody waits: requests beside the orders, answered by an event loop and an engine of their own.

Nothing of this is in an order's way: the loop runs in a thread of the process that answers requests, a guest of the
Triton that the worker keeps. What reads slides and asks models is imported there, with the first request.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from gateway.analyses.ledger import Ledger
from gateway.domain.segment import SegmentAnswer, SegmentAsk
from gateway.operations.errors import DeadlineExceeded, StateBusy, TooManyRequests
from gateway.operations.settings import Settings

if TYPE_CHECKING:
    from gateway.analyses.region_masks import RegionMasks

DEADLINE_S = 60.0
"""In which a request is answered, its wait for others included."""
AT_ONCE, MOST_WAITING = 2, 16
"""Requests that are worked on at the same time, and those that may be there with the ones that wait for their turn."""
IDLE_S = 300.0
"""After which without a request the engine is closed, and what was kept of regions goes."""
_LOOK_S = 15.0
_CLOSE_S = 8.0
"""In which the end has come, or is not waited for: the process ends with its deadline, and Triton's owner clears up."""


class Interactive:
    """Thread-safe. The loop starts with the first request and ends with `close`."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._starting = threading.RLock()  # a signal's handler may stop it while its thread begins a request
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._over = asyncio.Event()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._masks: RegionMasks | None = None
        self._making = asyncio.Lock()
        self._here: set[asyncio.Task[SegmentAnswer]] = set()
        self._used_s = 0.0

    def begin(self, ask: SegmentAsk, admit: Callable[[], None]) -> "Future[SegmentAnswer]":
        """The answer to come; this does not block. Cancelling the future stops the work, down to Triton.

        `admit` is called first, in a thread; what it raises is the answer. The others: PromptInvalid, InvalidOrder
        (the region), ResolutionTooCoarse and other SlideErrors, IdentityMismatch, ArchiveError, InferenceError,
        TooManyRequests, DeadlineExceeded, StateError. Raises StateBusy where the server stops.
        """
        with self._starting:
            if self._over.is_set():
                raise _stopping()
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name="interactive", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(self._answer(ask, admit), self._loop)

    def stop(self) -> None:
        """Begin to end what is being answered, and the engine."""
        with self._starting:
            if self._loop is None:
                self._over.set()
            elif not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._over.set)

    def close(self) -> None:
        """Stop, and wait for the end, within bounds."""
        self.stop()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        """Close the engine while nobody asks; at the end, end all requests."""
        while not self._over.is_set():
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._over.wait()
            except TimeoutError:
                if not self._here and time.monotonic() - self._used_s > IDLE_S:
                    await self._rest()
        for task in self._here:
            task.cancel()
        await asyncio.gather(*self._here, return_exceptions=True)
        await self._rest()

    async def _answer(self, ask: SegmentAsk, admit: Callable[[], None]) -> SegmentAnswer:
        if len(self._here) >= MOST_WAITING:
            raise TooManyRequests("Too many regions are being segmented. Ask again in some seconds.", 2.0)
        task = asyncio.current_task()
        assert task is not None
        self._here.add(task)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.to_thread(admit)
                async with self._turns:
                    return await (await self._made()).answer(ask)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The region was not segmented within {DEADLINE_S:.0f} s. Ask for a smaller one, or order an analysis."
            ) from None
        except asyncio.CancelledError:
            if self._over.is_set():
                raise _stopping() from None
            raise
        finally:
            self._here.discard(task)
            self._used_s = time.monotonic()

    async def _made(self) -> "RegionMasks":
        async with self._making:
            if self._masks is None:
                self._masks = await asyncio.to_thread(_new, self._settings, self._ledger)
            return self._masks

    async def _rest(self) -> None:
        masks, self._masks = self._masks, None
        if masks is not None:
            await masks.close()


def _stopping() -> StateBusy:
    return StateBusy("The server is stopping. Ask again in a moment.")


def _new(settings: Settings, ledger: Ledger) -> "RegionMasks":
    from gateway.analyses.region_masks import RegionMasks  # it brings numpy, the decoders and Triton's client

    return RegionMasks(settings, ledger)
