"""Keeps Triton running beside the cases, with the models loaded that serve, that are wished for, and that drain."""

import asyncio
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.choices import Outcome
from gateway.analyses.metrics import MODEL_DECISIONS
from gateway.analyses.protocols import PROTOCOLS
from gateway.analyses.served import Wanted, listed
from gateway.inference import ModelRepository, ModelStatus, TritonEngine
from gateway.inference.client import Endpoint
from gateway.inference.embedded import answers, read_record
from gateway.operations.errors import InferenceUnavailable, PathserveError, StateError
from gateway.operations.settings import Settings

log = structlog.get_logger("gateway.analyses.keeper")

LOOK_S = 1.0
"""How often the site's choices are looked at."""
AGAIN_S, REFUSED_AGAIN_S = 2.0, 8.0
"""When the loaded models are compared with their files again; a refused one, which may have been restored, is loaded
for that, so less often."""
RETRY_S = 5.0
ANSWER_S = 15.0


class EngineKeeper:
    """Holds one engine open in an event loop of its own, so that Triton is warm and watched whatever the cases do.

    It alone settles the wishes of `pathserve models`, and unloads what no analysis uses any more.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._repository = ModelRepository(settings.model_repository)
        self._engine: TritonEngine | None = None
        self._wanted: Wanted | None = None
        self._models: Sequence[Mapping[str, Any]] = ()
        self._trouble: PathserveError = InferenceUnavailable("Triton is starting; try again in a moment.")
        self._loop = asyncio.new_event_loop()
        self._keeping: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._keeping = self._loop.create_task(self._keep())
        self._thread.start()

    def stop(self) -> None:
        """End Triton with what it is loading, which may take minutes."""
        if self._keeping is not None:
            self._loop.call_soon_threadsafe(self._keeping.cancel)
            self._thread.join()

    def check(self) -> None:
        """Raise where Triton is not there, or no protocol has all its models."""
        engine, wanted = self._engine, self._wanted
        if engine is None or wanted is None:
            raise self._trouble
        if not asyncio.run_coroutine_threadsafe(self._answers(), self._loop).result(ANSWER_S):
            raise InferenceUnavailable("Triton does not answer; it is started again, or see its own log.")
        ready = {status.folder for status in engine.status() if status.ready}
        if not any(
            all(
                any(wanted.current.get(one) in ready for one in protocol.alternatives(model))
                for model in protocol.models
            )
            for protocol in PROTOCOLS.values()
        ):
            raise InferenceUnavailable("No protocol has all its models; see the models' reasons.")

    def models(self) -> Sequence[Mapping[str, Any]]:
        """Every version as it was at the last look, JSON-ready."""
        return self._models

    async def _answers(self) -> bool:
        if self._settings.triton_url:
            return await answers(Endpoint(self._settings.triton_url.removeprefix("grpc://")))
        record = read_record(self._settings.state)
        return record is not None and await answers(record.endpoint)

    def _run(self) -> None:
        assert self._keeping is not None
        asyncio.set_event_loop(self._loop)
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._keeping)
        # Whoever stops us closes the ledger next.
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _keep(self) -> None:
        while True:
            try:
                wanted = await asyncio.to_thread(self._look, ())
                async with TritonEngine.open(self._settings, wanted.folders) as engine:
                    self._engine = engine
                    await self._serve(engine, wanted)
            except PathserveError as error:
                self._trouble = error
                log.warning("inference is not available", reason=error.reason, detail=error.detail)
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("inference ended by an unexpected error")
                await asyncio.sleep(RETRY_S)
            finally:
                self._engine = None

    async def _serve(self, engine: TritonEngine, wanted: Wanted) -> None:
        """Follow the site's choices until the end. Raises InferenceUnavailable where Triton cannot be had any more."""
        asked, asked_s = wanted.folders, time.monotonic()
        while True:
            pause_s = AGAIN_S if _ready(engine, asked) else REFUSED_AGAIN_S
            if wanted.folders != asked or time.monotonic() - asked_s > pause_s:
                await engine.serve(wanted.folders)
                asked, asked_s = wanted.folders, time.monotonic()
            if not _ready(engine, wanted.wished):
                # A server that died meanwhile is no fault of the version: refused is what fails twice.
                await engine.serve(wanted.folders)
            try:
                await asyncio.to_thread(self._settle, wanted, engine.status())
                await asyncio.to_thread(self._look, engine.status())
                await asyncio.sleep(LOOK_S)
                # Anew: by now an analysis that began with what served before has noted that it uses it.
                wanted = await asyncio.to_thread(self._look, engine.status())
            except StateError as error:
                log.warning("the models' choices cannot be read", reason=error.reason)
                await asyncio.sleep(LOOK_S)

    def _look(self, statuses: Sequence[ModelStatus]) -> Wanted:
        wanted = Wanted.now(self._ledger.choices.read(), self._ledger.pinned(), self._repository)
        trouble = None if self._engine is not None else self._trouble.detail
        self._models = listed(wanted, {status.folder: status for status in statuses}, trouble, self._repository)
        self._wanted = wanted
        return wanted

    def _settle(self, wanted: Wanted, statuses: Sequence[ModelStatus]) -> None:
        """Write down what became of the wishes; a version serves only after it has proven that it answers rightly."""
        found = {status.folder: status for status in statuses}
        for model, folder in wanted.initial.items():
            if found[folder].ready:
                self._ledger.choices.note_initial(model, found[folder].version, "worker")
        for folder, wish in wanted.wishes.items():
            wrong = [found[name] for name in wanted.parts(folder) if not found[name].ready]
            if any(status.pending for status in wrong):
                continue  # being loaded again, which says nothing of the version: the next look settles it
            outcome = Outcome.REFUSED if wrong else Outcome.SERVING
            if self._ledger.choices.settle(wish.number, outcome, wrong[0].reason if wrong else None):
                MODEL_DECISIONS.labels(wish.model, wish.action.value, outcome.value).inc()
                log.info("a model's version was settled", model=folder, state=outcome.value)


def _ready(engine: TritonEngine, folders: Collection[str]) -> bool:
    return all(status.ready for status in engine.status() if status.folder in folders)
