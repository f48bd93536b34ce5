from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import SlideSource, TileMap
from gateway.reports.regions import Region, has_regions, regions_of
from tests.reports.conftest import COMMITTED, reading_of, report_of, result_of, source_of, volume_headers
from tests.reports.drawn import drawn, ring_area

FIELD_PX = 200
Grid = npt.NDArray[np.int32]


@pytest.fixture(scope="module")
def blank() -> tuple[Report, pydicom.Dataset]:
    """A report of one slide whose level is as large as a test needs, and its header."""
    image = volume_headers(COMMITTED)[0]
    return report_of([reading_of(image)], [result_of(reading_of(image))]), image


def on_grid(blank: tuple[Report, pydicom.Dataset], classes_RC: Grid, cut_px: tuple[int, int] = (0, 0)):
    """Report and source of a grid of classes, NOTHING (-2) where no tile was read; the level lacks `cut_px` pixels of
    the last column and row."""
    report, image = blank
    rows, columns = classes_RC.shape
    slide = report.slides[0]
    slide = replace(
        slide,
        grid=replace(slide.grid, rows=rows, columns=columns),
        level_width_px=columns * FIELD_PX - cut_px[0],
        level_height_px=rows * FIELD_PX - cut_px[1],
    )
    rows_N, columns_N = np.nonzero(classes_RC > -2)
    random = np.random.default_rng(3)
    tiles = TileMap(
        series=slide.series,
        rows_N=rows_N.astype(np.int32),
        columns_N=columns_N.astype(np.int32),
        classes_N=classes_RC[rows_N, columns_N],
        probabilities_NC=random.random((len(rows_N), 7), dtype=np.float32),
        tissue_N=random.random(len(rows_N), dtype=np.float32),
    )
    return replace(report, slides=(slide,)), SlideSource(
        series=slide.series, levels=(image,), instances=((image.SOPInstanceUID,),), read=0, tiles=tiles
    )


