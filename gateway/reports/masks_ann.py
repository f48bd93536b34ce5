"""Report -> Microscopy Bulk Simple Annotations (PS3.3 A.87) of what was found by words: a group a prompt.

It holds the prompt's objects or, where it has none, the regions of its mask.
"""

from pathlib import Path

import numpy as np

from gateway.domain.codes import MICROMETRE_SQUARED, NO_UNITS
from gateway.domain.report import Report, Segmented
from gateway.domain.uids import derive_uid
from gateway.reports import sr_concepts as concept
from gateway.reports import wording
from gateway.reports.ann import Group, write_groups
from gateway.reports.derived import Kind, ObjectName, segment_role
from gateway.reports.masks import any_outlines, outlined
from gateway.reports.spatial import Outlines, SlideSource


def has_outlines(source: SlideSource) -> bool:
    """Whether anything was found that has an outline, so that there is an annotation to write."""
    return any(any_outlines(masks, index) for masks in source.masks for index in masks.indices)


def write_mask_annotations(path: Path, report: Report, source: SlideSource) -> None:
    """Write the outlines of all prompts that were found on a slide.

    Holes of objects are filled, regions with holes come in parts without (PS3.3 C.37.1.2.1). Raises PathserveError
    where there is none (`has_outlines`), OSError.
    """
    groups = [
        _group(report, source, segmented, batches)
        for segmented, outlines in outlined(report, source, simple=True)
        if (batches := list(outlines))
    ]
    write_groups(path, report, source.image, ObjectName(report.analysis_id, Kind.ANN, source.series), groups)


def _group(report: Report, source: SlideSource, segmented: Segmented, batches: list[Outlines]) -> Group:
    sizes = [len(batch.points_P2) for batch in batches]
    befores = np.cumsum([0, *sizes[:-1]])
    irregularity_N = np.concatenate([batch.irregularity_N for batch in batches])
    result = report.segments_of(source.series)
    said = [wording.RESEARCH_USE, wording.segment_description(segmented)]
    if result is not None and result.exploratory:
        said.append(wording.EXPLORATORY)
    measured = [
        (concept.AREA, MICROMETRE_SQUARED, np.concatenate([batch.area_um2_N for batch in batches])),
        (concept.MASK_PROBABILITY, NO_UNITS, np.concatenate([batch.probability_N for batch in batches])),
    ]
    if np.isfinite(irregularity_N).any():
        measured.append((concept.IRREGULARITY, NO_UNITS, irregularity_N))
    return Group(
        uid=derive_uid(report.analysis_id, f"ann/{source.series}/{segment_role(segmented)}"),
        label=segmented.triple,
        description=" ".join(said),
        graphic="POLYGON",
        points_P2=np.concatenate([batch.points_P2 for batch in batches]),
        first_N=np.concatenate([batch.first_G + before for batch, before in zip(batches, befores, strict=True)]),
        category=segmented.category,
        property_type=segmented.code,
        color=segmented.color,
        measurements=measured,
    )
