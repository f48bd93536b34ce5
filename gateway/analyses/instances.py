"""From a mask to single objects: a watershed on the distance transform, cut where two objects touch.

Each maximum of the distance to the mask's edge that rises at least `h` above its saddle to a higher one marks an object
(h-maxima: Soille, "Morphological Image Analysis", 2nd ed., 6.3.4). Every other pixel belongs to the mark that it comes
to uphill (watershed by steepest paths: Meyer, Signal Processing 38:113, 1994). What is counted so is approximate: the
model does not tell objects apart.

A slide is split block by block, each with a rim as wide as an object can be. An object belongs to the block in which
its mark begins, so that none is cut at a border and none counted twice.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from gateway.domain.prompts import Level, Triple
from gateway.reports.spatial import Outlines

BLOCK_PX = 1536
_FIXED = 16
"""Distances are whole numbers of sixteenths of a pixel: what is compared is exact."""
_FARTHEST = np.float32(np.iinfo(np.uint16).max)
"""Where a picture is all mask, no edge is near."""
_RING = np.ones((3, 3), np.uint8)
_FEW = 16384
"""So many pixels are followed one by one in less time than the whole picture takes."""

Mask = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Splitting:
    """How objects of one kind are told apart, in mask pixels: `h_px`, the least area `least_px`, how far the largest
    reach (`reach_px`), and by how much the mask is reduced for it."""

    h_px: float
    least_px: float
    reach_px: int
    reduction: int = 1


def splitting_of(triple: Triple, mpp: float) -> Splitting | None:
    """How the objects of a prompt are told apart; None where it asks for a tissue that has no single objects.

    Nuclei and cells as published: h of 1 pixel and at least 36 pixels at 0.25 µm, here in µm. Glands and glomeruli
    are larger and lobed: they part at necks 10 µm narrower than their halves, and have at least 500 µm².
    """
    if triple.level in (Level.NUCLEI, Level.CELL):
        return Splitting(h_px=0.25 / mpp, least_px=36 * (0.25 / mpp) ** 2, reach_px=round(32 / mpp))
    if triple.object in ("gland", "glomerulus"):
        return Splitting(h_px=10 / mpp, least_px=500 / mpp**2, reach_px=round(512 / mpp), reduction=4)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """`labels_HW` int32: the object of each pixel from 1 on, 0 where there is none. `marks_M2`: of object m + 1 the
    (row, column) where its mark begins."""

    labels_HW: Labels
    marks_M2: npt.NDArray[np.int32]


def split(mask_HW: npt.NDArray[np.bool_], splitting: Splitting) -> Split:
    """The objects of a mask; pieces that are too small for one are left out."""
    mask = mask_HW.view(np.uint8)
    by = splitting.reduction
    if by == 1:
        return _watershed(mask, splitting)
    height, width = (-(-size // by) for size in mask.shape)
    beyond = height * by - mask.shape[0], width * by - mask.shape[1]
    whole = np.pad(mask, ((0, beyond[0]), (0, beyond[1]))).reshape(height, by, width, by)
    small = (whole.mean((1, 3)) >= 0.5).view(np.uint8)
    reduced = Splitting(splitting.h_px / by, splitting.least_px / by**2, splitting.reach_px // by)
    found = _watershed(small, reduced)
    labels = np.repeat(np.repeat(found.labels_HW, by, axis=0), by, axis=1)[: mask.shape[0], : mask.shape[1]]
    grown = np.where(mask_HW, labels, 0).astype(np.float32)
    for _ in range(by):  # what the reduction lost of an object's rim
        grown = np.where(mask_HW & (grown == 0), np.asarray(cv2.dilate(grown, _RING)), grown)
    return Split(grown.astype(np.int32), found.marks_M2 * by)


def outlines_of(
    found: Split,
    fractions_HW: npt.NDArray[np.uint8],
    splitting: Splitting,
    mpp_xy: tuple[float, float],
    corner: tuple[int, int],
    core: tuple[slice, slice],
) -> Outlines:
    """The objects whose marks lie in the rows and columns `core` of the picture; `corner`: (row, column) of the
    picture's first pixel among all mask pixels."""
    labels = found.labels_HW
    count = len(found.marks_M2) + 1
    at = np.flatnonzero(labels != 0)
    label_at = labels.ravel()[at]
    area_px = np.bincount(label_at, minlength=count)
    rows, columns = found.marks_M2[:, 0], found.marks_M2[:, 1]
    mine = (rows >= core[0].start) & (rows < core[0].stop) & (columns >= core[1].start) & (columns < core[1].stop)
    chosen = np.flatnonzero(mine & (area_px[1:] >= splitting.least_px)) + 1
    total = np.bincount(label_at, weights=fractions_HW.ravel()[at], minlength=count)
    points, sizes, of = [], [], []
    boxes = _boxes(at, label_at, labels.shape[1], chosen).tolist() if len(chosen) else []
    for number, (label, (top, left, bottom, right)) in enumerate(zip(chosen.tolist(), boxes, strict=True)):
        piece = (labels[top:bottom, left:right] == label).view(np.uint8)
        for ring in _rings(piece, (left + corner[1], top + corner[0])):
            points.append(ring)
            sizes.append(len(ring))
            of.append(number)
    area = area_px[chosen].astype(np.float64)
    return Outlines(
        points_P2=(np.concatenate(points) + 0.5).astype(np.float32) if points else np.zeros((0, 2), np.float32),
        first_G=np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if sizes else np.zeros(0, np.int64),
        object_G=np.array(of, np.int32),
        area_um2_N=(area * mpp_xy[0] * mpp_xy[1]).astype(np.float32),
        irregularity_N=irregularity(area, crofton_perimeters(labels, count)[chosen]).astype(np.float32),
        probability_N=(total[chosen] / np.maximum(area, 1) / 255).astype(np.float32),
    )


