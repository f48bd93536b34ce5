"""The pixels of overlapping windows: the tiles under a strip of windows come through the frame pipeline once, and the
windows are cut from the few rows of tiles that are in memory."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from gateway.slides.pipeline import TileBatch, stream_tiles
from gateway.slides.slide import WHITE, Slide
from gateway.slides.windows import WindowPlan

_TILES = 32


@dataclass(frozen=True, slots=True, eq=False)
class WindowBatch:
    """Windows `start`, `start + 1`, … of the plan: `images_BHWC` (B, side_px, side_px, 3) uint8 RGB.

    `frames_missing`: as of `TileBatch`, of the frames that were read since the last batch.
    """

    start: int
    images_BHWC: NDArray[np.uint8]
    frames_missing: int


def stream_windows(
    slide: Slide,
    plan: WindowPlan,
    *,
    batch: int,
    first: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[WindowBatch]:
    """The plan's windows from `first` on, `batch` at a time (fewer in the last batch).

    What lies beyond the level's edge is its mirror image. Memory depends on the width of a strip, not on the slide.
    Raises what `stream_tiles` raises.
    """
    waiting: list[NDArray[np.uint8]] = []
    missing = 0
    for strip in np.unique(plan.strips_N[first:]).tolist():
        begin, end = (int(np.searchsorted(plan.strips_N, strip, side)) for side in ("left", "right"))
        windows_M = np.arange(max(first, begin), end)
        reader = _Strip(slide, plan, windows_M)
        with closing(reader.batches(cancelled)) as tiles:
            for window in windows_M.tolist():
                missing += reader.advance(tiles, window)
                waiting.append(reader.cut(window))
                if len(waiting) == batch:
                    yield WindowBatch(window + 1 - batch, np.stack(waiting), missing)
                    waiting, missing = [], 0
    if waiting:
        yield WindowBatch(len(plan) - len(waiting), np.stack(waiting), missing)


class _Strip:
    """The rows of tiles under some windows of one strip, those in memory that are still to be cut from."""

    def __init__(self, slide: Slide, plan: WindowPlan, windows_M: NDArray[np.int64]) -> None:
        self._slide = slide
        self._plan = plan
        self._level = slide.levels[plan.level]
        self._side = plan.tiles.grid.field_px
        self._tops_N, self._lefts_N = plan.in_level(plan.tops_N), plan.in_level(plan.lefts_N)
        tops, lefts = self._tops_N[windows_M], self._lefts_N[windows_M]
        self._left = int(lefts.min()) // self._side * self._side
        needed_RC = np.zeros((plan.tiles.grid.rows, plan.tiles.grid.columns), np.bool_)
        for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
            needed_RC[self._tiles(top), self._tiles(left)] = True
        self._tiles_M = np.flatnonzero(needed_RC[plan.tiles.rows_N, plan.tiles.columns_N])
        columns = plan.tiles.columns_N[self._tiles_M]
        self._width = (int(columns.max()) + 1) * self._side - self._left
        self._rows: dict[int, NDArray[np.uint8]] = {}
        self._complete = -1
        """The last row of tiles that is in memory whole."""

    def batches(self, cancelled: Callable[[], bool]) -> Generator[TileBatch]:
        part = self._plan.tiles.part(self._tiles_M)
        yield from stream_tiles(self._slide, part, batch=_TILES, cancelled=cancelled)

    def advance(self, batches: Iterator[TileBatch], window: int) -> int:
        """Bring the tiles under a window into memory and drop those above it; the number of frames missing."""
        rows = self._tiles(int(self._tops_N[window]))
        needed = min(rows.stop, self._plan.tiles.grid.rows) - 1
        missing = 0
        while self._complete < needed:
            tiles = next(batches, None)
            if tiles is None:
                self._complete = needed
                break
            missing += tiles.frames_missing
            for tile, image in zip(self._tiles_M[tiles.start :].tolist(), tiles.images_BHWC, strict=False):
                row = int(self._plan.tiles.rows_N[tile])
                x = int(self._plan.tiles.columns_N[tile]) * self._side - self._left
                if row not in self._rows:
                    self._rows[row] = np.full((self._side, self._width, 3), WHITE, np.uint8)
                self._rows[row][:, x : x + self._side] = image
                self._complete = row - 1
        for row in [row for row in self._rows if row < rows.start]:
            del self._rows[row]
        return missing

    def cut(self, window: int) -> NDArray[np.uint8]:
        """A window as the model sees it, (side_px, side_px, 3)."""
        field, side_px = self._plan.field_px, self._plan.side_px
        top, left = int(self._tops_N[window]), int(self._lefts_N[window])
        bottom, right = min(top + field, self._level.height_px), min(left + field, self._level.width_px)
        rows = range(top // self._side, -(-bottom // self._side))
        columns = slice(left - self._left, right - self._left)
        image = np.concatenate([self._rows[row][:, columns] for row in rows])[top - rows.start * self._side :]
        image = image[: bottom - top]
        if image.shape[:2] != (field, field):
            beyond = ((0, field - image.shape[0]), (0, field - image.shape[1]), (0, 0))
            image = np.pad(image, beyond, mode="reflect")
        if field == side_px:
            return image
        picture = PillowImage.fromarray(image)
        return np.asarray(picture.resize((side_px, side_px), PillowImage.Resampling.BICUBIC))

    def _tiles(self, start_px: int) -> slice:
        """Along an axis: the tiles under a window that begins there."""
        return slice(start_px // self._side, -(-(start_px + self._plan.field_px) // self._side))
