"""What a mask looks like: Dice, instances, their size, spread and irregularity (arXiv 2506.20988, evaluation by shape).

Irregularity is 1 - 4πA/P². The publication takes P as the number of boundary pixels of the whole mask: a figure that
moves with how a boundary pixel is defined, and that a mask of N perfect disks raises to 1 - 1/N, so that it measures
count. `irregularity_mask` is that figure (8 neighbours), not comparable with published values;
`irregularity_instance` measures each instance by itself, with Crofton's perimeter.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import find_objects
from scipy.spatial.distance import pdist
from skimage.measure import perimeter_crofton

MIN_INSTANCE_PX = 36


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Of one mask: instances of 36 px and more, their mean share of the image, the greatest distance between two
    centroids (px; 0 for one instance), both irregularities (NaN for a mask without pixels or instances)."""

    count: int
    instance_ratio: float
    dispersion_px: float
    irregularity_mask: float
    irregularity_instance: float


def dice(first_HW: np.ndarray, second_HW: np.ndarray) -> float:
    """2|A∩B| / (|A|+|B|) of two bool masks; NaN where both are empty, which is scored as absence, not as overlap."""
    total = int(first_HW.sum()) + int(second_HW.sum())
    return 2.0 * int((first_HW & second_HW).sum()) / total if total else float("nan")


def instances(mask_HW: np.ndarray, min_px: int = MIN_INSTANCE_PX) -> np.ndarray:
    """(H,W) int32: 8-connected parts of at least `min_px` pixels, numbered from 1; 0 elsewhere."""
    count, labels_HW, stats, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_px
    kept[0] = False
    numbers = np.zeros(count, np.int32)
    numbers[kept] = np.arange(1, int(kept.sum()) + 1)
    return numbers[labels_HW]


def boundary_px(mask_HW: np.ndarray, neighbours: int = 8) -> int:
    """How many pixels of a bool mask have one of 4 or 8 neighbours outside it; what lies past the image is outside."""
    shape = cv2.MORPH_CROSS if neighbours == 4 else cv2.MORPH_RECT
    inner_HW = cv2.erode(
        mask_HW.astype(np.uint8),
        cv2.getStructuringElement(shape, (3, 3)),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return int(mask_HW.sum()) - int(inner_HW.sum())


def irregularity(area_px: float, perimeter_px: float) -> float:
    """1 - 4πA/P²: 0 for a disk of the plane."""
    return float(1.0 - 4.0 * np.pi * area_px / perimeter_px**2)


def irregularity_mask(mask_HW: np.ndarray) -> float:
    """Of the whole mask, P = its boundary pixels (8 neighbours); NaN where it is empty."""
    return irregularity(int(mask_HW.sum()), boundary_px(mask_HW)) if mask_HW.any() else float("nan")


def irregularity_crofton(mask_HW: np.ndarray) -> float:
    """Of one shape, P = Crofton's perimeter in 4 directions, clipped to [0, 1]."""
    return float(np.clip(irregularity(int(mask_HW.sum()), perimeter_crofton(np.pad(mask_HW, 1), 4)), 0.0, 1.0))


def irregularity_instance(labels_HW: np.ndarray) -> float:
    """Area-weighted mean of `irregularity_crofton` over numbered instances; NaN where there is none."""
    values, areas = [], []
    for number, box in boxes(labels_HW):
        shape_HW = labels_HW[box] == number
        values.append(irregularity_crofton(shape_HW))
        areas.append(int(shape_HW.sum()))
    return float(np.average(values, weights=areas)) if areas else float("nan")


def describe(mask_HW: np.ndarray, labels_HW: np.ndarray | None = None) -> Descriptors:
    """Of a bool mask; instances are its connected parts where a set does not publish them (`labels_HW`, 0 outside)."""
    labels_HW = instances(mask_HW) if labels_HW is None else labels_HW
    centres, areas = [], []
    for number, box in boxes(labels_HW):
        inside_K2 = np.argwhere(labels_HW[box] == number)
        centres.append((*inside_K2.mean(0), box[0].start, box[1].start))
        areas.append(len(inside_K2))
    return Descriptors(
        count=len(areas),
        instance_ratio=float(np.mean(areas) / mask_HW.size) if areas else float("nan"),
        dispersion_px=float(pdist(np.array(centres)).max()) if len(areas) > 1 else 0.0,
        irregularity_mask=irregularity_mask(mask_HW),
        irregularity_instance=irregularity_instance(labels_HW),
    )


def boxes(labels_HW: np.ndarray) -> list[tuple[int, tuple[slice, slice]]]:
    """The number of each instance and the box (rows, columns) that it fills."""
    return [(number, box) for number, box in enumerate(find_objects(labels_HW), 1) if box is not None]
