"""The pixels of squares all over a level, such as those round cells: the tiles under them come through the frame
pipeline once, and each square is handed out as soon as it is whole."""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from gateway.slides.grid import TilePlan, tiles_under
from gateway.slides.pipeline import TileBatch, stream_tiles
from gateway.slides.slide import Slide

_TILES = 32

Image = NDArray[np.uint8]


def stream_squares(
    slide: Slide,
    level: int,
    squares_N4: NDArray[np.int64],
    *,
    colour: Callable[[Image], Image] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[tuple[int, Image]]:
    """The number and the pixels (S, S, 3) uint8 RGB of each of N squares (left, top, right, bottom in pixels of the
    level), in the order in which they are whole; black beyond the level.

    `colour` is applied to the slide's pixels, not to the black beyond. Only squares that are begun and not whole are in
    memory. Raises what `stream_tiles` raises.
    """
    plan = tiles_under(slide, slide.levels[level], squares_N4, "")
    canvases = _Canvases(slide, plan, squares_N4)
    yield from canvases.beyond()
    with closing(_batches(slide, plan, cancelled)) as batches:
        for batch in batches:
            images_BHWC = batch.images_BHWC if colour is None else colour(batch.images_BHWC)
            for tile, image in enumerate(images_BHWC, batch.start):
                yield from canvases.pasted(tile, image)


def _batches(slide: Slide, plan: TilePlan, cancelled: Callable[[], bool]) -> Generator[TileBatch]:
    yield from stream_tiles(slide, plan, batch=_TILES, cancelled=cancelled)


class _Canvases:
    """The squares that are begun, and how many of their tiles each still lacks."""

    def __init__(self, slide: Slide, plan: TilePlan, squares_N4: NDArray[np.int64]) -> None:
        level = slide.levels[plan.grid.level]
        self._size = level.width_px, level.height_px
        self._plan, self._squares_N4 = plan, squares_N4
        self._canvas: dict[int, Image] = {}
        self._lacks = [0] * len(squares_N4)
        self._squares_of: dict[tuple[int, int], list[int]] = defaultdict(list)
        for square in range(len(squares_N4)):
            for place in self._tiles(square):
                self._squares_of[place].append(square)
                self._lacks[square] += 1

    def beyond(self) -> Iterator[tuple[int, Image]]:
        """The squares of which nothing lies on the level."""
        for square, lacking in enumerate(self._lacks):
            if not lacking:
                yield square, self._blank(square)

    def pasted(self, tile: int, image_HWC: Image) -> Iterator[tuple[int, Image]]:
        """Copy a tile of the plan into its squares; those that are whole with it."""
        row, column = int(self._plan.rows_N[tile]), int(self._plan.columns_N[tile])
        side = self._plan.grid.field_px
        x, y = column * side, row * side
        for square in self._squares_of[row, column]:
            if square not in self._canvas:
                self._canvas[square] = self._blank(square)
            canvas = self._canvas[square]
            left, top, right, bottom = self._on_level(square)
            columns = slice(max(left, x), min(right, x + side))
            rows = slice(max(top, y), min(bottom, y + side))
            from_x, from_y = self._squares_N4[square, :2].tolist()
            part = image_HWC[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
            canvas[rows.start - from_y : rows.stop - from_y, columns.start - from_x : columns.stop - from_x] = part
            self._lacks[square] -= 1
            if not self._lacks[square]:
                yield square, self._canvas.pop(square)

    def _blank(self, square: int) -> Image:
        left, top, right, bottom = self._squares_N4[square].tolist()
        return np.zeros((bottom - top, right - left, 3), np.uint8)

    def _on_level(self, square: int) -> tuple[int, int, int, int]:
        left, top, right, bottom = self._squares_N4[square].tolist()
        return max(left, 0), max(top, 0), min(right, self._size[0]), min(bottom, self._size[1])

    def _tiles(self, square: int) -> Iterator[tuple[int, int]]:
        """(row, column) of the tiles under a square."""
        left, top, right, bottom = self._on_level(square)
        side = self._plan.grid.field_px
        if left < right and top < bottom:
            for row in range(top // side, -(-bottom // side)):
                yield from ((row, column) for column in range(left // side, -(-right // side)))
