"""A detector on whole fields: in overlapping tiles, at one scale, as the gateway reads a slide."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from gateway.slides.cell_crops import padded
from gateway.slides.cells import Cells, cells_of_tile, merged
from gateway.slides.rescale import rescaled
from training.errors import TaskInvalid
from training.loop import Measured
from training.smartccs.data import Field
from training.smartccs.detector import Detector
from training.smartccs.froc import Answered, by_class, sensitivities
from training.smartccs.recipe import DetectorData, Merging

_BATCH = 4
_LEAST_SCORE = 0.02
"""What is surer than this counts in a curve over all thresholds; the served threshold is far above it."""
_RATE = 4.0
"""False alarms a field at which detectors are compared."""
_LEAST_CELLS = 10
"""Annotated cells of a class with which it counts in the choice of weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """A field, its picture at another scale, and how many of the field's pixels are one of the picture's."""

    field: Field
    image_HWC: np.ndarray
    factor: float


def at_scale(field: Field, image_HWC: np.ndarray, factor: float) -> Scaled:
    """A field's picture, `factor` of whose pixels are one of the scaled one's."""
    size = [round(length / factor) for length in image_HWC.shape[1::-1]]
    return Scaled(field, rescaled(image_HWC, *size), factor)


def scaled(fields: Sequence[Field], mpp: float) -> list[Scaled]:
    """Fields at a scale, decoded. Raises TaskInvalid for a field whose scale is not known, DataMissing."""
    found = []
    for field in fields:
        if field.mpp is None:
            raise TaskInvalid(f"The scale of the field {field.name} is not known, so nothing is measured on it.")
        found.append(at_scale(field, field.read(), mpp / field.mpp))
    return found


@torch.inference_mode()
def cells_of_field(network: Detector, picture: Scaled, data: DetectorData, merging: Merging, min_score: float) -> Cells:
    """The cells of a field, in its own pixels."""
    device, side = network.queries.device, data.side_px
    corners = list(tile_corners(picture.image_HWC.shape[:2], side, data.overlap_px))
    tiles = [padded(picture.image_HWC, np.array([x, y, x + side, y + side])) for x, y in corners]
    parts = []
    for start in range(0, len(tiles), _BATCH):
        image = torch.from_numpy(np.stack(tiles[start : start + _BATCH])).to(device)
        answers = zip(*(values.cpu().numpy() for values in network(image)), strict=True)
        for tile, (scores_QC, boxes_Q4) in enumerate(answers, start):
            x, y = corners[tile]
            corner, length = (x * picture.factor, y * picture.factor), side * picture.factor
            parts.append(
                cells_of_tile(scores_QC, boxes_Q4, corner, length, tile, min_score=min_score, nms_iou=merging.nms_iou)
            )
    return merged(parts, merging.nms_iou)


def tile_corners(size_hw: tuple[int, int], side: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Left and top of tiles that cover a picture, row by row, spread evenly and overlapping by at least `overlap`; from
    0 where the picture is smaller than a tile."""
    rows, columns = (_starts(length, side, overlap) for length in size_hw)
    return ((x, y) for y in rows for x in columns)


def _starts(length: int, side: int, overlap: int) -> list[int]:
    steps = -(-max(length - side, 0) // (side - overlap))
    return [round(step * (length - side) / steps) for step in range(steps + 1)] if steps else [0]


def answered(network: Detector, pictures: Sequence[Scaled], data: DetectorData, merging: Merging) -> list[Answered]:
    """What a network finds in each field, above a score at which nothing would be served."""
    return [
        Answered(picture.field, cells_of_field(network, picture, data, merging, _LEAST_SCORE)) for picture in pictures
    ]


def measured(network: Detector, pictures: Sequence[Scaled], data: DetectorData, merging: Merging) -> Measured:
    """What a validation tells: the sensitivity at four false alarms a field; and by what weights are chosen: the mean
    sensitivity over the rates of a curve and over the classes, so that no rate and no frequent class decides alone."""
    found = answered(network, pictures, data, merging)
    balanced = fmean(by_class(found, least=_LEAST_CELLS).values())
    sensitivity = sensitivities(found, (_RATE,))[_RATE]
    return Measured(balanced, {"sensitivity": round(sensitivity, 4), "balanced": round(balanced, 4)})
