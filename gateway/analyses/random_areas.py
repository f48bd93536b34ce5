"""Random areas of tissue in an object's place: what the importance of the object is compared with."""

import numpy as np
import numpy.typing as npt

from gateway.domain.order import RegionUm
from gateway.slides.tissue import TissueMask

Masks = npt.NDArray[np.bool_]


def tissue_under(tissue: TissueMask, region: RegionUm, side_px: int) -> Masks:
    """(side_px, side_px): whether the centres of so many pixels a side of a region lie on the slide's tissue."""
    centres = (np.arange(side_px) + 0.5) / side_px
    rows = ((region.y_um + centres * region.height_um) // tissue.um_per_px).astype(np.int64)
    columns = ((region.x_um + centres * region.width_um) // tissue.um_per_px).astype(np.int64)
    height, width = tissue.mask.shape
    on: Masks = tissue.mask[np.ix_(np.minimum(rows, height - 1), np.minimum(columns, width - 1))]
    on &= (rows < height)[:, None] & (columns < width)
    return on


def elsewhere(mask_KHW: Masks, tissue_KHW: Masks, seed: tuple[int, ...]) -> Masks:
    """Each tile's mask moved by chance around the tile's edges, to where some of it comes to lie on tissue; as much as
    then lies beside it is laid by another such move, so that all of the area is on tissue.

    The object itself counts as tissue: where there is little else, the random area is for the most part the object.
    """
    rng = np.random.default_rng(seed)
    return np.stack([_moved(mask, mask | tissue, rng) for mask, tissue in zip(mask_KHW, tissue_KHW, strict=True)])


def _moved(mask_HW: Masks, onto_HW: Masks, rng: np.random.Generator) -> Masks:
    pixels_N = np.flatnonzero(mask_HW)
    width, left = mask_HW.shape[1], len(pixels_N)
    free_HW = onto_HW.copy()
    while left:
        # Some pixel of the mask comes to lie on some free one: each move lays one pixel at least.
        there, here = rng.choice(np.flatnonzero(free_HW)), rng.choice(pixels_N)
        moved_HW = np.roll(mask_HW, (there // width - here // width, there % width - here % width), (0, 1))
        laid_N = np.flatnonzero(moved_HW & free_HW)
        if len(laid_N) > left:  # of the last move a run that begins anywhere
            laid_N = np.roll(laid_N, rng.integers(len(laid_N)))[:left]
        free_HW.ravel()[laid_N] = False
        left -= len(laid_N)
    return onto_HW & ~free_HW
