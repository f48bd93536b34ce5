"""What is needed of a slide's series, for `Archive.fetch`: the levels of the overview, and the frames of a plan."""

import numpy as np
from numpy.typing import NDArray

from gateway.archive.protocol import Wanted
from gateway.slides.grid import TilePlan, frames_under
from gateway.slides.slide import LevelImage, Slide
from gateway.slides.tissue import TISSUE_UM_PER_PX


def overview_levels(slide: Slide) -> Wanted:
    """All that the tissue finder and the thumbnail read: small levels where the slide has them."""
    finest_first = {slide.overview_level(um_per_px) for um_per_px in (TISSUE_UM_PER_PX, slide.thumbnail_um_per_px())}
    wanted: dict[str, list[int] | None] = {}
    for index in sorted(finest_first):
        image = slide.image(index)
        wanted.update(_of_image(image, image.frame_at_RC.ravel()))
    return wanted


def frames_of(slide: Slide, *plans: TilePlan) -> Wanted:
    """The frames that `stream_tiles` reads for these plans, no more and no less."""
    needed: dict[int, NDArray[np.bool_]] = {}
    for plan in plans:
        image = slide.image(plan.grid.level)
        chosen_RC = np.zeros((plan.grid.rows, plan.grid.columns), np.bool_)
        chosen_RC[plan.rows_N, plan.columns_N] = True
        frames_RC = frames_under(image, plan.grid, chosen_RC)
        needed[plan.grid.level] = needed.get(plan.grid.level, False) | frames_RC
    wanted: dict[str, list[int] | None] = {}
    for level, frames_RC in needed.items():
        image = slide.image(level)
        wanted.update(_of_image(image, image.frame_at_RC[frames_RC]))
    return wanted


def _of_image(image: LevelImage, numbers: NDArray[np.int32]) -> dict[str, list[int] | None]:
    """Frames of a level by number (-1 left out), as frames of its instances; None for all frames of one."""
    numbers = np.sort(numbers[numbers >= 0])
    wanted: dict[str, list[int] | None] = {}
    for instance, begin, end in zip(image.instances, image.offsets_I, image.offsets_I[1:], strict=False):
        frames = numbers[np.searchsorted(numbers, begin) : np.searchsorted(numbers, end)] - begin
        if len(frames):
            whole = len(frames) == len(instance.frames)
            wanted[str(instance.file.dataset.SOPInstanceUID)] = None if whole else frames.tolist()
    return wanted
