"""The masks of the prompts that share one plan of windows: how they come onto the disk, and how reports read them.

Written, a `MaskStore` is what `run_batches` hands its answers to. Read, a `StoredMasks` is a `gateway.reports` MaskMap.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses.blending import CELL_PX, MASK_FRACTION, Array, Blender
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.outline_codec import unpacked
from gateway.reports.spatial import Outlines
from gateway.slides.windows import WindowPlan

_CELLS_PER_TILE = 2
_COMMIT_S = 5.0
"""At most so much work is done again after a kill."""
_LEAST_OPEN, _MOST_OPEN, _OPEN_BYTES = 30, 64, 128 * 2**20
"""Cells in memory: two rows of a strip at least, more of them up to so many bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowAnswers:
    """What B windows said of P prompts: `logits_BPSS`, `presence_BP` (0..1), and their figures of quality."""

    logits_BPSS: Array
    presence_BP: Array
    figures_BF: Array


class MaskStore:
    """Windows in, finished cells out to the file; complete up to window `done`. The threads that write take turns."""

    def __init__(
        self,
        file: MaskFile,
        plan: WindowPlan,
        prompts: int,
        min_presence: float,
        inside: Callable[[slice, slice], npt.NDArray[np.bool_]] | None,
    ) -> None:
        spoken_NP = np.zeros((len(plan), prompts), np.bool_)
        presence, _ = file.answers()
        spoken_NP[: len(presence)] = presence >= min_presence
        self._file = file
        self._windows = len(plan)
        self._min_presence = np.float32(min_presence)
        self._blender = Blender(plan, spoken_NP, file.windows, file.begun, inside)
        self._most_open = min(max(_LEAST_OPEN, _OPEN_BYTES // (4 * prompts * CELL_PX**2)), _MOST_OPEN)
        self._committed_s = time.monotonic()

    @property
    def done(self) -> int:
        return self._file.windows

    def append(self, answers: WindowAnswers, missing: int = 0) -> None:
        """Add the next windows; `missing`: image frames that were missing under them. Raises DiskFull, StateError."""
        for cell in self._blender.add(answers.logits_BPSS, answers.presence_BP >= self._min_presence):
            self._file.add_cell(cell)
        self._file.add_answers(answers.presence_BP, answers.figures_BF, missing)
        cells = self._blender.open
        if len(cells) > self._most_open:
            oldest = list(cells)[: len(cells) - self._most_open]
            self._file.put_begun({cell: cells.pop(cell) for cell in oldest})
        if self.done == self._windows or time.monotonic() - self._committed_s > _COMMIT_S:
            self._file.put_begun(cells)
            self._file.commit()
            self._committed_s = time.monotonic()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredMasks:
    """Finished masks on disk (`gateway.reports.spatial.MaskMap`). What it reads raises RowsOutdated, StateError."""

    series: str
    level: int
    pixel_px: float
    rows: int
    columns: int
    indices: tuple[int, ...]
    path: Path
    belongs_to: Mapping[str, Any]
    tile_px: int = CELL_PX * _CELLS_PER_TILE
    threshold: int = MASK_FRACTION

    @contextmanager
    def opened(self) -> Iterator[MaskFile]:
        with MaskFile.reading(self.path, self.belongs_to, len(self.indices)) as file:
            yield file

    def occupied(self, index: int) -> npt.NDArray[np.int32]:
        with self.opened() as file:
            tiles = file.occupied(self.indices.index(index)) // _CELLS_PER_TILE
        return np.unique(tiles, axis=0).astype(np.int32)

    def fractions(self, index: int) -> Iterator[npt.NDArray[np.uint8]]:
        prompt = self.indices.index(index)
        with self.opened() as file:
            for row, column in self.occupied(index).tolist():
                yield file.read(
                    prompt,
                    slice(row * self.tile_px, min((row + 1) * self.tile_px, self.rows)),
                    slice(column * self.tile_px, min((column + 1) * self.tile_px, self.columns)),
                )

    def outlines(self, index: int) -> Iterator[Outlines]:
        with self.opened() as file:
            yield from map(unpacked, file.objects(self.indices.index(index)))
