"""The tile grid over a slide's tissue, in the order in which the pipeline reads it."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.domain.order import RegionUm
from gateway.domain.slide import Level, TileGrid
from gateway.operations.errors import InvalidOrder, NoTissue
from gateway.slides.levels import choose_level
from gateway.slides.slide import LevelImage, Slide
from gateway.slides.tissue import TissueMask

_MAX_STRIP_PX = 8192
_TILE_PX = 256
_ORDER = 1
"""Version of the order of tiles; part of the digest, so that a half-done analysis never continues in another order."""


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """The tiles to read, in pipeline order: by vertical strips of `strip_tiles` columns, each from top to bottom.

    `tissue_N` is each tile's share (0..1) under tissue, `frames` the number of distinct frame positions that hold the
    tiles, `digest` the SHA-256 of all that decides which tile is where.
    """

    grid: TileGrid
    rows_N: NDArray[np.int32]
    columns_N: NDArray[np.int32]
    tissue_N: NDArray[np.float32]
    strip_tiles: int
    frames: int
    digest: str

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def reads(self) -> "tuple[TilePlan, ...]":
        """The tiles that are read of the slide: these."""
        return (self,)

    def part(self, tiles_M: NDArray[np.integer]) -> "TilePlan":
        """The plan of some of its tiles (rising). Its digest and number of frames stay those of the whole."""
        return replace(
            self, rows_N=self.rows_N[tiles_M], columns_N=self.columns_N[tiles_M], tissue_N=self.tissue_N[tiles_M]
        )


def plan_tiles(
    slide: Slide,
    tissue: TissueMask,
    *,
    mpp: float,
    tile_px: int,
    min_tissue: float = 0.25,
    region: RegionUm | None = None,
) -> TilePlan:
    """Lay the grid and choose the tiles with at least `min_tissue` of their area under tissue and, where a region is
    given, touching it. Raises ResolutionTooCoarse, NoTissue, InvalidOrder (region outside the slide)."""
    reading = choose_level(slide.levels, mpp, tile_px)
    level = reading.level
    grid = TileGrid(
        level=level.index,
        mpp=reading.mpp,
        tile_px=tile_px,
        field_px=reading.field_px,
        columns=-(-level.width_px // reading.field_px),
        rows=-(-level.height_px // reading.field_px),
    )
    share_RC = tissue_share(tissue, grid, (reading.field_px * level.mpp_x, reading.field_px * level.mpp_y))
    chosen_RC = share_RC >= max(min_tissue, 1e-6)
    if region is not None:
        chosen_RC &= _touching(region, slide, grid)
    if not chosen_RC.any():
        raise NoTissue(
            "No part of the slide holds enough tissue to be read. Check the slide, or order a region with tissue on it."
        )
    strip_tiles = _strip_tiles(grid, level.frame_width_px)
    rows, columns = np.nonzero(chosen_RC)
    order = np.lexsort((columns, rows, columns // strip_tiles))
    rows_N, columns_N = rows[order].astype(np.int32), columns[order].astype(np.int32)
    described = {"order": _ORDER, "grid": asdict(grid), "strip": strip_tiles, "images": level.sop_instance_uids}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(rows_N.tobytes() + columns_N.tobytes())
    return TilePlan(
        grid=grid,
        rows_N=rows_N,
        columns_N=columns_N,
        tissue_N=share_RC[rows_N, columns_N],
        strip_tiles=strip_tiles,
        frames=int(np.count_nonzero(frames_under(slide.image(level.index), grid, chosen_RC))),
        digest=digest.hexdigest(),
    )


def tiles_under(slide: Slide, level: Level, boxes_N4: NDArray[np.integer], digest: str) -> TilePlan:
    """The tiles of a level under any of N boxes (left, top, right, bottom in its pixels), row by row; what of a box
    lies beyond the level is left out. A tile is one frame where frames are square and small. `digest`: the plan's."""
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
    for left, top, right, bottom in boxes_N4.tolist():
        needed_RC[
            max(top, 0) // side : max(-(-bottom // side), 0), max(left, 0) // side : max(-(-right // side), 0)
        ] = True
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


