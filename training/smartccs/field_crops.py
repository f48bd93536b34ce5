"""What a detector learns from: squares of fields at a scale of chance, with the boxes in them.

Every crop is a function of the seed and of its number alone: a resumed run goes on with the crops it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gateway.domain.bethesda import column_of
from gateway.slides.cell_crops import padded
from gateway.slides.rescale import rescaled
from training.data.views import jitter
from training.smartccs.data import Field

SCALES = (0.5, 1.0)
"""By how much a field is scaled before it is cut (arXiv 2502.09662 trains its detector at several scales)."""


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A square of a field; black where it reaches beyond.

    image_HWC: uint8 RGB; boxes_K4: float32 middle x, middle y, width, height of each abnormal cell, as shares of the
    side; columns_K: int64, each one's column of the detector (0 to 5); nuclei_M4: float32, the same of every annotated
    nucleus, abnormal, NILM or distractor. A nucleus is in the crop where its middle is, and its box is not cut: it says
    where the middle is. negative: whatever is found beside the boxes is a false alarm, as nothing abnormal is annotated
    in the whole field; otherwise a place far from every nucleus is unknown.
    """

    image_HWC: np.ndarray
    boxes_K4: np.ndarray
    columns_K: np.ndarray
    nuclei_M4: np.ndarray
    negative: bool


class FieldCrops:
    """An endless shuffled sequence of crops, each field once an epoch; the fields are decoded once, into memory.

    Raises DataMissing.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        side_px: int,
        seed: int,
        scales: tuple[float, float] = SCALES,
        *,
        by_factor: float = 0.0,
    ) -> None:
        """`by_factor`: at most so much more or less is each channel's optical density."""
        self.fields, self._side_px, self._seed, self._scales = tuple(fields), side_px, seed, scales
        self._by_factor = by_factor
        self._images = [field.read() for field in self.fields]

    def __getitem__(self, number: int) -> Crop:
        epoch, place = divmod(number, len(self.fields))
        index = int(np.random.default_rng((self._seed, 0, epoch)).permutation(len(self.fields))[place])
        rng = np.random.default_rng((self._seed, 1, number))
        scale = float(rng.uniform(*self._scales))
        seen = crop(rng, self.fields[index], self._images[index], self._side_px, scale)
        if self._by_factor:
            seen = replace(seen, image_HWC=jitter(seen.image_HWC, rng, self._by_factor))
        return seen


def crop(rng: np.random.Generator, field: Field, image_HWC: np.ndarray, side_px: int, scale: float) -> Crop:
    """A square of `side_px` of a field scaled by `scale`, at a place of chance, in one of eight orientations. Where the
    scaled field is smaller than the square, the whole of it is in."""
    side = round(side_px / scale)
    corner_2 = np.array([_start(rng, length, side) for length in image_HWC.shape[1::-1]])
    image = padded(image_HWC, np.concatenate([corner_2, corner_2 + side]))
    if side != side_px:
        image = rescaled(image, side_px, side_px)
    nuclei_N4 = field.boxes_N4.copy()
    nuclei_N4[:, :2] += nuclei_N4[:, 2:] / 2 - corner_2
    nuclei_N4 /= side
    inside_N = ((nuclei_N4[:, :2] >= 0) & (nuclei_N4[:, :2] < 1)).all(1)
    nuclei_M4, classes_M = nuclei_N4[inside_N], field.classes_N[inside_N]
    image, nuclei_M4 = _turned(image, nuclei_M4, int(rng.integers(8)))
    nuclei_M4, abnormal_M = nuclei_M4.astype(np.float32), field.abnormal[inside_N]
    columns = [column_of(int(number)) for number in classes_M[abnormal_M]]
    return Crop(image, nuclei_M4[abnormal_M], np.array(columns, np.int64), nuclei_M4, field.negative)


def _start(rng: np.random.Generator, length_px: int, side_px: int) -> int:
    low, high = sorted((0, length_px - side_px))
    return int(rng.integers(low, high + 1))


def _turned(image_HWC: np.ndarray, boxes_M4: np.ndarray, way: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its boxes (shares of the side) in one of the eight orientations of a square; 0 leaves them."""
    x, y, width, height = boxes_M4.T
    if way >= 4:
        image_HWC, x = image_HWC[:, ::-1], 1 - x
    for _ in range(way % 4):  # a quarter to the left, as np.rot90 turns
        image_HWC, (x, y, width, height) = np.rot90(image_HWC), (y, 1 - x, height, width)
    return np.ascontiguousarray(image_HWC), np.stack([x, y, width, height], 1)
