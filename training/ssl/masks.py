"""Which patches of a global crop the student does not see: blocks, as iBOT and DINOv2 draw them (arXiv 2111.07832,
section 3.3; arXiv 2304.07193)."""

import math

import numpy as np

from training.ssl.recipe import Ibot

_LOG_ASPECT = math.log(1 / 0.3)
_TRIES = 10


def sample(rng: np.random.Generator, crops: int, grid: int, ibot: Ibot) -> np.ndarray:
    """(crops, grid²) bool. `mask_share` of the crops are masked, each in a share of its patches within `mask_ratio`, by
    blocks of `min_patches` to `max_patches` patches and an aspect of 0.3 to 1/0.3. These shares run in equal strata
    over the masked crops, which lie in random places of the batch. A crop may be masked a little less than its stratum
    asks."""
    masked = int(ibot.mask_share * crops)
    strata = np.linspace(*ibot.mask_ratio, masked + 1)
    mask_GN = np.zeros((crops, grid * grid), bool)
    for crop in range(masked):
        wanted = int(grid * grid * rng.uniform(strata[crop], strata[crop + 1]))
        mask_GN[crop] = _crop(rng, grid, wanted, ibot).ravel()
    return rng.permutation(mask_GN)


def _crop(rng: np.random.Generator, grid: int, wanted: int, ibot: Ibot) -> np.ndarray:
    mask, found = np.zeros((grid, grid), bool), 0
    while found < wanted:
        most = min(wanted - found, ibot.max_patches)
        new = _add_block(rng, mask, ibot.min_patches, most)
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
