"""A mask as what a viewer can show at once: a picture of one bit a pixel, and outlines in micrometres."""

import cv2
import numpy as np
import numpy.typing as npt

from gateway.domain.segment import Polygon, Ring

MOST_CORNERS = 25_000
"""Of all outlines of a mask together: they are simplified further where they have more, until they have not."""
_TOLERANCE_PX = 0.5
Corners = npt.NDArray[np.int32]
_FINER = 3
"""Contours run through pixel centres: on pixels of a third of the side, that of a single pixel encloses something."""


def png_of(mask_HW: npt.NDArray[np.bool_]) -> bytes:
    """A PNG of one bit a pixel, white inside the mask (ISO/IEC 15948)."""
    encoded, data = cv2.imencode(".png", mask_HW.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    assert encoded
    return bytes(data)


def polygons_of(
    mask_HW: npt.NDArray[np.bool_], corner_um: tuple[float, float], pixel_um: tuple[float, float]
) -> tuple[tuple[Polygon, ...], float]:
    """The outlines of a mask as polygons with holes, and by how many µm at most they were simplified.

    `corner_um`: where the mask's top left corner lies (x, y); `pixel_um`: a pixel's width and height. What touches in a
    corner only stays apart. Where there are too many corners, what is no wider than the tolerance has no outline.
    """
    contours, tree = cv2.findContours(_parted(mask_HW), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    tolerance_px = _TOLERANCE_PX
    # What is too small to be simplified is shown as it is, while there is room for it.
    rings = [_simplified(contour, tolerance_px, least=contour[:, 0]) for contour in contours]
    while sum(map(len, rings)) > MOST_CORNERS:
        tolerance_px *= 2
        rings = [_simplified(contour, tolerance_px, least=contour[:0, 0]) for contour in contours]
    polygons: dict[int, list[Ring]] = {}
    for index, ring in enumerate(rings):
        parent = int(tree[0, index, 3])
        if len(ring) and (parent < 0 or len(rings[parent])):
            polygons.setdefault(index if parent < 0 else parent, []).append(_in_um(ring, corner_um, pixel_um))
    return tuple(map(tuple, polygons.values())), tolerance_px * max(pixel_um)


def _parted(mask_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The mask on finer pixels, without those in which two pixels touch by a corner: a ring through it would cross
    itself."""
    fine = np.repeat(np.repeat(mask_HW.astype(np.uint8), _FINER, axis=0), _FINER, axis=1)
    above, below = mask_HW[:-1], mask_HW[1:]
    falling = above[:, :-1] & below[:, 1:] & ~above[:, 1:] & ~below[:, :-1]
    rising = above[:, 1:] & below[:, :-1] & ~above[:, :-1] & ~below[:, 1:]
    for touching, left in ((falling, 1), (rising, 0)):
        rows, columns = ((np.argwhere(touching) + 1) * _FINER).T
        fine[rows - 1, columns - left] = 0
        fine[rows, columns - 1 + left] = 0
    return fine


def _simplified(contour: Corners, tolerance_px: float, *, least: Corners) -> Corners:
    """A contour (K, 1, 2) as a ring of fewer corners (K, 2); `least` where nothing is left that encloses anything."""
    simple: Corners = np.asarray(cv2.approxPolyDP(contour, tolerance_px * _FINER, closed=True), np.int32)[:, 0]
    return simple if len(simple) > 2 else least


def _in_um(ring_K2: Corners, corner_um: tuple[float, float], pixel_um: tuple[float, float]) -> Ring:
    corners_K2 = np.round((ring_K2 + 0.5) / _FINER * pixel_um + corner_um, 3)
    corners = [(float(x_um), float(y_um)) for x_um, y_um in corners_K2]
    return (*corners, corners[0])
