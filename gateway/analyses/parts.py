"""The parts of a real worker: the archive, Triton kept running between analyses, and cases made of both."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from gateway.analyses.protocols import PROTOCOLS
from gateway.analyses.steps import CaseRun
from gateway.analyses.worker import Parts
from gateway.archive import open_archive
from gateway.domain.analysis import Progress
from gateway.domain.order import Order
from gateway.inference import ModelRepository, TritonEngine
from gateway.inference.client import Endpoint
from gateway.inference.embedded import answers, read_record
from gateway.operations.errors import InferenceUnavailable, PathserveError
from gateway.operations.settings import Settings

log = structlog.get_logger("gateway.analyses.parts")

RETRY_S = 5.0
ANSWER_S = 15.0


@contextmanager
def open_parts(settings: Settings) -> Iterator[Parts]:
    """The worker's parts; Triton runs as long as the context (a guest of whoever runs it already).

    Raises InvalidSetting where the archive's address is not one.
    """
    archive = open_archive(settings.archive_address)

    def make_case(
        analysis_id: str,
        order: Order,
        folder: Path,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> CaseRun:
        return CaseRun(
            analysis_id, order, folder, settings=settings, archive=archive, progress=progress, cancelled=cancelled
        )

    keeper = _EngineKeeper(settings)
    keeper.start()
    try:
        yield Parts(make_case, {"archive": archive.probe, "inference": keeper.check}, keeper.models)
    finally:
        keeper.stop()


class _EngineKeeper:
    """Holds one engine open in an event loop of its own, so that Triton is warm and watched whatever the cases do."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._repository = ModelRepository(settings.model_repository)
        self._engine: TritonEngine | None = None
        self._trouble: PathserveError = InferenceUnavailable("Triton is starting; try again in a moment.")
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def check(self) -> None:
        """Raise where Triton is not there, or no protocol has all its models."""
        if self._engine is None:
            raise self._trouble
        if not asyncio.run_coroutine_threadsafe(self._answers(), self._loop).result(ANSWER_S):
            raise InferenceUnavailable("Triton does not answer; it is started again, or see its own log.")
        ready = {status.name for status in self._engine.status() if status.ready}
        if not any(ready.issuperset(protocol.models) for protocol in PROTOCOLS.values()):
            raise InferenceUnavailable("No protocol has all its models; see the models' reasons.")

    def models(self) -> Sequence[Mapping[str, Any]]:
        if self._engine is not None:
            return [asdict(status) for status in self._engine.status()]
        reason = self._trouble.detail
        return [{"name": each, "version": None, "ready": False, "reason": reason} for each in self._repository.names]

    async def _answers(self) -> bool:
        if self._settings.triton_url:
            return await answers(Endpoint(self._settings.triton_url.removeprefix("grpc://")))
        record = read_record(self._settings.state)
        return record is not None and await answers(record.endpoint)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._keep())
        finally:
            self._loop.close()

    async def _keep(self) -> None:
        while not self._stop.is_set():
            try:
                async with TritonEngine.open(self._settings, self._repository.names) as engine:
                    self._engine = engine
                    await self._stop.wait()
            except PathserveError as error:
                self._trouble = error
                log.warning("inference is not available", reason=error.reason, detail=error.detail)
                await self._pause()
            except Exception:
                log.exception("inference ended by an unexpected error")
                await self._pause()
            finally:
                self._engine = None

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), RETRY_S)
        except TimeoutError:
            return
