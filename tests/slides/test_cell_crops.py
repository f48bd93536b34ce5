"""A cell's crop shows what its square and the field have in common, each pixel in its place, and black around it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.slides.cell_crops import CellCrops, padded

FIELD = np.full((60, 80, 3), 200, np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(-40, 79), st.integers(-40, 59), st.integers(1, 130), st.integers(1, 130))
def test_the_area_of_a_crop_is_that_of_the_intersection(left: int, top: int, width: int, height: int) -> None:
    right, bottom = left + width, top + height
    area = max(0, min(right, 80) - max(left, 0)) * max(0, min(bottom, 60) - max(top, 0))
    if area == 0:
        with pytest.raises(ValueError, match="beyond the field"):
            padded(FIELD, np.array([left, top, right, bottom]))
        return
    cut = padded(FIELD, np.array([left, top, right, bottom]))
    assert cut.shape == (height, width, 3)
    assert int((cut[..., 0] == 200).sum()) == area
    assert int((cut[..., 0] == 0).sum()) == width * height - area


def test_a_crop_is_a_tenth_larger_than_the_cell_and_centred_on_it_at_the_very_edge_too() -> None:
    crops = CellCrops(side_px=44)
    boxes = np.array([[20.0, 10.0, 60.0, 30.0], [-20.0, -20.0, 20.0, 20.0]])
    assert crops.squares(boxes).tolist() == [[18, -2, 62, 42], [-22, -22, 22, 22]]
    field = FIELD.copy()
    field[0, 0] = (255, 0, 0)  # the second cell's middle
    within, corner = crops(field, boxes)
    assert within[:2].max() == 0
    assert within[2:].min() == 200
    assert corner[22, 22].tolist() == [255, 0, 0]
    assert corner[:22].max() == corner[:, :22].max() == 0


def test_cells_are_resized_straight_to_the_side() -> None:
    field = np.random.default_rng(1).integers(0, 256, (100, 100, 3), np.uint8)
    small, large = CellCrops(side_px=20), CellCrops(side_px=80)
    box = np.array([[30.0, 30.0, 66.36, 66.36]])
    square = field[28:68, 28:68].astype(np.float64)
    assert np.abs(small(field, box)[0] - square.reshape(20, 2, 20, 2, 3).mean((1, 3))).max() <= 1
    assert large(field, box).shape == (1, 80, 80, 3)
    assert small(field, np.empty((0, 4))).shape == (0, 20, 20, 3)


def test_another_transform_has_another_digest() -> None:
    crops = CellCrops(side_px=64)
    assert crops.digest == CellCrops(side_px=64).digest
    others = {
        replace(crops, side_px=224).digest,
        replace(crops, context=0.2).digest,
        replace(crops, mean=(0.5,) * 3).digest,
    }
    assert len({crops.digest, *others}) == 4


def test_what_is_no_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="area"):
        CellCrops(side_px=64)(FIELD, np.array([[10.0, 10.0, 10.0, 15.0]]))
    with pytest.raises(ValueError, match="beyond the field"):
        CellCrops(side_px=64)(FIELD, np.array([[500.0, 10.0, 520.0, 30.0]]))
