"""A site's colours brought to those that a model learned from: each channel's optical density, by mean and deviation.

Applied to whole tiles before the detector, so that the crops of cells inherit it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Counts = NDArray[np.int64]
"""(3,256): how many pixels have each value of red, green and blue. Counts of several tiles add up, in any order."""

_DENSITY_256 = -np.log(np.maximum(np.arange(256), 1) / 255)
"""Optical density (natural logarithm) by value; of black as of the next value."""
_PADDING = 15
"""Pixels whose channels are all at most this are the black beyond a crop's field."""
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True, slots=True)
class Densities:
    """Mean and deviation of the optical densities of red, green and blue (natural logarithm)."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


def counted(image_HWC: Image, where_HW: NDArray[np.bool_] | None = None) -> Counts:
    """The values of an image's pixels where `where_HW` says tissue; without it, of all but padding."""
    where_HW = image_HWC.max(-1) > _PADDING if where_HW is None else where_HW
    pixels_P3 = image_HWC[where_HW]
    return np.stack([np.bincount(pixels_P3[:, channel], minlength=256) for channel in range(3)]).astype(np.int64)


def densities(counts_3V: Counts) -> Densities:
    """Of counted pixels. Raises ValueError where there is none."""
    if not counts_3V.sum():
        raise ValueError("no pixel was counted")
    shares_3V = counts_3V / counts_3V.sum(1, keepdims=True)
    mean_3 = shares_3V @ _DENSITY_256
    spread_3 = np.sqrt((shares_3V * np.square(_DENSITY_256 - mean_3[:, None])).sum(1))
    deviation_3 = np.maximum(spread_3, _LEAST_DEVIATION)
    return Densities(tuple(mean_3.tolist()), tuple(deviation_3.tolist()))


@dataclass(frozen=True, slots=True)
class ColourMap:
    """From a site's colours to the source's. Each channel is a table of 256 values, so that an image gets exactly the
    same on every machine that rounds alike."""

    site: Densities
    source: Densities

    def table(self) -> NDArray[np.uint8]:
        """(256,3): the new value of each value of red, green and blue."""
        mean_3, deviation_3, to_mean_3, to_deviation_3 = (
            np.array(values)
            for values in (self.site.mean, self.site.deviation, self.source.mean, self.source.deviation)
        )
        density_V3 = (_DENSITY_256[:, None] - mean_3) / deviation_3 * to_deviation_3 + to_mean_3
        light_V3: NDArray[np.float64] = np.clip(255 * np.exp(-density_V3), 0, 255)
        return np.rint(light_V3).astype(np.uint8)

    def __call__(self, image_HWC: Image) -> Image:
        """(…,H,W,3) uint8 RGB as the source would have it."""
        flat = image_HWC.reshape(-1, image_HWC.shape[-2], 3)
        mapped: Image = np.asarray(cv2.LUT(flat, self.table()[None]), np.uint8)
        return mapped.reshape(image_HWC.shape)
