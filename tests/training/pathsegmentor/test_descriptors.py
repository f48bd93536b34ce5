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
from training.pathsegmentor.shapes import irregularities, made_shapes

SHAPES = made_shapes()


@pytest.mark.parametrize(
    ("shape", "four", "eight", "crofton"),
    [
        ("disk, radius 20", (112, -0.27), (156, 0.35), 0.002),
        ("square, 40", (156, 0.17), (156, 0.17), 0.11),
        ("rectangle, 10 × 200", (416, 0.86), (416, 0.86), 0.84),
        ("ten disks, radius 10", (560, 0.87), (760, 0.93), 0.91),
    ],
)
def test_golden_irregularity(shape, four, eight, crofton):
    mask = SHAPES[shape]
    for neighbours, (perimeter, value) in ((4, four), (8, eight)):
        assert boundary_px(mask, neighbours) == perimeter
        assert irregularity(mask.sum(), perimeter) == pytest.approx(value, abs=0.0055)
    assert irregularity_crofton(mask) == pytest.approx(crofton, abs=0.005)


def test_the_pages_table_is_of_the_same_shapes():
    table = {name: values for name, *values in irregularities()}
    assert list(table) == list(SHAPES)
    assert table["disk, radius 20"] == pytest.approx([-0.27, 0.35, 0.002, 0.002], abs=0.005)
    assert table["ten disks, radius 10"][2] > 0.9 > 0.1 > table["ten disks, radius 10"][3]


def test_ten_disks_are_irregular_as_a_mask_and_round_one_by_one():
    found = describe(SHAPES["ten disks, radius 10"])
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
