"""The picture of a cell as an encoder sees it, in training and in serving alike.

A square about the middle of the cell's box, a tenth larger than the box's longer side, black beyond the edge of the
field, resized straight to the encoder's side. The one object that does it has a digest, which a trained model keeps:
another digest is another transform.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CellCrops:
    """side_px: of the result; context: what is added to the box's longer side, as a share of it; mean, deviation: of
    the channels (0 to 1), by which the encoder's graph itself normalises (ImageNet's)."""

    side_px: int
    context: float = 0.1
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, field_HWC: NDArray[np.uint8], boxes_N4: NDArray[np.float64]) -> NDArray[np.uint8]:
        """(N,side,side,3) uint8 RGB: the cells of boxes (left, top, right, bottom in pixels of the field, beyond which
        they may reach in part). Raises ValueError for a box of no area or whose square lies beyond the field."""
        crops = np.empty((len(boxes_N4), self.side_px, self.side_px, 3), np.uint8)
        for place, square_4 in enumerate(self.squares(boxes_N4)):
            crops[place] = self.resized(padded(field_HWC, square_4))
        return crops

    def resized(self, square_SS3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One cell's square as the encoder sees it, (side,side,3)."""
        kind = cv2.INTER_AREA if len(square_SS3) > self.side_px else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(square_SS3, (self.side_px, self.side_px), interpolation=kind), np.uint8)

    def squares(self, boxes_N4: NDArray[np.float64]) -> NDArray[np.int64]:
        """(N,4) left, top, right, bottom in whole pixels: what the crops of these boxes show of the field, and beyond.
        Raises ValueError for a box of no area."""
        boxes_N4 = np.asarray(boxes_N4, np.float64).reshape(-1, 4)
        sizes_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        if not (sizes_N2 > 0).all():
            raise ValueError("a cell's box must have an area")
        sides_N1 = np.floor(sizes_N2.max(1, keepdims=True) * (1 + self.context) + 0.5).astype(np.int64)
        middles_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
        corners_N2 = np.floor(middles_N2 - sides_N1 / 2 + 0.5).astype(np.int64)
        return np.hstack([corners_N2, corners_N2 + np.maximum(sides_N1, 1)])

    @property
    def digest(self) -> str:
        """sha256 of what the transform does; the version stands for the code."""
        said = {"version": 1, "pad": "black", "resize": "area or cubic", **asdict(self)}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def padded(field_HWC: NDArray[np.uint8], square_4: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A rectangle (left, top, right, bottom) of a field; black where it reaches beyond. Exactly the pixels that both
    have in common are copied, each to its place. Raises ValueError where they have none."""
    left, top, right, bottom = (int(edge) for edge in square_4)
    height, width = field_HWC.shape[:2]
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise ValueError("the rectangle lies beyond the field")
    whole = np.zeros((bottom - top, right - left, 3), np.uint8)
    whole[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = field_HWC[rows, columns]
    return whole
