"""A training of milliseconds: a tiny ViT, small crops, and tiles of coloured shapes made from a seed."""

from pathlib import Path

import cv2
import numpy as np

from training.data.common import Source
from training.data.seen import Seen
from training.errors import DataMissing
from training.ssl.recipe import SelfDistillationRecipe, read_recipe

TEXT = b"""
name = "ssl-small-test"
system = "ssl"
stage = "ssl"
seed = 7
iterations = 6
log_every = 1
network = {arch = "vit", image_px = 32, patch_px = 8, width = 16, depth = 2, heads = 2, mlp = 32, layerscale = 0.1}
crops = {global_px = 32, local_px = 16, local_count = 2}
dino = {prototypes = 24, hidden = 16, bottleneck = 8}
ibot = {}
teacher = {temp_warmup_epochs = 3}
optim = {base_lr = 0.02, epochs = 20, epoch_iterations = 1, warmup_epochs = 2}
data = {batch = 4}
checkpoints = {every = 2}
"""


def small_recipe(folder: Path, *changes: str) -> tuple[SelfDistillationRecipe, bytes]:
    (folder / "small.toml").write_bytes(TEXT)
    return read_recipe(SelfDistillationRecipe, folder / "small.toml", changes)


class SmallCorpus:
    """Tiles of 48 px; those of `unreadable` cannot be read."""

    def __init__(self, count: int = 12, unreadable: tuple[int, ...] = ()) -> None:
        rng = np.random.default_rng(3)
        coarse = rng.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
        self._tiles = [cv2.resize(tile, (48, 48), interpolation=cv2.INTER_CUBIC) for tile in coarse]
        self._unreadable = unreadable
        self.sources = tuple(_source(number) for number in range(count))
        self.seen = Seen(groups={"small": tuple(f"g{number}" for number in range(count))}, hashes=())

    def __len__(self) -> int:
        return len(self._tiles)

    def read(self, index: int) -> np.ndarray:
        if index in self._unreadable:
            raise DataMissing("The tile cannot be read.")
        return self._tiles[index]

    def name(self, index: int) -> str:
        return self.sources[index].file


def _source(number: int) -> Source:
    return Source(f"small/tile-{number}.png", "small", "0" * 64, "CC0", "A", "none", f"g{number}")
