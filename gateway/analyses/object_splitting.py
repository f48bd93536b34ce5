"""The finished masks of a slide split into objects, block by block, after a kill from the last block that was kept."""

import time
from collections.abc import Callable, Mapping

from gateway.analyses.blending import CELL_PX, MASK_FRACTION
from gateway.analyses.instances import BLOCK_PX, Splitting, outlines_of, split
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.outline_codec import packed
from gateway.operations.errors import Cancelled
from gateway.slides.windows import WindowPlan

_COMMIT_S = 5.0


def split_objects(
    file: MaskFile, plan: WindowPlan, splittings: Mapping[int, Splitting], cancelled: Callable[[], bool]
) -> None:
    """Write the outlines of the objects of these prompts (by their number in the file).

    Memory is that of one block. Raises Cancelled, DiskFull, StateError.
    """
    committed_s = time.monotonic()
    blocks = _blocks(file, plan, splittings)
    across = -(-plan.width_px // BLOCK_PX)
    while file.blocks < len(blocks):
        if cancelled():
            raise Cancelled("The analysis was cancelled.")
        prompt, block = blocks[file.blocks]
        splitting = splittings[prompt]
        core, seen = [], []
        for start in (block // across * BLOCK_PX, block % across * BLOCK_PX):
            core.append(slice(splitting.reach_px, splitting.reach_px + BLOCK_PX))
            seen.append(slice(start - splitting.reach_px, start + BLOCK_PX + splitting.reach_px))
        fractions = file.read(prompt, seen[0], seen[1])
        outlines = outlines_of(
            split(fractions >= MASK_FRACTION, splitting),
            fractions,
            splitting,
            (plan.mpp_x, plan.mpp_y),
            corner=(seen[0].start, seen[1].start),
            core=(core[0], core[1]),
        )
        if len(outlines.area_um2_N):
            file.add_objects(prompt, block, packed(outlines))
        file.blocks += 1
        if file.blocks == len(blocks) or time.monotonic() - committed_s > _COMMIT_S:
            file.commit()
            committed_s = time.monotonic()


def is_split(file: MaskFile, plan: WindowPlan, splittings: Mapping[int, Splitting]) -> bool:
    """Whether every block is done."""
    return file.blocks == len(_blocks(file, plan, splittings))


def _blocks(file: MaskFile, plan: WindowPlan, splittings: Mapping[int, Splitting]) -> list[tuple[int, int]]:
    """(prompt, number of the block) of each block that holds any of a prompt's mask, in order."""
    across = -(-plan.width_px // BLOCK_PX)
    per_block = BLOCK_PX // CELL_PX
    return [
        (prompt, block)
        for prompt in sorted(splittings)
        for block in sorted({int(row) * across + int(column) for row, column in file.occupied(prompt) // per_block})
    ]
