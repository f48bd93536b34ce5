"""The one seam of inference: `infer(model, batch)` on the embedded Triton or an external one.

Admission, deadlines and repair live here, not in Triton: its own queue policies stall, and it calls a model ready whose
process died. A failed call is repeated once the server or the model is back; what still fails is a typed error.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import structlog

from gateway.inference import metrics
from gateway.inference.client import CallFailed, Trouble
from gateway.inference.contract import Array, Contract
from gateway.inference.embedded import EmbeddedServer
from gateway.inference.external import ExternalServer
from gateway.inference.fleet import Fleet, changed
from gateway.inference.link import Link
from gateway.inference.repository import ModelRepository
from gateway.inference.served import ModelStatus, Served
from gateway.inference.supervision import LOOK_PERIOD_S, Supervisor
from gateway.operations.errors import (
    InferenceError,
    InferenceTimeout,
    InferenceUnavailable,
    ModelNotLoaded,
    PathserveError,
)
from gateway.operations.settings import Settings

# A model's process may die by what it is asked, the server hardly ever: it is waited for longer.
ATTEMPTS, SERVER_ATTEMPTS = 4, 10

_REPAIRABLE = (Trouble.GONE, Trouble.DEAD_STUB, Trouble.NOT_LOADED)
_WATCH_BACKOFF_S = 10.0
_PAUSE_S = 0.5

log = structlog.get_logger(__name__)


class TritonEngine:
    """Inference for one process, in one event loop: a single connection, kept. Made by `open`.

    A model is named by its folder, which is one version of it (`names.py`).
    """

    def __init__(self, settings: Settings, models: Sequence[str], *, guest: bool = False) -> None:
        self.settings = settings
        self.repository = ModelRepository(settings.model_repository)
        url = settings.triton_url
        self._server = ExternalServer(url) if url else EmbeddedServer(settings, guest=guest)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="inference")
        self._link = Link(self._server, self._threads)
        self._fleet = Fleet(self.repository, self._link)
        self._fleet.ask_for(models)
        self._supervisor = Supervisor(self._fleet)
        self._serving = asyncio.Lock()
        self._published: set[tuple[str, str]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, models: Sequence[str], *, guest: bool = False
    ) -> AsyncIterator["TritonEngine"]:
        """A server that answers, with the models loaded and their golden inputs replayed. It never unloads any.

        A `guest` uses the embedded server that another process keeps, and never starts or takes over one. A model that
        is refused does not keep the others from serving: `status` has its reason and `infer` raises it. Raises
        InferenceUnavailable, StateError, DiskFull.
        """
        engine = cls(settings, models, guest=guest)
        watching: list[asyncio.Task[None]] = []
        try:
            await engine._link.connect()
            await engine._fleet.bring_all()
            looks = (engine._watch, engine._supervisor.listen, engine._restore)
            watching += [asyncio.create_task(_again_and_again(look)) for look in looks]
            yield engine
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await engine._supervisor.close()
            await engine._close()

    @property
    def owner(self) -> bool:
        """True if this process runs the embedded server."""
        return self._server.owner

    def status(self) -> tuple[ModelStatus, ...]:
        """Every model asked for, in that order."""
        return self._fleet.status()

    async def serve(self, models: Sequence[str]) -> None:
        """Bring the loaded set to exactly these folders and their steps: load and prove the new, unload the others.

        Meanwhile models that stay answer as ever. One that is refused has its reason in `status`; the others serve on.
        A folder whose engine was replaced on disk is loaded anew, so this is for the keeper, not for an analysis. Only
        the owner of an embedded server unloads, and on a foreign one only what was loaded by this engine. Calling it
        again changes nothing.
        Raises InferenceUnavailable, StateError, DiskFull where there is no server.
        """
        async with self._serving:
            self._fleet.keeps = True
            self._fleet.ask_for(models)
            await self._link.connect()
            await self._fleet.bring_all()
            await self._fleet.put_away()
            self._publish()

    async def infer(self, model: str, batch: Mapping[str, Array], *, deadline_s: float = 120.0) -> dict[str, Array]:
        """The outputs of one batch by name; rows stay in order. `deadline_s` bounds each attempt of a few.

        Waits for one of a few permits, so that no more requests are in the server than keep it busy. Cancelling the
        task cancels the request. An answer counts only where the engine on disk is still the one that this process
        brought. Raises ModelNotLoaded, ModelRefused, ModelChanged, InferenceUnavailable, InferenceTimeout,
        InferenceError.
        """
        if model not in self._fleet.asked:
            raise ModelNotLoaded(f"The model {model} is not loaded here. Name it where the engine is opened.")
        served = self._fleet.get(model)
        contract = await self._usable(served)
        contract.check(batch)
        async with served.permits:
            with metrics.REQUEST_DURATION.labels(model).time():
                failed: Counter[bool] = Counter()
                while True:
                    seen, engine_sha256 = self._fleet.seen(served), served.engine_sha256
                    try:
                        answer = await self._link.ask(contract, batch, deadline_s)
                    except CallFailed as failure:
                        trouble = failure.trouble
                        metrics.FAILURES.labels(model, trouble.value).inc()
                        gone = trouble is Trouble.GONE
                        failed[gone] += 1
                        over = failed[gone] == (SERVER_ATTEMPTS if gone else ATTEMPTS)
                        if over or not await self._repaired(served, trouble, seen):
                            raise _typed(model, failure, deadline_s) from None
                        log.warning("inference.repeat", model=model, trouble=trouble.value, failed=failed.total())
                    else:
                        await asyncio.to_thread(self._demand_unchanged, model, engine_sha256)
                        return answer

    async def _usable(self, served: Served) -> Contract:
        """The contract of a model that can be asked now, brought or tried again where need be. Raises its problem."""
        fleet = self._fleet
        if isinstance(fleet.problem_of(served), ModelNotLoaded | InferenceUnavailable):
            await fleet.reload(served, fleet.seen(served))
        elif not fleet.is_proven(served):
            await fleet.bring(served)
        problem = fleet.problem_of(served)
        if problem is not None:
            raise problem
        if served.contract is None:
            raise InferenceUnavailable(f"The model {served.folder} is not loaded yet. Try again in a moment.")
        return served.contract

    async def _repaired(self, served: Served, trouble: Trouble, seen: Mapping[str, int]) -> bool:
        """Bring the server or the model back; False where the trouble is none to repair. Raises its problem."""
        fleet = self._fleet
        if trouble not in _REPAIRABLE:
            return False
        epoch = self._link.epoch
        await self._link.connect()
        if self._link.epoch != epoch:
            await fleet.bring(served)
        elif trouble is Trouble.GONE:
            # The same server answers again, or is about to end.
            await asyncio.sleep(_PAUSE_S)
        elif trouble is Trouble.NOT_LOADED:
            await fleet.reload(served, seen)
        else:
            await fleet.recover(served, seen)
        problem = fleet.problem_of(served)
        if problem is not None:
            raise problem
        return True

    def _demand_unchanged(self, folder: str, engine_sha256: str | None) -> None:
        """Nothing was loaded from other files before an answer, if the files are the same after it."""
        try:
            if self.repository.engine_digest(folder) == engine_sha256:
                return
        except PathserveError as error:
            log.warning("inference.model_vanished", model=folder, detail=error.detail)
        raise changed(folder)

    async def _watch(self) -> None:
        """Look after the server and its models as their owner; take over when the owner dies. Waits for no request."""
        try:
            if self._server.needs_attention():
                await self._link.connect()
            if self._server.owner:
                await self._supervisor.look()
        finally:
            self._publish()

    async def _restore(self) -> None:
        """Bring what was loaded on a server that is gone, whether it is asked for or not."""
        if self._fleet.lacks_any():
            await self._fleet.bring_all()

    def _publish(self) -> None:
        """The keeper's metric: what serves, what should and does not, and what is not wanted any more."""
        if not self._fleet.keeps:
            return
        ready = {(status.model, status.version): float(status.ready) for status in self.status()}
        for labels in self._published - ready.keys():
            metrics.MODEL_READY.labels(*labels).set(math.nan)
        for labels, value in ready.items():
            metrics.MODEL_READY.labels(*labels).set(value)
        self._published |= ready.keys()

    async def _close(self) -> None:
        try:
            await self._link.disconnect()
        finally:
            await self._server.stop()
            self._threads.shutdown()


