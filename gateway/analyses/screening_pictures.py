"""Where a slide's cells lie, for the encoders; and its pictures: thumbnail, map of cells, and the gallery's cells in
their surroundings."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gateway.analyses.slide_half import SlideTask
from gateway.domain.bethesda import class_of
from gateway.domain.slide import Level
from gateway.reports import CellMap, thumbnail_jpeg
from gateway.reports.pictures import cell_map
from gateway.slides import TilePlan
from gateway.slides.cells import Cells
from gateway.slides.squares import stream_squares

_LEAST_UM = 96.0
"""Side of a gallery picture: a few squamous cells across, so that a nucleus is seen beside its neighbours'."""
_ROUND = 2.5
"""Least side, in sides of the cell's box."""
_MOST_PX = 1024


def shown_squares(level: Level, boxes_N4: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(N, 4) left, top, right, bottom in pixels of the level: what a picture of each cell shows, the cell in its
    middle."""
    sides_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).max(axis=1, initial=0)
    wanted_N = np.maximum(_ROUND * sides_N, _LEAST_UM / level.mpp)
    sides_N1 = np.rint(np.minimum(wanted_N, _MOST_PX)).astype(np.int64)[:, None]
    corners_N2 = np.rint((boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2 - sides_N1 / 2).astype(np.int64)
    return np.hstack([corners_N2, corners_N2 + sides_N1])


def cell_map_of(task: SlideTask, cells: Cells, tiles: TilePlan) -> CellMap:
    """The cells, and of each tile that was read the greatest score of a cell whose middle lies there."""
    highest_RC = np.zeros((tiles.grid.rows, tiles.grid.columns), np.float32)
    places_N2 = ((cells.boxes_N4[:, :2] + cells.boxes_N4[:, 2:]) / 2 // tiles.grid.field_px).astype(np.int64)
    np.maximum.at(highest_RC, (places_N2[:, 1], places_N2[:, 0]), cells.scores_N.astype(np.float32))
    return CellMap(
        series=task.slide.header.series_uid,
        boxes_N4=cells.boxes_N4,
        classes_N=np.array([class_of(column) for column in cells.classes_N.tolist()], np.int32),
        scores_N=cells.scores_N.astype(np.float32),
        rows_M=tiles.rows_N,
        columns_M=tiles.columns_N,
        highest_M=highest_RC[tiles.rows_N, tiles.columns_N],
    )


def pictures_of(task: SlideTask, level: Level, cells: CellMap | None, gallery: Cells | None) -> Mapping[str, bytes]:
    """The thumbnail; where cells may be drawn `cell-map`; and of the gallery `cell-1`, `cell-2`, … as the slide shows
    them, whatever colours a model was shown. Raises SlideError."""
    thumbnail_HW3 = task.slide.thumbnail()
    pictures = {"thumbnail": thumbnail_jpeg(thumbnail_HW3)}
    if cells is not None:
        pictures["cell-map"] = cell_map(thumbnail_HW3, (level.width_px, level.height_px), cells)
    if gallery is not None:
        squares_N4 = shown_squares(level, gallery.boxes_N4)
        found = dict(stream_squares(task.slide, level.index, squares_N4))
        pictures |= {f"cell-{cell + 1}": thumbnail_jpeg(found[cell]) for cell in range(len(gallery))}
    return pictures
