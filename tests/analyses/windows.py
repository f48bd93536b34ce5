"""Plans of windows without a slide, for tests of what comes after the pixels."""

import numpy as np
import numpy.typing as npt

from gateway.domain.slide import TileGrid
from gateway.slides import TilePlan
from gateway.slides.windows import STRIP_WINDOWS, WindowPlan, window_starts


def plan_over(
    height_px: int, width_px: int, side_px: int = 256, *, chosen: npt.NDArray[np.bool_] | None = None
) -> WindowPlan:
    """Windows over a picture at 0.25 µm a pixel, in a plan's order; `chosen` (rows, columns): those that are read."""
    tops, lefts = (window_starts(length, side_px, side_px // 4) for length in (height_px, width_px))
    rows, columns = np.nonzero(np.ones((len(tops), len(lefts)), bool) if chosen is None else chosen)
    strip = columns // STRIP_WINDOWS
    order = np.lexsort((columns, rows, strip))
    none = np.zeros(0, np.int32)
    grid = TileGrid(level=0, mpp=0.25, tile_px=side_px, field_px=side_px, columns=0, rows=0)
    return WindowPlan(
        level=0,
        mpp_x=0.25,
        mpp_y=0.25,
        side_px=side_px,
        field_px=side_px,
        height_px=height_px,
        width_px=width_px,
        tops_N=tops[rows[order]].astype(np.int32),
        lefts_N=lefts[columns[order]].astype(np.int32),
        strips_N=strip[order].astype(np.int32),
        tissue_N=np.ones(len(order), np.float32),
        tiles=TilePlan(grid, none, none, none.astype(np.float32), 1, 0, ""),
        digest=f"{height_px} {width_px} {side_px}",
    )
