"""How well a slide can be seen: focus and colour of its tiles, measured on tiles that are decoded anyway.

Of every tile a row of `WIDTH` float32 figures is kept (`measure`), so that nothing is decoded twice; `summarise` adds
the rows of a slide up.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.domain.report import SlideQuality
from gateway.slides.stain import optical_density, stained

_ACROSS = 8
WIDTH = 1 + _ACROSS * _ACROSS
"""Figures a tile: its focus, then the colours of `_ACROSS`² of its pixels, each as r + 256 g + 65536 b (whole numbers
below 2²⁴, which float32 holds exactly)."""
_ENOUGH_TILES = 8192
"""From so many tiles on more pixels change no figure, and memory must not grow with the slide."""
VERSION = "1"
"""Of the rows' layout and meaning: rows of another version are not used."""
BLURRED = 0.03
"""Focus below which a tile is out of focus. At 0.5 µm a pixel, 0.5 % and none of the tiles of two sharp H&E slides (two
scanners, 1,834 and 53 tiles) lie below; behind a Gaussian blur of 0.75 µm 97 and 58 %, of 1 µm 100 and 96 %."""


def measure(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The figures (B, WIDTH) of tiles (B, H, W, 3) uint8 RGB, each row of its own tile alone."""
    rows_BF = np.empty((len(images_BHWC), WIDTH), np.float32)
    for row_F, image_HWC in zip(rows_BF, images_BHWC, strict=True):
        row_F[0] = focus(image_HWC)
    samples_BSC = _samples(images_BHWC).astype(np.float32)
    rows_BF[:, 1:] = samples_BSC @ np.array([1, 256, 65536], np.float32)
    return rows_BF


def focus(image_HWC: NDArray[np.uint8]) -> float:
    """The focus of a tile (H, W, 3) uint8 RGB: the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) over that
    of the brightness itself, so that pale and dark tissue are measured alike."""
    grey_HW = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    _, edges = cv2.meanStdDev(cv2.Laplacian(grey_HW, cv2.CV_16S))
    _, spread = cv2.meanStdDev(grey_HW)
    return float(edges[0, 0] ** 2 / max(spread[0, 0] ** 2, 1.0))


def colours(rows_NF: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The pixels that the rows keep, (P, 3) uint8 RGB; of many rows those of evenly spaced ones."""
    packed_P = rows_NF[:: max(1, len(rows_NF) // _ENOUGH_TILES), 1:].astype(np.uint32).reshape(-1, 1)
    return np.asarray(packed_P >> np.array([0, 8, 16], np.uint32) & 255, np.uint8)


def summarise(rows_NF: NDArray[np.float32], pen_area_mm2: float) -> SlideQuality:
    """The figures of a slide from those of its tiles."""
    focus_N = rows_NF[:, 0].astype(np.float64)
    pixels_P3 = colours(rows_NF)
    tissue_P3 = pixels_P3[stained(optical_density(pixels_P3))].astype(np.float64)
    high_P, low_P = tissue_P3.max(axis=1, initial=1), tissue_P3.min(axis=1, initial=255)
    p10, median, p90 = np.percentile(focus_N, [10, 50, 90]).tolist()
    return SlideQuality(
        focus_p10=p10,
        focus_median=median,
        focus_p90=p90,
        blurred_share=float((focus_N < BLURRED).mean()),
        saturation=float((1 - low_P / high_P).mean()) if len(tissue_P3) else 0.0,
        brightness=float(tissue_P3.mean() / 255) if len(tissue_P3) else 1.0,
        pen_area_mm2=pen_area_mm2,
    )


def _samples(images_BHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`_ACROSS`² pixels of each tile, on a regular grid: (B, S, 3)."""
    _, height, width, _ = images_BHWC.shape
    down = ((np.arange(_ACROSS) + 0.5) * height / _ACROSS).astype(int)
    across = ((np.arange(_ACROSS) + 0.5) * width / _ACROSS).astype(int)
    return images_BHWC[:, down[:, None], across].reshape(len(images_BHWC), -1, 3)
