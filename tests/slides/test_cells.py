"""From tiles' detections to a slide's cells."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.slides.cells import Cells, best_of_each_class, cells_of_tile, merged

TILE, STEP = 512, 384  # tiles overlap by 128 px


def cells(*rows: tuple[float, float, float, float, float, int, int]) -> Cells:
    """Rows of left, top, right, bottom, score, class, tile."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return Cells(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), table[:, 6].astype(np.int64))


def rows_of(found: Cells) -> list[tuple[float, ...]]:
    columns = (found.boxes_N4, found.scores_N[:, None], found.classes_N[:, None])
    return [tuple(row) for row in np.hstack(columns).tolist()]


def seen_in_tiles(boxes: np.ndarray, across: int) -> list[Cells]:
    """What every tile of a square slide sees of some boxes: the part inside it, scored by how much that is."""
    first = np.clip((boxes[:, :2] - TILE) // STEP + 1, 0, across - 1)
    found = []
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):  # a box as large as the overlap is in two tiles an axis, at most
        at = first + step
        lower, upper = np.maximum(boxes[:, :2], at * STEP), np.minimum(boxes[:, 2:], at * STEP + TILE)
        inside = (upper - lower > 2).all(1) & (at < across).all(1)
        share = np.prod(upper - lower, axis=1) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        tile = (at[:, 1] * across + at[:, 0]).astype(np.int64)
        part = Cells(np.hstack([lower, upper]), 0.9 * share, np.zeros(len(boxes), np.int64), tile)
        found.append(part.chosen(inside))
    return found


def test_a_tile_gives_its_cells_in_the_slides_frame() -> None:
    scores = np.array([[0.1, 0.6], [0.9, 0.2], [0.19, 0.1], [0.3, 0.8]], np.float32)
    boxes = np.array([[0.5, 0.5, 0.2, 0.2], [0.95, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1], [0.51, 0.5, 0.2, 0.2]])
    found = cells_of_tile(scores, boxes.astype(np.float32), (1000, 2000), 100, 7, min_score=0.2, nms_iou=0.75)
    # The last box suppresses the first; the second ends at the tile's border; the third is too unsure.
    assert found.classes_N.tolist() == [0, 1]
    assert found.scores_N == pytest.approx([0.9, 0.8])
    assert found.boxes_N4 == pytest.approx(np.array([[1085, 2040, 1100, 2060], [1041, 2040, 1061, 2060]]), abs=1e-4)
    assert found.tiles_N.tolist() == [7, 7]


def test_numbers_that_are_none_are_no_cells() -> None:
    scores = np.array([[np.nan], [0.9], [0.9]], np.float32)
    boxes = np.array([[0.5, 0.5, 0.2, 0.2], [np.nan, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.2]], np.float32)
    assert len(cells_of_tile(scores, boxes, (0, 0), 100, 0, min_score=0.2, nms_iou=0.75)) == 0


def test_two_tiles_views_of_a_cell_become_one() -> None:
    whole, part = (450.0, 10.0, 540.0, 100.0, 0.6, 2, 1), (450.0, 10.0, 512.0, 100.0, 0.8, 3, 0)
    assert rows_of(merged([cells(whole), cells(part)], 0.75)) == [(450, 10, 540, 100, 0.8, 3)]
    beside = (520.0, 10.0, 600.0, 100.0, 0.5, 2, 1)  # another cell, hardly touching
    assert len(merged([cells(part), cells(whole, beside)], 0.75)) == 2


def test_neighbours_that_two_tiles_saw_are_joined_each_to_itself() -> None:
    """The surer view of the other cell is not taken for this one, though it overlaps it enough."""
    one, other = (0.0, 0.0, 60.0, 60.0), (14.0, 0.0, 74.0, 60.0)
    seen = [cells((*one, 0.9, 0, 0), (*other, 0.7, 0, 0)), cells((*other, 0.8, 0, 1), (*one, 0.6, 0, 1))]
    assert rows_of(merged(seen, 0.75)) == [(*one, 0.9, 0), (*other, 0.8, 0)]


def test_cells_of_one_tile_are_not_joined() -> None:
    apart = cells((0, 0, 90, 90, 0.9, 0, 0), (30, 0, 120, 90, 0.8, 0, 0))  # they share half of what they cover
    assert len(merged([apart], 0.75)) == 2
    assert len(merged([], 0.75)) == len(merged([cells()], 0.75)) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(30, 128), st.integers(30, 128))
def test_a_cell_on_a_border_gives_one_detection(x: int, y: int, width: int, height: int) -> None:
    box = np.array([[x, y, x + width, y + height]], np.float64)
    (found,) = rows_of(merged(seen_in_tiles(box, 3), 0.75))
    assert found[:4] == tuple(box[0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_tiles_and_cells_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 900, (60, 2))
    boxes = np.hstack([corners, corners + rng.integers(20, 128, (60, 2))]).astype(np.float64)
    parts = [
        Cells(part.boxes_N4, rng.integers(1, 4, len(part)) / 4, rng.integers(0, 6, len(part)), part.tiles_N)
        for part in seen_in_tiles(boxes, 3)
    ]
    shuffled = [part.chosen(rng.permutation(len(part))) for part in parts]
    again = merged([shuffled[place] for place in rng.permutation(len(parts))], 0.75)
    assert rows_of(again) == rows_of(merged(parts, 0.75))


def test_a_hundred_thousand_boxes_take_bounded_time() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 27_000, (45_000, 2))
    boxes = np.hstack([corners, corners + rng.uniform(60, 92, (45_000, 2))])
    parts = seen_in_tiles(boxes, 71)
    started = time.thread_time()
    found = merged(parts, 0.75)
    assert time.thread_time() - started < 20  # each with each would be five thousand million comparisons
    assert 40_000 < len(found) < 46_000
    assert sum(map(len, parts)) > 100_000
    assert (np.diff(found.scores_N) <= 0).all()


def test_the_best_of_each_class_are_kept_in_order() -> None:
    found = cells(*((0, 0, 1, 1, 0.9 - 0.1 * place, kind, 0) for place, kind in enumerate((3, 3, 0, 3, 0))))
    assert best_of_each_class(found, 2).scores_N == pytest.approx([0.9, 0.8, 0.7, 0.5])
