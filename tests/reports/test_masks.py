"""Masks seen from further away: the share of larger pixels, the outlines of regions and objects."""

import tracemalloc
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.reports import MaskBox, Outlines, SlideSource, coverage_of
from gateway.reports.masks import any_outlines, outlined, outlines_of
from gateway.reports.masks_ann import write_mask_annotations
from tests.reports.drawn import ring_area
from tests.reports.worded import DrawnMasks, worded


def drawn(*masks: np.ndarray, tile_px: int = 8) -> DrawnMasks:
    return DrawnMasks("2.25.1", 0, 1.0, tile_px, dict(enumerate(masks)))


@pytest.fixture(scope="module")
def blotches() -> DrawnMasks:
    random = np.random.default_rng(3)
    return drawn(random.integers(0, 256, (37, 51)).astype(np.uint8))


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        (MaskBox(0, 0, 51, 37), (37, 51)),
        (MaskBox(0, 0, 51, 37), (5, 7)),
        (MaskBox(10, 6, 20, 30), (6, 5)),
        (MaskBox(-4, -9, 60, 60), (12, 12)),
        (MaskBox(12, 9, 10, 8), (24, 30)),
    ],
)
def test_coverage_is_the_share_of_each_pixel_in_the_mask(
    blotches: DrawnMasks, box: MaskBox, shape: tuple[int, int]
) -> None:
    around = np.pad(blotches.mask(0), 64).astype(np.float64)
    part = around[box.y + 64 : box.y + 64 + box.height, box.x + 64 : box.x + 64 + box.width]
    whole = np.kron(part, np.ones(shape))  # each mask pixel as shape[0] × shape[1], so that pixels of both fit
    expected = whole.reshape(shape[0], box.height, shape[1], box.width).mean(axis=(1, 3))
    found = coverage_of(blotches, 0, box, shape)
    assert found.shape == shape
    divides = all(large % small == 0 for large, small in ((box.height, shape[0]), (box.width, shape[1])))
    if divides or shape[0] > box.height:
        assert found == pytest.approx(expected)
    assert found.mean() == pytest.approx(expected.mean(), abs=0.03)


def rings_of(outlines: Outlines) -> list[list[np.ndarray]]:
    """The rings of each object."""
    ends = [*outlines.first_G[1:], len(outlines.points_P2)]
    found: list[list[np.ndarray]] = [[] for _ in outlines.area_um2_N]
    for at, first, end in zip(outlines.object_G, outlines.first_G, ends, strict=True):
        found[at].append(outlines.points_P2[first:end])
    return found


@pytest.mark.parametrize("simple", [False, True])
def test_regions_are_outlined_where_a_prompt_has_no_objects(simple: bool) -> None:
    fraction = np.zeros((40, 60), np.uint8)
    fraction[10:30, 20:50] = 204
    fraction[15:20, 30:40] = 10  # a hole
    fraction[1, 1] = 255  # a speck
    [found] = outlines_of(drawn(fraction), 0, mpp=0.5, simple=simple)
    objects = rings_of(found)
    assert sum(ring_area(ring) for rings in objects for ring in rings) == 550
    assert (max(map(len, objects)) == 1) == simple
    assert found.area_um2_N.sum() == 550 * 0.25
    assert found.probability_N == pytest.approx(np.full(len(objects), 0.8))
    assert np.isnan(found.irregularity_N).all()


def test_a_large_region_is_outlined_on_a_coarser_raster() -> None:
    fraction = np.zeros((64, 5000), np.uint8)
    fraction[8:40, 6:4900] = 255
    [found] = outlines_of(drawn(fraction, tile_px=64), 0, mpp=1, simple=True)
    assert len(found.points_P2) == 4
    assert np.abs(found.points_P2 - [[6, 8], [4900, 8], [4900, 40], [6, 40]]).max() <= 2
    assert found.area_um2_N[0] == pytest.approx(32 * 4894, rel=0.1)


def test_nothing_to_outline() -> None:
    nothing = drawn(np.zeros((24, 24), np.uint8))
    assert not any_outlines(nothing, 0)
    assert list(outlines_of(nothing, 0, mpp=1, simple=False)) == []


def test_outlines_are_scaled_to_the_level_that_the_report_is_about() -> None:
    report, source = worded()
    finest = source.levels[0]
    half = replace_size(source, 2)
    for at in (source, half):
        areas = {
            segmented.index: sum(ring_area(ring) for batch in batches for rings in rings_of(batch) for ring in rings)
            for segmented, batches in outlined(report, at, simple=False)
        }
        scale = finest.TotalPixelMatrixColumns / at.image.TotalPixelMatrixColumns
        # Objects' outlines run through pixel centres, regions' along their borders.
        assert areas[3] * scale**2 == pytest.approx((400 * 200 - 100 * 50 + 50 * 50) * 4, rel=1e-3)
        assert 0 < abs(areas[1]) * scale**2 < 2 * np.pi * 13**2
        assert list(areas) == [0, 1, 2, 3]
        assert areas[2] == 0


def replace_size(source: SlideSource, factor: int) -> SlideSource:
    """The slide with a second, smaller level, which the report is about."""
    smaller = deepcopy(source.image)
    smaller.TotalPixelMatrixColumns = source.image.TotalPixelMatrixColumns // factor
    smaller.TotalPixelMatrixRows = source.image.TotalPixelMatrixRows // factor
    return replace(source, levels=(source.levels[0], smaller), instances=(*source.instances[:1], ("2.25.9",)), read=1)


def test_annotations_get_objects_without_their_holes() -> None:
    fraction, labels = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.int32)
    fraction[5:20, 5:20] = 255
    fraction[10:14, 10:14] = 0
    labels[fraction > 0] = 1
    fraction[25:35, 25:35], labels[25:35, 25:35] = 200, 2
    masks = DrawnMasks("2.25.1", 0, 1.0, 40, {0: fraction}, {0: labels})
    [whole], [simple] = (outlines_of(masks, 0, mpp=1, simple=choice) for choice in (False, True))
    assert [len(rings) for rings in rings_of(whole)] == [2, 1]
    assert [len(rings) for rings in rings_of(simple)] == [1, 1]
    assert np.array_equal(simple.area_um2_N, whole.area_um2_N)
    assert np.array_equal(rings_of(simple)[1][0], rings_of(whole)[1][0])


class ManyObjects(DrawnMasks):
    """The same objects over and over."""

    def outlines(self, index: int) -> Iterator[Outlines]:
        count, corners = 5000, 20
        ring = np.random.default_rng(1).integers(0, 900, (count * corners, 2)).astype(np.float32)
        for _ in range(20):
            yield Outlines(
                points_P2=ring,
                first_G=np.arange(count) * corners,
                object_G=np.arange(count, dtype=np.int32),
                area_um2_N=np.ones(count, np.float32),
                irregularity_N=np.zeros(count, np.float32),
                probability_N=np.ones(count, np.float32),
            )


def test_annotations_of_many_objects_do_not_lie_in_memory(tmp_path: Path) -> None:
    report, source = worded()
    drawn = source.masks[0]
    many = ManyObjects(drawn.series, drawn.level, drawn.pixel_px, drawn.tile_px, {0: drawn.fractions_by_index[0]})
    tracemalloc.start()
    write_mask_annotations(tmp_path / "many.ann.dcm", report, replace(source, masks=(many,)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "many.ann.dcm").stat().st_size
    assert size > 2_000_000 * 8
    assert peak < 0.7 * size  # what is kept of each object, whatever its corners, and the check of their coordinates
    assert [path.name for path in tmp_path.iterdir()] == ["many.ann.dcm"]
