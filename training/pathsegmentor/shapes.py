"""What irregularity says of shapes whose irregularity is known: drawn on a canvas of 256 px, for the results page."""

from collections.abc import Iterator

import numpy as np
from skimage.measure import perimeter_crofton

from training.pathsegmentor.descriptors import boundary_px, irregularity, irregularity_instance
from training.pathsegmentor.descriptors import instances as labelled

_SIDE_PX = 256


def disk(radius_px: float, *centres_yx: tuple[float, float]) -> np.ndarray:
    """(256,256) bool: pixels whose centres lie within the radius of any of the centres; of the canvas's by default."""
    rows, columns = np.mgrid[:_SIDE_PX, :_SIDE_PX]
    middle = (_SIDE_PX - 1) / 2
    inside = [(rows - y) ** 2 + (columns - x) ** 2 <= radius_px**2 for y, x in centres_yx or ((middle, middle),)]
    return np.logical_or.reduce(inside)


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    """(256,256) bool."""
    mask = np.zeros((_SIDE_PX, _SIDE_PX), bool)
    mask[rows, columns] = True
    return mask


def made_shapes() -> dict[str, np.ndarray]:
    """By name: a disk, a square, a rectangle, and ten disks apart."""
    return {
        "disk, radius 20": disk(20),
        "square, 40": rectangle(slice(50, 90), slice(50, 90)),
        "rectangle, 10 × 200": rectangle(slice(50, 60), slice(20, 220)),
        "ten disks, radius 10": disk(10, *((y, x) for y in (30, 130) for x in (25, 73, 121, 169, 217))),
    }


def irregularities() -> Iterator[tuple[str, float, float, float, float]]:
    """Name; irregularity of the mask with P = boundary pixels of 4 and of 8 neighbours and Crofton's perimeter; and the
    mean over instances (Crofton's)."""
    for name, mask in made_shapes().items():
        area = int(mask.sum())
        perimeters = boundary_px(mask, 4), boundary_px(mask, 8), perimeter_crofton(mask, 4)
        yield name, *(irregularity(area, length) for length in perimeters), irregularity_instance(labelled(mask))
