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
from gateway.domain.slide import Level, TileGrid
from gateway.operations.errors import NoTissue, ResolutionTooCoarse
from gateway.slides.grid import TilePlan, demand_on_slide, frames_under, interpolated
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
_TILE_PX = 256
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
        corners: NDArray[np.int64] = np.rint(corners_N * self.pixel_px).astype(np.int64)
        return corners


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


def plan_windows(
    slide: Slide,
    tissue: TissueMask | None,
    *,
    mpp: float,
    side_px: int,
    region: RegionUm | None = None,
    min_tissue: float = 0.01,
) -> WindowPlan:
    """Lay windows over the slide or the region, and keep those with at least `min_tissue` of their area under tissue;
    all of them where no tissue is given.

    Round a region half an overlap more is read, so that its rim is seen in its surroundings. Raises
    ResolutionTooCoarse, NoTissue, InvalidOrder (region empty or outside the slide).
    """
    reading = _reading(slide.levels, mpp, side_px)
    level, pixel_px = reading.level, reading.field_px / side_px
    mpp_y, mpp_x = pixel_px * level.mpp_y, pixel_px * level.mpp_x
    height_px, width_px = (math.ceil(size / pixel_px) for size in (level.height_px, level.width_px))
    rows, columns = slice(0, height_px), slice(0, width_px)
    if region is not None:
        rows, columns = _box(region, (mpp_y, mpp_x), (height_px, width_px))
    overlap_px = round(OVERLAP * side_px)
    tops, lefts = (_starts(part, size, side_px, overlap_px) for part, size in ((rows, height_px), (columns, width_px)))
    share_RC = np.ones((len(tops), len(lefts)), np.float32)
    if tissue is not None:
        share_RC = _share(tissue, (mpp_y, mpp_x), side_px, tops, lefts)
    chosen_RC = share_RC >= min_tissue
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
        tiles=_tiles(slide, level, tops_N, lefts_N, reading.field_px, pixel_px, digest.hexdigest()),
        digest=digest.hexdigest(),
    )


def region_px(plan: WindowPlan, region: RegionUm) -> tuple[slice, slice]:
    """The rows and columns of mask pixels under a region's box. Raises InvalidOrder (empty or outside the slide)."""
    return _box(region, (plan.mpp_y, plan.mpp_x), (plan.height_px, plan.width_px))


def inside(plan: WindowPlan, region: RegionUm, rows: slice, columns: slice) -> NDArray[np.bool_]:
    """Which of these mask pixels lie in the region, box and polygon, by their centres: (rows, columns) bool."""
    y_um = (np.arange(rows.start, rows.stop) + 0.5) * plan.mpp_y
    x_um = (np.arange(columns.start, columns.stop) + 0.5) * plan.mpp_x
    return _inside(region, y_um, x_um)


def covered_mm2(plan: WindowPlan, tissue: TissueMask, region: RegionUm | None) -> float:
    """The area of tissue under the plan's windows and inside the region."""
    seen = np.zeros(tissue.mask.shape, np.bool_)
    down, across = plan.mpp_y / tissue.um_per_px, plan.mpp_x / tissue.um_per_px
    for top, left in zip(plan.tops_N.tolist(), plan.lefts_N.tolist(), strict=True):
        bottom, right = top + plan.side_px, left + plan.side_px
        seen[round(top * down) : round(bottom * down), round(left * across) : round(right * across)] = True
    seen &= tissue.mask
    if region is not None:
        y_um_H, x_um_W = ((np.arange(size) + 0.5) * tissue.um_per_px for size in (len(seen), len(seen[0])))
        seen &= _inside(region, y_um_H, x_um_W)
    return float(np.count_nonzero(seen)) * tissue.um_per_px**2 / 1e6


def _inside(region: RegionUm, y_um_H: NDArray[np.floating], x_um_W: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(H, W): whether points lie in the region; of its polygon by the even-odd rule."""
    down = (y_um_H >= region.y_um) & (y_um_H < region.y_um + region.height_um)
    across = (x_um_W >= region.x_um) & (x_um_W < region.x_um + region.width_um)
    found: NDArray[np.bool_] = down[:, None] & across[None, :]
    if region.polygon_um:
        odd = np.zeros(found.shape, np.bool_)
        corners = region.polygon_um
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            crossed = (start.y_um <= y_um_H) != (end.y_um <= y_um_H)
            if crossed.any():
                slope = (end.x_um - start.x_um) / (end.y_um - start.y_um)
                at_um = start.x_um + (y_um_H[crossed] - start.y_um) * slope
                odd[crossed] ^= x_um_W >= at_um[:, None]
        found &= odd
    return found


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


def _tiles(
    slide: Slide,
    level: Level,
    tops_N: NDArray[np.int32],
    lefts_N: NDArray[np.int32],
    field_px: int,
    pixel_px: float,
    digest: str,
) -> TilePlan:
    """The tiles of the level under any of the windows, row by row."""
    square = level.frame_width_px == level.frame_height_px and level.frame_width_px <= 2 * _TILE_PX
    side = level.frame_width_px if square else _TILE_PX  # a tile that is a frame is not copied together
    grid = TileGrid(
        level=level.index,
        mpp=level.mpp,
        tile_px=side,
        field_px=side,
        columns=-(-level.width_px // side),
        rows=-(-level.height_px // side),
    )
    needed_RC = np.zeros((grid.rows, grid.columns), np.bool_)
    tops, lefts = (np.rint(corners_N * pixel_px).astype(np.int64) for corners_N in (tops_N, lefts_N))
    for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
        below, beyond = -(-(top + field_px) // side), -(-(left + field_px) // side)
        needed_RC[top // side : below, left // side : beyond] = True
    rows, columns = np.nonzero(needed_RC)
    return TilePlan(
        grid=grid,
        rows_N=rows.astype(np.int32),
        columns_N=columns.astype(np.int32),
        tissue_N=np.ones(len(rows), np.float32),
        strip_tiles=grid.columns,
        frames=int(np.count_nonzero(frames_under(slide.image(level.index), grid, needed_RC))),
        digest=digest,
    )
