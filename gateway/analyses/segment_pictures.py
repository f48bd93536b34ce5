"""The pictures of a segmentation: of each prompt where it lies on what was read, and a field where much of it does."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gateway.analyses.blending import CELL_PX, MASK_FRACTION
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.segment_group import Group
from gateway.analyses.slide_half import SlideTask
from gateway.domain.order import RegionUm
from gateway.domain.report import SegmentationResult, Segmented
from gateway.reports import thumbnail_jpeg
from gateway.reports.masks import MaskBox, coverage_of
from gateway.reports.pictures import field_picture, segment_picture
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import region_px

_LEAST_PICTURE_PX = 64

Rgb = npt.NDArray[np.uint8]


def pictures_of(task: SlideTask, groups: Sequence[Group], result: SegmentationResult) -> Mapping[str, bytes]:
    """The thumbnail, and of each prompt of the groups that was found `segment-K` (all of what was read) and
    `segment-field-K` (one field at the masks' resolution), K counting from 1.

    Raises RowsOutdated, StateError, SlideError.
    """
    thumbnail_HW3 = task.slide.thumbnail()
    pictures = {"thumbnail": thumbnail_jpeg(thumbnail_HW3)}
    found = {segment.index: segment for segment in result.segments if segment.present}
    for group in groups:
        picture_HW3, box = _overview(group, thumbnail_HW3, task.order.region)
        with group.finished() as file:
            for number, each in enumerate(group.prompts):
                segment = found.get(each.index)
                if segment is None:
                    continue
                coverage_HW = coverage_of(group.masks, each.index, box, picture_HW3.shape[:2])
                pictures[f"segment-{each.index + 1}"] = segment_picture(picture_HW3, coverage_HW, segment.color)
                pictures[f"segment-field-{each.index + 1}"] = _field(group, file, number, segment)
    return pictures


def _overview(group: Group, thumbnail_HW3: Rgb, region: RegionUm | None) -> tuple[Rgb, MaskBox]:
    """The part of the thumbnail that was asked for, and the mask pixels under it."""
    plan = group.plan
    if region is None:
        return thumbnail_HW3, MaskBox(0, 0, plan.width_px, plan.height_px)
    rows, columns = region_px(plan, region)
    across, down = thumbnail_HW3.shape[1] / plan.width_px, thumbnail_HW3.shape[0] / plan.height_px
    top, bottom = int(rows.start * down), int(np.ceil(rows.stop * down))
    left, right = int(columns.start * across), int(np.ceil(columns.stop * across))
    if min(bottom - top, right - left) < _LEAST_PICTURE_PX:
        return thumbnail_HW3, MaskBox(0, 0, plan.width_px, plan.height_px)
    box = MaskBox(round(left / across), round(top / down), round((right - left) / across), round((bottom - top) / down))
    return np.ascontiguousarray(thumbnail_HW3[top:bottom, left:right]), box


def _field(group: Group, file: MaskFile, number: int, segment: Segmented) -> bytes:
    """The window nearest to the cell with the most of a prompt's mask, with the mask's outline."""
    plan = group.plan
    cell = file.busiest(number)
    assert cell is not None
    y, x = ((place + 0.5) * CELL_PX - plan.side_px / 2 for place in cell)
    nearest = np.hypot(plan.tops_N - y, plan.lefts_N - x).argmin(keepdims=True)
    one = replace(
        plan,
        tops_N=plan.tops_N[nearest],
        lefts_N=plan.lefts_N[nearest],
        strips_N=plan.strips_N[nearest],
        tissue_N=plan.tissue_N[nearest],
    )
    (batch,) = stream_windows(group.task.slide, one, batch=1)
    rows, columns = (slice(start, start + plan.side_px) for start in (one.tops_N.item(), one.lefts_N.item()))
    mask_HW = file.read(number, rows, columns) >= MASK_FRACTION
    return field_picture(batch.images_BHWC[0], mask_HW, segment.color)
