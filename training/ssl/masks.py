"""Which patches of a global crop the student does not see: blocks, as iBOT and DINOv2 draw them (arXiv 2111.07832,
section 3.3; arXiv 2304.07193)."""

import math
from dataclasses import dataclass

import numpy as np

_LOG_ASPECT = math.log(1 / 0.3)
_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """`share` of the crops are masked, each in `least` to `most` of its patches, by blocks of `min_patches` to
    `max_patches` patches and an aspect of 0.3 to 1/0.3."""

    share: float = 0.5
    least: float = 0.1
    most: float = 0.5
    min_patches: int = 4
    max_patches: int = 128


def sample(rng: np.random.Generator, crops: int, grid: int, blocks: Blocks) -> np.ndarray:
    """(crops, grid²) bool. The masked share runs in equal strata from `least` to `most` over the masked crops, which
    lie in random places of the batch. A crop may be masked a little less than its stratum asks."""
    masked = int(blocks.share * crops)
    strata = np.linspace(blocks.least, blocks.most, masked + 1)
    mask_GN = np.zeros((crops, grid * grid), bool)
    for crop in range(masked):
        wanted = int(grid * grid * rng.uniform(strata[crop], strata[crop + 1]))
        mask_GN[crop] = _crop(rng, grid, wanted, blocks).ravel()
    return rng.permutation(mask_GN)


def _crop(rng: np.random.Generator, grid: int, wanted: int, blocks: Blocks) -> np.ndarray:
    mask, found = np.zeros((grid, grid), bool), 0
    while found < wanted:
        most = min(wanted - found, blocks.max_patches)
        new = _add_block(rng, mask, blocks.min_patches, most)
        if new == 0:
            break
        found += new
    return mask


def _add_block(rng: np.random.Generator, mask: np.ndarray, least: int, most: int) -> int:
    """Mask one more block in place; the number of newly masked patches, 0 where ten tries found none that fits."""
    grid = len(mask)
    for _ in range(_TRIES):
        area = least + (most - least) * rng.random()
        aspect = math.exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid or width >= grid:
            continue
        top, left = rng.integers(0, grid - height + 1), rng.integers(0, grid - width + 1)
        block = mask[top : top + height, left : left + width]
        new = int(block.size - block.sum())
        if 0 < new <= most:
            block[:] = True
            return new
    return 0
