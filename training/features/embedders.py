"""What computes the features: a model of the repository through Triton, or a registered encoder in PyTorch.

Both take tiles as the frame pipeline gives them and answer with a future, so that the next tiles are decoded meanwhile.
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from training.features.errors import FeaturesInvalid
from training.features.record import Record


class Embedder(Protocol):
    """`mpp` and the record's `tile_px` say which tiles it takes, `width` how long its vectors are."""

    @property
    def record(self) -> Record: ...
    @property
    def mpp(self) -> float: ...
    @property
    def width(self) -> int: ...

    def submit(self, images_BHWC: np.ndarray) -> "Future[np.ndarray]":
        """Tiles (B,tile_px,tile_px,3) uint8 RGB to features (B,D) float32. The future raises PathserveError."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a registered encoder is built; a model of the repository is as it is."""

    profile: str = "fixed-fov"
    toolkit: str = "pb"
    accept_licence: bool = False


@contextmanager
def open_embedder(name: str, settings: Settings, options: Options) -> Iterator[Embedder]:
    """The encoder `name`: a folder of the model repository, else an id of the registry.

    Raises FeaturesInvalid for a model that is no encoder, ModelNotLoaded, ModelRefused, InferenceUnavailable; and what
    `training.pathbench.encoders.build` raises.
    """
    repository = ModelRepository(settings.model_repository)
    if name in repository.folders:
        with _triton(name, repository, settings) as embedder:
            yield embedder
    else:
        with ThreadPoolExecutor(1, thread_name_prefix="encoder") as thread:
            yield _Registered(name, options, thread)


class _Triton:
    """Its event loop runs in a thread of its own."""

    def __init__(self, folder: str, repository: ModelRepository, engine: TritonEngine, loop: asyncio.AbstractEventLoop):
        card, document = repository.card(folder), repository.document(folder)
        licences = {entry["licence"] for entry in (*document["data"], *document["pretraining"])}
        self._folder, self._engine, self._loop = folder, engine, loop
        self._asked: set[Future[np.ndarray]] = set()
        self._over = False
        self.mpp, self.width = card.mpp, document["embedding_size"]
        self.record = Record(
            encoder=folder,
            checksum=card.version.engine_sha256,
            profile="native",
            transform=f"RGB uint8, bicubic to {card.tile_px} px, normalised in the graph",
            dtype=card.version.precision,
            embedding="output `embedding` of the graph",
            tile_px=card.tile_px,
            tile_um=card.tile_px * card.mpp,
            licence="; ".join(sorted(licences)),
            random=False,
        )

    def submit(self, images_BHWC: np.ndarray) -> "Future[np.ndarray]":
        answer = asyncio.run_coroutine_threadsafe(self._answer(images_BHWC), self._loop)
        self._asked.add(answer)
        answer.add_done_callback(self._asked.discard)
        if self._over:
            answer.cancel()
        return answer

    def cancel(self) -> None:
        """Let nobody wait for an answer that will not come, now or later."""
        self._over = True
        for answer in list(self._asked):
            answer.cancel()

    async def _answer(self, images_BHWC: np.ndarray) -> np.ndarray:
        answers = await self._engine.infer(self._folder, {"image": images_BHWC})
        return answers["embedding"]


@contextmanager
def _triton(folder: str, repository: ModelRepository, settings: Settings) -> Iterator[Embedder]:
    if (kind := repository.card(folder).version.kind) != "encoder":
        raise FeaturesInvalid(f"The model {folder} is of the kind {kind}, which gives no features. Name an encoder.")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="triton", daemon=True)
    thread.start()
    opening = TritonEngine.open(settings, (folder,))
    try:
        engine = asyncio.run_coroutine_threadsafe(opening.__aenter__(), loop).result()
        embedder = _Triton(folder, repository, engine, loop)
        try:
            yield embedder
        finally:
            embedder.cancel()
            asyncio.run_coroutine_threadsafe(opening.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Registered:
    """PyTorch in one thread."""

    def __init__(self, encoder_id: str, options: Options, thread: ThreadPoolExecutor) -> None:
        # Imported here so that models of the repository need no PyTorch.
        import torch

        from training.pathbench.encoders import build

        torch.set_num_threads(1)
        self._encoder = build(
            encoder_id, profile=options.profile, toolkit=options.toolkit, accept_licence=options.accept_licence
        )
        meta = self._encoder.meta
        self._thread, self.mpp, self.width = thread, meta.mpp, meta.dim
        self.record = Record(
            encoder=meta.id,
            checksum=meta.checksum,
            profile=f"{meta.profile}, {meta.toolkit}",
            transform=meta.transform,
            dtype=meta.dtype,
            embedding=meta.embedding,
            tile_px=meta.tile_px,
            tile_um=meta.field_um,
            licence="; ".join(meta.licences),
            random=meta.random,
        )

    def submit(self, images_BHWC: np.ndarray) -> "Future[np.ndarray]":
        return self._thread.submit(self._encoder.embed, images_BHWC, len(images_BHWC))
