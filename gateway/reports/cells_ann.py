"""Report -> Microscopy Bulk Simple Annotations (PS3.3 A.87) of the cells that were found: a group a class."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.domain.bethesda import CLASSES
from gateway.domain.codes import NO_UNITS
from gateway.domain.report import Report
from gateway.domain.uids import derive_uid
from gateway.operations.errors import PathserveError
from gateway.reports import sr_concepts as concept
from gateway.reports import wording
from gateway.reports.ann import Group, write_groups
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.spatial import CellMap, SlideSource

_CORNERS = 4


def has_cells(source: SlideSource) -> bool:
    """Whether any cell was found, so that there is an annotation to write."""
    return source.cells is not None and len(source.cells.scores_N) > 0


def corners_of(cells: CellMap, source: SlideSource) -> npt.NDArray[np.float32]:
    """The corners of each cell's box (N, 4, 2): x and y in pixels of the level that was read, within it, from the top
    left one on clockwise as they are seen."""
    most = np.array([source.image.TotalPixelMatrixColumns, source.image.TotalPixelMatrixRows], np.float32)
    boxes_N4 = np.clip(cells.boxes_N4.astype(np.float32), 0, np.tile(most, 2))
    return boxes_N4[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, _CORNERS, 2)


def write_cell_annotations(path: Path, report: Report, source: SlideSource) -> None:
    """Write every cell that was found on a slide: its box with its score, the surest of a class first.

    Raises PathserveError where there is none (`has_cells`) or the report lacks the cells' classes, OSError.
    """
    groups = list(_groups(report, source))
    name = ObjectName(report.analysis_id, Kind.ANN, source.series)
    write_groups(path, report, source.image, name, groups, content="CELLS")


def _groups(report: Report, source: SlideSource) -> Iterator[Group]:
    result, cells = report.screening_of(source.series), source.cells
    if result is None or cells is None:
        return
    codes = {each.index: each.code for each in result.classes}
    corners_N42 = corners_of(cells, source)
    said = [wording.RESEARCH_USE, *([wording.EXPLORATORY] if result.exploratory else [])]
    for number in np.unique(cells.classes_N).tolist():
        if number not in codes:
            raise PathserveError("Cells were found of a class that the report does not have. Report this.")
        index_K = np.flatnonzero(cells.classes_N == number)
        yield Group(
            uid=derive_uid(report.analysis_id, f"ann/{source.series}/cells-{number}"),
            label=codes[number].display,
            description=" ".join(said),
            graphic="RECTANGLE",
            points_P2=corners_N42[index_K].reshape(-1, 2),
            first_N=np.arange(len(index_K)) * _CORNERS,
            category=concept.CELL,
            property_type=codes[number],
            color=CLASSES[number].color,
            measurements=((concept.CELL_SCORE, NO_UNITS, cells.scores_N[index_K]),),
        )