def crofton_perimeters(labels_HW: Labels, count: int) -> npt.NDArray[np.float64]:
    """The perimeter of each of `count` labels in pixels, by Crofton's formula in four directions: boundary crossings
    along rows, columns and both diagonals, each weighted by the distance of its lines (Lehmann & Legland, Insight
    Journal 2012). (count,), that of label 0 without meaning."""
    labels = np.pad(labels_HW, 1).ravel()
    crossings = np.zeros(count)
    for step in (steps := _steps(labels_HW.shape[1] + 2))[steps > 0]:
        differ = np.flatnonzero(labels[:-step] != labels[step:])
        weight = 1.0 if step in (1, labels_HW.shape[1] + 2) else np.sqrt(0.5)
        crossings += weight * np.bincount(labels[differ], minlength=count)
        crossings += weight * np.bincount(labels[differ + step], minlength=count)
    perimeters: npt.NDArray[np.float64] = np.pi / 8 * crossings
    return perimeters


def irregularity(area_px: npt.NDArray[np.float64], perimeter_px: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 - 4·pi·area / perimeter², kept in 0..1: 0 for a disc."""
    values: npt.NDArray[np.float64] = np.clip(1 - 4 * np.pi * area_px / np.maximum(perimeter_px, 1e-9) ** 2, 0, 1)
    return values


def _watershed(mask: Mask, splitting: Splitting) -> Split:
    """On a mask at the resolution that it is split at."""
    pieces_count, pieces = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    at_N = np.flatnonzero(mask.view(np.bool_))
    piece_N = pieces.ravel()[at_N]
    large = np.bincount(piece_N, minlength=pieces_count) >= splitting.least_px
    large[0] = False
    if not large[1:].all():
        kept_N = large[piece_N]
        at_N, piece_N = at_N[kept_N], piece_N[kept_N]
    height = _heights(mask, pieces, np.flatnonzero(large), at_N, piece_N)
    surface = _rebuilt(np.maximum(height, h := np.uint16(max(1, round(splitting.h_px * _FIXED)))) - h, height)
    summits = surface > _rebuilt(np.maximum(surface, 1) - np.uint16(1), surface)
    crowned = np.zeros(pieces_count, np.bool_)
    crowned[pieces[summits]] = True
    if (flat := large & ~crowned).any():
        summits.ravel()[at_N[flat[piece_N]]] = True  # no summit of it counts: the whole piece is one
    count, marks = cv2.connectedComponents(summits.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    at = np.flatnonzero(summits)
    _, first = np.unique(marks.ravel()[at], return_index=True)
    begins_M2 = np.stack(np.divmod(at[first], mask.shape[1]), axis=1).astype(np.int32)
    # A piece with one mark is that object; only what has more is parted.
    mark_pieces = pieces[begins_M2[:, 0], begins_M2[:, 1]]
    alone = np.bincount(mark_pieces, minlength=pieces_count) == 1
    only = np.zeros(pieces_count, np.int32)
    only[mark_pieces] = np.arange(1, count, dtype=np.int32)
    only[~alone] = 0
    labels = np.zeros(mask.shape, np.int32)
    labels.ravel()[at_N] = only[piece_N]
    joined = large & ~alone
    if joined.any():
        together = at_N[joined[piece_N]]
        labels.ravel()[together] = _climbed(surface, marks, together)
    return Split(labels, begins_M2)


def _heights(
    mask: Mask,
    pieces: Labels,
    chosen: npt.NDArray[np.int64],
    at_N: npt.NDArray[np.int64],
    piece_N: Labels,
) -> npt.NDArray[np.uint16]:
    """The distance of every pixel of the pieces `chosen` to the mask's edge; 0 elsewhere. Piece by piece, since most of
    a picture is empty: a pixel's nearest one outside the mask lies beside its own piece."""
    height = np.zeros(mask.shape, np.uint16)
    if not len(chosen):
        return height
    boxes = _boxes(at_N, piece_N, mask.shape[1], chosen)
    boxes[:, :2] -= 1
    boxes[:, 2:] += 1
    for piece, (top, left, bottom, right) in zip(chosen.tolist(), np.maximum(boxes, 0).tolist(), strict=True):
        box = slice(top, bottom), slice(left, right)
        distance = cv2.distanceTransform(mask[box], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        np.copyto(height[box], np.minimum(distance * _FIXED, _FARTHEST), casting="unsafe", where=pieces[box] == piece)
    return height


def _rebuilt(marker: npt.NDArray[np.uint16], under: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Morphological reconstruction by dilation: of the whole picture while much of it changes, then on from the pixels
    that changed last (Vincent, IEEE Trans. Image Process. 2:176, 1993: hybrid algorithm)."""
    height, width = marker.shape
    while True:
        grown = np.asarray(cv2.min(cv2.dilate(marker, _RING), under), np.uint16)
        front = np.flatnonzero(grown != marker)
        marker = grown
        if len(front) < _FEW:
            break
    values, most = np.pad(marker, 1).ravel(), np.pad(under, 1).ravel()
    steps = _steps(width + 2)
    front += width + 3 + front // width * 2  # where that is in the padded picture
    while len(front):
        beside = (front[:, None] + steps).ravel()
        raised = np.minimum(np.repeat(values[front], len(steps)), most[beside])
        rises = raised > values[beside]
        beside = beside[rises]
        np.maximum.at(values, beside, raised[rises])
        front = np.unique(beside)
    return values.reshape(height + 2, width + 2)[1:-1, 1:-1]


def _steps(width: int) -> npt.NDArray[np.int64]:
    """From a pixel to the eight round it, in a picture of this width as one line."""
    return np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])


def _climbed(surface: npt.NDArray[np.uint16], marks: Labels, pixels_N: npt.NDArray[np.int64]) -> Labels:
    """The mark of each of some whole pieces' pixels, in their order: from pixel to highest neighbour up to a mark, over
    level ground to the nearest way up. Every regional maximum of the surface bears a mark."""
    width = surface.shape[1] + 2
    padded = np.pad(surface, 1).ravel()
    at_N = pixels_N + width + 1 + pixels_N // surface.shape[1] * 2
    number = np.full(len(padded), -1, np.int32)
    number[at_N] = np.arange(len(at_N), dtype=np.int32)
    steps = _steps(width).tolist()
    own_N = padded[at_N]
    marked_N = marks.ravel()[pixels_N]
    next_N = np.where(marked_N > 0, np.arange(len(at_N), dtype=np.int32), np.int32(-1))
    best_N = own_N.copy()
    for step in steps:
        there_N = padded[at_N + step]
        higher = (there_N > best_N) & (marked_N == 0)
        best_N[higher] = there_N[higher]
        next_N[higher] = number[at_N[higher] + step]
    level = np.flatnonzero(next_N < 0)
    while len(level):
        found = np.full(len(level), -1, np.int32)
        for step in steps:
            beside = number[at_N[level] + step]
            way = (found < 0) & (beside >= 0)
            way[way] = (own_N[beside[way]] == own_N[level[way]]) & (next_N[beside[way]] >= 0)
            found[way] = beside[way]
        if not (found >= 0).any():
            break
        next_N[level] = found
        level = level[found < 0]
    while not np.array_equal(onward := next_N[next_N], next_N):
        next_N = onward
    return marked_N[next_N]


def _boxes(
    at_N: npt.NDArray[np.int64], label_N: Labels, width: int, chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(top, left, bottom, right) of each label of `chosen` (rising), (n, 4). `at_N`: where the pixels lie in a picture
    of this width, in reading order."""
    begins = np.ones(len(at_N), np.bool_)
    begins[1:] = (at_N[1:] - at_N[:-1] != 1) | (label_N[1:] != label_N[:-1])
    begins[np.searchsorted(at_N, np.arange(width, at_N[-1] + 1, width))] = True
    begin_R = np.flatnonzero(begins)  # runs of pixels in one row, of which there are far fewer
    order = np.argsort(label_N[begin_R], kind="stable")
    label_R, (row_R, left_R) = label_N[begin_R][order], np.divmod(at_N[begin_R][order], width)
    right_R = left_R + np.diff(begin_R, append=len(at_N))[order]
    first, last = np.searchsorted(label_R, chosen), np.searchsorted(label_R, chosen, "right") - 1
    start = np.flatnonzero(np.diff(label_R, prepend=0))
    place = np.searchsorted(start, first)
    left, right = np.minimum.reduceat(left_R, start)[place], np.maximum.reduceat(right_R, start)[place]
    return np.stack([row_R[first], left, row_R[last] + 1, right], axis=1)


def _rings(piece: Mask, corner_xy: tuple[int, int]) -> list[npt.NDArray[np.integer | np.floating]]:
    """The rings of one object, through its pixels: the longest outer one, then its holes; (n, 2) x, y."""
    contours, hierarchy = cv2.findContours(piece, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=corner_xy)
    if len(contours) == 1:
        outer, holes = 0, []
    else:
        parents = hierarchy[0, :, 3]
        outer = max(np.flatnonzero(parents < 0).tolist(), key=lambda ring: len(contours[ring]))
        holes = [contours[ring][:, 0] for ring in np.flatnonzero(parents == outer).tolist() if len(contours[ring]) > 2]
    around = contours[outer][:, 0]
    return [around if len(around) > 2 else _round_a_line(around), *holes]


def _round_a_line(ends_P2: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """The ring (4, 2) round the pixels of a straight line of one pixel's width, whose centres enclose nothing."""
    first, last = ends_P2[0], ends_P2[-1]
    length = float(np.linalg.norm(last - first))
    along = (last - first) / length if length else np.array([1.0, 0.0])
    side = np.array([-along[1], along[0]]) / 2
    before, after = first - along / 2, last + along / 2
    return np.stack([before - side, after - side, after + side, before + side])
