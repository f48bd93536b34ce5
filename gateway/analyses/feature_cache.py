"""What an image encoder made of the regions asked for last: a further prompt there costs decoding only."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Batch = Mapping[str, npt.NDArray[np.float32]]
"""The encoder's outputs for some windows, by tensor name: FP32 [B, …]."""


class RegionKey(NamedTuple):
    """All that decides the features of a region: whose pixels, which windows of which level, seen by which encoder."""

    study: str
    series: str
    windows: str
    engine_sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class RegionFeatures:
    """The features of a region's windows, batch by batch in the windows' order; the frames `missing` (row, column) were
    read as background."""

    batches: tuple[Batch, ...]
    missing: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(array.nbytes for batch in self.batches for array in batch.values())


class FeatureCache:
    """The features of the regions last used, of `most_bytes` together; one that is larger alone is not kept."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[RegionKey, RegionFeatures] = OrderedDict()

    def get(self, key: RegionKey) -> RegionFeatures | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: RegionKey, features: RegionFeatures) -> None:
        if features.size > self.most_bytes:
            return
        self._kept[key] = features
        self._kept.move_to_end(key)
        while self.size > self.most_bytes:
            self._kept.popitem(last=False)

    @property
    def size(self) -> int:
        """Of all that is kept, in bytes."""
        return sum(features.size for features in self._kept.values())
