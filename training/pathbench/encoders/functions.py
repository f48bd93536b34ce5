"""Encoders without weights, the bench's floor: what colour alone, and what texture alone, can tell."""

import numpy as np
from skimage.feature import local_binary_pattern

_LEVELS = 8
_CIRCLES = ((8, 1), (16, 2), (24, 3))
"""Points and radius in pixels of the three circles."""


def colour_histogram(image_HWC: np.ndarray) -> np.ndarray:
    """Joint histogram of 8 levels of red, green and blue, as roots of shares (512,); its dot product is Hellinger's."""
    levels = image_HWC.reshape(-1, 3).astype(np.int64) * _LEVELS // 256
    cells = (levels[:, 0] * _LEVELS + levels[:, 1]) * _LEVELS + levels[:, 2]
    return np.sqrt(np.bincount(cells, minlength=_LEVELS**3) / len(cells)).astype(np.float32)


def lbp(image_HWC: np.ndarray) -> np.ndarray:
    """Shares of uniform local binary patterns on three circles (54,), of grey values (Ojala et al., TPAMI 2002)."""
    grey = np.rint(image_HWC.astype(np.float64) @ (0.299, 0.587, 0.114)).astype(np.uint8)
    shares = []
    for points, radius in _CIRCLES:
        patterns = local_binary_pattern(grey, points, radius, method="uniform").astype(np.int64).ravel()
        shares.append(np.bincount(patterns, minlength=points + 2) / len(patterns))
    return np.concatenate(shares).astype(np.float32)


FUNCTIONS = {"colour-histogram": colour_histogram, "lbp": lbp}
"""By id."""
