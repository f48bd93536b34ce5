"""Stain normalisation as others do it, to compare with: mean and deviation of L*, a* and b* (Reinhard et al., IEEE
Computer Graphics and Applications 21(5), 2001; in CIELAB)."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

Lab = tuple[np.ndarray, np.ndarray]
"""Mean and deviation (3,) of L*, a* and b*."""


def lab_moments(images: Iterable[np.ndarray]) -> Lab:
    """Of (H,W,3) uint8 RGB images together, at least one."""
    count, total_3, square_3 = 0, np.zeros(3), np.zeros(3)
    for image_HWC in images:
        lab_P3 = _lab(image_HWC).reshape(-1, 3).astype(np.float64)
        count, total_3, square_3 = count + len(lab_P3), total_3 + lab_P3.sum(0), square_3 + np.square(lab_P3).sum(0)
    mean_3 = total_3 / count
    return mean_3, np.sqrt(np.maximum(square_3 / count - np.square(mean_3), 1e-6))


@dataclass(frozen=True, slots=True, eq=False)
class Reinhard:
    """From a site's colours to the source's."""

    site: Lab
    source: Lab

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """(H,W,3) uint8 RGB."""
        moved = (_lab(image_HWC) - self.site[0]) / self.site[1] * self.source[1] + self.source[0]
        rgb = cv2.cvtColor(moved.astype(np.float32), cv2.COLOR_LAB2RGB)
        return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def _lab(image_HWC: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
