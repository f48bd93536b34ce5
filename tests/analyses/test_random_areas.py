"""Random areas: as large as the object, on tissue, the same for the same seed."""

import numpy as np

from gateway.analyses.random_areas import elsewhere, tissue_under
from gateway.domain.order import RegionUm
from gateway.slides import TissueMask


def test_a_random_area_is_as_large_as_the_object_and_lies_on_tissue() -> None:
    rng = np.random.default_rng(3)
    mask_KHW = np.zeros((5, 24, 24), bool)
    mask_KHW[:4, 4:8, 1:7] = mask_KHW[:4, 9, 5] = True
    tissue_KHW = np.ones_like(mask_KHW)
    tissue_KHW[1, :, 8:] = tissue_KHW[2] = False  # a third of a tile, and none at all but for the object
    tissue_KHW[3] = rng.random((24, 24)) < 0.3
    moved = [elsewhere(mask_KHW, tissue_KHW, (20, repeat)) for repeat in range(40)]
    for moved_KHW in moved:
        assert moved_KHW.sum(axis=(1, 2)).tolist() == mask_KHW.sum(axis=(1, 2)).tolist() == [25, 25, 25, 25, 0]
        assert not (moved_KHW & ~(tissue_KHW | mask_KHW)).any()
        assert any(np.array_equal(np.roll(mask_KHW[0], (y, x), (0, 1)), moved_KHW[0]) for y, x in np.ndindex(24, 24))
        assert np.array_equal(moved_KHW[2], mask_KHW[2])
    assert np.array_equal(moved[0], elsewhere(mask_KHW, tissue_KHW, (20, 0)))
    assert (np.any(moved, axis=0)[:2] == tissue_KHW[:2]).mean() > 0.9  # anywhere on it


def test_tissue_is_read_off_at_the_pixels_of_a_tile() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1:, 2:] = True
    found = tissue_under(TissueMask(mask, um_per_px=8.0, area_mm2=0.0), RegionUm(8, 8, 32, 32), 8)
    expected = np.zeros((8, 8), bool)
    expected[:4, 2:6] = True  # the slide ends after 24 µm down and 32 µm across
    assert np.array_equal(found, expected)
