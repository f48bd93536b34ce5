"""What lies where on a slide: the arrays beside the report that SEG, Parametric Map, ANN and GeoJSON are drawn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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
class AttentionMap:
    """How much each of M tiles weighs in a slide's answer, on the grid of the report's slide `series`.

    `rows_N`, `columns_N` (M,) int32: grid positions. `attention_N` (M,) float32 in 0..1: relative to the tile that
    weighs most.
    """

    series: str
    rows_N: npt.NDArray[np.int32]
    columns_N: npt.NDArray[np.int32]
    attention_N: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlines:
    """N objects of one prompt, as polygons.

    `points_P2` (P, 2) float32: x and y in mask pixels, (0, 0) being the outer corner of the mask's first pixel; open
    rings, one after the other. `first_G` (G,) int64: each ring's first point; `object_G` (G,) int32: the object of each
    ring, its outer ring first, then its holes. `area_um2_N` (N,): the mask's area, without holes;
    `irregularity_N` (N,) in 0..1; `probability_N` (N,) in 0..1: the mean over the object.
    """

    points_P2: npt.NDArray[np.float32]
    first_G: npt.NDArray[np.int64]
    object_G: npt.NDArray[np.int32]
    area_um2_N: npt.NDArray[np.float32]
    irregularity_N: npt.NDArray[np.float32]
    probability_N: npt.NDArray[np.float32]


class MaskMap(Protocol):
    """The masks of those prompts of a slide that were answered at one resolution; they may overlap. They lie on disk,
    and are read tile by tile, as often as an encoding needs them.

    `level`: index of the slide's level that was read for them. A mask pixel is a square of `pixel_px` pixels of that
    level; `rows` × `columns` of them cover the level from its top left corner, in tiles of `tile_px` pixels a side (a
    multiple of 8), the last of a row and of a column cut at the edge. A pixel lies in a mask where its fraction reaches
    `threshold` (1..255). `indices`: which prompts these are (`Segmented.index`), in the report's order.
    """

    @property
    def series(self) -> str: ...
    @property
    def level(self) -> int: ...
    @property
    def pixel_px(self) -> float: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def tile_px(self) -> int: ...
    @property
    def threshold(self) -> int: ...
    @property
    def indices(self) -> tuple[int, ...]: ...

    def occupied(self, index: int) -> npt.NDArray[np.int32]:
        """(row, column) of each tile (N, 2) with a pixel in the mask of a prompt, in reading order; none where it is
        absent."""

    def fractions(self, index: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Those tiles in that order: of each pixel the probability, 0..255 (h, w)."""

    def outlines(self, index: int) -> Iterator[Outlines]:
        """The prompt's objects, some at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellMap:
    """The N cells that were found on the report's slide `series`, the surest first, and the M tiles that were read.

    `boxes_N4` (N, 4) float64: left, top, right, bottom in pixels of the level that was read. `classes_N` (N,) int32:
    the Bethesda number (1..6) that the detector gave each; `scores_N` (N,) float32 in 0..1. `rows_M`, `columns_M` (M,)
    int32: positions on the report's grid; `highest_M` (M,) float32 in 0..1: the greatest score of a cell whose middle
    lies there, 0 where none does.
    """

    series: str
    boxes_N4: npt.NDArray[np.float64]
    classes_N: npt.NDArray[np.int32]
    scores_N: npt.NDArray[np.float32]
    rows_M: npt.NDArray[np.int32]
    columns_M: npt.NDArray[np.int32]
    highest_M: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideSource:
    """One slide that was read: of each level, finest first, the header (no pixels) of one instance in `levels`, and in
    `instances` the SOP instance UIDs of all (parts of a concatenation, focal planes).

    `read` is the index in `levels` of the level that the report's grid lies on. `tiles`, `attention`, `masks` and
    `cells` are what the protocol found where; none is there where the slide gets no spatial objects (a stain that the
    model was not made for).
    """

    series: str
    levels: tuple[Dataset, ...]
    instances: tuple[tuple[str, ...], ...]
    read: int
    tiles: TileMap | None
    attention: AttentionMap | None = None
    masks: tuple[MaskMap, ...] = ()
    cells: CellMap | None = None

    @property
    def placed(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None:
        """The grid positions of the tiles of whatever is drawn on the slide: rows (N,) and columns (N,)."""
        tiles = self.tiles or self.attention
        if tiles is not None:
            return tiles.rows_N, tiles.columns_N
        return None if self.cells is None else (self.cells.rows_M, self.cells.columns_M)

    @property
    def image(self) -> Dataset:
        """The header of the level that was read."""
        return self.levels[self.read]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """Where a level lies on the slide (PS3.3 C.8.12.14): the total pixel matrix's origin in mm, and the directions of
    its rows and columns; the header's own values."""

    x_mm: float
    y_mm: float
    z_mm: float
    orientation: Sequence[float]


def place_of(image: Dataset) -> Place | None:
    """The level's place in its frame of reference. None where the header names none, or one that cannot be true: rows
    and columns run along two unit vectors at right angles (PS3.3 C.7.6.2.1.1), or places in mm mean nothing."""
    if not image.get("FrameOfReferenceUID"):
        return None
    try:
        origin = image.TotalPixelMatrixOriginSequence[0]
        place = Place(
            x_mm=origin.XOffsetInSlideCoordinateSystem,
            y_mm=origin.YOffsetInSlideCoordinateSystem,
            z_mm=origin.get("ZOffsetInSlideCoordinateSystem") or 0,
            orientation=image.ImageOrientationSlide,
        )
        position = [float(value) for value in (place.x_mm, place.y_mm, place.z_mm)]
        axes_23 = np.array([float(value) for value in place.orientation]).reshape(2, 3)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    right_angled = np.allclose(axes_23 @ axes_23.T, np.eye(2), atol=1e-3)
    return place if np.isfinite(position).all() and right_angled else None


def tile_under(size_px: int, level_px: int, field_px: int, count: int) -> npt.NDArray[np.intp]:
    """The one rule by which tiles are drawn: for each of `size_px` pixels along an axis of an image that shows the
    whole of a level, the tile of its grid under the pixel's centre; -1 beyond the grid. (size_px,)

    `level_px`: the level's size along that axis; its grid has `count` tiles of `field_px` pixels.
    """
    centres = (np.arange(size_px) + 0.5) * (level_px / size_px)
    index = np.floor(centres / field_px).astype(np.intp)
    return np.where(index < count, index, -1)
