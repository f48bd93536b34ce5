"""The masks of the prompts that share one plan of windows: how they come onto the disk, and how reports read them.

Written, a `MaskStore` is what `run_batches` hands its answers to. Read, a `StoredMasks` is a `gateway.reports` MaskMap.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses.blending import CELL_PX, MASK_FRACTION, Array, Blender, speaks
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.outline_codec import unpacked
from gateway.domain.model import PresenceRule
from gateway.reports.spatial import Outlines
from gateway.slides.windows import WindowPlan

_CELLS_PER_TILE = 2
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
        rules: Sequence[PresenceRule],
        inside: Callable[[slice, slice], npt.NDArray[np.bool_]] | None,
    ) -> None:
        self._file = file
        self._windows = len(plan)
        self._rules = rules
        spoken_NP = np.zeros((len(plan), len(rules)), np.bool_)
        done = 0
        for presence_nP in file.presence():
            spoken_NP[done : done + len(presence_nP)] = speaks(rules, presence_nP)
            done += len(presence_nP)
        self._blender = Blender(plan, spoken_NP, file.windows, file.begun, inside)
        self._most_open = min(max(_LEAST_OPEN, _OPEN_BYTES // (4 * len(rules) * CELL_PX**2)), _MOST_OPEN)

    @property
    def done(self) -> int:
        return self._file.windows

    def append(self, answers: WindowAnswers, missing: Sequence[tuple[int, int]] = ()) -> None:
        """Add the next windows; `missing`: (row, column) of the image frames that were missing under them, and under
        none before. Raises DiskFull, StateError."""
        for cell in self._blender.add(answers.logits_BPSS, speaks(self._rules, answers.presence_BP)):
            self._file.add_cell(cell)
        self._file.add_answers(answers.presence_BP, answers.figures_BF, missing)
        cells, changed = self._blender.open, self._blender.changed
        if len(cells) > self._most_open:
            away = {cell: cells.pop(cell) for cell in list(cells)[: len(cells) - self._most_open]}
            self._file.put_begun({cell: sums for cell, sums in away.items() if cell in changed})
            changed.difference_update(away)
        if self.done == self._windows or self._file.due:
            self._file.commit({cell: cells[cell] for cell in changed})
            changed.clear()


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
