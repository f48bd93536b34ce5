"""The masks of a slide split into objects, block by block, while later windows are still being answered.

A block is split when no later window touches what lies within an object's reach of it. Blocks are taken in the order in
which that comes about, which the plan alone decides: after a kill the work goes on with the first that was not kept.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

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

        Memory is that of a few blocks. Raises Cancelled, DiskFull, StateError.
        """
        ready = int(np.searchsorted(self._needs, windows, "right"))
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="objects") as pool:
            for first in range(self._file.blocks, ready, _WORKERS):
                if cancelled():
                    raise Cancelled("The analysis was cancelled.")
                blocks = self._blocks[first : min(first + _WORKERS, ready)].tolist()
                found = [each for several in pool.map(self._split, blocks) for each in several]
                self._file.add_objects(found, blocks=len(blocks))

    def _split(self, block: int) -> list[tuple[int, int, bytes]]:
        """The objects of a block as the file keeps them: (prompt, block, outlines)."""
        plan, across = self._plan, -(-self._plan.width_px // BLOCK_PX)
        top, left = block // across * BLOCK_PX, block % across * BLOCK_PX
        found = []
        for prompt, splitting in self._splittings.items():
            reach = splitting.reach_px
            rows, columns = (slice(start - reach, start + BLOCK_PX + reach) for start in (top, left))
            fractions = self._file.read(prompt, rows, columns)
            if not fractions.any():
                continue
            core = slice(reach, reach + BLOCK_PX)
            outlines = outlines_of(
                split(fractions >= MASK_FRACTION, splitting),
                fractions,
                splitting,
                (plan.mpp_x, plan.mpp_y),
                corner=(rows.start, columns.start),
                core=(core, core),
            )
            if len(outlines.area_um2_N):
                found.append((prompt, block, packed(outlines)))
        return found


def _in_order(
    plan: WindowPlan, splittings: Mapping[int, Splitting]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The blocks under any window, and the number of windows that each waits for, which rises."""
    shape = -(-plan.height_px // BLOCK_PX), -(-plan.width_px // BLOCK_PX)
    needs = np.zeros(shape, np.int64)
    seen = np.zeros(shape, np.bool_)
    reach = max((splitting.reach_px for splitting in splittings.values()), default=0)

    def under(start: int, end: int, margin: int) -> slice:
        return slice(max(0, start - margin) // BLOCK_PX, -(-(end + margin) // BLOCK_PX))

    def read_from(start: int) -> slice:
        # Of the file whole cells are read, and one is there once the last window over any of it is done.
        return under(start // CELL_PX * CELL_PX, -(-(start + plan.side_px) // CELL_PX) * CELL_PX, reach)

    for window, (top, left) in enumerate(_corners(plan), 1):
        needs[read_from(top), read_from(left)] = window
        seen[under(top, top + plan.side_px, 0), under(left, left + plan.side_px, 0)] = True
    blocks = np.flatnonzero(seen) if splittings else np.zeros(0, np.int64)
    needs_B = needs.ravel()[blocks]
    order = np.lexsort((blocks, needs_B))
    return blocks[order], needs_B[order]


def _corners(plan: WindowPlan) -> Iterator[tuple[int, int]]:
    return zip(plan.tops_N.tolist(), plan.lefts_N.tolist(), strict=True)
