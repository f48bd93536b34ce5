"""Descriptors of a mask: the golden table of four shapes on a 256 px canvas, and what each perimeter makes of them."""

import numpy as np
import pytest

from training.pathsegmentor.descriptors import (
    boundary_px,
    describe,
    dice,
    instances,
    irregularity,
    irregularity_crofton,
    irregularity_mask,
)

ROWS_HW, COLUMNS_HW = np.mgrid[:256, :256]


def disk(row: float, column: float, radius: float) -> np.ndarray:
    return (ROWS_HW - row) ** 2 + (COLUMNS_HW - column) ** 2 <= radius**2


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    return (top <= ROWS_HW) & (bottom >= ROWS_HW) & (left <= COLUMNS_HW) & (right >= COLUMNS_HW)


DISKS = np.any([disk(row, column, 10) for row in (30, 130) for column in (25, 73, 121, 169, 217)], axis=0)
SHAPES = {
    "disk": disk(127.5, 127.5, 20),
    "square": rectangle(50, 89, 50, 89),
    "rectangle": rectangle(50, 59, 20, 219),
    "ten disks": DISKS,
}


@pytest.mark.parametrize(
    ("shape", "four", "eight", "crofton"),
    [
        ("disk", (112, -0.27), (156, 0.35), 0.002),
        ("square", (156, 0.17), (156, 0.17), 0.11),
        ("rectangle", (416, 0.86), (416, 0.86), 0.84),
        ("ten disks", (560, 0.87), (760, 0.93), 0.91),
    ],
)
def test_golden_irregularity(shape, four, eight, crofton):
    mask = SHAPES[shape]
    for neighbours, (perimeter, value) in ((4, four), (8, eight)):
        assert boundary_px(mask, neighbours) == perimeter
        assert irregularity(mask.sum(), perimeter) == pytest.approx(value, abs=0.0055)
    assert irregularity_crofton(mask) == pytest.approx(crofton, abs=0.005)


def test_ten_disks_are_irregular_as_a_mask_and_round_one_by_one():
    found = describe(DISKS)
    assert found.count == 10
    assert found.irregularity_mask > 0.9
    assert found.irregularity_instance < 0.1
    assert found.instance_ratio == pytest.approx(317 / 256**2)
    assert found.dispersion_px == pytest.approx(np.hypot(100, 192), abs=1)


def test_instances_below_36_px_do_not_count_and_diagonal_neighbours_are_one():
    mask = np.zeros((32, 32), bool)
    mask[0:5, 0:7] = True  # 35 px
    mask[10:16, 10:16] = mask[16:22, 16:22] = True  # touch at a corner
    assert instances(mask).max() == 1
    assert describe(mask).count == 1


def test_an_empty_mask_has_no_shape():
    found = describe(np.zeros((8, 8), bool))
    assert (found.count, found.dispersion_px) == (0, 0.0)
    assert np.isnan([found.instance_ratio, found.irregularity_mask, found.irregularity_instance]).all()
    assert np.isnan(irregularity_mask(np.zeros((8, 8), bool)))


def test_dice_is_not_defined_on_two_empty_masks():
    empty, one = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert np.isnan(dice(empty, empty))
    assert dice(empty, one) == 0.0
    assert dice(one, one) == 1.0
    assert dice(one, np.ones((4, 4), bool)) == pytest.approx(0.4)
