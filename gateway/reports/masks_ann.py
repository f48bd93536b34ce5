"""Report -> Microscopy Bulk Simple Annotations (PS3.3 A.87) of what was found by words: a group a prompt.

It holds the prompt's objects or, where it has none, the regions of its mask.
"""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

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
    with TemporaryDirectory(dir=path.parent) as work:
        groups = [
            group
            for segmented, batches in outlined(report, source, simple=True)
            if (group := _group(report, source, segmented, batches, Path(work))) is not None
        ]
        write_groups(path, report, source.image, ObjectName(report.analysis_id, Kind.ANN, source.series), groups)


def _group(
    report: Report, source: SlideSource, segmented: Segmented, batches: Iterable[Outlines], work: Path
) -> Group | None:
    """The group of a prompt, its points in a file in `work`: of a whole slide's nuclei they take hundreds of
    megabytes. None where there is no outline."""
    firsts: list[npt.NDArray[np.int64]] = []
    figures: list[npt.NDArray[np.float32]] = []
    points = 0
    file = work / segment_role(segmented)
    with file.open("wb") as out:
        for batch in batches:
            out.write(batch.points_P2.astype(np.float32).tobytes())
            firsts.append(batch.first_G + points)
            figures.append(np.stack([batch.area_um2_N, batch.probability_N, batch.irregularity_N]))
            points += len(batch.points_P2)
    if not points:
        return None
    area_um2_N, probability_N, irregularity_N = np.concatenate(figures, axis=1)
    result = report.segments_of(source.series)
    said = [wording.RESEARCH_USE, wording.segment_description(segmented)]
    if result is not None and result.exploratory:
        said.append(wording.EXPLORATORY)
    measured = [
        (concept.AREA, MICROMETRE_SQUARED, area_um2_N),
        (concept.MASK_PROBABILITY, NO_UNITS, probability_N),
    ]
    if np.isfinite(irregularity_N).any():
        measured.append((concept.IRREGULARITY, NO_UNITS, irregularity_N))
    return Group(
        uid=derive_uid(report.analysis_id, f"ann/{source.series}/{segment_role(segmented)}"),
        label=segmented.triple,
        description=" ".join(said),
        graphic="POLYGON",
        points_P2=np.memmap(file, np.float32, "r", shape=(points, 2)),
        first_N=np.concatenate(firsts),
        category=segmented.category,
        property_type=segmented.code,
        color=segmented.color,
        measurements=measured,
    )
