"""Simulated centres: golden values of two colours, and the same bytes for the same field."""

import numpy as np
import pytest

from training.smartccs.centres import CENTRES, GIEMSA

pytestmark = pytest.mark.training

NUCLEUS, CYTOPLASM = (70, 40, 90), (230, 190, 150)
GOLDEN = {
    "stain A": ((42, 60, 76), (218, 199, 142)),
    "stain B": ((88, 22, 84), (219, 175, 160)),
    "scanner": ((48, 14, 38), (207, 158, 91)),
    "both": ((40, 7, 24), (182, 143, 84)),
    "Giemsa": ((71, 30, 138), (214, 168, 217)),
}


@pytest.mark.parametrize("name", [*CENTRES, "Giemsa"])
def test_golden_values(name: str) -> None:
    centre = GIEMSA if name == "Giemsa" else CENTRES[name]
    field = np.empty((48, 96, 3), np.uint8)
    field[:, :48], field[:, 48:] = NUCLEUS, CYTOPLASM
    found = centre(field)
    slack = 2 if centre.scanner else 0  # JPEG
    for place, golden in zip((8, 88), GOLDEN[name], strict=True):
        assert np.abs(found[24, place].astype(int) - golden).max() <= slack
    assert np.array_equal(found, centre(field))
    edge = found[24, 46:50, 0].astype(int)
    assert (np.diff(edge) > 5).sum() == (3 if centre.scanner else 1)  # blurred, or as sharp as before


def test_a_stain_mixes_densities_row_by_row() -> None:
    density = -np.log(np.array(NUCLEUS) / 255)
    rows = np.array([[1.25, 0.10, 0], [0, 0.75, 0.05], [0.05, 0, 1.1]])
    by_hand = np.rint(255 * np.exp(-rows @ density)).astype(int).tolist()
    assert CENTRES["stain A"](np.array([[NUCLEUS]], np.uint8))[0, 0].tolist() == by_hand
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert CENTRES["stain B"](ends)[0, 1].tolist() == [255, 255, 255]
    assert CENTRES["stain B"](ends)[0, 0].max() < 6


def test_giemsa_has_no_orange() -> None:
    red, green, blue = GIEMSA(np.array([[(240, 150, 60)]], np.uint8))[0, 0].tolist()  # orangeophil cytoplasm
    assert green < min(red, blue) - 40
