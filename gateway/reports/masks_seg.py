"""Report -> DICOM Segmentation (PS3.3 A.51, A.90) of what was found by words: a segment a prompt, at the masks' own
resolution, of which only the tiles are stored in which something was found.

Masks of prompts may overlap (a lymphocyte is a nucleus), and `SegmentsOverlap` says whether these do. A prompt that was
looked for and not found keeps its segment, without a frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gateway.domain.report import Report, SegmentationResult
from gateway.operations.errors import PathserveError
from gateway.reports import wording
from gateway.reports.derived import Kind, ObjectName, segment_role, tracking_of
from gateway.reports.pyramid import level_of, plane_of, reading_of
from gateway.reports.seg import Overlap, Segment, SegmentationType, bits_of, segmentation
from gateway.reports.sparse import Frames, write_sparse
from gateway.reports.spatial import MaskMap, SlideSource
from gateway.reports.tiled import Frame, Tiling

Fractions = npt.NDArray[np.uint8]


def mask_object(analysis_id: str, series: str, file: str) -> ObjectName:
    """The identity of a segmentation of prompts: a slide has one a resolution and form, told apart by their files."""
    return ObjectName(analysis_id, Kind.SEG, f"{series}/{file}")


def found_in(masks: MaskMap) -> bool:
    """Whether any mask has a pixel, so that there is a segmentation to write: an image has at least one frame."""
    return any(len(masks.occupied(index)) for index in masks.indices)


def write_mask_seg(
    path: Path, report: Report, source: SlideSource, masks: MaskMap, *, segmentation_type: SegmentationType
) -> None:
    """Write the masks of one resolution.

    BINARY: which pixels are in each mask. FRACTIONAL: the probability of each pixel of the same tiles. LABELMAP: as
    BINARY, each tile once; where masks overlap no label map can say so, and a BINARY one is written instead. Raises
    PathserveError where nothing was found (`found_in`), or the report knows nothing of a prompt; OSError.
    """
    result = report.segments_of(reading_of(report, source).series)
    if result is None:
        raise PathserveError("A slide without a result has no segmentation. Report this.")
    overlap: Overlap = "YES" if overlapping(masks) else "NO"
    if segmentation_type == "LABELMAP" and overlap == "YES":
        segmentation_type = "BINARY"
    segments = list(_segments(report, source, result, masks))
    dataset = segmentation(
        report,
        level_of(source, masks.level),
        mask_object(report.analysis_id, source.series, path.name),
        segments,
        segmentation_type=segmentation_type,
        overlap=overlap,
        pixel_px=masks.pixel_px,
    )
    if segmentation_type == "FRACTIONAL":
        dataset.ContentLabel = "PROBABILITIES"
    frames, pixels = _label_frames(masks) if segmentation_type == "LABELMAP" else _mask_frames(masks, segmentation_type)
    write_sparse(
        path,
        dataset,
        tiling_of(masks),
        plane_of(dataset),
        frames,
        pixels,
        bits=bits_of(segmentation_type, len(segments)),
        jpeg_ls=segmentation_type != "BINARY",
    )


def tiling_of(masks: MaskMap) -> Tiling:
    """How the masks' matrix is cut into frames."""
    return Tiling(rows=masks.rows, columns=masks.columns, tile_rows=masks.tile_px, tile_columns=masks.tile_px)


def overlapping(masks: MaskMap) -> bool:
    """Whether any pixel lies in two masks."""
    return any(
        (np.sum([fraction_HW >= masks.threshold for _, fraction_HW in stack], axis=0) > 1).any()
        for _, stack in _stacked(masks)
        if len(stack) > 1
    )


def _stacked(masks: MaskMap) -> Iterator[tuple[tuple[int, int], list[tuple[int, Fractions]]]]:
    """Each tile in which something was found, in reading order, with the numbers of the segments found in it (from 1)
    and their fractions."""
    by_place = merge(
        *(_placed(masks, number, index) for number, index in enumerate(masks.indices, 1)), key=itemgetter(0)
    )
    for (row, column), group in groupby(by_place, key=lambda entry: (entry[0][0], entry[0][1])):
        yield (row, column), [(place[2], fraction_HW) for place, fraction_HW in group]


def _placed(masks: MaskMap, number: int, index: int) -> Iterator[tuple[tuple[int, int, int], Fractions]]:
    for (row, column), fraction_HW in zip(masks.occupied(index).tolist(), masks.fractions(index), strict=True):
        yield (row, column, number), fraction_HW


def _mask_frames(masks: MaskMap, segmentation_type: Literal["BINARY", "FRACTIONAL"]) -> tuple[Frames, Iterable[Frame]]:
    """All frames of the first segment, then the second's."""
    occupied = [masks.occupied(index) for index in masks.indices]
    frames = Frames(
        tiles_F2=np.concatenate(occupied),
        segments_F=np.repeat(np.arange(1, len(occupied) + 1), [len(tiles_N2) for tiles_N2 in occupied]),
    )
    fractions = (fraction_HW for index in masks.indices for fraction_HW in masks.fractions(index))
    if segmentation_type == "FRACTIONAL":
        return frames, fractions
    return frames, (fraction_HW >= masks.threshold for fraction_HW in fractions)


def _label_frames(masks: MaskMap) -> tuple[Frames, Iterable[Frame]]:
    """Each tile once, each pixel with the number of its segment."""
    places = np.unique(np.concatenate([masks.occupied(index) for index in masks.indices]), axis=0)
    return Frames(tiles_F2=places, segments_F=None), (_labels(masks, stack) for _, stack in _stacked(masks))


def _labels(masks: MaskMap, stack: Sequence[tuple[int, Fractions]]) -> Frame:
    label_HW = np.zeros(stack[0][1].shape, np.uint8 if len(masks.indices) <= 255 else np.uint16)
    for number, fraction_HW in stack:
        label_HW[fraction_HW >= masks.threshold] = number
    return label_HW


def _segments(report: Report, source: SlideSource, result: SegmentationResult, masks: MaskMap) -> Iterator[Segment]:
    slide = next(number for number, reading in enumerate(report.slides, 1) if reading.series == source.series)
    by_index = {segmented.index: segmented for segmented in result.segments}
    for index in masks.indices:
        segmented = by_index[index]
        yield Segment(
            label=segmented.triple,
            category=segmented.category,
            property_type=segmented.code,
            description=wording.segment_description(segmented),
            color=segmented.color,
            tracking=tracking_of(report, slide, segment_role(segmented)),
        )
