"""Tiles of one class that touch, merged to polygons along the tiles' borders.

A region is a set of tiles joined by their sides (4-neighbours). Its outline is exact: rings of axis-parallel edges on
the lattice of the grid, clipped to the level. Every ring is simple, so a hole that meets the outer ring in a corner
stays a ring of its own (OGC Simple Features 6.1.11).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from gateway.domain.report import Report
from gateway.domain.slide import TileGrid
from gateway.operations.errors import PathserveError
from gateway.reports.spatial import UNCERTAIN, SlideSource, TileMap

Labels = npt.NDArray[np.int32]
Ring = npt.NDArray[np.int64]

# Directions of an edge, in pixels down the page: the region lies at the edge's right hand.
_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEP_42 = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """One region of class `index`. `number` counts the regions of a class from 1; parts of a cut region share it.

    `rings`: the outer ring, then those of the holes, each (k, 2) int64 corners (x, y) in pixels of the read level's
    total pixel matrix, open (the first corner is not repeated). By the shoelace formula the outer ring's area is
    positive, a hole's negative. `area_mm2` is the outline's area without the holes, `tissue_area_mm2` the part of it
    under tissue, which is what the report counts.
    """

    index: int
    number: int
    rings: tuple[Ring, ...]
    tiles: int
    area_mm2: float
    tissue_area_mm2: float
    mean_probability: float
    max_probability: float


def has_regions(source: SlideSource) -> bool:
    """Whether any tile of the slide belongs to a class, so that there is a region to draw."""
    return source.tiles is not None and bool((source.tiles.classes_N != UNCERTAIN).any())


def regions_of(report: Report, source: SlideSource, *, simple: bool = False) -> Iterator[Region]:
    """The regions of one slide, holes as rings: by class in the report's order, then by their topmost, leftmost tile.

    `simple`: each region that has holes comes as parts without any, cut from top to bottom. None where the slide has no
    tile map. Raises PathserveError where the report does not hold the slide's grid.
    """
    tiles = source.tiles
    slide, result = report.slide_of(source.series), report.tissue_of(source.series)
    if tiles is None or slide is None or result is None:
        return
    if slide.grid is None or slide.level_width_px is None or slide.level_height_px is None:
        raise PathserveError("The report does not say which grid a slide was read on. Run the analysis again.")
    level_px = slide.level_width_px, slide.level_height_px
    for tissue in result.classes:
        yield from _of_class(tissue.index, tiles, slide.grid, level_px, cut=simple)


def _of_class(index: int, tiles: TileMap, grid: TileGrid, level_px: tuple[int, int], *, cut: bool) -> Iterator[Region]:
    chosen_M = np.flatnonzero(tiles.classes_N == index)
    if not len(chosen_M):
        return
    rows_M, columns_M = tiles.rows_N[chosen_M], tiles.columns_N[chosen_M]
    top, left = rows_M.min(), columns_M.min()
    rows_M, columns_M = rows_M - top, columns_M - left
    mask_RC = np.zeros((rows_M.max() + 1, columns_M.max() + 1), dtype=np.uint8)
    mask_RC[rows_M, columns_M] = 1
    whole_RC, count = connected(mask_RC)
    part_RC, rings = whole_RC, outlines(whole_RC)
    if cut and len(rings.label_G) > count:
        part_RC, count = without_holes(whole_RC, rings)
        rings = outlines(part_RC)
    # Lattice points as pixels; the last row and column of tiles may reach beyond the level.
    in_px = np.minimum((rings.corners_K2 + np.array([left, top])) * grid.field_px, np.array(level_px))
    rings = replace(rings, corners_K2=in_px)
    part_M = part_RC[rows_M, columns_M]
    number_P = np.zeros(count + 1, dtype=np.int64)
    number_P[part_M] = whole_RC[rows_M, columns_M]
    probability_M = tiles.probabilities_NC[chosen_M, index].astype(np.float64)
    highest_P = np.zeros(count + 1)
    np.maximum.at(highest_P, part_M, probability_M)
    tiles_P = np.bincount(part_M)
    probability_P = np.bincount(part_M, probability_M)
    tissue_P = np.bincount(part_M, tiles.tissue_N[chosen_M].astype(np.float64))
    area_P = np.bincount(rings.label_G, rings.areas)
    pixel_mm2 = grid.tile_area_mm2 / grid.field_px**2
    for part, of_part in enumerate(rings.by_label(), 1):
        yield Region(
            index=index,
            number=int(number_P[part]),
            rings=of_part,
            tiles=int(tiles_P[part]),
            area_mm2=float(area_P[part]) * pixel_mm2,
            tissue_area_mm2=float(tissue_P[part]) * grid.tile_area_mm2,
            mean_probability=float(probability_P[part] / tiles_P[part]),
            max_probability=float(highest_P[part]),
        )


@dataclass(frozen=True, eq=False)
class Rings:
    """G rings one after the other, by label from 1 up; of each label the outer ring comes first.

    `corners_K2` (K, 2): x and y; `first_G` (G,): each ring's first corner; `label_G` (G,).
    """

    corners_K2: npt.NDArray[np.int64]
    first_G: npt.NDArray[np.int64]
    label_G: npt.NDArray[np.int32]

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """Signed areas (G,) by the shoelace formula."""
        return signed_areas(self.corners_K2, self.first_G)

    def by_label(self) -> Iterator[tuple[Ring, ...]]:
        """The rings of each label."""
        first = [*self.first_G.tolist(), len(self.corners_K2)]
        ends = np.searchsorted(self.label_G, np.arange(self.label_G[-1] + 1), side="right").tolist()
        for start, end in pairwise(ends):
            yield tuple(self.corners_K2[first[ring] : first[ring + 1]] for ring in range(start, end))


def signed_areas(points_P2: npt.NDArray[np.number], first_G: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """The area (G,) of each of G open rings by the shoelace formula. `first_G`: each ring's first point."""
    following_P = np.arange(1, len(points_P2) + 1)
    following_P[np.append(first_G[1:], len(points_P2)) - 1] = first_G
    x_P, y_P = points_P2.astype(np.float64).T
    twice_G = np.add.reduceat(x_P * y_P[following_P] - x_P[following_P] * y_P, first_G)
    return np.asarray(twice_G / 2)


