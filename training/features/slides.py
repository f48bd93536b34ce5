"""The slides of a folder, the tiles of a slide, and which of them cannot be read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.archive import FolderArchive
from gateway.archive.cache import FrameCache
from gateway.operations.errors import NoTissue, PathserveError
from gateway.slides import Slide, TilePlan, find_tissue, plan_tiles


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """What is read of a slide: its plan (None: no tissue; `remark` says so), a tile's side in level-0 pixels, and µm
    per pixel of the tiles, of the level that is read and of level 0."""

    plan: TilePlan | None
    field_px: float
    mpp: float
    level_mpp: float
    level_0_mpp: float
    remark: str = ""

    def corners(self, tiles_M: np.ndarray) -> np.ndarray:
        """(M,2) int64: the top left corners (x, y) of some of the plan's tiles, in level-0 pixels."""
        if self.plan is None:
            return np.zeros((0, 2), np.int64)
        grid_M2 = np.stack([self.plan.columns_N[tiles_M], self.plan.rows_N[tiles_M]], 1)
        corners: np.ndarray = np.rint(grid_M2 * self.field_px).astype(np.int64)
        return corners


class SlideFolder:
    """The slide series below a folder, by UID. Headers are read once."""

    def __init__(self, folder: Path) -> None:
        self._archive = FolderArchive(folder)
        self._cache = FrameCache(folder, 0)
        self._entries = {entry.series: entry for entry in self._archive.entries()}

    @property
    def series(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def open(self, series: str) -> Slide:
        """Raises SlideError, ArchiveError."""
        return Slide.open(self._archive.fetch(self._entries[series], self._cache).files, series)


def plan_slide(slide: Slide, mpp: float, tile_px: int) -> Planned:
    """The tiles under tissue, as they are served (`gateway.slides`): the coarsest level that is not coarser than `mpp`,
    fields of tile_px·mpp, a bicubic filter where the level is finer.

    Raises ResolutionTooCoarse, CorruptFrame, TruncatedFile.
    """
    finest = slide.levels[0]
    try:
        plan = plan_tiles(slide, find_tissue(slide), mpp=mpp, tile_px=tile_px)
    except NoTissue as error:
        return Planned(None, tile_px * mpp / finest.mpp, mpp, finest.mpp, finest.mpp, error.detail)
    level = slide.levels[plan.grid.level]
    # Levels are said to be so and so many times coarser by their widths: spacings are rounded in headers.
    scale = max(1, round(finest.width_px / level.width_px, 2))
    return Planned(plan, plan.grid.field_px * scale, plan.grid.mpp, level.mpp, finest.mpp)


def unreadable(slide: Slide, plan: TilePlan) -> np.ndarray:
    """(N,) bool: the tiles of a plan under which a frame is missing or cannot be decoded; one frame at a time."""
    image, grid = slide.image(plan.grid.level), plan.grid
    level, bad = image.level, np.zeros(len(plan), bool)
    sound: dict[tuple[int, int], bool] = {}
    for tile, (row, column) in enumerate(zip(plan.rows_N.tolist(), plan.columns_N.tolist(), strict=True)):
        frames = [
            (frame_row, frame_column)
            for frame_row in _under(row, grid.field_px, level.frame_height_px, level.height_px)
            for frame_column in _under(column, grid.field_px, level.frame_width_px, level.width_px)
        ]
        for place in frames:
            if place not in sound:
                sound[place] = _is_sound(slide, plan.grid.level, int(image.frame_at_RC[place]))
        bad[tile] = not all(sound[place] for place in frames)
    return bad


def _under(tile: int, field_px: int, frame_px: int, size_px: int) -> range:
    """Along one axis, the frames that a tile overlaps."""
    end = min((tile + 1) * field_px, size_px)
    return range(tile * field_px // frame_px, -(-end // frame_px))


def _is_sound(slide: Slide, index: int, number: int) -> bool:
    """Whether a frame can be read; one that a sparse slide leaves out is background."""
    if number < 0:
        return True
    image = slide.image(index)
    try:
        (data,) = image.read_frames([number])
        if not data:
            return False
        image.decoder(data)
    except PathserveError:
        return False
    return True
