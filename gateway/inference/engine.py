"""The one seam of inference: `infer(model, batch)` on the embedded Triton or an external one.

Admission, deadlines and repair live here, not in Triton: its own queue policies stall, and it calls a model ready whose
process died. A failed call is repaired and repeated at most twice; what still fails is a typed error.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import structlog

from gateway.domain.model import ModelCard
from gateway.inference import metrics
from gateway.inference.client import CallFailed, Client, Trouble, plain_input, shared_input
from gateway.inference.contract import Array, Contract
from gateway.inference.embedded import EmbeddedServer
from gateway.inference.external import ExternalServer
from gateway.inference.regions import RegionPool
from gateway.inference.repository import ModelRepository
from gateway.operations.errors import (
    InferenceError,
    InferenceTimeout,
    InferenceUnavailable,
    ModelNotLoaded,
    ModelRefused,
    PathserveError,
)
from gateway.operations.settings import Settings

LOAD_TIMEOUT_S = 120.0
ATTEMPTS = 3
# A model that dies more often than this is broken: it stays failed until the window has passed.
RELOADS, RELOAD_WINDOW_S = 3, 600.0
# Below this, gRPC carries the bytes as fast as a copy into shared memory would.
SHARED_FROM_BYTES = 1 << 18

_RECONNECT_S = 5.0
_WATCH_PERIOD_S = 1.0
_WATCH_BACKOFF_S = 10.0
_REPAIRABLE = (Trouble.GONE, Trouble.DEAD_STUB, Trouble.NOT_LOADED)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as `GET /v1/models` shows it. `reason` says why it is not ready; for operators, not for clients."""

    name: str
    version: str | None
    ready: bool
    reason: str | None


@dataclass(slots=True)
class _Model:
    name: str
    contract: Contract | None = None
    card: ModelCard | None = None
    problem: PathserveError | None = None
    permits: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    reloads: deque[float] = field(default_factory=deque)


