"""Windows that overlap: where they lie, which are read, and that their pixels are those of the level."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gateway.domain.order import PointUm, RegionUm
from gateway.operations.errors import Cancelled, InvalidOrder, NoTissue, ResolutionTooCoarse
from gateway.slides import Slide, TissueMask, find_tissue, frames_of
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import (
    STRIP_WINDOWS,
    WindowPlan,
    covered_mm2,
    inside,
    plan_windows,
    region_px,
    window_starts,
)


@pytest.fixture(scope="module")
def tissue(phantom) -> Iterator[TissueMask]:
    with Slide.open(phantom.files) as opened:
        yield find_tissue(opened)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (900, [0]),
        (1024, [0]),
        (1501, [0, 477]),
        (2000, [0, 976]),
        (5412, [0, 878, 1755, 2633, 3510, 4388]),
    ],
)
def test_starts_as_published(length: int, expected: list[int]) -> None:
    assert window_starts(length, 1024).tolist() == expected


@pytest.mark.parametrize("length", [257, 448, 449, 1000, 2221])
def test_neighbours_share_a_quarter_at_least(length: int) -> None:
    starts = window_starts(length, 256, 64)
    assert starts[0] == 0
    assert starts[-1] == length - 256
    assert np.diff(starts).max() <= 192
    assert len(starts) < 2 + (length - 256) / 192  # no more than are needed


def covered(plan: WindowPlan) -> np.ndarray:
    seen = np.zeros((plan.height_px, plan.width_px), bool)
    for top, left in zip(plan.tops_N, plan.lefts_N, strict=True):
        seen[top : top + plan.side_px, left : left + plan.side_px] = True
    return seen


def test_all_tissue_is_read_in_the_order_of_strips(slide, tissue) -> None:
    plan = plan_windows(slide, tissue, mpp=0.5, side_px=64)
    assert (plan.level, plan.field_px, plan.pixel_px, plan.mpp) == (0, 64, 1.0, 0.5)
    keys = list(zip(plan.strips_N, plan.tops_N, plan.lefts_N, strict=True))
    assert keys == sorted(set(keys))
    assert plan.strips_N.max() == (len(window_starts(2100, 64, 16)) - 1) // STRIP_WINDOWS
    seen = covered(plan)
    at = (np.arange(tissue.mask.shape[0]) + 0.5) * tissue.um_per_px / 0.5
    across = (np.arange(tissue.mask.shape[1]) + 0.5) * tissue.um_per_px / 0.5
    on_grid = seen[np.ix_(at[at < 1500].astype(int), across[across < 2100].astype(int))]
    mask = tissue.mask[: on_grid.shape[0], : on_grid.shape[1]]
    assert (mask & ~on_grid).mean() < 1e-3
    assert covered_mm2(plan, tissue, None) == pytest.approx(tissue.area_mm2, rel=0.01)
    assert 0.3 < seen.mean() < 0.95  # glass is not
    assert plan.digest == plan_windows(slide, tissue, mpp=0.5, side_px=64).digest
    assert plan.digest != plan_windows(slide, tissue, mpp=0.5, side_px=64, min_tissue=0.5).digest


def pixels(slide: Slide, plan: WindowPlan, **how: object) -> dict[int, np.ndarray]:
    return {
        batch.start + number: image
        for batch in stream_windows(slide, plan, batch=7, **how)  # type: ignore[arg-type]
        for number, image in enumerate(batch.images_BHWC)
    }


def test_pixels_are_those_of_the_level(slide, tissue) -> None:
    """Two strips, frames that no window border meets; and on from any window the same."""
    plan = plan_windows(slide, tissue, mpp=0.5, side_px=96)
    assert len(set(plan.strips_N)) == 2
    level = slide.read_level(0)
    seen = pixels(slide, plan)
    assert list(seen) == list(range(len(plan)))
    for number, (top, left) in enumerate(zip(plan.tops_N, plan.lefts_N, strict=True)):
        assert np.array_equal(seen[number], level[top : top + 96, left : left + 96])
    rest = pixels(slide, plan, first=len(plan) - 10)
    assert list(rest) == list(range(len(plan) - 10, len(plan)))
    assert all(np.array_equal(rest[number], seen[number]) for number in rest)


def test_a_finer_level_is_reduced_and_a_coarser_one_enlarged(phantom) -> None:
    region = RegionUm(300, 200, 200, 150)
    with Slide.open([phantom.files[0]]) as finest:
        level = finest.read_level(0)
        for mpp, field_px in ((1.0, 256), (0.25, 64)):
            plan = plan_windows(finest, None, mpp=mpp, side_px=128, region=region)
            assert (plan.field_px, plan.mpp) == (field_px, mpp)
            seen = pixels(finest, plan)
            top, left = int(plan.tops_N[0] * plan.pixel_px), int(plan.lefts_N[0] * plan.pixel_px)
            crop = Image.fromarray(level[top : top + field_px, left : left + field_px])
            assert np.array_equal(seen[0], np.asarray(crop.resize((128, 128), Image.Resampling.BICUBIC)))
        as_it_is = plan_windows(finest, None, mpp=0.46, side_px=128, region=region)
        assert (as_it_is.field_px, as_it_is.mpp) == (128, 0.5)
        with pytest.raises(ResolutionTooCoarse, match="cannot answer at this resolution"):
            plan_windows(finest, None, mpp=0.23, side_px=128)


def test_beyond_a_small_slide_is_its_mirror_image(phantom) -> None:
    with Slide.open([phantom.files[4]]) as small:
        height, width = small.levels[0].height_px, small.levels[0].width_px
        side = max(height, width) + 30
        plan = plan_windows(small, None, mpp=small.levels[0].mpp, side_px=side)
        assert len(plan) == 1
        (image,) = pixels(small, plan).values()
        assert np.array_equal(image[:height, :width], small.read_level(0))
        assert np.array_equal(image[height : height + 20], image[height - 2 : height - 22 : -1])
        assert np.array_equal(image[:, width : width + 20], image[:, width - 2 : width - 22 : -1])


def test_a_region_is_read_with_its_surroundings_and_nothing_else(slide, tissue) -> None:
    region = RegionUm(300.25, 200, 100, 64)
    plan = plan_windows(slide, None, mpp=0.5, side_px=64, region=region)
    rows, columns = region_px(plan, region)
    assert (rows, columns) == (slice(400, 528), slice(600, 801))
    seen = np.argwhere(covered(plan))
    assert seen.min(axis=0).tolist() == [392, 592]
    assert (seen.max(axis=0) + 1).tolist() == [536, 809]
    wanted = frames_of(slide, plan.tiles)
    assert sum(len(frames or ()) for frames in wanted.values()) < 10
    whole = plan_windows(slide, None, mpp=0.5, side_px=64)
    assert len(plan) < len(whole)
    both = frames_of(slide, plan.tiles, whole.tiles)
    assert both == frames_of(slide, whole.tiles)


def polygon(box: tuple[float, float, float, float], *corners: tuple[float, float]) -> RegionUm:
    return RegionUm(*box, tuple(PointUm(x, y) for x, y in corners))


def test_a_polygon_counts_by_its_pixels_centres(slide, tissue) -> None:
    region = polygon((300, 200, 100, 60), (300, 200), (400, 200), (300, 260))
    plan = plan_windows(slide, None, mpp=0.5, side_px=64, region=region)
    found = inside(plan, region, slice(390, 540), slice(590, 820))
    assert np.count_nonzero(found) * 0.25 == pytest.approx(3000, rel=0.01)
    everywhere = replace(tissue, mask=np.ones_like(tissue.mask))
    assert covered_mm2(plan, everywhere, region) == np.count_nonzero(found) * 0.25 / 1e6
    twice = polygon((300, 200, 100, 60), *((300, 200), (400, 200), (400, 260), (300, 260)) * 2)
    assert not inside(plan, twice, slice(390, 540), slice(590, 820)).any()  # twice round is outside: even-odd
    with pytest.raises(InvalidOrder, match="encloses nothing"):
        covered_mm2(plan, everywhere, twice)
    bow = polygon((300, 200, 100, 60), (300, 200), (400, 260), (400, 200), (300, 260))
    crossed = inside(plan, bow, slice(400, 520), slice(600, 800))
    assert np.count_nonzero(crossed) * 0.25 == pytest.approx(3000, rel=0.01)
    assert crossed[60, [0, 199]].all()
    assert not crossed[[0, 119], 100].any()


@pytest.mark.parametrize("region", [RegionUm(301, 203, 5, 5), RegionUm(301, 203, 21, 20), RegionUm(20, 20, 900, 600)])
def test_the_area_of_a_region_is_its_own(slide, tissue, region) -> None:
    """Not that of the tissue's pixels of 8 µm in it, of which a small region may hold none; and of a large one few of
    its points are enough."""
    everywhere = replace(tissue, mask=np.ones_like(tissue.mask))
    plan = plan_windows(slide, everywhere, mpp=0.25, side_px=64, region=region)
    assert covered_mm2(plan, everywhere, region) == pytest.approx(region.width_um * region.height_um / 1e6, rel=0.002)


def test_a_polygon_is_read_where_it_lies(slide) -> None:
    """Not all of its box; and what it encloses is under the same windows as in its box."""
    region = polygon((100, 100, 600, 500), (100, 100), (110, 100), (700, 590), (700, 600), (690, 600))
    plan = plan_windows(slide, None, mpp=0.5, side_px=64, region=region)
    box = plan_windows(slide, None, mpp=0.5, side_px=64, region=replace(region, polygon_um=()))
    whole = slice(0, plan.height_px), slice(0, plan.width_px)
    meant = inside(plan, region, *whole)

    def touching(windows: WindowPlan) -> set[tuple[int, int]]:
        corners = zip(windows.tops_N.tolist(), windows.lefts_N.tolist(), strict=True)
        return {(y, x) for y, x in corners if meant[y : y + 64, x : x + 64].any()}

    assert touching(plan) == touching(box)
    assert len(plan) < 1.5 * len(touching(plan)) < len(box) / 2
    thin = polygon((0, 0, 1000, 700), (0, 0), (10, 0), (1000, 700))
    tracemalloc.start()
    plan_windows(slide, None, mpp=0.5, side_px=16, region=thin)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # a byte for every pixel of the box is more
    with pytest.raises(InvalidOrder, match="encloses nothing"):
        plan_windows(
            slide, None, mpp=0.5, side_px=64, region=polygon((10, 10, 50, 50), (300, 300), (400, 300), (300, 400))
        )


def test_a_missing_frame_is_told_once(make_phantom) -> None:
    """Though two strips read it; and by a part of the plan only where no window before it lies over it."""
    truth = make_phantom(1100, 800, empty_frames=(6, 7, 11), levels=1, seed=2)
    with Slide.open(truth.files) as slide:
        plan = plan_windows(slide, None, mpp=0.5, side_px=64)
        assert len(set(plan.strips_N)) == 2
        told = [batch.missing for batch in stream_windows(slide, plan, batch=1)]
        columns = slide.images[0].frame_at_RC.shape[1]
        assert sorted(row * columns + column for frames in told for row, column in frames) == [6, 7, 11]
        for first in (1, next(n for n, frames in enumerate(told) if frames) + 1, len(plan) - 1):
            rest = [batch.missing for batch in stream_windows(slide, plan, batch=1, first=first)]
            assert rest == told[first:]


@pytest.mark.parametrize("box", [(5000, 0, 10, 10), (0, 5000, 10, 10), (-50, 0, 20, 20), (0, 0, 0, 10), (0, 0, 10, -5)])
def test_a_region_outside_the_slide(slide, box) -> None:
    with pytest.raises(InvalidOrder):
        plan_windows(slide, None, mpp=0.5, side_px=64, region=RegionUm(*box))


def test_no_tissue_and_no_patience(slide, tissue) -> None:
    with pytest.raises(NoTissue):
        plan_windows(slide, replace(tissue, mask=np.zeros_like(tissue.mask)), mpp=0.5, side_px=64)
    with pytest.raises(Cancelled):
        list(stream_windows(slide, plan_windows(slide, tissue, mpp=0.5, side_px=64), batch=4, cancelled=lambda: True))
