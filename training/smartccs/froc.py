"""How well abnormal cells are found in fields: FROC, average precision, and what both are held against.

A detection hits an annotated nucleus where its middle is within half that nucleus's box's side, in x and in y. A second
detection of a cell that is found already counts neither way. Not every cell is annotated, so false alarms are counted
twice: everywhere (the leading figure, which is too severe) and on annotated nuclei that are not abnormal only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import cv2
import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max

from gateway.domain.bethesda import ABNORMAL, NILM, class_of, column_of
from gateway.slides.cells import Cells
from gateway.slides.stain import optical_density
from training.smartccs.data import Field

RATES = (1.0, 2.0, 4.0, 8.0)
"""False alarms a field at which the sensitivity is told."""
_BLOB_SCALES = (0.25, 0.35, 0.5)
"""Radii of nuclei that the baseline looks for, as shares of half an annotated box's side."""


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A field and the cells that were found in it, in its own pixels; without `cells.tiles_N` having any meaning."""

    field: Field
    cells: Cells


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """The detections of a field: their scores; the Bethesda number of the nucleus that each found, which none surer had
    found before it, or -1; and which are false alarms. What is neither counts neither way."""

    scores_N: np.ndarray
    found_N: np.ndarray
    false_N: np.ndarray


def sensitivities(
    answered: Sequence[Answered], rates: Sequence[float] = RATES, *, unannotated: bool = True
) -> dict[float, float]:
    """The share of abnormal cells that are found, by false alarms a field. `unannotated`: whether what hits no
    annotated nucleus is a false alarm; otherwise only what hits one that is not abnormal is."""
    cells = sum(int(entry.field.abnormal.sum()) for entry in answered)
    found = found_at([marks(entry, unannotated=unannotated) for entry in answered], rates)
    return {rate: len(kinds) / max(cells, 1) for rate, kinds in found.items()}


def found_at(marked: Sequence[Marks], rates: Sequence[float] = RATES) -> dict[float, np.ndarray]:
    """The Bethesda numbers of the nuclei that are found at so many false alarms a field, by the lowest threshold."""
    scores_N, found_N, false_N = (
        np.concatenate([getattr(entry, name) for entry in marked]) for name in ("scores_N", "found_N", "false_N")
    )
    order = np.argsort(-scores_N, kind="stable")
    scores_N, found_N, false_N = scores_N[order], found_N[order], np.cumsum(false_N[order]) / max(len(marked), 1)
    # Detections of one score are all there or none: a threshold cannot part them.
    last_N = np.append(np.diff(scores_N) < 0, True)[: len(scores_N)]
    kept = {}
    for rate in rates:
        ends = np.flatnonzero(last_N & (false_N <= rate))
        inside_K = found_N[: ends[-1] + 1 if len(ends) else 0]
        kept[rate] = inside_K[inside_K >= 0]
    return kept


def by_class(answered: Sequence[Answered], *, least: int) -> dict[int, float]:
    """Of each abnormal class of at least `least` annotated cells, by its Bethesda number (of all together as one, where
    no class has so many): the share of its cells that are found whatever class is named, as the mean over `RATES` (LUNA
    16's competition metric, arXiv 1612.08012)."""
    kinds = np.concatenate([entry.field.classes_N[entry.field.abnormal] for entry in answered])
    found = found_at([marks(entry) for entry in answered])
    enough = [int(kind) for kind in np.unique(kinds) if (kinds == kind).sum() >= least]
    if not enough:
        return {NILM: fmean(len(at) for at in found.values()) / max(len(kinds), 1)}
    hits = {kind: fmean(int((at == kind).sum()) for at in found.values()) for kind in enough}
    return {kind: hits[kind] / int((kinds == kind).sum()) for kind in enough}


def average_precision(answered: Sequence[Answered], iou: float = 0.5) -> float:
    """The area below precision over sensitivity of boxes that overlap an abnormal cell's by at least `iou`, whatever
    the class, each taken for the free cell that it overlaps most; what is found beside annotations is wrong (PASCAL
    VOC, Int. J. Comput. Vision 88:303, all points)."""
    return precision_of([overlaps(entry, iou) for entry in answered])


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """The detections of a field: their scores, which overlap a cell that none surer does, and how many cells it has."""

    scores_N: np.ndarray
    right_N: np.ndarray
    cells: int


def overlaps(entry: Answered, iou: float = 0.5) -> Overlaps:
    """Of one field; see `average_precision`."""
    boxes_K4 = entry.field.corners[entry.field.abnormal]
    found, right_N = entry.cells, np.zeros(len(entry.cells), np.bool_)
    free_K = np.ones(len(boxes_K4), np.bool_)
    iou_NK = _ious(found.boxes_N4, boxes_K4)
    for place in np.argsort(-found.scores_N, kind="stable") if len(boxes_K4) else ():
        best = int(np.where(free_K, iou_NK[place], -1).argmax())
        if free_K[best] and iou_NK[place, best] >= iou:
            free_K[best], right_N[place] = False, True
    return Overlaps(found.scores_N, right_N, len(boxes_K4))


def precision_of(fields: Sequence[Overlaps]) -> float:
    """The average precision over fields."""
    cells = sum(entry.cells for entry in fields)
    order = np.argsort(-np.concatenate([entry.scores_N for entry in fields]), kind="stable")
    right_N = np.concatenate([entry.right_N for entry in fields])[order]
    if not right_N.any():
        return 0.0
    precision_N = np.cumsum(right_N) / np.arange(1, len(right_N) + 1)
    envelope_N = np.maximum.accumulate(precision_N[::-1])[::-1]
    return float(envelope_N[right_N].sum() / cells)


def of_other_fields(answered: Sequence[Answered]) -> list[Answered]:
    """The control: what was found in each field with abnormal cells, held against the annotations of the next such
    field. A detector that finds cells where they are finds few there."""
    abnormal = [entry for entry in answered if entry.field.abnormal.any()]
    return [
        replace(entry, field=other.field) for entry, other in zip(abnormal, abnormal[1:] + abnormal[:1], strict=True)
    ]


def dark_blobs(field: Field, image_HWC: np.ndarray, most: int = 100) -> Cells:
    """The baseline that knows nothing of cells: the `most` darkest blobs of a nucleus's size, as boxes of the annotated
    size: summits of the Laplacian of Gaussians of the optical density (Lindeberg, Int. J. Comput. Vision 30:79)."""
    side = float(np.median(field.boxes_N4[:, 2]))
    by = max(1, round(side / 24))  # blobs of this size are the same at a coarser scale
    density_HW = optical_density(image_HWC).mean(-1).astype(np.float32)
    density_hw = cv2.resize(density_HW, None, fx=1 / by, fy=1 / by, interpolation=cv2.INTER_AREA)
    sigmas = [share * side / 2 / by / np.sqrt(2) for share in _BLOB_SCALES]
    response_hw = np.max([-(sigma**2) * ndimage.gaussian_laplace(density_hw, sigma) for sigma in sigmas], axis=0)
    at_N2 = peak_local_max(response_hw, min_distance=max(1, round(side / 4 / by)), num_peaks=most, exclude_border=False)
    scores_N = response_hw[tuple(at_N2.T)].astype(np.float64)
    middle_N2 = (at_N2[:, ::-1] + 0.5) * by
    boxes_N4 = np.hstack([middle_N2 - side / 2, middle_N2 + side / 2])
    nothing_N = np.zeros(len(scores_N), np.int64)
    return Cells(boxes_N4, scores_N, nothing_N, nothing_N)


def figures(answered: Sequence[Answered]) -> dict[str, object]:
    """What is told of a detector: both FROC, average precision at half overlap, over all classes and of each class by
    the detections that name it, and the control."""
    return {
        "fields": len(answered),
        "abnormal_cells": sum(int(entry.field.abnormal.sum()) for entry in answered),
        "froc": told(sensitivities(answered)),
        "froc_annotated_only": told(sensitivities(answered, unannotated=False)),
        "ap50": round(average_precision(answered), 4),
        "ap50_by_class": {
            ABNORMAL[column]: round(average_precision(_of_column(answered, column)), 4)
            for column in _annotated_columns(answered)
        },
        "froc_of_other_fields": told(sensitivities(of_other_fields(answered))),
    }


def told(found: dict[float, float]) -> dict[str, float]:
    """Sensitivities as figures are kept."""
    return {f"{rate:g}": round(share, 4) for rate, share in found.items()}


def _of_column(answered: Sequence[Answered], column: int) -> list[Answered]:
    """One class alone: its annotations, and the detections that name it."""
    kind = class_of(column)
    return [
        Answered(
            replace(entry.field, classes_N=np.where(entry.field.classes_N == kind, kind, NILM)),
            entry.cells.chosen(entry.cells.classes_N == column),
        )
        for entry in answered
    ]


def _annotated_columns(answered: Sequence[Answered]) -> list[int]:
    found = {int(kind) for entry in answered for kind in entry.field.classes_N[entry.field.abnormal]}
    return [column_of(kind) for kind in sorted(found)]


def marks(entry: Answered, *, unannotated: bool = True) -> Marks:
    """What the detections of a field are; see `sensitivities`."""
    field, found = entry.field, entry.cells
    half_M2 = field.boxes_N4[:, 2:] / 2
    middles_N2 = (found.boxes_N4[:, :2] + found.boxes_N4[:, 2:]) / 2
    away_NM2 = np.abs(middles_N2[:, None] - (field.boxes_N4[:, :2] + half_M2)[None])
    near_NM = (away_NM2 <= half_M2).all(-1)
    abnormal_NM = near_NM & field.abnormal
    false_N = ~abnormal_NM.any(1)
    if not unannotated:
        false_N &= near_NM.any(1)
    found_N, free_M = np.full(len(found), -1, np.int64), field.abnormal.copy()
    for place in np.argsort(-found.scores_N, kind="stable"):
        open_M = abnormal_NM[place] & free_M
        if open_M.any():
            nearest = int(np.where(open_M, np.square(away_NM2[place]).sum(-1), np.inf).argmin())
            found_N[place], free_M[nearest] = field.classes_N[nearest], False
    return Marks(found.scores_N, found_N, false_N)


def _ious(one_N4: np.ndarray, other_K4: np.ndarray) -> np.ndarray:
    """(N,K): intersection over union."""
    lower = np.maximum(one_N4[:, None, :2], other_K4[None, :, :2])
    upper = np.minimum(one_N4[:, None, 2:], other_K4[None, :, 2:])
    shared_NK = (upper - lower).clip(min=0).prod(-1)
    area_N, area_K = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one_N4, other_K4))
    return shared_NK / (area_N[:, None] + area_K[None] - shared_NK)