def covered(region: Region, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The cells within a region by the even-odd rule, read off its upright edges alone."""
    inside = np.zeros(shape, dtype=np.bool_)
    for ring in region.rings:
        cells = -(-ring // FIELD_PX)
        for (x, y0), (next_x, y1) in zip(cells, np.roll(cells, -1, axis=0), strict=True):
            if x == next_x:
                inside[min(y0, y1) : max(y0, y1), x:] ^= True
    return inside


def components(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """4-connected components by flood fill, in reading order."""
    left, found = mask.copy(), []
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        component, queue = np.zeros_like(mask), [start]
        while queue:
            row, column = queue.pop()
            if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and left[row, column]:
                left[row, column], component[row, column] = False, True
                queue += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        found.append(component)
    return found


def check_rings(region: Region) -> None:
    for number, ring in enumerate(region.rings):
        assert (ring_area(ring) > 0) == (number == 0)
        assert len({tuple(corner) for corner in ring.tolist()}) == len(ring) >= 4  # it never meets itself
        steps = np.roll(ring, -1, axis=0) - ring
        upright = steps[:, 0] == 0
        assert ((steps != 0).sum(axis=1) == 1).all()
        assert (upright != np.roll(upright, 1)).all()  # every corner is a turn


grids = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-2, 1))


def test_any_grid(blank: tuple[Report, pydicom.Dataset]) -> None:
    @settings(max_examples=200, deadline=None, database=None)
    @given(classes_RC=grids)
    def hold(classes_RC: Grid) -> None:
        report, source = on_grid(blank, classes_RC)
        regions, parts = list(regions_of(report, source)), list(regions_of(report, source, simple=True))
        assert has_regions(source) == bool(regions)
        by_class: dict[int, list[Region]] = {}
        for region in regions:
            by_class.setdefault(region.index, []).append(region)
        assert list(by_class) == sorted(by_class)
        for index in (0, 1):
            expected = components(classes_RC == index)
            found = by_class.get(index, [])
            assert [region.number for region in found] == list(range(1, len(expected) + 1))
            for region, cells in zip(found, expected, strict=True):
                check_rings(region)
                assert (covered(region, cells.shape) == cells).all()
                check_figures(report, source, region, cells)
                mine = [part for part in parts if (part.index, part.number) == (index, region.number)]
                total = np.zeros(cells.shape, dtype=int)
                for part in mine:
                    check_rings(part)
                    assert len(part.rings) == 1
                    total += covered(part, cells.shape)
                    check_figures(report, source, part, covered(part, cells.shape))
                assert (total == cells).all()

    hold()


def check_figures(report: Report, source: SlideSource, region: Region, cells: npt.NDArray[np.bool_]) -> None:
    tiles, grid = source.tiles, report.slides[0].grid
    inside_N = cells[tiles.rows_N, tiles.columns_N]
    probabilities_N = tiles.probabilities_NC[inside_N, region.index]
    assert region.tiles == inside_N.sum()
    assert region.area_mm2 == pytest.approx(region.tiles * grid.tile_area_mm2)
    assert region.tissue_area_mm2 == pytest.approx(tiles.tissue_N[inside_N].sum() * grid.tile_area_mm2, rel=1e-5)
    assert region.mean_probability == pytest.approx(probabilities_N.mean(), rel=1e-5)
    assert region.max_probability == probabilities_N.max()


def test_tiles_that_meet_in_a_corner_are_two_regions(blank: tuple[Report, pydicom.Dataset]) -> None:
    regions = list(regions_of(*on_grid(blank, np.array([[0, -2], [-2, 0]], np.int32))))
    assert [region.rings[0].tolist() for region in regions] == [
        [[0, 0], [200, 0], [200, 200], [0, 200]],
        [[200, 200], [400, 200], [400, 400], [200, 400]],
    ]


def test_a_hole_that_meets_the_outer_ring_is_a_ring_of_its_own(blank: tuple[Report, pydicom.Dataset]) -> None:
    gap = np.array([[-2, 0, 0], [0, -2, 0], [0, 0, 0]], np.int32)
    (region,) = regions_of(*on_grid(blank, gap))
    assert [len(ring) for ring in region.rings] == [6, 4]
    assert region.rings[1].min(axis=0).tolist() == [200, 200]
    assert len(list(regions_of(*on_grid(blank, gap), simple=True))) == 2


def test_a_region_ends_where_the_level_ends(blank: tuple[Report, pydicom.Dataset]) -> None:
    report, source = on_grid(blank, np.zeros((2, 3), np.int32), cut_px=(150, 20))
    (region,) = regions_of(report, source)
    assert region.rings[0].max(axis=0).tolist() == [450, 380]
    pixel_mm2 = report.slides[0].grid.tile_area_mm2 / FIELD_PX**2
    assert region.area_mm2 == pytest.approx(450 * 380 * pixel_mm2)


def test_areas_add_up_to_the_report() -> None:
    report, source = drawn(volume_headers(COMMITTED), patch=3)
    for tissue in report.tissue[0].classes:
        for simple in (False, True):
            mine = [region for region in regions_of(report, source, simple=simple) if region.index == tissue.index]
            assert sum(region.tissue_area_mm2 for region in mine) == pytest.approx(tissue.area_mm2)
            assert sum(region.tiles for region in mine) == tissue.tiles


def test_the_order_of_tiles_does_not_matter() -> None:
    report, source = drawn(volume_headers(COMMITTED))
    tiles = source.tiles
    order = np.lexsort((tiles.columns_N, tiles.rows_N))
    sorted_tiles = TileMap(
        series=tiles.series,
        **{
            name: getattr(tiles, name)[order]
            for name in ("rows_N", "columns_N", "classes_N", "probabilities_NC", "tissue_N")
        },
    )
    one, other = list(regions_of(report, source)), list(regions_of(report, replace(source, tiles=sorted_tiles)))
    assert len(one) == len(other) > 5
    for first, second in zip(one, other, strict=True):
        assert [ring.tolist() for ring in first.rings] == [ring.tolist() for ring in second.rings]
        assert (first.index, first.number, first.tiles) == (second.index, second.number, second.tiles)


def test_a_slide_without_tiles_has_no_region(report: Report, image: pydicom.Dataset) -> None:
    source = source_of(image, None)
    assert not has_regions(source)
    assert not list(regions_of(report, source))


def test_a_report_without_the_grid_is_refused(report: Report, image: pydicom.Dataset) -> None:
    broken = replace(report, slides=(replace(report.slides[0], grid=None),))
    with pytest.raises(PathserveError, match="which grid"):
        list(regions_of(broken, source_of(image, report.tissue[0])))
