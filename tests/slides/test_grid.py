"""The tile grid: shares, order, regions, digest."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.order import RegionUm
from gateway.domain.slide import TileGrid
from gateway.operations.errors import InvalidOrder, NoTissue, ResolutionTooCoarse
from gateway.slides import Slide, TissueMask, find_tissue, plan_tiles
from gateway.slides.grid import tissue_share


@pytest.fixture
def tissue(slide):
    return find_tissue(slide)


def test_plan(slide, tissue, phantom):
    plan = plan_tiles(slide, tissue, mpp=0.5, tile_px=224)
    assert (plan.grid.columns, plan.grid.rows, plan.grid.field_px, plan.grid.level) == (10, 7, 224, 0)
    assert plan.rows_N.dtype == plan.columns_N.dtype == np.int32
    assert plan.tissue_N.dtype == np.float32
    assert (plan.tissue_N >= 0.25).all()
    truth = phantom.mask(phantom.mpp)
    for row, column, share in zip(plan.rows_N, plan.columns_N, plan.tissue_N, strict=True):
        tile = truth[row * 224 : (row + 1) * 224, column * 224 : (column + 1) * 224]
        assert tile.sum() / 224**2 == pytest.approx(share, abs=0.12)


def test_order_is_by_strips_that_share_no_frame(slide, tissue):
    plan = plan_tiles(slide, tissue, mpp=0.5, tile_px=224, min_tissue=0.01)
    assert plan.strip_tiles * 224 == 1792 == 7 * 256
    keys = list(zip(plan.columns_N // plan.strip_tiles, plan.rows_N, plan.columns_N, strict=True))
    assert keys == sorted(set(keys))


def test_one_strip_where_borders_rarely_meet(slide, tissue):
    plan = plan_tiles(slide, tissue, mpp=0.5, tile_px=223)
    assert plan.strip_tiles == plan.grid.columns
    keys = list(zip(plan.rows_N, plan.columns_N, strict=True))
    assert keys == sorted(set(keys))


def test_share_threshold(slide, tissue):
    counts = [len(plan_tiles(slide, tissue, mpp=0.5, tile_px=224, min_tissue=share)) for share in (0.0, 0.25, 0.5, 0.9)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[3] > 0


def test_digest_says_which_tiles(slide, tissue, make_phantom):
    plan = plan_tiles(slide, tissue, mpp=0.5, tile_px=224)
    assert plan.digest == plan_tiles(slide, tissue, mpp=0.5, tile_px=224).digest
    others = [
        plan_tiles(slide, tissue, mpp=0.5, tile_px=224, min_tissue=0.6),
        plan_tiles(slide, tissue, mpp=1.0, tile_px=224),
        plan_tiles(slide, tissue, mpp=0.5, tile_px=112),
    ]
    with Slide.open(make_phantom(2100, 1500, seed=8).files) as other:
        others.append(plan_tiles(other, tissue, mpp=0.5, tile_px=224))
    assert len({plan.digest, *(other.digest for other in others)}) == 5


def test_finer_level_is_reduced_and_coarser_is_read_as_it_is(phantom):
    with Slide.open([phantom.files[0]]) as finest, Slide.open([phantom.files[1]]) as coarser:
        reduced = plan_tiles(finest, find_tissue(finest), mpp=1.0, tile_px=224).grid
        assert (reduced.field_px, reduced.mpp) == (448, 1.0)
        as_is = plan_tiles(coarser, find_tissue(coarser), mpp=0.7, tile_px=224).grid
        assert (as_is.field_px, as_is.mpp) == (224, pytest.approx(1.0))
        assert as_is.tile_um == pytest.approx(224.0)
        with pytest.raises(ResolutionTooCoarse):
            plan_tiles(coarser, find_tissue(coarser), mpp=0.5, tile_px=224)


def test_region(slide, tissue):
    whole = plan_tiles(slide, tissue, mpp=0.5, tile_px=224, min_tissue=0.01)
    box = RegionUm(x_um=200, y_um=150, width_um=400, height_um=300)
    plan = plan_tiles(slide, tissue, mpp=0.5, tile_px=224, min_tissue=0.01, region=box)
    inside = {
        (row, column)
        for row, column in zip(whole.rows_N.tolist(), whole.columns_N.tolist(), strict=True)
        if column * 112 < 600 and (column + 1) * 112 > 200 and row * 112 < 450 and (row + 1) * 112 > 150
    }
    assert set(zip(plan.rows_N.tolist(), plan.columns_N.tolist(), strict=True)) == inside
    assert 0 < len(inside) < len(whole)


@pytest.mark.parametrize("box", [(5000, 0, 10, 10), (0, 5000, 10, 10), (-50, 0, 20, 20), (0, 0, 0, 10), (0, 0, 10, -5)])
def test_region_outside_the_slide(slide, tissue, box):
    with pytest.raises(InvalidOrder):
        plan_tiles(slide, tissue, mpp=0.5, tile_px=224, region=RegionUm(*box))


def test_region_on_glass(slide, tissue, phantom):
    free = np.argwhere(~phantom.mask(150.0))
    y, x = free[0] * 150.0
    empty = replace(tissue, mask=np.zeros_like(tissue.mask))
    with pytest.raises(NoTissue):
        plan_tiles(slide, empty, mpp=0.5, tile_px=224, region=RegionUm(x, y, 100, 100))


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    tile=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_share_equals_counting_where_tiles_end_on_pixels(shape, rows, columns, tile, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    grid = TileGrid(level=0, mpp=1.0, tile_px=tile, field_px=tile, columns=columns, rows=rows)
    share = tissue_share(TissueMask(mask, 1.0, 1.0), grid, (float(tile), float(tile)))
    padded = np.zeros((rows * tile, columns * tile))
    height, width = min(shape[0], rows * tile), min(shape[1], columns * tile)
    padded[:height, :width] = mask[:height, :width]
    counted = padded.reshape(rows, tile, columns, tile).mean(axis=(1, 3))
    assert share == pytest.approx(counted, abs=1e-5)


def test_share_of_fractional_tiles_adds_up():
    mask = np.random.default_rng(1).random((50, 70)) < 0.3
    tile_um = 7.3
    grid = TileGrid(level=0, mpp=1.0, tile_px=1, field_px=1, columns=10, rows=7)
    share = tissue_share(TissueMask(mask, 1.0, 1.0), grid, (tile_um, tile_um))
    assert share.sum() * tile_um**2 == pytest.approx(mask.sum(), rel=0.02)