def connected(mask_RC: npt.NDArray[np.uint8]) -> tuple[Labels, int]:
    """The 4-connected components of a mask (R, C), numbered from 1 by first cell in reading order; their count."""
    count, found_RC = cv2.connectedComponents(mask_RC, connectivity=4, ltype=cv2.CV_32S)
    labels, first = np.unique(found_RC, return_index=True)
    rank = np.zeros(count, dtype=np.int32)
    in_order = labels[np.argsort(first)]
    rank[in_order[in_order > 0]] = np.arange(1, count)
    return rank[found_RC], count - 1


def without_holes(whole_RC: Labels, rings: Rings) -> tuple[Labels, int]:
    """Cut every component that has holes along the left end of each of its holes; the parts numbered, and their count.

    No part has a hole: what lies of a hole within a strip between two cuts reaches one of them.
    """
    strip_RC = np.zeros(whole_RC.shape, dtype=np.uint8)
    for label, (outer, *holes) in enumerate(rings.by_label(), 1):
        if holes:
            (left, top), (right, bottom) = outer.min(axis=0), outer.max(axis=0)
            cuts = np.unique([hole[:, 0].min() for hole in holes])
            strip_C = (np.searchsorted(cuts, np.arange(left, right), side="right") % 2).astype(np.uint8)
            box = slice(top, bottom), slice(left, right)
            strip_RC[box] = np.where(whole_RC[box] == label, strip_C, strip_RC[box])
    # Strips alternate, so the even and the odd ones fall apart into their own components.
    even_RC, even = connected(((whole_RC > 0) & (strip_RC == 0)).astype(np.uint8))
    odd_RC, odd = connected(((whole_RC > 0) & (strip_RC == 1)).astype(np.uint8))
    apart_RC = np.where(odd_RC > 0, odd_RC + even, even_RC)
    return _by_component(whole_RC, apart_RC, even + odd), even + odd


