"""Where the tissue lies: a mask on a low-resolution picture of the slide, for brightfield stains.

Stained tissue absorbs the colours unequally; glass, shadows, dust and coverslip edges absorb them alike. So the feature
is the spread of the three optical densities, with a little of their mean. Otsu's threshold (IEEE SMC 9:62, 1979) is
kept inside fixed bounds: on an empty slide it would split the compression noise, on a slide full of tissue it would
split the tissue.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.operations.errors import NoTissue
from gateway.slides.slide import Slide
from gateway.slides.stain import glass_colour

TISSUE_UM_PER_PX = 8.0
_MEAN_DENSITY_WEIGHT = 0.15
_THRESHOLD = (0.05, 0.12)
"""Bounds of the threshold on the feature (optical density, base 10): above compression noise, below pale tissue."""
_CLOSE_UM = 24.0
MIN_OBJECT_MM2 = 0.002
"""Least area of a piece of tissue; of cells that lie alone see `gateway.analyses.screening_plan`."""
_MAX_HOLE_MM2 = 0.01
_MIN_PEN_MM2 = 0.05
_BAND_PX = 128
_SAMPLE_PX = 250_000


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Tissue as a picture of the whole slide: `mask` (H, W) bool, square pixels of `um_per_px`, and its area; and the
    area of the pen marks beside it."""

    mask: NDArray[np.bool_]
    um_per_px: float
    area_mm2: float
    pen_area_mm2: float = 0.0


def find_tissue(slide: Slide) -> TissueMask:
    """Find the tissue on a slide. Raises NoTissue, CorruptFrame, TruncatedFile."""
    found = tissue_and_pen(slide)
    if found.area_mm2 == 0:
        raise NoTissue(
            "No tissue was found on the slide. Check that the right slide was scanned and that the scan is not empty."
        )
    return found


def tissue_and_pen(slide: Slide, min_object_mm2: float = MIN_OBJECT_MM2) -> TissueMask:
    """The same, with an area of 0 where there is no tissue: the pen marks are known then, too. What is smaller than
    `min_object_mm2` is no tissue. Raises CorruptFrame, TruncatedFile."""
    picture, um_per_px = slide.overview(TISSUE_UM_PER_PX)
    mask, pen = _tissue_and_pen(picture, um_per_px, min_object_mm2)
    area_mm2, pen_area_mm2 = (float(np.count_nonzero(each)) * um_per_px**2 / 1e6 for each in (mask, pen))
    return TissueMask(mask=mask, um_per_px=um_per_px, area_mm2=area_mm2, pen_area_mm2=pen_area_mm2)


def tissue_of_picture(
    picture: NDArray[np.uint8], um_per_px: float, min_object_mm2: float = MIN_OBJECT_MM2
) -> NDArray[np.bool_]:
    """The tissue in an (H, W, 3) uint8 RGB picture, as (H, W) bool; all False where there is none."""
    mask, _ = _tissue_and_pen(picture, um_per_px, min_object_mm2)
    return mask


def _tissue_and_pen(
    picture: NDArray[np.uint8], um_per_px: float, min_object_mm2: float
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """The tissue (H, W) bool, and the pen marks (1) with their rims."""
    feature, pen = _feature_and_pen(picture)
    feature = np.asarray(cv2.GaussianBlur(feature, (0, 0), 0.8), np.uint8)
    mask = np.asarray(feature > _threshold(feature), np.uint8)
    strokes = _strokes(pen, um_per_px)
    mask[strokes == 1] = 0
    radius_px = max(1, round(_CLOSE_UM / um_per_px / 2))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc), np.uint8)
    px_per_mm2 = 1e6 / um_per_px**2
    mask = _without_small(mask, min_object_mm2 * px_per_mm2)
    mask = 1 - _without_small(1 - mask, _MAX_HOLE_MM2 * px_per_mm2)
    return mask.view(np.bool_), strokes


def _feature_and_pen(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The feature in steps of 1/255 of optical density, and the pixels (1) with a colour of pen ink; both (H, W).

    Band by band: the densities are four times as large as the picture.
    """
    tables = _density_tables(picture)
    feature, pen = np.empty(picture.shape[:2], np.uint8), np.empty(picture.shape[:2], np.uint8)
    for top in range(0, len(picture), _BAND_PX):
        band = slice(top, top + _BAND_PX)
        red, green, blue = (table[picture[band, :, channel]] for channel, table in enumerate(tables))
        low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
        value = high - low + _MEAN_DENSITY_WEIGHT / 3 * (red + green + blue)
        feature[band] = np.clip(value * 255, 0, 255)
        pen[band] = pen_ink(red, green, blue)
    return feature, pen


def pen_ink(
    red_HW: NDArray[np.float32], green_HW: NDArray[np.float32], blue_HW: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Where the optical densities (base 10) of the channels are those of ink: far denser in one hue than any stain,
    blue and green, red, black."""
    low, high = np.minimum(np.minimum(red_HW, green_HW), blue_HW), np.maximum(np.maximum(red_HW, green_HW), blue_HW)
    ink: NDArray[np.bool_] = (red_HW > 0.6) & (green_HW < red_HW - 0.25) & (blue_HW < red_HW - 0.35)
    ink |= (red_HW < 0.12) & (green_HW > 0.6) & (blue_HW > 0.8 * green_HW)
    ink |= (low > 0.9) & (high - low < 0.2)
    return ink


def _density_tables(picture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Optical density (base 10) of each value of each channel against the slide's own glass, never negative."""
    step = max(1, round((picture.shape[0] * picture.shape[1] / _SAMPLE_PX) ** 0.5))
    sample = picture[::step, ::step].reshape(-1, 3)
    white = glass_colour(sample, tint=0.08, least=0.01)
    return [np.maximum(0.0, np.log10(value / np.maximum(np.arange(256), 1.0))).astype(np.float32) for value in white]


def _threshold(feature: NDArray[np.uint8]) -> float:
    otsu, _ = cv2.threshold(feature, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    low, high = _THRESHOLD
    return min(max(otsu, 255 * low), 255 * high)


def _strokes(pen: NDArray[np.uint8], um_per_px: float) -> NDArray[np.uint8]:
    """Pen marks (1) with their rims. Small spots of such colours are left: pigment, or marking ink on the tissue."""
    strokes = np.asarray(cv2.morphologyEx(pen, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    strokes = _without_small(strokes, _MIN_PEN_MM2 * 1e6 / um_per_px**2)
    grow_px = 2 * max(1, round(16 / um_per_px)) + 1
    return np.asarray(cv2.dilate(strokes, np.ones((grow_px, grow_px), np.uint8)), np.uint8)


def _without_small(mask: NDArray[np.uint8], min_px: float) -> NDArray[np.uint8]:
    """The mask without its connected parts (8-neighbours) of fewer than `min_px` pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = np.zeros(count, np.uint8)
    keep[1:] = stats[1:, cv2.CC_STAT_AREA] >= min_px
    kept: NDArray[np.uint8] = keep[labels]
    return kept
