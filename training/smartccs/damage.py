"""Smears that came out badly, simulated on pictures of good ones: for gates that must find them.

Each function takes an (H, W, 3) uint8 RGB picture of `mpp` µm a pixel and gives one of the same size, the same for the
same seed. Colours, sizes and strengths are ours: no damaged smear was measured for them.
"""

import cv2
import numpy as np

from training.smartccs.centres import GIEMSA

INKS = {"blue": (1.0, 0.7, 0.2), "green": (1.1, 0.3, 0.7), "red": (0.05, 1.0, 0.9), "black": (1.3, 1.3, 1.3)}
"""Optical densities (base 10) of red, green and blue light in a stroke."""
_RED_CELL = (0.03, 0.16, 0.32)
"""Optical densities of one red cell seen flat, whose diameter is that of a smear."""
_RED_CELL_UM = 7.0
_NUCLEAR = 0.15
"""A nucleus absorbs so much more red light (optical density) than what lies around it."""


def blurred(image_HWC: np.ndarray, mpp: float, sigma_um: float = 1.5) -> np.ndarray:
    """Out of focus: behind a Gaussian of that deviation."""
    return cv2.GaussianBlur(image_HWC, (0, 0), sigma_um / mpp, borderType=cv2.BORDER_REFLECT_101)


def bloody(image_HWC: np.ndarray, mpp: float, layers: float = 2.0, haze: float = 0.3, seed: int = 0) -> np.ndarray:
    """Covered by blood: red cells dealt at random, `layers` of them over each place in the mean, and burst ones in
    between as dense as `haze` of a cell."""
    height, width = image_HWC.shape[:2]
    radius_px = _RED_CELL_UM / 2 / mpp
    rng = np.random.default_rng(seed)
    many = rng.poisson(layers * height * width / (np.pi * radius_px**2))
    middles = np.zeros((height, width), np.float32)
    np.add.at(middles, (rng.integers(0, height, many), rng.integers(0, width, many)), 1)
    away = np.arange(-int(radius_px) - 1, int(radius_px) + 2)
    disc = np.clip(radius_px + 0.5 - np.hypot(away[:, None], away), 0, 1).astype(np.float32)
    cells_HW = cv2.filter2D(middles, -1, disc, borderType=cv2.BORDER_CONSTANT)
    return _dyed(image_HWC, (cells_HW + haze)[..., None] * np.array(_RED_CELL, np.float32))


def air_dried(image_HWC: np.ndarray, mpp: float, grown_um: float = 1.5, kept: float = 0.45) -> np.ndarray:
    """Dried before it was fixed: what is no larger than a large nucleus and darker than its surroundings grows by
    `grown_um` to all sides, loses its texture and keeps that part of its density. Cytoplasm stays as it is."""
    around_HWC = _density(cv2.medianBlur(image_HWC, 2 * round(8 / mpp) + 1))
    density_HWC = _density(image_HWC)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(grown_um / mpp) + 1,) * 2)
    grown_HWC = cv2.dilate(np.maximum(density_HWC - around_HWC, 0), disc)
    pale_HWC = around_HWC + kept * cv2.GaussianBlur(grown_HWC, (0, 0), 1.0 / mpp)
    nuclear_HW = (grown_HWC[..., 0] > _NUCLEAR).astype(np.float32)
    share_HW1 = cv2.GaussianBlur(nuclear_HW, (0, 0), 0.75 / mpp)[..., None]
    return _bytes(density_HWC + share_HW1 * (pale_HWC - density_HWC))


def marked(image_HWC: np.ndarray, mpp: float, ink: str = "blue", width_um: float = 150.0, seed: int = 0) -> np.ndarray:
    """A stroke of a marker pen across the picture, of an ink in blue, green, red or black."""
    height, width = image_HWC.shape[:2]
    ends = np.random.default_rng(seed).integers(0, (width, height), (2, 2))
    start, end = (0, int(ends[0, 1])), (width - 1, int(ends[1, 1]))
    stroke_HW = cv2.line(np.zeros((height, width), np.uint8), start, end, 255, max(1, round(width_um / mpp)))
    soft_HW = cv2.GaussianBlur(stroke_HW.astype(np.float32) / 255, (0, 0), 2.0 / mpp)
    return _dyed(image_HWC, soft_HW[..., None] * np.array(INKS[ink], np.float32))


def giemsa(image_HWC: np.ndarray, mpp: float) -> np.ndarray:
    """Stained by another method: the matrix `GIEMSA`. `mpp` says nothing here."""
    return GIEMSA(image_HWC)


def _density(image_HWC: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(image_HWC, 1).astype(np.float32) / 255)


def _dyed(image_HWC: np.ndarray, density_HWC: np.ndarray) -> np.ndarray:
    return _bytes(_density(image_HWC) + density_HWC)


def _bytes(density_HWC: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(255 * 10**-density_HWC), 0, 255).astype(np.uint8)
