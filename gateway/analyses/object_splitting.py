"""The masks of a slide split into objects, block by block, while later windows are still being answered.

A block is split when no later window touches what lies within an object's reach of it. Blocks are taken in the order in
which that comes about, which the plan alone decides: after a kill the work goes on with the first that was not kept.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import cv2
import numpy as np
import numpy.typing as npt

from gateway.analyses.blending import CELL_PX, MASK_FRACTION
from gateway.analyses.instances import BLOCK_PX, Splitting, outlines_of, split
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.outline_codec import packed
from gateway.operations.errors import Cancelled
from gateway.slides.windows import WindowPlan

_WORKERS = min(2, os.cpu_count() or 1)
"""Blocks that are split at a time: each takes about 100 MiB."""


class Splitter:
    """The objects of those prompts of a file (by their number in it) that come in pieces."""

    def __init__(self, file: MaskFile, plan: WindowPlan, splittings: Mapping[int, Splitting]) -> None:
        self._file = file
        self._plan = plan
        self._splittings = splittings
        self._blocks, self._needs = _in_order(plan, splittings)

    @property
    def finished(self) -> bool:
        return self._file.blocks == len(self._blocks)

    def run(self, windows: int, cancelled: Callable[[], bool]) -> None:
        """Split what can be split once so many windows are done, and write it. One call at a time.

        Once all windows are done, it is committed here: nobody else does, then. Memory is that of a few blocks. Raises
        Cancelled, DiskFull, StateError.
        """
        ready = int(np.searchsorted(self._needs, windows, "right"))
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="objects") as pool:
            for first in range(self._file.blocks, ready, _WORKERS):
                blocks = self._blocks[first : min(first + _WORKERS, ready)].tolist()
                found = [each for several in pool.map(self._split, blocks, repeat(cancelled)) for each in several]
                self._file.add_objects(found, blocks=len(blocks))
                if windows == len(self._plan) and self._file.due:
                    self._file.commit()
        if windows == len(self._plan):
            self._file.commit()

    def _split(self, block: int, cancelled: Callable[[], bool]) -> list[tuple[int, int, bytes]]:
        """The objects of a block as the file keeps them: (prompt, block, outlines). Raises Cancelled."""
        plan, across = self._plan, -(-self._plan.width_px // BLOCK_PX)
        top, left = block // across * BLOCK_PX, block % across * BLOCK_PX
        found = []
        for prompt, splitting in self._splittings.items():
            if cancelled():
                raise Cancelled("The analysis was cancelled.")
            reach = splitting.reach_px
            rows, columns = (slice(start - reach, start + BLOCK_PX + reach) for start in (top, left))
            fractions = self._file.read(prompt, rows, columns)
            mask = fractions >= MASK_FRACTION
            if not mask.any():
                continue
            used = _used(mask, splitting.reduction)
            outlines = outlines_of(
                split(np.ascontiguousarray(mask[used]), splitting),
                np.ascontiguousarray(fractions[used]),
                splitting,
                (plan.mpp_x, plan.mpp_y),
                corner=(rows.start + used[0].start, columns.start + used[1].start),
                core=(_core(reach - used[0].start), _core(reach - used[1].start)),
            )
            if len(outlines.area_um2_N):
                found.append((prompt, block, packed(outlines)))
        return found


def _core(start: int) -> slice:
    return slice(start, start + BLOCK_PX)


def _used(mask: npt.NDArray[np.bool_], reduction: int) -> tuple[slice, slice]:
    """The rows and columns that hold any of a mask, and a rim that holds none. At the tissue's edge much of a block is
    empty. In whole steps of two reduced pixels, by which objects are looked for: their order stays the same."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    step = 2 * reduction
    rows, columns = (
        slice(max(0, (start // step - 1) * step), min(size, (-(-(start + length) // step) + 1) * step))
        for start, length, size in ((top, height, mask.shape[0]), (left, width, mask.shape[1]))
    )
    return rows, columns


def _in_order(
    plan: WindowPlan, splittings: Mapping[int, Splitting]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The blocks under any window, and the number of windows that each waits for, which rises."""
    if not splittings:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    reach = max(splitting.reach_px for splitting in splittings.values())
    seen = _last_window(plan, 1, 0) > 0
    # Of the file whole cells are read, and one is there once the last window over any of it is done.
    blocks = np.flatnonzero(seen)
    needs_B = _last_window(plan, CELL_PX, reach).ravel()[blocks]
    order = np.lexsort((blocks, needs_B))
    return blocks[order], needs_B[order]


def _last_window(plan: WindowPlan, step_px: int, margin_px: int) -> npt.NDArray[np.int64]:
    """Of each block (rows, columns) the number, from 1 on, of the last window over it; 0 where there is none. Windows
    reach to the next whole step, and a margin further."""
    last = np.zeros((-(-plan.height_px // BLOCK_PX), -(-plan.width_px // BLOCK_PX)), np.int64)

    def under(starts_N: npt.NDArray[np.int32], blocks: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        starts = starts_N.astype(np.int64)
        first = starts // step_px * step_px - margin_px
        end = -(-(starts + plan.side_px) // step_px) * step_px + margin_px
        return np.maximum(first // BLOCK_PX, 0), np.minimum(-(-end // BLOCK_PX), blocks)

    (top, bottom), (left, right) = under(plan.tops_N, last.shape[0]), under(plan.lefts_N, last.shape[1])
    for down in range(int((bottom - top).max())):
        for across in range(int((right - left).max())):
            there = np.flatnonzero((top + down < bottom) & (left + across < right))
            np.maximum.at(last, (top[there] + down, left[there] + across), there + 1)
    return last
