"""Windows that overlap over a slide or a region of it, for models whose answer is a picture.

A window is read at one scale: from a level that is about as fine as the model wants it as it is, from a finer one
reduced, from a coarser one enlarged, within limits. Positions are counted in pixels of the model's picture of the whole
level ("mask pixels"), of which one is `pixel_px` pixels of the level wide.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.domain.order import RegionUm
from gateway.domain.slide import Level
from gateway.operations.errors import InvalidOrder, NoTissue, ResolutionTooCoarse
from gateway.slides.grid import TilePlan, demand_on_slide, interpolated, tiles_under
from gateway.slides.levels import Reading
from gateway.slides.slide import Slide
from gateway.slides.tissue import TissueMask

OVERLAP = 0.25
"""Least part of a window that its neighbour sees too."""
STRIP_WINDOWS = 16
_NATIVE = 0.1
"""Models of masks are trained on scales from 0.9 to 1.1: so far from its resolution a level is read as it is."""
_MOST_ENLARGED = 2.1
"""A scan at 20× (up to 0.525 µm) shows nuclei still; what is coarser does not, however it is enlarged."""
_RASTER = 16
"""Steps a window's side in which a polygon's windows are looked for."""
_SAMPLES = 2048
"""Points along a region's side, at the most, at which it is asked whether tissue is there."""
_ORDER = 1
"""Version of the order of windows; part of the digest."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WindowPlan:
    """The N windows to read, in order: by strips of `STRIP_WINDOWS` columns of windows, each from top to bottom.

    `side_px`: a window's side in mask pixels, `field_px` in pixels of the level; `mpp_x`, `mpp_y`: what a mask pixel
    measures in fact. `height_px`, `width_px`: the whole level in mask pixels. `tops_N`, `lefts_N` int32: the windows'
    corners, mask pixels; only where the level is smaller than a window does one reach beyond it. `strips_N` int32: the
    strip of each, rising. `tissue_N`: their shares under tissue. `tiles`: the tiles of the level that are read for
    them. `digest`: SHA-256 of all that decides which window is where.
    """

    level: int
    mpp_x: float
    mpp_y: float
    side_px: int
    field_px: int
    height_px: int
    width_px: int
    tops_N: NDArray[np.int32]
    lefts_N: NDArray[np.int32]
    strips_N: NDArray[np.int32]
    tissue_N: NDArray[np.float32]
    tiles: TilePlan
    digest: str

    def __len__(self) -> int:
        return len(self.tops_N)

    @property
    def mpp(self) -> float:
        return (self.mpp_x + self.mpp_y) / 2

    @property
    def pixel_px(self) -> float:
        """The side of a mask pixel in pixels of the level."""
        return self.field_px / self.side_px

    def in_level(self, corners_N: NDArray[np.int32]) -> NDArray[np.int64]:
        """Windows' corners along one axis, in pixels of the level."""
        return _in_level(corners_N, self.pixel_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A whole level in mask pixels, before windows are laid over it; names as of `WindowPlan`."""

    reading: Reading
    mpp_x: float
    mpp_y: float
    height_px: int
    width_px: int


def window_starts(length_px: int, side_px: int, overlap_px: int = 0) -> NDArray[np.int64]:
    """Where windows begin that cover a length evenly, neighbours sharing at least `overlap_px`: (n,), from 0 to the
    last that ends with the length; one at 0 where the length is not longer than a window.

    As many as are needed, spread to the nearest whole pixel (PathSegmentor, arXiv 2506.20988, Methods: tiling).
    """
    if length_px <= side_px:
        return np.zeros(1, np.int64)
    count = -(-(length_px - overlap_px) // (side_px - overlap_px))
    starts: NDArray[np.int64] = np.rint(np.arange(count) * (length_px - side_px) / (count - 1)).astype(np.int64)
    return starts


def picture_of(slide: Slide, mpp: float, side_px: int) -> Picture:
    """The level that is read for windows of this size at this resolution. Raises ResolutionTooCoarse."""
    reading = _reading(slide.levels, mpp, side_px)
    level, pixel_px = reading.level, reading.field_px / side_px
    return Picture(
        reading=reading,
        mpp_x=pixel_px * level.mpp_x,
        mpp_y=pixel_px * level.mpp_y,
        height_px=math.ceil(level.height_px / pixel_px),
        width_px=math.ceil(level.width_px / pixel_px),
    )


def plan_windows(
    slide: Slide,
    tissue: TissueMask | None,
    *,
    mpp: float,
    side_px: int,
    region: RegionUm | None = None,
    min_tissue: float = 0.01,
    overlap_px: int | None = None,
) -> WindowPlan:
    """Lay windows over the slide or the region, and keep those with at least `min_tissue` of their area under tissue;
    all of them where no tissue is given. `overlap_px`: the least that neighbours share, `OVERLAP` of a window where it
    is not given.

    Round a region half an overlap more is read, so that its rim is seen in its surroundings; of a polygon the windows
    that it touches. Raises ResolutionTooCoarse, NoTissue, InvalidOrder (region empty or outside the slide).
    """
    picture = picture_of(slide, mpp, side_px)
    reading, mpp_y, mpp_x = picture.reading, picture.mpp_y, picture.mpp_x
    height_px, width_px = picture.height_px, picture.width_px
    level, pixel_px = reading.level, reading.field_px / side_px
    rows, columns = slice(0, height_px), slice(0, width_px)
    if region is not None:
        rows, columns = _box(region, (mpp_y, mpp_x), (height_px, width_px))
    overlap_px = round(OVERLAP * side_px) if overlap_px is None else overlap_px
    tops, lefts = (_starts(part, size, side_px, overlap_px) for part, size in ((rows, height_px), (columns, width_px)))
    share_RC = np.ones((len(tops), len(lefts)), np.float32)
    if tissue is not None:
        share_RC = _share(tissue, (mpp_y, mpp_x), side_px, tops, lefts)
    chosen_RC = share_RC >= min_tissue
    if region is not None and region.polygon_um:
        touched_RC = _touched(region, (mpp_y, mpp_x), side_px, tops, lefts)
        if not touched_RC.any():
            raise _nothing_enclosed()
        chosen_RC &= touched_RC
    if not chosen_RC.any():
        raise NoTissue(
            "No part of the slide holds enough tissue to be read. Check the slide, or order a region with tissue on it."
        )
    at_row, at_column = np.nonzero(chosen_RC)
    strip = at_column // STRIP_WINDOWS
    order = np.lexsort((at_column, at_row, strip))
    tops_N, lefts_N = tops[at_row[order]].astype(np.int32), lefts[at_column[order]].astype(np.int32)
    described = {
        "order": _ORDER,
        "images": level.sop_instance_uids,
        "field": reading.field_px,
        "side": side_px,
        "strip": STRIP_WINDOWS,
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(tops_N.tobytes() + lefts_N.tobytes())
    return WindowPlan(
        level=level.index,
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        side_px=side_px,
        field_px=reading.field_px,
        height_px=height_px,
        width_px=width_px,
        tops_N=tops_N,
        lefts_N=lefts_N,
        strips_N=strip[order].astype(np.int32),
        tissue_N=share_RC[at_row[order], at_column[order]],
        tiles=tiles_under(slide, level, _fields(tops_N, lefts_N, reading.field_px, pixel_px), digest.hexdigest()),
        digest=digest.hexdigest(),
    )


def region_px(plan: WindowPlan | Picture, region: RegionUm) -> tuple[slice, slice]:
    """The rows and columns of mask pixels under a region's box. Raises InvalidOrder (empty or outside the slide)."""
    return _box(region, (plan.mpp_y, plan.mpp_x), (plan.height_px, plan.width_px))


def inside(plan: WindowPlan, region: RegionUm, rows: slice, columns: slice) -> NDArray[np.bool_]:
    """Which of these mask pixels lie in the region, box and polygon, by their centres: (rows, columns) bool. Of slices
    with a step, by the centres of the steps."""
    y_um, x_um = (_centres(part) * mpp for part, mpp in ((rows, plan.mpp_y), (columns, plan.mpp_x)))
    return _inside(region, y_um, x_um)


def covered_mm2(plan: WindowPlan, tissue: TissueMask, region: RegionUm | None) -> float:
    """The area of tissue under the plan's windows and inside the region, by mask pixels' centres; where there are more
    than `_SAMPLES` along a side, by so many points. Raises InvalidOrder (no such point lies in the region)."""
    whole = slice(0, plan.height_px), slice(0, plan.width_px)
    rows, columns = (
        slice(part.start, part.stop, max(1, -(-(part.stop - part.start) // _SAMPLES)))
        for part in (whole if region is None else region_px(plan, region))
    )
    y_H, x_W = _centres(rows), _centres(columns)
    counted_HW = np.zeros((len(y_H), len(x_W)), np.bool_)
    tops_N2, lefts_N2 = (
        np.searchsorted(at, np.stack([starts_N, starts_N + plan.side_px], axis=1)).tolist()
        for at, starts_N in ((y_H, plan.tops_N), (x_W, plan.lefts_N))
    )
    for (top, bottom), (left, right) in zip(tops_N2, lefts_N2, strict=True):
        counted_HW[top:bottom, left:right] = True
    if region is not None:
        inside_HW = inside(plan, region, rows, columns)
        if not inside_HW.any():
            raise _nothing_enclosed()
        counted_HW &= inside_HW
    scales = plan.mpp_y / tissue.um_per_px, plan.mpp_x / tissue.um_per_px
    places = (
        np.minimum((centres * scale).astype(int), size - 1)
        for centres, scale, size in zip((y_H, x_W), scales, tissue.mask.shape, strict=True)
    )
    counted_HW &= tissue.mask[np.ix_(*places)]
    return int(np.count_nonzero(counted_HW)) * rows.step * columns.step * plan.mpp_y * plan.mpp_x / 1e6


def _centres(part: slice) -> NDArray[np.float64]:
    step = part.step or 1
    centres: NDArray[np.float64] = np.arange(part.start, part.stop, step) + step / 2
    return centres


def _inside(region: RegionUm, y_um_H: NDArray[np.floating], x_um_W: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(H, W): whether points lie in the region; of its polygon by the even-odd rule."""
    down = (y_um_H >= region.y_um) & (y_um_H < region.y_um + region.height_um)
    across = (x_um_W >= region.x_um) & (x_um_W < region.x_um + region.width_um)
    found: NDArray[np.bool_] = down[:, None] & across[None, :]
    if region.polygon_um:
        # Exact to the centre, which OpenCV's polygons are not: they have all pixels that an edge touches.
        starts_E2 = np.array([(corner.x_um, corner.y_um) for corner in region.polygon_um])
        along_E2 = np.roll(starts_E2, -1, axis=0) - starts_E2
        above_EH = starts_E2[:, 1:] <= y_um_H
        edge, row = np.nonzero(above_EH != np.roll(above_EH, -1, axis=0))
        share = (y_um_H[row] - starts_E2[edge, 1]) / along_E2[edge, 1]
        crossed = np.searchsorted(x_um_W, starts_E2[edge, 0] + share * along_E2[edge, 0])
        # From the first point on or beyond an edge on, a row is on its other side.
        width = len(x_um_W) + 1
        edges_HW = np.bincount(row * width + crossed, minlength=len(y_um_H) * width).reshape(-1, width)[:, :-1]
        found &= np.logical_xor.accumulate(edges_HW % 2 == 1, axis=1)
    return found


def _touched(
    region: RegionUm,
    mpp_yx: tuple[float, float],
    side_px: int,
    tops: NDArray[np.int64],
    lefts: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which windows a region's polygon touches, (rows, columns); some that it just misses are among them.

    It is drawn for one row of windows at a time, with a step more on every side: memory does not grow with the area.
    """
    step = side_px / _RASTER
    corners_E2 = np.array([(corner.x_um / mpp_yx[1], corner.y_um / mpp_yx[0]) for corner in region.polygon_um])
    places_E2 = (corners_E2 - (lefts[0], tops[0])) / step + 0.5
    width = math.ceil((lefts[-1] - lefts[0] + side_px) / step) + 2
    first_C = ((lefts - lefts[0]) // step).astype(int)
    end_C = np.minimum(first_C + _RASTER + 3, width)
    touched_RC = np.zeros((len(tops), len(lefts)), np.bool_)
    for row, down in enumerate(((tops - tops[0]) / step).tolist()):
        raster = np.zeros((_RASTER + 2, width), np.uint8)
        cv2.fillPoly(raster, [np.rint((places_E2 - (0, down)) * 256).astype(np.int32)], 1, shift=8)
        seen = np.concatenate([[0], np.cumsum(raster.any(axis=0))])
        touched_RC[row] = seen[end_C] > seen[first_C]
    return touched_RC


def _nothing_enclosed() -> InvalidOrder:
    return InvalidOrder(
        "The region encloses nothing of the slide: it has no area, or its polygon none inside its box. Draw it again."
    )


def _in_level(corners_N: NDArray[np.int32], pixel_px: float) -> NDArray[np.int64]:
    corners: NDArray[np.int64] = np.rint(corners_N * pixel_px).astype(np.int64)
    return corners


def _fields(tops_N: NDArray[np.int32], lefts_N: NDArray[np.int32], field_px: int, pixel_px: float) -> NDArray[np.int64]:
    """Windows (N, 4) as left, top, right, bottom in pixels of the level."""
    corners_N2 = np.stack([_in_level(lefts_N, pixel_px), _in_level(tops_N, pixel_px)], axis=1)
    return np.hstack([corners_N2, corners_N2 + field_px])


def _reading(levels: Sequence[Level], mpp: float, side_px: int) -> Reading:
    fine_enough = [level for level in levels if level.mpp <= mpp * (1 + _NATIVE)]
    level = max(fine_enough, key=lambda level: level.mpp) if fine_enough else min(levels, key=lambda level: level.mpp)
    if level.mpp > mpp * _MOST_ENLARGED:
        raise ResolutionTooCoarse(
            f"The slide cannot answer at this resolution: its finest image has {level.mpp:.3g} µm per pixel, and what "
            f"is asked for is read at {mpp:.3g}, from images of at most {mpp * _MOST_ENLARGED:.3g}. Scan the slide at "
            "a higher magnification, send its finest level, or ask at a coarser level."
        )
    ratio = mpp / level.mpp
    field_px = side_px if abs(ratio - 1) <= _NATIVE else max(1, round(side_px * ratio))
    return Reading(level=level, field_px=field_px, mpp=field_px * level.mpp / side_px)


def _box(region: RegionUm, mpp_yx: tuple[float, float], shape: tuple[int, int]) -> tuple[slice, slice]:
    height_um, width_um = (size * mpp for size, mpp in zip(shape, mpp_yx, strict=True))
    right, bottom = region.x_um + region.width_um, region.y_um + region.height_um
    demand_on_slide(region, width_um, height_um)

    def covered(start_um: float, end_um: float, axis: int) -> slice:
        return slice(max(0, math.floor(start_um / mpp_yx[axis])), min(shape[axis], math.ceil(end_um / mpp_yx[axis])))

    return covered(region.y_um, bottom, 0), covered(region.x_um, right, 1)


def _starts(part: slice, size_px: int, side_px: int, overlap_px: int) -> NDArray[np.int64]:
    """Where windows over a part of an axis of `size_px` begin: over it and half an overlap, inside the axis where they
    fit."""
    start, stop = max(0, part.start - overlap_px // 2), min(size_px, part.stop + overlap_px // 2)
    if stop - start < side_px:
        start = max(0, min(start, size_px - side_px))
    starts: NDArray[np.int64] = start + window_starts(stop - start, side_px, overlap_px)
    return starts


def _share(
    tissue: TissueMask,
    mpp_yx: tuple[float, float],
    side_px: int,
    tops: NDArray[np.int64],
    lefts: NDArray[np.int64],
) -> NDArray[np.float32]:
    """The share of each window under tissue, (rows, columns), by interpolation in the mask's integral image."""
    integral = np.asarray(cv2.integral(tissue.mask.view(np.uint8), sdepth=cv2.CV_32S), np.int32)
    down, across = (mpp / tissue.um_per_px for mpp in mpp_yx)
    lines = interpolated(integral, (tops + side_px) * down) - interpolated(integral, tops * down)
    covered = interpolated(lines.T, (lefts + side_px) * across) - interpolated(lines.T, lefts * across)
    return np.clip(covered.T / (side_px**2 * down * across), 0, 1).astype(np.float32)
