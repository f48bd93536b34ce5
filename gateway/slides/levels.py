"""Which level a model reads: by pixel spacing, never by ImageType."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.domain.slide import Level
from gateway.operations.errors import ResolutionTooCoarse

_TOLERANCE = 0.02
_MAX_COARSER = 1.5


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model's tiles are read: the level, a tile's side in its pixels, and what a model pixel measures in fact."""

    level: Level
    field_px: int
    mpp: float


def choose_level(levels: Sequence[Level], mpp: float, tile_px: int) -> Reading:
    """The coarsest level that is not coarser than `mpp` (2 % tolerance). Where all are coarser, the finest, up to
    1.5 × `mpp`: read at its own resolution, never upsampled. Raises ResolutionTooCoarse beyond."""
    fine_enough = [level for level in levels if level.mpp <= mpp * (1 + _TOLERANCE)]
    if fine_enough:
        level = max(fine_enough, key=lambda level: level.mpp)
        # A level within the tolerance but coarser is read as it is: one or two per cent are no reason to upsample.
        field_px = max(tile_px, round(tile_px * mpp / level.mpp))
        return Reading(level=level, field_px=field_px, mpp=field_px * level.mpp / tile_px)
    level = min(levels, key=lambda level: level.mpp)
    if level.mpp > mpp * _MAX_COARSER:
        raise ResolutionTooCoarse(
            f"The slide's finest level has {level.mpp:.3g} µm per pixel; the model needs {mpp:.3g} and reads at most "
            f"{mpp * _MAX_COARSER:.3g}. Scan the slide at a higher magnification or send its finest level."
        )
    return Reading(level=level, field_px=tile_px, mpp=level.mpp)
