"""The pixels of overlapping windows: the tiles under a strip of windows come through the frame pipeline once, and the
windows are cut from the few rows of tiles that are in memory."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from gateway.slides.pipeline import TileBatch, stream_tiles
from gateway.slides.slide import WHITE, Slide
from gateway.slides.windows import WindowPlan

_TILES = 32

Image = NDArray[np.uint8]
Resize = Callable[[Image, int, int], Image]
"""A picture (H, W, 3) uint8 RGB, and the width and height that it is to have."""


def bicubic(image_HWC: Image, width_px: int, height_px: int) -> Image:
    """As tiles are reduced (`gateway.slides.pipeline`): with antialiasing."""
    picture = PillowImage.fromarray(image_HWC)
    return np.asarray(picture.resize((width_px, height_px), PillowImage.Resampling.BICUBIC))


@dataclass(frozen=True, slots=True, eq=False)
class WindowBatch:
    """Windows `start`, `start + 1`, … of the plan: `images_BHWC` (B, side_px, side_px, 3) uint8 RGB.

    `missing`: (row, column) of the frames under them, and under no window before them, that should be there and are
    empty.
    """

    start: int
    images_BHWC: NDArray[np.uint8]
    missing: tuple[tuple[int, int], ...]


def stream_windows(
    slide: Slide,
    plan: WindowPlan,
    *,
    batch: int,
    first: int = 0,
    resize: Resize = bicubic,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[WindowBatch]:
    """The plan's windows from `first` on, `batch` at a time (fewer in the last batch); `resize` brings each to its size
    where the level has another resolution: a model is served what it was trained on.

    What lies beyond the level's edge is its mirror image. Memory depends on the width of a strip, not on the slide.
    Raises what `stream_tiles` raises.
    """
    waiting: list[NDArray[np.uint8]] = []
    frames, missing = _Frames(slide, plan, first), list[tuple[int, int]]()
    for strip in np.unique(plan.strips_N[first:]).tolist():
        begin, end = (int(np.searchsorted(plan.strips_N, strip, side)) for side in ("left", "right"))
        windows_M = np.arange(max(first, begin), end)
        reader = _Strip(slide, plan, windows_M, resize)
        with closing(reader.batches(cancelled)) as tiles:
            for window in windows_M.tolist():
                frames.lack(reader.advance(tiles, window))
                missing += frames.missing_under(window)
                waiting.append(reader.cut(window))
                if len(waiting) == batch:
                    yield WindowBatch(window + 1 - batch, np.stack(waiting), tuple(missing))
                    waiting, missing = [], []
    if waiting:
        yield WindowBatch(len(plan) - len(waiting), np.stack(waiting), tuple(missing))


class _Frames:
    """Which frames of the level are missing, each told of once: strips share frames, and so do parts of a plan."""

    def __init__(self, slide: Slide, plan: WindowPlan, first: int) -> None:
        level = slide.levels[plan.level]
        self._field = plan.field_px
        self._size = level.frame_height_px, level.frame_width_px
        self._corners_N2 = np.stack([plan.in_level(plan.tops_N), plan.in_level(plan.lefts_N)], axis=1)
        self._lacking_RC = np.zeros(slide.image(plan.level).frame_at_RC.shape, np.bool_)
        self._told_RC = self._lacking_RC.copy()
        for window in range(first):
            self._told_RC[self._under(window)] = True

    def lack(self, frames: Iterable[tuple[int, int]]) -> None:
        for frame in frames:
            self._lacking_RC[frame] = True

    def missing_under(self, window: int) -> list[tuple[int, int]]:
        """The frames missing under a window that were under none before."""
        top, left = under = self._under(window)
        missing = np.argwhere(self._lacking_RC[under] & ~self._told_RC[under]).tolist()
        self._told_RC[under] = True
        return [(top.start + row, left.start + column) for row, column in missing]

    def _under(self, window: int) -> tuple[slice, ...]:
        starts = self._corners_N2[window].tolist()
        return tuple(
            slice(start // size, -(-(start + self._field) // size))
            for start, size in zip(starts, self._size, strict=True)
        )


class _Strip:
    """The rows of tiles under some windows of one strip, those in memory that are still to be cut from."""

    def __init__(self, slide: Slide, plan: WindowPlan, windows_M: NDArray[np.int64], resize: Resize) -> None:
        self._slide = slide
        self._plan = plan
        self._resize = resize
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

    def advance(self, batches: Iterator[TileBatch], window: int) -> list[tuple[int, int]]:
        """Bring the tiles under a window into memory and drop those above it; the missing frames (row, column)."""
        rows = self._tiles(int(self._tops_N[window]))
        needed = min(rows.stop, self._plan.tiles.grid.rows) - 1
        missing: list[tuple[int, int]] = []
        while self._complete < needed:
            tiles = next(batches, None)
            if tiles is None:
                self._complete = needed
                break
            missing += tiles.missing
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
        return self._resize(image, side_px, side_px)

    def _tiles(self, start_px: int) -> slice:
        """Along an axis: the tiles under a window that begins there."""
        return slice(start_px // self._side, -(-(start_px + self._plan.field_px) // self._side))
