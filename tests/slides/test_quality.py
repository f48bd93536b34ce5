"""Quality figures: sharp and blurred tiles are told apart, and colours are kept exactly."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from gateway.slides import Slide, find_tissue, plan_tiles, quality, stream_tiles


@pytest.fixture(scope="module")
def tiles(cmu_slide: Path) -> np.ndarray:
    """The tiles under tissue of the committed slide, (N, 224, 224, 3)."""
    with Slide.open(sorted(cmu_slide.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
        return np.concatenate([batch.images_BHWC for batch in stream_tiles(slide, plan, batch=32)])


def blurred(tiles: np.ndarray, sigma_px: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(tile, (0, 0), sigma_px) for tile in tiles])


def test_a_sharp_slide_is_sharp_and_a_blurred_one_is_not(tiles: np.ndarray) -> None:
    sharp = quality.summarise(quality.measure(tiles), 0.0)
    soft = quality.summarise(quality.measure(blurred(tiles, 2.0)), 0.0)
    assert sharp.blurred_share < 0.05
    assert soft.blurred_share > 0.8
    assert sharp.focus_p10 < sharp.focus_median < sharp.focus_p90
    assert soft.focus_median < sharp.focus_median / 10


def test_focus_does_not_depend_on_how_strong_the_stain_is(tiles: np.ndarray) -> None:
    pale = (255 - (255 - tiles.astype(np.float32)) * 0.6).astype(np.uint8)
    strong, weak = (quality.summarise(quality.measure(each), 0.0).focus_median for each in (tiles, pale))
    assert weak == pytest.approx(strong, rel=0.15)


def test_half_of_a_slide_out_of_focus_is_half(tiles: np.ndarray) -> None:
    half = len(tiles) // 2
    mixed = np.concatenate([tiles[:half], blurred(tiles[half:], 3.0)])
    assert quality.summarise(quality.measure(mixed), 0.0).blurred_share == pytest.approx(0.5, abs=0.06)


def test_rows_keep_the_colours_of_pixels_exactly(tiles: np.ndarray) -> None:
    rows = quality.measure(tiles[:2])
    assert rows.shape == (2, quality.WIDTH)
    pixels = quality.colours(rows).reshape(2, 8, 8, 3)
    np.testing.assert_array_equal(pixels, tiles[:2, 14::28, 14::28])


def test_a_row_is_of_its_own_tile_alone(tiles: np.ndarray) -> None:
    np.testing.assert_array_equal(quality.measure(tiles[5:6])[0], quality.measure(tiles[:9])[5])


def test_tiles_without_a_stained_pixel_have_figures_too() -> None:
    seen = quality.summarise(quality.measure(np.full((3, 224, 224, 3), 240, np.uint8)), 0.0)
    assert (seen.saturation, seen.brightness, seen.blurred_share) == (0.0, 1.0, 1.0)


def test_colour_figures(tiles: np.ndarray) -> None:
    grey = np.repeat(tiles.mean(axis=3, keepdims=True), 3, axis=3).astype(np.uint8)
    dark = (tiles * 0.5).astype(np.uint8)
    coloured, colourless, dim = (quality.summarise(quality.measure(each), 0.0) for each in (tiles, grey, dark))
    assert colourless.saturation < 0.01 < 0.3 < coloured.saturation
    assert dim.brightness < coloured.brightness