def _by_component(whole_RC: Labels, part_RC: Labels, count: int) -> Labels:
    """Number parts by the component they belong to, then by their first cell in reading order."""
    parts, first = np.unique(part_RC, return_index=True)
    parts, first = parts[parts > 0], first[parts > 0]
    order = np.lexsort((first, whole_RC.ravel()[first]))
    rank = np.zeros(count + 1, dtype=np.int32)
    rank[parts[order]] = np.arange(1, count + 1)
    return rank[part_RC]


def outlines(labels_RC: Labels) -> Rings:
    """The outlines of all labels on the lattice, x being the column; each label is one 4-connected component.

    There is a corner only where an outline turns.
    """
    label_E, start_E2, direction_E, next_E = _edges(labels_RC)
    turns_E = np.ones(len(next_E), dtype=np.bool_)
    turns_E[next_E] = direction_E[next_E] != direction_E
    following, turns = next_E.tolist(), turns_E.tolist()
    seen = bytearray(len(following))
    corners: list[int] = []
    firsts: list[int] = []
    starts: list[int] = []
    # Edges come by label, then in reading order: the first that is left over starts a ring at its topmost corner.
    for start in range(len(following)):
        if seen[start]:
            continue
        firsts.append(len(corners))
        starts.append(start)
        edge = start
        while not seen[edge]:
            seen[edge] = 1
            if turns[edge]:
                corners.append(edge)
            edge = following[edge]
    return Rings(start_E2[corners], np.array(firsts), label_E[starts])


def _edges(
    labels_RC: Labels,
) -> tuple[Labels, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All border edges of length one, sorted by label, start and direction, each with the edge that follows it."""
    padded = np.pad(labels_RC, 1)
    width = labels_RC.shape[1] + 1
    found = []
    # An edge of a cell lies where the neighbour on that side is another's; it starts at one of the cell's corners.
    for direction, (down, right), (start_row, start_column) in (
        (_RIGHT, (-1, 0), (0, 0)),
        (_DOWN, (0, 1), (0, 1)),
        (_LEFT, (1, 0), (1, 1)),
        (_UP, (0, -1), (1, 0)),
    ):
        beyond = np.roll(padded, (-down, -right), axis=(0, 1))[1:-1, 1:-1]
        rows, columns = np.nonzero((labels_RC > 0) & (labels_RC != beyond))
        starts = np.stack([columns + start_column, rows + start_row], axis=1)
        found.append((labels_RC[rows, columns], starts, np.full(len(rows), direction)))
    label_E, start_E2, direction_E = (np.concatenate(parts) for parts in zip(*found, strict=True))
    corners = width * (labels_RC.shape[0] + 1)

    def key(point_E2: npt.NDArray[np.int64], towards_E: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        at_E = point_E2[:, 1] * width + point_E2[:, 0]
        keys: npt.NDArray[np.int64] = (label_E.astype(np.int64) * corners + at_E) * 4 + towards_E
        return keys

    order = np.argsort(key(start_E2, direction_E))
    label_E, start_E2, direction_E = label_E[order], start_E2[order], direction_E[order]
    keys_E = key(start_E2, direction_E)
    end_E2 = start_E2 + _STEP_42[direction_E]
    next_E = np.full(len(keys_E), -1)
    # Where two cells of a component meet in a corner only, the outline turns left, to the other cell: it encloses them
    # both, and what lies between them has a ring of its own.
    for turn in (_UP, _RIGHT, _DOWN):
        wanted_E = key(end_E2, (direction_E + turn) % 4)
        at_E = np.minimum(np.searchsorted(keys_E, wanted_E), len(keys_E) - 1)
        next_E = np.where((next_E < 0) & (keys_E[at_E] == wanted_E), at_E, next_E)
    return label_E, start_E2, direction_E, next_E
