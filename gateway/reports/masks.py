"""What the masks of prompts look like from further away: their share of larger pixels, and their outlines."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from gateway.domain.report import Report, Segmented
from gateway.reports import regions
from gateway.reports.spatial import MaskMap, Outlines, SlideSource

_MOST_SIDE = 2048
"""Regions are outlined on a raster of at most so many cells a side, whatever the size of the slide."""
_LEAST_CELLS = 4
_FULL_SCALE = 255

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MaskBox:
    """A box of mask pixels: its first column and row, and its size. It may reach beyond the masks."""

    x: int
    y: int
    width: int
    height: int


def coverage_of(masks: MaskMap, index: int, box: MaskBox, shape: tuple[int, int]) -> Floats:
    """The share (0..1) of each pixel of a picture of `box` that lies in the mask of a prompt; `shape` (H, W) -> (H, W).

    Memory is that of the picture and of one tile.
    """
    height, width = min(shape[0], box.height), min(shape[1], box.width)
    inside_HW, _ = _reduced(masks, index, box, (height, width))
    # A picture finer than the mask shows each of its pixels several times.
    row_H, column_W = ((np.arange(out) * of) // out for out, of in zip(shape, (height, width), strict=True))
    return inside_HW[np.ix_(row_H, column_W)]


def any_outlines(masks: MaskMap, index: int) -> bool:
    """Whether there is anything to outline of a prompt."""
    return next(outlines_of(masks, index, mpp=1, simple=True), None) is not None


def outlines_of(masks: MaskMap, index: int, *, mpp: float, simple: bool) -> Iterator[Outlines]:
    """The outlines of a prompt: of its objects where it has any, else of the regions of its mask.

    `mpp`: micrometres a side of a mask pixel. `simple`: no ring is a hole; objects come without theirs, regions that
    have some in parts without. Regions are traced on a raster (`regions`), and have no irregularity (NaN).
    """
    none = True
    for batch in masks.outlines(index):
        if len(batch.area_um2_N):
            none = False
            yield _outer(batch) if simple else batch
    if none:
        yield from _regions(masks, index, mpp=mpp, simple=simple)


def outlined(report: Report, source: SlideSource, *, simple: bool) -> Iterator[tuple[Segmented, Iterator[Outlines]]]:
    """Each prompt in the report's order with its outlines, scaled to pixels of the level `source.read`; `simple` as in
    `outlines_of`."""
    result = report.segments_of(source.series)
    maps = {index: masks for masks in source.masks for index in masks.indices}
    for segmented in result.segments if result else ():
        if segmented.index in maps:
            yield segmented, _scaled(maps[segmented.index], segmented, source, simple=simple)


def _scaled(masks: MaskMap, segmented: Segmented, source: SlideSource, *, simple: bool) -> Iterator[Outlines]:
    level = source.levels[masks.level]
    factor = np.array(
        [
            masks.pixel_px * source.image.TotalPixelMatrixColumns / level.TotalPixelMatrixColumns,
            masks.pixel_px * source.image.TotalPixelMatrixRows / level.TotalPixelMatrixRows,
        ],
        np.float32,
    )
    most = np.array([source.image.TotalPixelMatrixColumns, source.image.TotalPixelMatrixRows], np.float32)
    for batch in outlines_of(masks, segmented.index, mpp=segmented.mpp, simple=simple):
        yield replace(batch, points_P2=np.minimum(batch.points_P2 * factor, most))


def _outer(batch: Outlines) -> Outlines:
    """The objects without their holes: the first ring of each."""
    outer_G = np.diff(batch.object_G, prepend=-1) > 0
    if outer_G.all():
        return batch
    ends_G = np.append(batch.first_G[1:], len(batch.points_P2))
    length_G = ends_G - batch.first_G
    kept_P = np.repeat(outer_G, length_G)
    kept_N = length_G[outer_G]
    return replace(
        batch,
        points_P2=batch.points_P2[kept_P],
        first_G=np.cumsum(kept_N) - kept_N,
        object_G=batch.object_G[outer_G],
    )


def _regions(masks: MaskMap, index: int, *, mpp: float, simple: bool) -> Iterator[Outlines]:
    """The 4-connected regions of a mask on a raster of its occupied part, each cell as most of it is."""
    occupied_N2 = masks.occupied(index)
    if not len(occupied_N2):
        return
    (top, left), (bottom, right) = occupied_N2.min(axis=0), occupied_N2.max(axis=0) + 1
    tile = masks.tile_px
    side = int(max(bottom - top, right - left)) * tile
    cell = -(-side // _MOST_SIDE)
    shape = -(-int(bottom - top) * tile // cell), -(-int(right - left) * tile // cell)
    box = MaskBox(int(left) * tile, int(top) * tile, shape[1] * cell, shape[0] * cell)
    inside_RC, probability_RC = _reduced(masks, index, box, shape)
    whole_RC, count = regions.connected((inside_RC >= 0.5).astype(np.uint8))
    large_L = np.bincount(whole_RC.ravel(), minlength=count + 1) >= _LEAST_CELLS
    whole_RC, count = regions.connected(((whole_RC > 0) & large_L[whole_RC]).astype(np.uint8))
    if not count:
        return
    rings = regions.outlines(whole_RC)
    part_RC = whole_RC
    if simple and len(rings.label_G) > count:
        part_RC, count = regions.without_holes(whole_RC, rings)
        rings = regions.outlines(part_RC)
    part = part_RC.ravel()
    inside_N = np.bincount(part, inside_RC.ravel(), count + 1)[1:]
    weight_N = np.bincount(part, (probability_RC * inside_RC).ravel(), count + 1)[1:]
    corners_K2 = rings.corners_K2 * cell + np.array([box.x, box.y])
    yield Outlines(
        points_P2=np.minimum(corners_K2, [masks.columns, masks.rows]).astype(np.float32),
        first_G=rings.first_G,
        object_G=rings.label_G - 1,
        area_um2_N=(inside_N * (cell * mpp) ** 2).astype(np.float32),
        irregularity_N=np.full(count, np.nan, np.float32),
        probability_N=(weight_N / np.maximum(inside_N, 1e-9)).astype(np.float32),
    )


def _reduced(masks: MaskMap, index: int, box: MaskBox, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Of each cell of a raster over the box, which is not finer than the mask: the share in the mask (0..1), and the
    mean probability of that share (0 where there is none); both `shape`."""
    row_H = np.arange(box.height) * shape[0] // box.height
    column_W = np.arange(box.width) * shape[1] // box.width
    inside_RC, fraction_RC = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for (row, column), fraction_HW in zip(masks.occupied(index).tolist(), masks.fractions(index), strict=True):
        top, left = row * masks.tile_px - box.y, column * masks.tile_px - box.x
        first_row, first_column = max(top, 0), max(left, 0)
        rows = row_H[first_row : max(top + fraction_HW.shape[0], 0)]
        columns = column_W[first_column : max(left + fraction_HW.shape[1], 0)]
        if not len(rows) or not len(columns):
            continue
        down, across = first_row - top, first_column - left
        seen_HW = fraction_HW[down : down + len(rows), across : across + len(columns)]
        in_mask_HW = seen_HW >= masks.threshold
        at = np.ix_(np.unique(rows), np.unique(columns))
        inside_RC[at] += _summed(in_mask_HW.view(np.uint8), rows, columns)
        fraction_RC[at] += _summed(seen_HW * in_mask_HW, rows, columns)
    probability_RC = fraction_RC / np.maximum(inside_RC, 1) / _FULL_SCALE
    cells_RC = np.outer(np.bincount(row_H), np.bincount(column_W)).astype(np.float32)
    return inside_RC / cells_RC, probability_RC.astype(np.float32)


def _summed(values_HW: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Floats:
    """The sums over the pixels of each cell; `rows`, `columns`: the cell of each row and column, ascending."""
    edges = [np.append(np.flatnonzero(np.diff(cells, prepend=-1)), len(cells)) for cells in (rows, columns)]
    above_left = np.asarray(cv2.integral(values_HW))[np.ix_(*edges)]
    sums_RC: Floats = np.diff(np.diff(above_left, axis=0), axis=1).astype(np.float32)
    return sums_RC
