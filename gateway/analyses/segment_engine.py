"""The models of `segmentation` as an interactive request asks them: the ensemble's two steps apart, kept open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from gateway.analyses.ledger.choices import Choices
from gateway.analyses.pins import Pins
from gateway.analyses.protocols import protocol_named
from gateway.analyses.slide_half import ServedModel
from gateway.domain.model import ModelCard
from gateway.domain.segment import PROTOCOL
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.errors import ModelRefused
from gateway.operations.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentModels:
    """What serves now. `card` is the ensemble's, which speaks for the protocol."""

    pins: Pins
    card: ModelCard
    text: ServedModel
    image: ServedModel
    decoder: ServedModel

    @classmethod
    def of(cls, pins: Pins, repository: ModelRepository) -> "SegmentModels":
        """Raises ModelNotLoaded, ModelRefused."""
        text, ensemble = pins.folders.values()
        steps = {
            served.card.kind: served
            for served in (_served(folder, repository) for folder in repository.contract(ensemble).steps)
        }
        try:
            image, decoder = steps["image_encoder"], steps["mask_decoder"]
        except KeyError:
            raise ModelRefused(
                f"The model {ensemble} is refused: its steps are no image encoder and mask decoder. Export it again."
            ) from None
        card = repository.card(ensemble)
        return cls(pins=pins, card=card, text=_served(text, repository), image=image, decoder=decoder)

    @property
    def versions(self) -> tuple[tuple[str, str], ...]:
        """Name and version of each, a step before its ensemble."""
        return tuple((pin.model, pin.version) for pin in self.pins.pins)


@dataclass(slots=True, eq=False, kw_only=True)
class _Open:
    models: SegmentModels
    engine: TritonEngine
    stack: AsyncExitStack
    users: int = 0


@dataclass(slots=True, eq=False)
class SegmentEngine:
    """One engine for all requests of an event loop, opened for the versions that serve; where other versions come to
    serve, requests that are under way end with those that they began with."""

    settings: Settings
    _open: _Open | None = None
    _bringing: set[asyncio.Task[_Open]] = field(default_factory=set)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def serving(self, choices: Choices) -> AsyncIterator[tuple[SegmentModels, TritonEngine]]:
        """The models that serve by these choices, and the engine that has them.

        Raises ModelNotLoaded, ModelRefused, ModelsUnfit, InferenceUnavailable, StateError, DiskFull.
        """
        models = await asyncio.to_thread(self._chosen, choices)
        # Not ended with the request: the next one would begin to open it anew.
        bringing = asyncio.create_task(self._bring(models))
        self._bringing.add(bringing)
        bringing.add_done_callback(self._brought)
        using = await asyncio.shield(bringing)
        using.users += 1
        try:
            yield using.models, using.engine
        finally:
            using.users -= 1
            if using is not self._open and not using.users:
                await using.stack.aclose()

    async def close(self) -> None:
        """Close it, also while it is being opened. No request may be under way."""
        for task in self._bringing:
            task.cancel()
        async with self._changing:
            closing, self._open = self._open, None
            if closing is not None:
                await closing.stack.aclose()

    def _brought(self, task: asyncio.Task[_Open]) -> None:
        self._bringing.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it may have left

    def _chosen(self, choices: Choices) -> SegmentModels:
        repository = ModelRepository(self.settings.model_repository)
        pins = Pins.choose(protocol_named(PROTOCOL), choices, repository)
        return SegmentModels.of(pins, repository)

    async def _bring(self, models: SegmentModels) -> _Open:
        async with self._changing:
            before = self._open
            if before is not None and before.models.pins == models.pins:
                return before
            stack = AsyncExitStack()
            folders = (models.text.folder, models.image.folder, models.decoder.folder)
            engine = await stack.enter_async_context(TritonEngine.open(self.settings, folders, guest=True))
            self._open = _Open(models=models, engine=engine, stack=stack)
            if before is not None and not before.users:
                await before.stack.aclose()
            return self._open


def _served(folder: str, repository: ModelRepository) -> ServedModel:
    return ServedModel(folder=folder, card=repository.card(folder), contract=repository.contract(folder))
