"""Report -> DICOM Segmentation (PS3.3 A.51, A.90) of what was found by words: a segment a prompt, at the masks' own
resolution, of which only the tiles are stored in which something was found.

Masks of prompts may overlap (a lymphocyte is a nucleus), and `SegmentsOverlap` says whether these do. A prompt that was
looked for and not found keeps its segment, without a frame.
"""

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path

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
from gateway.reports.tiled import Frame, Tiling, fits_uncompressed

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
    BINARY, each tile once; where masks overlap no label map can say so, and a BINARY one is written instead. Bits are
    never compressed, and more than 4 GiB of them cannot be stored: masks of that size say the same as occupancies of 0
    or 100 % (FRACTIONAL, PS3.3 C.8.20.2.3). Raises PathserveError where nothing was found (`found_in`), or the report
    knows nothing of a prompt; OSError.
    """
    result = report.segments_of(reading_of(report, source).series)
    if result is None:
        raise PathserveError("A slide without a result has no segmentation. Report this.")
    probabilities = segmentation_type == "FRACTIONAL"
    overlap: Overlap = "YES" if overlapping(masks, 1 if probabilities else masks.threshold) else "NO"
    if segmentation_type == "LABELMAP" and overlap == "YES":
        segmentation_type = "BINARY"
    frames = _frames(masks, labels=segmentation_type == "LABELMAP")
    if segmentation_type == "BINARY" and not fits_uncompressed(tiling_of(masks), len(frames.tiles_F2), 1):
        segmentation_type = "FRACTIONAL"
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
    if probabilities:
        dataset.ContentLabel = "PROBABILITIES"
    elif segmentation_type == "FRACTIONAL":
        dataset.SegmentationFractionalType = "OCCUPANCY"
    write_sparse(
        path,
        dataset,
        tiling_of(masks),
        plane_of(dataset),
        frames,
        _pixels(masks, segmentation_type, probabilities=probabilities),
        bits=bits_of(segmentation_type, len(segments)),
        jpeg_ls=segmentation_type != "BINARY",
    )


def tiling_of(masks: MaskMap) -> Tiling:
    """How the masks' matrix is cut into frames."""
    return Tiling(rows=masks.rows, columns=masks.columns, tile_rows=masks.tile_px, tile_columns=masks.tile_px)


def overlapping(masks: MaskMap, least: int) -> bool:
    """Whether any pixel reaches the fraction `least` (1..255) for two prompts, in tiles that both have."""
    tiles_F2 = _frames(masks, labels=False).tiles_F2
    if len(np.unique(tiles_F2, axis=0)) == len(tiles_F2):
        return False
    return any(
        (np.sum([fraction_HW >= least for _, fraction_HW in stack], axis=0) > 1).any()
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


def _frames(masks: MaskMap, *, labels: bool) -> Frames:
    """All frames of the first segment, then the second's; of a label map each tile once."""
    occupied = [masks.occupied(index) for index in masks.indices]
    tiles_F2 = np.concatenate(occupied)
    if labels:
        return Frames(tiles_F2=np.unique(tiles_F2, axis=0), segments_F=None)
    numbers_F = np.repeat(np.arange(1, len(occupied) + 1), [len(tiles_N2) for tiles_N2 in occupied])
    return Frames(tiles_F2=tiles_F2, segments_F=numbers_F)


def _pixels(masks: MaskMap, segmentation_type: SegmentationType, *, probabilities: bool) -> Iterator[Frame]:
    """What `_frames` hold."""
    if segmentation_type == "LABELMAP":
        yield from (_labels(masks, stack) for _, stack in _stacked(masks))
        return
    for fraction_HW in (each for index in masks.indices for each in masks.fractions(index)):
        if probabilities:
            yield fraction_HW
        else:
            mask_HW = fraction_HW >= masks.threshold
            yield mask_HW if segmentation_type == "BINARY" else mask_HW * np.uint8(255)


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
