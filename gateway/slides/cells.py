"""Cells that a detector found: from a tile's answers to a slide's cells, each once.

The network ends before all this (its engine has no non-maximum suppression). Tiles overlap by more than a cell, so that
each cell lies whole in one of them; what others saw of it is joined to it. The order is always by score, highest first,
then from top to bottom, then from left to right, so that no result depends on the order in which tiles were answered.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_JOINED_IOU, _JOINED_SHARE = 0.5, 0.7
"""Boxes of two tiles are one cell beyond this intersection over union, or this share of the smaller one."""
VERSION = 2
"""Of what becomes of a detector's answers here: what is kept of cells is found anew where another one kept it."""
_CHUNK = 1 << 21
"""Pairs that are compared at once: what that takes of memory does not grow with the slide."""

Box = tuple[float, float, float, float]
Boxes = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """N detected cells. `boxes_N4`: left, top, right, bottom in pixels of the slide (or of whatever the tiles are of);
    `scores_N` in 0..1; `classes_N`: the network's class, 0..5; `tiles_N`: the number of the tile that saw it best."""

    boxes_N4: Boxes
    scores_N: NDArray[np.float64]
    classes_N: Indices
    tiles_N: Indices

    def __len__(self) -> int:
        return len(self.scores_N)

    def chosen(self, index: NDArray[np.bool_] | Indices) -> "Cells":
        """Those of an index or a mask, in its order."""
        return Cells(self.boxes_N4[index], self.scores_N[index], self.classes_N[index], self.tiles_N[index])


def cells_of_tile(
    scores_QC: NDArray[np.float32],
    boxes_Q4: NDArray[np.float32],
    corner_xy: tuple[float, float],
    side_px: float,
    tile: int,
    *,
    min_score: float,
    nms_iou: float,
) -> Cells:
    """The cells of one tile from its engine's outputs: a probability a class, and centre, width, height in 0..1.

    A query has its best class; boxes are cut at the tile's border; of boxes that overlap by more than `nms_iou` the
    best stays, whatever the class. `corner_xy`, `side_px`: the tile in pixels of the slide.
    """
    best_Q = scores_QC.max(1)
    at_Q4 = boxes_Q4.astype(np.float64)
    half_Q2 = at_Q4[:, 2:] / 2
    corners_Q4 = np.concatenate([at_Q4[:, :2] - half_Q2, at_Q4[:, :2] + half_Q2], axis=1).clip(0, 1)
    said_Q = (best_Q >= min_score) & (corners_Q4[:, 2:] > corners_Q4[:, :2]).all(1)
    boxes = corners_Q4[said_Q] * side_px + np.tile(np.asarray(corner_xy, np.float64), 2)
    found = Cells(
        boxes,
        best_Q[said_Q].astype(np.float64),
        scores_QC[said_Q].argmax(1).astype(np.int64),
        np.full(len(boxes), tile, np.int64),
    )
    return _suppressed(_ordered(found), nms_iou)


