"""Pictures at another scale, as a detector of cells sees them in training and in serving alike."""

import cv2
import numpy as np
from numpy.typing import NDArray


def rescaled(image_HWC: NDArray[np.uint8], width_px: int, height_px: int) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 RGB as (height_px, width_px, 3): by the mean of the area where it becomes smaller, else
    by bilinear interpolation."""
    kind = cv2.INTER_AREA if image_HWC.shape[1] > width_px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image_HWC, (width_px, height_px), interpolation=kind), np.uint8)