class TritonEngine:
    """Inference for one process, in one event loop: a single connection, kept. Made by `open`."""

    def __init__(self, settings: Settings, models: Sequence[str]) -> None:
        self.settings = settings
        self.repository = ModelRepository(settings.model_repository)
        self._server = ExternalServer(settings.triton_url) if settings.triton_url else EmbeddedServer(settings)
        self._embedded = settings.triton_url is None
        self._models = {name: _Model(name) for name in models}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="inference")
        self._client: Client | None = None
        self._pool: RegionPool | None = None
        self._repairing = asyncio.Lock()
        # Counts repairs: a call that failed before the latest one needs no repair of its own.
        self._epoch = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, models: Sequence[str]) -> AsyncIterator["TritonEngine"]:
        """A server that answers, with the models loaded and their golden inputs replayed.

        A model that is refused does not keep the others from serving: `status` has its reason and `infer` raises it.
        Raises InferenceUnavailable, StateError, DiskFull.
        """
        engine = cls(settings, models)
        watching = None
        try:
            await engine._connect()
            watching = asyncio.create_task(engine._watch())
            yield engine
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            await engine._close()

    @property
    def owner(self) -> bool:
        """True if this process runs the embedded server."""
        return self._server.owner

    def status(self) -> tuple[ModelStatus, ...]:
        """Every model asked for, in that order."""
        return tuple(
            ModelStatus(
                model.name,
                model.card.version.version if model.card else None,
                model.problem is None,
                model.problem.detail if model.problem else None,
            )
            for model in self._models.values()
        )

    async def infer(self, model: str, batch: Mapping[str, Array], *, deadline_s: float = 120.0) -> dict[str, Array]:
        """The outputs of one batch by name; rows stay in order. `deadline_s` bounds each attempt of at most three.

        Waits for one of a few permits, so that no more requests are in the server than keep it busy. Cancelling the
        task cancels the request. Raises ModelNotLoaded, ModelRefused, InferenceUnavailable, InferenceTimeout,
        InferenceError.
        """
        known = self._models.get(model)
        if known is None:
            raise ModelNotLoaded(f"The model {model} is not loaded here. Name it where the engine is opened.")
        with contextlib.suppress(ModelNotLoaded):
            if isinstance(known.problem, ModelNotLoaded):
                await self._repair(known, Trouble.NOT_LOADED, self._epoch)
        if known.problem is not None:
            raise known.problem
        if known.contract is None:
            raise ModelNotLoaded(f"The model {model} is not loaded yet. Try again in a moment.")
        contract = known.contract
        contract.check(batch)
        async with known.permits:
            with metrics.REQUEST_DURATION.labels(model).time():
                attempt = 1
                while True:
                    epoch = self._epoch
                    try:
                        return await self._attempt(contract, batch, deadline_s)
                    except CallFailed as failure:
                        metrics.FAILURES.labels(model, failure.trouble.value).inc()
                        if failure.trouble not in _REPAIRABLE or attempt == ATTEMPTS:
                            raise _typed(model, failure, deadline_s) from None
                        log.warning("inference.repair", model=model, trouble=failure.trouble.value, attempt=attempt)
                        await self._repair(known, failure.trouble, epoch)
                    attempt += 1

    async def _attempt(self, contract: Contract, batch: Mapping[str, Array], deadline_s: float) -> dict[str, Array]:
        client, pool = self._client, self._pool
        if client is None:
            raise CallFailed(Trouble.GONE, "not connected")
        outputs = [spec.name for spec in contract.outputs]
        size = sum(array.nbytes for array in batch.values())
        placed = await pool.place(batch) if pool is not None and size >= SHARED_FROM_BYTES else None
        if pool is None or placed is None:
            make = [(spec.name, spec.datatype, np.ascontiguousarray(batch[spec.name])) for spec in contract.inputs]
            if size < SHARED_FROM_BYTES:
                inputs = [plain_input(*tensor) for tensor in make]
            else:
                loop = asyncio.get_running_loop()
                inputs = [await loop.run_in_executor(self._threads, plain_input, *tensor) for tensor in make]
            return await client.infer(contract.name, inputs, outputs, deadline_s)
        region, slots = placed
        inputs = [
            shared_input(
                spec.name,
                spec.datatype,
                batch[spec.name].shape,
                region.name,
                slots[spec.name].byte_size,
                slots[spec.name].offset,
            )
            for spec in contract.inputs
        ]
        try:
            result = await client.infer(contract.name, inputs, outputs, deadline_s)
        except CallFailed as failure:
            if failure.trouble in (Trouble.DEADLINE, Trouble.CANCELLED, Trouble.GONE):
                pool.condemn(region)
            else:
                pool.release(region)
            raise
        except BaseException:
            pool.condemn(region)
            raise
        pool.release(region)
        return result

    async def _connect(self) -> None:
        """Reach a server and load the models, where that is not done already for this very server."""
        endpoint = await self._server.ensure()
        client = self._client
        if client is not None and client.endpoint == endpoint:
            return
        if client is None or not client.follow(endpoint):
            await self._disconnect()
            client = self._client = Client(endpoint)
        elif self._pool is not None:
            self._pool.abandon()
            self._pool = None
        # The connection finds a restarted server at its own pace.
        deadline = time.monotonic() + _RECONNECT_S
        while not await client.ready() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if endpoint.shm_prefix is not None:
            self._pool = RegionPool(client, endpoint.shm_prefix, self._threads)
            with contextlib.suppress(CallFailed):
                await self._pool.sweep()
        self._epoch += 1
        for model in self._models.values():
            await self._bring(model, client)

    async def _bring(self, model: _Model, client: Client) -> None:
        """Check, load and prove one model; what is wrong with it becomes its `problem`."""
        try:
            contract = await asyncio.to_thread(self.repository.check, model.name)
            model.card = await asyncio.to_thread(self.repository.card, model.name)
            if model.contract is None or model.contract != contract:
                model.permits = asyncio.Semaphore(1 + self._instances(contract))
            model.contract = contract
            try:
                await self._load(contract, client)
            except CallFailed as failure:
                if failure.trouble is not Trouble.DEAD_STUB or not self._embedded:
                    raise
                await self._unload(contract, client)
                await self._load(contract, client)
            model.problem = None
        except PathserveError as error:
            model.problem = error
        except CallFailed as failure:
            model.problem = ModelNotLoaded(
                f"The model {model.name} is not loaded: Triton says “{failure.text}”. Export it again, or "
                "see logs/triton.log in the state folder."
            )
        if model.problem is not None:
            log.warning("inference.model_refused", model=model.name, detail=model.problem.detail)

    async def _load(self, contract: Contract, client: Client) -> None:
        """Load a model after its steps, and replay the golden inputs of each. Raises ModelRefused, CallFailed."""
        for name in (*contract.steps, contract.name):
            if self._embedded:
                await client.load(name, LOAD_TIMEOUT_S)
            elif not await client.model_ready(name, self.repository.served_version(name)):
                raise CallFailed(Trouble.NOT_LOADED, "this version is not loaded by the external server")
            await self._replay(name)

    def _instances(self, contract: Contract) -> int:
        steps = [self.repository.contract(step).instances for step in contract.steps]
        return max([contract.instances, *steps])

    async def _replay(self, name: str) -> None:
        """Replay a model's golden inputs, once for each instance at least: Triton's word for ready proves nothing.

        Raises ModelRefused, CallFailed.
        """
        golden = await asyncio.to_thread(self.repository.golden, name)
        if golden is None:
            return
        contract = self.repository.contract(name)
        try:
            contract.check(golden.inputs)
        except InferenceError as error:
            raise ModelRefused(f"The model {name} is refused: its golden.npz does not fit. {error.detail}") from None
        times = 1 if contract.instances == 1 else 2 * contract.instances
        answers = await asyncio.gather(
            *(self._attempt(contract, golden.inputs, LOAD_TIMEOUT_S) for _ in range(times)), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            for output, expected in golden.expected.items():
                if not _equal(answer[output], expected, golden.tolerance):
                    raise ModelRefused(
                        f"The model {name} is refused: its answers to golden.npz are not the exporter's. Export it "
                        "again for this host."
                    )

    async def _repair(self, model: _Model, trouble: Trouble, epoch: int) -> None:
        """Bring the server or the model back, once for all the calls that failed with it. Raises the typed error."""
        async with self._repairing:
            if self._epoch != epoch:
                return
            await self._connect()
            if self._epoch != epoch or trouble is Trouble.GONE or self._client is None:
                return
            self._admit_reload(model)
            if trouble is Trouble.DEAD_STUB and self._embedded and model.contract is not None:
                await self._unload(model.contract, self._client)
            await self._bring(model, self._client)
            if trouble is Trouble.DEAD_STUB or model.problem is not None:
                # A model that another process was just loading anew counts for nothing.
                model.reloads.append(time.monotonic())
            self._epoch += 1
            if model.problem is not None:
                raise model.problem

    def _admit_reload(self, model: _Model) -> None:
        now = time.monotonic()
        while model.reloads and now - model.reloads[0] > RELOAD_WINDOW_S:
            model.reloads.popleft()
        if len(model.reloads) >= RELOADS:
            model.problem = ModelNotLoaded(
                f"The model {model.name} failed {RELOADS + 1} times within {RELOAD_WINDOW_S / 60:.0f} minutes and is "
                "not loaded again until that time has passed. See logs/triton.log in the state folder."
            )
            raise model.problem

    async def _unload(self, contract: Contract, client: Client) -> None:
        """Unload a model whose process died (`load` alone would do nothing), with its steps: one of them may be it."""
        for name in (contract.name, *contract.steps):
            with contextlib.suppress(CallFailed):
                await client.unload(name, LOAD_TIMEOUT_S)

    async def _watch(self) -> None:
        """Restart our server when it dies, and take over when its owner does, without waiting for a request."""
        while True:
            await asyncio.sleep(_WATCH_PERIOD_S)
            try:
                if not self._repairing.locked() and self._server.needs_attention():
                    async with self._repairing:
                        await self._connect()
            except PathserveError as error:
                log.error("inference.server_lost", reason=error.reason, detail=error.detail)
                await asyncio.sleep(_WATCH_BACKOFF_S)

    async def _disconnect(self) -> None:
        client, pool = self._client, self._pool
        self._client = self._pool = None
        if pool is not None:
            await pool.close()
        if client is not None:
            await client.close()

    async def _close(self) -> None:
        try:
            await self._disconnect()
        finally:
            await self._server.stop()
            self._threads.shutdown()


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
            return ModelNotLoaded(f"The model {model} is not loaded in Triton. Try again in a moment.")
        case Trouble.DEADLINE:
            return InferenceTimeout(
                f"The model {model} did not answer within {deadline_s:g} s. Use smaller batches or wait."
            )
        case _:
            return InferenceError(f"The model {model} failed in Triton: {failure.text}")


def _equal(answer: Array, expected: Array, tolerance: float) -> bool:
    if answer.shape != expected.shape:
        return False
    difference = np.abs(answer.astype(np.float64) - expected.astype(np.float64))
    # A NaN compares false: it never passes.
    return bool((difference <= tolerance).all())
