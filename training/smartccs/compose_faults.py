"""What can be wrong with a composed slide, for tests of how a bad slide is told. All of it is simulated.

Most faults are of the fields before anything is composed of them; a marker's strokes lie over the whole slide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from training.smartccs import damage
from training.smartccs.data import MPP

Change = Callable[[np.ndarray], np.ndarray]
"""(H,W,3) uint8 RGB of a field to the same."""
_STROKES, _STROKE_SHARE = 4, 1 / 7
"""Strokes across a slide, and how wide each is of the slide's side: they cover about half of it."""
_SPOT_UM, _DARKER, _GROWN_UM = 15.0, 0.08, 1.0
"""Of a nucleus that is taken away: its width at most; how much darker it is than what is about it, in optical density
of red (base 10); how far about it its rim reaches."""


def without_nuclei(image_HWC: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8: every dark spot of up to 15 µm filled with the colour of what is about it, so that squames without
    nuclei are left."""
    around_HWC = cv2.morphologyEx(image_HWC, cv2.MORPH_CLOSE, _round(_SPOT_UM / 2))
    red_HW, about_HW = (np.maximum(image[..., 0], 1).astype(np.float32) for image in (image_HWC, around_HWC))
    spots_HW = cv2.dilate((about_HW > red_HW * 10**_DARKER).astype(np.float32), _round(_GROWN_UM))
    share_HW1 = cv2.GaussianBlur(spots_HW, (0, 0), _GROWN_UM / MPP)[..., None]
    return np.rint(image_HWC + np.minimum(2 * share_HW1, 1) * (around_HWC.astype(np.float32) - image_HWC)).astype(
        np.uint8
    )


def _round(radius_um: float) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(radius_um / MPP) + 1,) * 2)


@dataclass(frozen=True, slots=True)
class Fault:
    """stain: changes a field and its glass; field: what lies on the glass; density: the share of the patches that are
    there; strokes: of a marker pen; cells: whether any are placed; else the slide is NILM."""

    stain: Change | None = None
    field: Change | None = None
    density: float = 1.0
    strokes: bool = False
    cells: bool = True


FAULTS = {
    "blurred": Fault(field=partial(damage.blurred, mpp=MPP)),
    "empty": Fault(density=0.0, cells=False),
    "blood": Fault(field=partial(damage.bloody, mpp=MPP)),
    "air-dried": Fault(field=partial(damage.air_dried, mpp=MPP)),
    "pen": Fault(strokes=True),
    "giemsa": Fault(stain=partial(damage.giemsa, mpp=MPP)),
    "few-cells": Fault(density=0.02),
    "no-candidate": Fault(field=without_nuclei, cells=False),
}


class Strokes:
    """Strokes of a blue marker across a slide of `side_px`; where they lie follows from the seed."""

    def __init__(self, side_px: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._ends_px = 0.05 * side_px, 0.95 * side_px
        self._half_px = side_px * _STROKE_SHARE / 2
        middles = (np.arange(_STROKES) + rng.uniform(0.3, 0.7, _STROKES)) / _STROKES * side_px
        slopes = rng.uniform(-0.15, 0.15, _STROKES)
        self._lines = list(zip(middles - side_px / 2 * slopes, slopes, strict=True))
        self._light_3 = 10 ** -np.array(damage.INKS["blue"], np.float32)

    def __call__(self, image_HWC: np.ndarray, left: int, top: int) -> np.ndarray:
        """(H,W,3) uint8: the region whose corner is left, top, with what lies on it."""
        x, y = left + np.arange(image_HWC.shape[1]), top + np.arange(image_HWC.shape[0])[:, None]
        under_HW = np.zeros(image_HWC.shape[:2], np.bool_)
        for height, slope in self._lines:
            middle = height + slope * x
            under_HW |= (y >= np.ceil(middle - self._half_px)) & (y <= np.floor(middle + self._half_px))
        under_HW &= (x >= self._ends_px[0]) & (x <= self._ends_px[1])
        marked = image_HWC.copy()
        marked[under_HW] = np.rint(image_HWC[under_HW] * self._light_3)
        return marked
