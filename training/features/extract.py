"""Features of a shard: some neighbouring tiles of one slide's plan, from the frame pipeline through the encoder."""

import io
import itertools
import json
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import CorruptFrame, TruncatedFile
from gateway.slides import Slide, TilePlan, stream_tiles
from training.features.embedders import Embedder
from training.features.errors import FeaturesInvalid
from training.features.slides import unreadable

_REQUEST_TILES = 32
_IN_FLIGHT = 3
"""Requests in flight: one for each instance of an encoder on two cores, and one that is there when either is free."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Tiles `first` … `end` - 1 of a slide's plan (as many as there are), and where its part lies while the slide is
    not whole."""

    series: str
    first: int
    end: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.first:08d}"

    @property
    def features(self) -> Path:
        return self.folder / f"{self.name}.npy"

    @property
    def tiles(self) -> Path:
        """Written last: where it is, the features are."""
        return self.folder / f"{self.name}.json"


def extract(slide: Slide, plan: TilePlan, shard: Shard, embedder: Embedder, turn: threading.Lock) -> None:
    """Compute a shard and write its part, tiles that cannot be read left out and named.

    Shards that share a `turn` are computed one after another. Each waits for it with its first tiles read, so that the
    encoder is kept busy; were they computed side by side, they would end together, and the encoder would wait for more.

    Raises SlideError, InferenceError, FeaturesInvalid, DiskFull.
    """
    tiles_M = np.arange(shard.first, min(shard.end, len(plan)))
    bad_M = np.zeros(len(tiles_M), bool)
    features_MD = _features(slide, plan.part(tiles_M), embedder, turn)
    if features_MD is None:
        bad_M = unreadable(slide, plan.part(tiles_M))
        features_MD = _features(slide, plan.part(tiles_M[~bad_M]), embedder, turn)
        if features_MD is None:
            raise CorruptFrame("A frame of the slide is read at one time and not at another. Check its disk.")
    said = {"tiles": tiles_M[~bad_M].tolist(), "unreadable": tiles_M[bad_M].tolist()}
    with disk_errors():
        with written_whole(shard.features) as file:
            npy = io.BytesIO()  # NumPy's own writing to a full disk does not tell that it is full
            np.save(npy, features_MD)
            file.write(npy.getbuffer())
        with written_whole(shard.tiles) as file:
            file.write(json.dumps(said).encode())


def _features(slide: Slide, plan: TilePlan, embedder: Embedder, turn: threading.Lock) -> np.ndarray | None:
    """(N,D) float32 in the plan's order; None where a frame under the tiles is missing or cannot be decoded."""
    try:
        answers = list(_answers(slide, plan, embedder, turn))
    except (CorruptFrame, TruncatedFile, _FrameMissing):
        return None
    features_ND = np.concatenate(answers) if answers else np.zeros((0, embedder.width), np.float32)
    if features_ND.shape != (len(plan), embedder.width) or not np.isfinite(features_ND).all():
        raise FeaturesInvalid(
            f"The encoder {embedder.record.encoder} gives vectors that are not finite, or not of its size. Export it "
            "again, or use another."
        )
    return features_ND


class _FrameMissing(Exception):
    """A frame that should be there is empty, and the pipeline has painted it white."""


def _answers(slide: Slide, plan: TilePlan, embedder: Embedder, turn: threading.Lock) -> Iterator[np.ndarray]:
    """The next tiles are decoded while the last ones are computed."""
    pending: deque[Future[np.ndarray]] = deque()
    batches = stream_tiles(slide, plan, batch=_REQUEST_TILES) if len(plan) else iter(())
    try:
        first = list(itertools.islice(batches, 1))  # from here on the pipeline works ahead
        with turn:
            for batch in itertools.chain(first, batches):
                if batch.frames_missing:
                    raise _FrameMissing
                if len(pending) == _IN_FLIGHT:
                    yield pending.popleft().result()
                pending.append(embedder.submit(batch.images_BHWC))
        while pending:
            yield pending.popleft().result()
    finally:
        for answer in pending:
            answer.cancel()
