"""The stains of a set's images, as the gateway measures them on a slide."""

import numpy as np
import pytest

from training.data import crc9
from training.data.stain import stain_reference

pytestmark = pytest.mark.training


def angle_deg(one: list[float], other: list[float]) -> float:
    return float(np.degrees(np.arccos(np.clip(np.dot(one, other), -1, 1))))


def test_the_stains_of_a_real_set_are_haematoxylin_and_eosin(real_data: None) -> None:
    found = stain_reference(crc9.load())
    assert found is not None
    # Ruifrok and Johnston's vectors (Anal. Quant. Cytol. Histol. 2001) are of another laboratory's stains.
    assert angle_deg(found["haematoxylin"], [0.65, 0.70, 0.29]) < 25
    assert angle_deg(found["eosin"], [0.07, 0.99, 0.11]) < 25
    assert "70 of 70 images" in found["origin"]
