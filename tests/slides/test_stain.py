"""Stain figures: stains of known direction and amount are found again in pixels made of them."""

import numpy as np
import pytest

from gateway.domain.model import StainReference
from gateway.slides.stain import stain_figures

HAEMATOXYLIN = (0.651, 0.701, 0.290)
EOSIN = (0.216, 0.801, 0.558)


def unit(vector: tuple[float, float, float]) -> np.ndarray:
    return np.asarray(vector) / np.linalg.norm(vector)


def painted(amounts: tuple[float, float] = (0.5, 0.4), pixels: int = 20_000, seed: int = 3) -> np.ndarray:
    """Pixels (P, 3) that hold either stain alone or both, with mean amounts as given, and a third of glass."""
    rng = np.random.default_rng(seed)
    mixed_P = rng.uniform(0, 1, pixels)
    mixed_P[: pixels // 4], mixed_P[pixels // 4 : pixels // 2] = 0, 1
    strength_P = rng.uniform(0.6, 1.4, pixels)
    density = np.outer(mixed_P * strength_P * amounts[0] * 2, unit(HAEMATOXYLIN))
    density += np.outer((1 - mixed_P) * strength_P * amounts[1] * 2, unit(EOSIN))
    colours = np.rint(255 * 10**-density).astype(np.uint8)
    return np.concatenate([colours, np.full((pixels // 2, 3), 244, np.uint8)])


def angle_deg(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return float(np.degrees(np.arccos(np.clip(np.dot(unit(one), unit(other)), -1, 1))))


def test_finds_direction_and_amount_of_both_stains() -> None:
    figures = stain_figures(painted(), None)
    assert figures is not None
    assert angle_deg(figures.haematoxylin, HAEMATOXYLIN) < 3
    assert angle_deg(figures.eosin, EOSIN) < 3
    assert figures.haematoxylin_od == pytest.approx(0.5, rel=0.1)
    assert figures.eosin_od == pytest.approx(0.4, rel=0.1)
    assert figures.distance_deg is None


def test_a_faded_slide_has_less_of_both() -> None:
    strong, faded = stain_figures(painted((0.5, 0.4)), None), stain_figures(painted((0.25, 0.2)), None)
    assert strong is not None
    assert faded is not None
    assert faded.haematoxylin_od < 0.7 * strong.haematoxylin_od
    assert faded.eosin_od < 0.7 * strong.eosin_od


def test_distance_is_the_larger_angle_to_the_reference() -> None:
    same = StainReference(haematoxylin=HAEMATOXYLIN, eosin=EOSIN, origin="painted")
    brown = StainReference(haematoxylin=HAEMATOXYLIN, eosin=(0.268, 0.570, 0.776), origin="painted")
    near, far = stain_figures(painted(), same), stain_figures(painted(), brown)
    assert near is not None
    assert far is not None
    assert near.distance_deg is not None
    assert near.distance_deg < 3
    assert far.distance_deg == pytest.approx(angle_deg(far.eosin, brown.eosin))
    assert far.distance_deg > 10


def test_glass_and_a_handful_of_pixels_have_no_figures() -> None:
    assert stain_figures(np.full((5000, 3), 245, np.uint8), None) is None
    assert stain_figures(painted()[:150], None) is None


def test_one_colour_alone_is_no_error() -> None:
    figures = stain_figures(np.tile(np.array([[150, 80, 160]], np.uint8), (500, 1)), None)
    assert figures is not None
    assert all(np.isfinite([figures.haematoxylin_od, figures.eosin_od, *figures.haematoxylin, *figures.eosin]))