def tissue_share(tissue: TissueMask, grid: TileGrid, tile_um: tuple[float, float]) -> NDArray[np.float32]:
    """The share (0..1) of every tile of the grid that lies under tissue: (rows, columns) float32. Exact for the mask's
    square pixels, by interpolation in its integral image; what lies beyond the slide counts as no tissue."""
    integral = np.asarray(cv2.integral(tissue.mask.view(np.uint8), sdepth=cv2.CV_32S), np.int32)
    width_px, height_px = tile_um[0] / tissue.um_per_px, tile_um[1] / tissue.um_per_px
    lines = interpolated(integral, np.arange(grid.rows + 1) * height_px)
    corners = interpolated(lines.T, np.arange(grid.columns + 1) * width_px).T
    covered = np.diff(np.diff(corners, axis=0), axis=1)
    return np.clip(covered / (width_px * height_px), 0, 1).astype(np.float32)


def interpolated(lines: NDArray[np.floating | np.integer], positions: NDArray[np.floating]) -> NDArray[np.float64]:
    """An array between its rows, by linear interpolation at these positions along axis 0; beyond its ends the last."""
    positions = np.clip(positions, 0, len(lines) - 1)
    low = np.minimum(positions.astype(int), len(lines) - 2)
    weight = (positions - low)[:, None]
    result: NDArray[np.float64] = lines[low] * (1 - weight) + lines[low + 1] * weight
    return result


def demand_on_slide(region: RegionUm, width_um: float, height_um: float) -> None:
    """Raises InvalidOrder for a region without area, or with none of it on a slide of this size."""
    right, bottom = region.x_um + region.width_um, region.y_um + region.height_um
    if region.width_um <= 0 or region.height_um <= 0 or right <= 0 or bottom <= 0:
        raise InvalidOrder("The region is empty or lies outside the slide. Give it in µm from the slide's top left.")
    if region.x_um >= width_um or region.y_um >= height_um:
        raise InvalidOrder(
            f"The region lies outside the slide, which measures {width_um:.0f} × {height_um:.0f} µm. Order a region "
            "inside it."
        )


def _touching(region: RegionUm, slide: Slide, grid: TileGrid) -> NDArray[np.bool_]:
    level = slide.levels[grid.level]
    width_um, height_um = level.width_px * level.mpp_x, level.height_px * level.mpp_y
    right, bottom = region.x_um + region.width_um, region.y_um + region.height_um
    demand_on_slide(region, width_um, height_um)
    lefts = np.arange(grid.columns) * grid.field_px * level.mpp_x
    tops = np.arange(grid.rows) * grid.field_px * level.mpp_y
    columns = (lefts < right) & (lefts + grid.field_px * level.mpp_x > region.x_um)
    rows = (tops < bottom) & (tops + grid.field_px * level.mpp_y > region.y_um)
    touching: NDArray[np.bool_] = rows[:, None] & columns[None, :]
    return touching


def _strip_tiles(grid: TileGrid, frame_width_px: int) -> int:
    """Width of a strip in tiles. Where tile and frame borders coincide every few tiles (224 and 256: 1792 pixels), a
    strip ends there and shares no frame with the next; else there is one strip as wide as the slide."""
    period_px = math.lcm(grid.field_px, frame_width_px)
    if period_px > _MAX_STRIP_PX:
        return grid.columns
    return period_px // grid.field_px


def frames_under(image: LevelImage, grid: TileGrid, tiles_RC: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The frame positions that the chosen tiles overlap, as (frame rows, frame columns) bool."""
    level = image.level
    frame_rows, frame_columns = image.frame_at_RC.shape
    return _spread(
        _spread(tiles_RC, frame_rows, grid.field_px, level.frame_height_px).T,
        frame_columns,
        grid.field_px,
        level.frame_width_px,
    ).T


def _spread(tiles: NDArray[np.bool_], frames: int, field_px: int, frame_px: int) -> NDArray[np.bool_]:
    """Along axis 0: a frame line is needed where one of the tile lines that overlap it is."""
    starts = np.arange(frames) * frame_px // field_px
    ends = -(-(np.arange(1, frames + 1) * frame_px) // field_px)
    counts = np.zeros((len(tiles) + 1, tiles.shape[1]), np.int32)
    np.cumsum(tiles, axis=0, out=counts[1:])
    needed: NDArray[np.bool_] = counts[np.minimum(ends, len(tiles))] > counts[np.minimum(starts, len(tiles))]
    return needed
