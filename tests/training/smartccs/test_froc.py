"""FROC and average precision on made answers, and what detectors are held against."""

import numpy as np
import pytest

from gateway.slides.cells import Cells
from training.data.common import Source
from training.smartccs.data import Field
from training.smartccs.froc import (
    Answered,
    average_precision,
    by_class,
    dark_blobs,
    figures,
    of_other_fields,
    sensitivities,
)

pytestmark = pytest.mark.training


def field(middles: list[tuple[float, float]], classes: list[int], side: float = 20) -> Field:
    source = Source("made.jpg", "made", "0" * 64, "CC0", "A", "", "g")
    corners = np.array(middles, np.float64).reshape(-1, 2) - side / 2
    boxes = np.hstack([corners, np.full_like(corners, side)])
    return Field(source, "g", "test", 0.25, boxes, np.array(classes, np.int64))


def found(*rows: tuple[float, float, float]) -> Cells:
    """Rows of middle x, middle y and score; boxes of 20 px; of the first class."""
    table = np.array(rows, np.float64).reshape(-1, 3)
    boxes = np.hstack([table[:, :2] - 10, table[:, :2] + 10])
    return Cells(boxes, table[:, 2], np.zeros(len(table), np.int64), np.zeros(len(table), np.int64))


# Two abnormal cells and a normal one; then a field of a normal cell alone.
ONE = field([(50, 50), (100, 50), (150, 50)], [1, 4, 0])
TWO = field([(50, 50)], [0])


def test_false_alarms_are_counted_everywhere_or_on_annotated_nuclei_only() -> None:
    answered = [
        Answered(
            ONE, found((60, 50, 0.9), (45, 45, 0.8), (300, 300, 0.7), (111, 50, 0.65), (150, 55, 0.5), (100, 50, 0.4))
        ),
        Answered(TWO, found((50, 50, 0.6))),
    ]
    # Surest first: a hit; the same cell again; nothing there; just beyond half a box; a normal cell; another; a hit.
    assert sensitivities(answered, (0.0, 1.0, 1.5, 2.0)) == {0.0: 0.5, 1.0: 0.5, 1.5: 0.5, 2.0: 1.0}
    assert sensitivities(answered, (0.5, 1.0), unannotated=False) == {0.5: 0.5, 1.0: 1.0}


def test_detections_of_one_score_stand_or_fall_together() -> None:
    answered = [Answered(ONE, found((50, 50, 0.5), (300, 300, 0.5), (100, 50, 0.5)))]
    assert sensitivities(answered, (0.0, 1.0)) == {0.0: 0.0, 1.0: 1.0}


def test_a_class_that_is_never_found_counts_as_much_as_a_frequent_one() -> None:
    frequent = field([(x, 50) for x in range(50, 450, 40)], [2] * 9 + [4])
    answered = [Answered(frequent, found(*((x, 50, 0.9) for x in range(50, 410, 40)))), Answered(ONE, found())]
    assert by_class(answered, least=1) == {1: 0.0, 2: 1.0, 4: 0.0}
    assert by_class(answered, least=2) == {2: 1.0, 4: 0.0}
    assert by_class(answered, least=10) == {0: 9 / 12}  # no class has so many: all together


def test_average_precision_is_the_area_below_the_curve() -> None:
    right = [Answered(ONE, found((50, 50, 0.9), (100, 50, 0.8))), Answered(TWO, found())]
    assert average_precision(right) == pytest.approx(1.0)
    wrong = [Answered(ONE, found((50, 50, 0.9), (100, 50, 0.7))), Answered(TWO, found((50, 50, 0.8)))]
    assert average_precision(wrong) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([Answered(ONE, found((57, 50, 0.9)))]) == 0.0  # 13 of 27 px are shared
    assert average_precision([Answered(ONE, found())]) == 0.0


def test_cells_of_other_fields_are_not_found() -> None:
    elsewhere = field([(200, 200), (250, 200)], [2, 2])
    answered = [
        Answered(ONE, found((50, 50, 0.9), (100, 50, 0.8))),
        Answered(TWO, found()),
        Answered(elsewhere, found((200, 200, 0.95), (250, 200, 0.7))),
    ]
    told = figures(answered)
    assert told["froc"] == {"1": 1.0, "2": 1.0, "4": 1.0, "8": 1.0}
    assert set(told["froc_of_other_fields"].values()) == {0.0}
    assert told["ap50_by_class"] == {"ASC-US": 0.5, "LSIL": 0.0, "HSIL": 0.0}
    assert [entry.field for entry in of_other_fields(answered)] == [elsewhere, ONE]


def test_the_baseline_finds_dark_blobs() -> None:
    image = np.full((200, 300, 3), 230, np.uint8)
    rows, columns = np.mgrid[:200, :300]
    for x, y in ((50, 50), (100, 50)):
        image[(rows - y) ** 2 + (columns - x) ** 2 < 7**2] = (90, 60, 120)
    blobs = dark_blobs(ONE, image)
    assert sensitivities([Answered(ONE, blobs)], (0.0,)) == {0.0: 1.0}
