"""`python -m gateway.analyses.segment_child`: reads slides and asks models for regions that are segmented at once.

Slides are decoded by foreign code. Here it can end no more than this process, which `SegmentProcess` starts and ends:
settings and requests come on stdin, answers go out on stdout, and the end of stdin is the end.
"""

import asyncio
import os
import pickle
import resource
from functools import partial

import structlog

from gateway.analyses.region_masks import RegionMasks
from gateway.analyses.segment_wire import HEAD, Errand, body_of, failed, sayable
from gateway.operations import codec
from gateway.operations.errors import Cancelled, PathserveError
from gateway.operations.logging import configure_logging
from gateway.operations.settings import Settings

MEMORY_BYTES = 4 * 2**30
"""Which it may allocate at most: twice what two of the greatest regions and the kept features take."""
_END_S = 2.0

log = structlog.get_logger("gateway.analyses.segment_child")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    # Whatever prints goes where errors go: stdout is the pipe.
    answers = os.dup(1)
    os.dup2(2, 1)
    settings: Settings = pickle.loads(_body(0))  # noqa: S301 (our own parent's)
    configure_logging("segment", settings.log_level, settings.state / "logs")
    _send(answers, 0, b"")
    asyncio.run(_Child(settings, answers).work())


class _Child:
    def __init__(self, settings: Settings, answers: int) -> None:
        self._settings = settings
        self._answers = answers
        self._masks: RegionMasks | None = None
        self._making = asyncio.Lock()
        self._tasks: dict[int, asyncio.Task[bytes]] = {}

    async def work(self) -> None:
        """Answer until stdin ends, and end the process."""
        status = 1
        try:
            await self._until_the_end()
            status = 0
        except Exception:
            log.exception("the process of regions ends")
        finally:
            # A thread that reads for a region that nobody waits for any more does not keep the process.
            os._exit(status)

    async def _until_the_end(self) -> None:
        requests = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(requests), os.fdopen(0, "rb", buffering=0)
        )
        try:
            while True:
                number, size = HEAD.unpack(await requests.readexactly(HEAD.size))
                body = await requests.readexactly(size)
                if body:
                    self._tasks[number] = asyncio.create_task(self._answer(body))
                    self._tasks[number].add_done_callback(partial(self._tell, number))
                elif number in self._tasks:
                    self._tasks[number].cancel()
        except asyncio.IncompleteReadError:
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=_END_S)
            if self._masks is not None:
                async with asyncio.timeout(_END_S):
                    await self._masks.close()

    async def _answer(self, body: bytes) -> bytes:
        try:
            errand = codec.loads(Errand, body)
            answer = await (await self._made()).answer(errand.ask, errand.choices)
            return await asyncio.to_thread(body_of, answer)
        except PathserveError as error:
            if not sayable(error):
                log.exception("a region failed by an error that is not told", detail=error.detail)
            return body_of(error)
        except Exception:
            log.exception("a region could not be segmented")
            return body_of(failed())

    def _tell(self, number: int, task: asyncio.Task[bytes]) -> None:
        """In one piece, whatever else is told: the parent never lets the pipe wait."""
        del self._tasks[number]
        try:
            over = body_of(Cancelled("Nobody waits for this region any more."))
            _send(self._answers, number, over if task.cancelled() else task.result())
        except BaseException:
            try:
                log.exception("a region's answer could not be sent; the process of regions ends")
            finally:
                os._exit(1)  # or the parent would wait for it

    async def _made(self) -> RegionMasks:
        """Made with the first request; what keeps it from that is the request's answer, and the next tries again."""
        async with self._making:
            if self._masks is None:
                self._masks = await asyncio.to_thread(RegionMasks, self._settings)
            return self._masks


def _body(number: int) -> bytes:
    at, size = HEAD.unpack(_read(HEAD.size))
    assert at == number
    return _read(size)


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data


def _send(file: int, number: int, body: bytes) -> None:
    for part in (HEAD.pack(number, len(body)), body):
        left = memoryview(part)
        while left:
            left = left[os.write(file, left) :]


if __name__ == "__main__":
    main()
