"""What lies where on a slide: the arrays beside the report that SEG, Parametric Map, ANN and GeoJSON are drawn from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

UNCERTAIN = -1
"""The class of a tile that reached no operating point."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileMap:
    """What each of the N tiles that were read was found to be, on the grid of the report's slide `series`.

    `rows_N`, `columns_N` (N,) int32: grid positions. `classes_N` (N,) int32: index of the label, or UNCERTAIN.
    `probabilities_NC` (N, C) float32 in 0..1: column c belongs to the label with index c. `tissue_N` (N,) float32 in
    0..1: each tile's share under tissue (`TilePlan.tissue_N`), so that areas here add up to those of the report.
    """

    series: str
    rows_N: npt.NDArray[np.int32]
    columns_N: npt.NDArray[np.int32]
    classes_N: npt.NDArray[np.int32]
    probabilities_NC: npt.NDArray[np.float32]
    tissue_N: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideSource:
    """One slide that was read: the headers (no pixels) of instances of its levels, finest first.

    `read` is the index in `levels` of the level that the report's grid lies on. `tiles` is None where the slide gets no
    spatial objects (a stain that the model was not made for).
    """

    series: str
    levels: tuple[Dataset, ...]
    read: int
    tiles: TileMap | None

    @property
    def image(self) -> Dataset:
        """The header of the level that was read."""
        return self.levels[self.read]


def tile_under(size_px: int, level_px: int, field_px: int, count: int) -> npt.NDArray[np.intp]:
    """The one rule by which tiles are drawn: for each of `size_px` pixels along an axis of an image that shows the
    whole of a level, the tile of its grid under the pixel's centre; -1 beyond the grid. (size_px,)

    `level_px`: the level's size along that axis; its grid has `count` tiles of `field_px` pixels.
    """
    centres = (np.arange(size_px) + 0.5) * (level_px / size_px)
    index = np.floor(centres / field_px).astype(np.intp)
    return np.where(index < count, index, -1)