async def _again_and_again(look: Callable[[], Awaitable[None]]) -> None:
    """Look each second, whatever goes wrong: nobody would notice a supervision that has ended."""
    while True:
        await asyncio.sleep(LOOK_PERIOD_S)
        try:
            await look()
        except CallFailed as failure:
            if failure.trouble is not Trouble.GONE:  # a restart is noted once, where it is done
                log.warning("inference.look_failed", trouble=failure.trouble.value, detail=failure.text)
        except PathserveError as error:
            log.error("inference.server_lost", reason=error.reason, detail=error.detail)
            await asyncio.sleep(_WATCH_BACKOFF_S)
        except Exception:
            log.exception("inference.look_failed")


def _typed(model: str, failure: CallFailed, deadline_s: float) -> PathserveError:
    """The error of a call that could not be repaired."""
    match failure.trouble:
        case Trouble.GONE:
            return InferenceUnavailable("Triton does not answer. Try again in a moment; `pathserve doctor` says more.")
        case Trouble.DEAD_STUB:
            return InferenceUnavailable(
                f"The model {model} keeps dying in Triton. See logs/triton.log in the state folder."
            )
        case Trouble.NOT_LOADED:
            return InferenceUnavailable(f"The model {model} is not loaded in Triton. Try again in a moment.")
        case Trouble.DEADLINE:
            return InferenceTimeout(
                f"The model {model} did not answer within {deadline_s:g} s. Use smaller batches or wait."
            )
        case _:
            return InferenceError(f"The model {model} failed in Triton: {failure.text}")