def merged(tiles: Iterable[Cells], nms_iou: float) -> Cells:
    """The cells of a slide from those of its tiles, in order. What tiles saw of one cell is joined: the highest score
    with its class, and the box round all. Boxes of two tiles meet only where the tiles overlap."""
    parts = list(tiles)
    if not parts:
        return Cells(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    whole = Cells(
        np.concatenate([part.boxes_N4 for part in parts]),
        np.concatenate([part.scores_N for part in parts]),
        np.concatenate([part.classes_N for part in parts]),
        np.concatenate([part.tiles_N for part in parts]),
    )
    return _suppressed(_ordered(_joined(_ordered(whole))), nms_iou)


def best_of_each_class(cells: Cells, count: int) -> Cells:
    """Of cells in order the first `count` of each class, in order."""
    order = np.argsort(cells.classes_N, kind="stable")
    sorted_N = cells.classes_N[order]
    place_N = np.arange(len(order)) - np.searchsorted(sorted_N, sorted_N)
    return cells.chosen(np.sort(order[place_N < count]))


def _ordered(cells: Cells) -> Cells:
    left_N, top_N, right_N, bottom_N = cells.boxes_N4.T
    keys = (cells.tiles_N, cells.classes_N, bottom_N, right_N, left_N, top_N, -cells.scores_N)
    return cells.chosen(np.lexsort(keys))


def _suppressed(cells: Cells, iou: float) -> Cells:
    """Greedy non-maximum suppression of cells in order."""
    first_P, second_P, shared_P = _meeting(cells.boxes_N4)
    area_N = _areas(cells.boxes_N4)
    near_P = shared_P > iou * (area_N[first_P] + area_N[second_P] - shared_P)
    kept_N = np.ones(len(cells), np.bool_)
    # Pairs come by their better box: whether that one stays is decided before it is asked.
    for first, second in zip(first_P[near_P].tolist(), second_P[near_P].tolist(), strict=True):
        if kept_N[first]:
            kept_N[second] = False
    return cells.chosen(kept_N)


def _joined(cells: Cells) -> Cells:
    """Cells in order, those that several tiles saw joined to the best of them; at most one of each tile."""
    first_P, second_P, _ = _meeting(cells.boxes_N4)
    apart_P = cells.tiles_N[first_P] != cells.tiles_N[second_P]
    first_P, second_P = first_P[apart_P], second_P[apart_P]
    one_cell_P = _are_one(cells.boxes_N4[first_P], cells.boxes_N4[second_P])
    heads = np.unique(first_P[one_cell_P]).tolist()
    beside = _neighbours(len(cells), first_P, second_P)
    # Few boxes at a time, tens of thousands of times: plain numbers are faster here than arrays.
    boxes, tiles = [tuple(box) for box in cells.boxes_N4.tolist()], cells.tiles_N.tolist()
    done, absorbed = [False] * len(cells), np.zeros(len(cells), np.bool_)
    for head in heads:
        if done[head]:
            continue
        done[head], whole, seen, around = True, boxes[head], {tiles[head]}, beside(head)
        while True:
            # The box round both may hold what neither does: a part of the cell that a third tile saw.
            fits = [n for n in around if not done[n] and tiles[n] not in seen and _is_one(whole, boxes[n])]
            if not fits:
                break
            # The most alike, not the surest: that may be the next tile's view of a cell beside this one.
            found = max(fits, key=lambda n: _iou(whole, boxes[n]))
            done[found] = absorbed[found] = True
            seen.add(tiles[found])
            whole = _round_both(whole, boxes[found])
            around = sorted({*around, *beside(found)})
        boxes[head] = whole
    joined = Cells(np.array(boxes, np.float64).reshape(-1, 4), cells.scores_N, cells.classes_N, cells.tiles_N)
    return joined.chosen(~absorbed)


def _are_one(one_P4: Boxes, other_P4: Boxes) -> NDArray[np.bool_]:
    shared_P = _shared(one_P4, other_P4)
    one_P, other_P = _areas(one_P4), _areas(other_P4)
    overlap = shared_P > _JOINED_IOU * (one_P + other_P - shared_P)
    return overlap | (shared_P > _JOINED_SHARE * np.minimum(one_P, other_P))


def _is_one(one: Box, other: Box) -> bool:
    """`_are_one` of a single pair."""
    shared = _shared_area(one, other)
    smaller, greater = sorted((_area(one), _area(other)))
    return shared > _JOINED_IOU * (smaller + greater - shared) or shared > _JOINED_SHARE * smaller


def _iou(one: Box, other: Box) -> float:
    shared = _shared_area(one, other)
    return shared / (_area(one) + _area(other) - shared)


def _shared_area(one: Box, other: Box) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _round_both(one: Box, other: Box) -> Box:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def _neighbours(count: int, first_P: Indices, second_P: Indices) -> Callable[[int], list[int]]:
    """What gives a box's partners, in rising order."""
    of_2P, beside_2P = np.concatenate([first_P, second_P]), np.concatenate([second_P, first_P])
    order = np.lexsort((beside_2P, of_2P))
    begins = np.searchsorted(of_2P[order], np.arange(count + 1)).tolist()
    beside = beside_2P[order].tolist()
    return lambda number: beside[begins[number] : begins[number + 1]]


def _meeting(boxes_N4: Boxes) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """All pairs of boxes that share an area, (P,) each: the first's number, the second's, which is higher, and that
    area; rising. Boxes lie in squares of a grid by their centres; no box is larger than a square, so that it meets
    none beyond the squares round its own."""
    if not len(boxes_N4):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    side = max(float((boxes_N4[:, 2:] - boxes_N4[:, :2]).max()), 1e-9)
    square_N2 = np.floor((boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2 / side).astype(np.int64)
    square_N2 -= square_N2.min(0)
    across = int(square_N2[:, 0].max()) + 3  # so that no row's end lies beside the next one's beginning
    key_N = square_N2[:, 1] * across + square_N2[:, 0]
    order = np.argsort(key_N, kind="stable")
    sorted_N = key_N[order]
    found = []
    for step in (0, 1, across - 1, across, across + 1):  # each pair of squares once
        begin_N = np.searchsorted(sorted_N, sorted_N + step)
        count_N = np.searchsorted(sorted_N, sorted_N + step, "right") - begin_N
        ends_N = np.cumsum(count_N)
        start = 0
        while start < len(order):
            done = int(ends_N[start] - count_N[start])
            stop = max(start + 1, int(np.searchsorted(ends_N, done + _CHUNK, "right")))
            part = count_N[start:stop]
            within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
            one_P = order[np.repeat(np.arange(start, stop), part)]
            other_P = order[np.repeat(begin_N[start:stop], part) + within]
            if step == 0:
                once = one_P < other_P
                one_P, other_P = one_P[once], other_P[once]
            shared_P = _shared(boxes_N4[one_P], boxes_N4[other_P])
            meet = shared_P > 0
            found.append((np.minimum(one_P, other_P)[meet], np.maximum(one_P, other_P)[meet], shared_P[meet]))
            start = stop
    first_P, second_P, shared_P = (np.concatenate(values) for values in zip(*found, strict=True))
    rising = np.lexsort((second_P, first_P))
    return first_P[rising], second_P[rising], shared_P[rising]


def _shared(one_P4: Boxes, other_P4: Boxes) -> NDArray[np.float64]:
    """(P,): the areas that boxes share."""
    corner_P2 = np.maximum(one_P4[:, :2], other_P4[:, :2])
    size_P2 = (np.minimum(one_P4[:, 2:], other_P4[:, 2:]) - corner_P2).clip(min=0)
    area_P: NDArray[np.float64] = size_P2[:, 0] * size_P2[:, 1]
    return area_P


def _areas(boxes_N4: Boxes) -> NDArray[np.float64]:
    area_N: NDArray[np.float64] = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    return area_N
