"""The child process that reads slides for regions that are segmented at once, as its parent uses it."""

import asyncio
import os
import pickle
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import structlog

from gateway.analyses.ledger.choices import Choices
from gateway.analyses.segment_wire import HEAD, MOST_BYTES, Errand, framed, outcome_of
from gateway.domain.segment import SegmentAnswer, SegmentAsk
from gateway.operations import codec
from gateway.operations.confined import bound_to_parent
from gateway.operations.errors import InferenceUnavailable, PathserveError, SlideError
from gateway.operations.settings import Settings

_GRACE_S = 10.0
"""In which a request that is not wanted any more ends, or the child is ended with all that it does."""
_END_S = 4.0
_DEATHS, _SERIES = 2, 64
"""Of the child over a slide alone, after which it is the slide's fault; and of how many slides that is known."""
_PROGRAM = (sys.executable, "-m", "gateway.analyses.segment_child")

log = structlog.get_logger("gateway.analyses.segment_process")


class SegmentProcess:
    """One child for all requests of an event loop, started with the first; one that has ended is started anew."""

    def __init__(self, settings: Settings, choices: Callable[[], Choices]) -> None:
        self._settings = settings
        self._choices = choices
        self._child: _Child | None = None
        self._deaths: OrderedDict[str, int] = OrderedDict()
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the child, while it lives."""
        return self._child.pid if self._child is not None and self._child.lives else None

    async def answer(self, ask: SegmentAsk) -> SegmentAnswer:
        """The masks. Cancelling the task ends all that was begun for them. Raises as `Interactive.begin` says."""
        errand = Errand(ask, await asyncio.to_thread(self._choices))
        async with self._starting:
            if self._child is None or not self._child.lives:
                try:
                    self._child = await _Child.start(self._settings)
                except OSError:
                    raise InferenceUnavailable(
                        "The process that reads slides for regions cannot be started: the machine has no room for it. "
                        "Try again in a moment."
                    ) from None
            child = self._child
        try:
            answer = await child.answer(errand)
        except _DiedAloneError:
            raise self._blame(ask.series) from None
        self._deaths.pop(ask.series, None)
        return answer

    def _blame(self, series: str) -> PathserveError:
        """For a slide that the child died over, with nothing else at work: the first time it may have been chance."""
        self._deaths[series] = self._deaths.pop(series, 0) + 1
        while len(self._deaths) > _SERIES:
            self._deaths.popitem(last=False)
        if self._deaths[series] < _DEATHS:
            return _died()
        return SlideError(
            "The process that reads slides for regions has ended each time that it read this one alone: the slide "
            "cannot be read. Check its files, or send it again."
        )

    async def close(self) -> None:
        """End the child, if there is one. The next request starts another."""
        child, self._child = self._child, None
        if child is not None:
            await child.end()


class _Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        # asyncio's own signals ask first whether the process has ended, and so take its exit status away from who waits
        # for it (Python 3.11).
        self._handle: int | None = os.pidfd_open(process.pid)  # until it has ended
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self.lives = True
        self._started = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, settings: Settings) -> "_Child":
        # Its settings come by the pipe; what the environment says of keys, in whatever case, is not for it.
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("PATHSERVE_")}
        process = await asyncio.create_subprocess_exec(
            *_PROGRAM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            # A Ctrl-C at the terminal reaches the server alone, which then ends its child.
            start_new_session=True,
            preexec_fn=bound_to_parent,
        )
        assert process.stdin is not None
        own = settings.model_copy(update={"api_key": None, "webhook_secrets": (), "database_url": None})
        process.stdin.write(framed(0, pickle.dumps(own)))
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def answer(self, errand: Errand) -> SegmentAnswer:
        number = next(self._numbers)
        told = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send(framed(number, codec.dumps(errand).encode()))
        try:
            body = await asyncio.shield(told)
        except asyncio.CancelledError:
            self._send(framed(number, b""))
            await self._ended(told)
            raise
        try:
            return await asyncio.to_thread(outcome_of, body, errand.ask)
        except ValueError:
            log.error("what the process of regions answered is no answer to what was asked; ending it", pid=self.pid)
            alone = not self._waiting
            self._give_up(alone=False)
            raise self._gone(alone=alone) from None

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        finally:
            self._kill()
            await self._reading

    def _send(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        if self.lives:
            self._process.stdin.write(frame)

    async def _ended(self, told: "asyncio.Future[bytes]") -> None:
        """Wait until the child has ended a request, however often the caller is cancelled meanwhile."""
        told.add_done_callback(lambda done: done.cancelled() or done.exception())
        until_s = time.monotonic() + _GRACE_S
        while not told.done() and (left_s := until_s - time.monotonic()) > 0:
            try:
                await asyncio.wait((told,), timeout=left_s)
            except asyncio.CancelledError:  # it is being cancelled already
                continue
        if not told.done():
            log.error("a region's reading did not end; ending its process", pid=self.pid)
            self._kill()

    def _kill(self) -> None:
        self.lives = False  # whoever comes next starts another
        if self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def _read(self) -> None:
        answers = self._process.stdout
        assert answers is not None
        try:
            while True:
                number, size = HEAD.unpack(await answers.readexactly(HEAD.size))
                if size > MOST_BYTES:
                    log.error("the process of regions answers more than it may; ending it", pid=self.pid, size=size)
                    break
                body = await answers.readexactly(size)
                self._started = True
                if (told := self._waiting.pop(number, None)) is not None and not told.done():
                    told.set_result(body)
        except (asyncio.IncompleteReadError, OSError):
            pass  # it has ended
        except Exception:
            log.exception("the answers of the process of regions cannot be read; ending it", pid=self.pid)
        finally:
            self._give_up(alone=len(self._waiting) == 1)
        with suppress(OSError):
            while await answers.read(2**16):  # or its pipe would stay open
                pass
        status = await self._process.wait()
        handle, self._handle = self._handle, None
        assert handle is not None
        os.close(handle)
        (log.error if status else log.info)("the process of regions has ended", pid=self.pid, exit_status=status)

    def _give_up(self, *, alone: bool) -> None:
        """End it, whom nobody hears any more, and all that waits for it."""
        self._kill()
        for told in self._waiting.values():
            if not told.done():
                told.set_exception(self._gone(alone=alone))
        self._waiting.clear()

    def _gone(self, *, alone: bool) -> Exception:
        if not self._started:
            return InferenceUnavailable(
                "The process that reads slides for regions ended before it had started. Ask again; where it does so "
                "each time, see the server's logs."
            )
        return _DiedAloneError() if alone else _died()


class _DiedAloneError(Exception):
    """The child ended with one request at work, which therefore may be why."""


def _died() -> InferenceUnavailable:
    return InferenceUnavailable(
        "The process that reads slides for regions ended while it worked on this one. Ask again."
    )
