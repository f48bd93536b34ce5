"""The cells of a slide for one look at it: merged over its windows, the best of each class cut from the slide, and
their features. Both lie on disk; a cell's features are a row, so that a killed analysis goes on behind the last ones.

Rows lie in the order in which the slide's frames are read: cells are cut while those before them are encoded.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses import tiles
from gateway.analyses.batches import run_batches
from gateway.analyses.kept_arrays import kept
from gateway.analyses.screening_models import ScreeningModels, answered
from gateway.analyses.screening_tiles import IN_FLIGHT, DetectedWindows, Look
from gateway.analyses.slide_half import Engine, SlideTask
from gateway.analyses.tiles import TileStore
from gateway.operations.disk import disk_errors, written_whole
from gateway.slides import TileBatch
from gateway.slides.cells import VERSION, Cells, best_of_each_class, merged
from gateway.slides.squares import stream_squares

MOST_CELLS = 16
"""In one request. On a CPU a cell costs no more than of 32, and the first request goes out earlier; a slide has a
hundred cells or so, of which 32 would be too uneven a share for two instances of the engine."""
_ARRAYS = tuple(each.name for each in fields(Cells))


@dataclass(frozen=True, eq=False)
class SlideCells:
    """The cells of a task's slide for one look, once its windows are complete. `batch`: cells in one request, at most.

    `found`: all of them, in pixels of the level that was read, the surest first; `chosen`: those that the slide's model
    is given, in the same order.
    """

    windows: DetectedWindows
    look: Look
    batch: int = MOST_CELLS

    @cached_property
    def found(self) -> Cells:
        """Raises RowsOutdated where the windows are not complete; DiskFull."""
        path = self._task.folder / f"cells-{self.look.name}.npz"
        if (cells := self._load()) is not None:
            return cells
        cells = merged(self.windows.cells(self.look), self._models.detecting.nms_iou)
        with disk_errors(), written_whole(path) as out:
            np.savez(out, of=json.dumps(self._of, sort_keys=True), **{name: getattr(cells, name) for name in _ARRAYS})
        return cells

    @cached_property
    def chosen(self) -> Cells:
        return best_of_each_class(self.found, self._models.rule.top_k)

    async def embed(self, engine: Engine, *, cancelled: Callable[[], bool]) -> None:
        """Send every chosen cell through the encoder, continuing after those that are on disk.

        Raises RowsOutdated (the windows), SlideError, InferenceError, DiskFull, Cancelled.
        """
        folder, width = self._models.encoder.folder, self._models.width

        async def rows(images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            answer = await engine.infer(folder, {"image": images_BHWC})
            return answered(folder, answer, "embedding", (len(images_BHWC), width))

        with TileStore.open(self._features_path, belongs_to=self.belongs_to, width=width) as store:
            if store.done < len(self.chosen):
                await run_batches(
                    self._crops(store.done, cancelled),
                    rows,
                    store,
                    progress=lambda done: None,
                    cancelled=cancelled,
                    in_flight=IN_FLIGHT,
                )

    def features(self) -> npt.NDArray[np.float32]:
        """The features (N, D) of the chosen cells, in their order. Raises RowsOutdated."""
        rows_ND, _ = tiles.load(
            self._features_path, belongs_to=self.belongs_to, width=self._models.width, rows=len(self.chosen)
        )
        features_ND = np.empty_like(rows_ND)
        features_ND[self._as_read] = rows_ND
        return features_ND

    @property
    def belongs_to(self) -> dict[str, str]:
        """All that decides the features."""
        version = self._models.encoder.card.version
        boxes = hashlib.sha256(self.chosen.boxes_N4[self._as_read].tobytes()).hexdigest()  # row by row
        return {
            **self._of,
            "encoder": version.name,
            "encoder-version": version.version,
            "encoder-engine": version.engine_sha256,
            "transform": self._models.crops.digest,
            "cells": boxes,
        }

    @cached_property
    def _as_read(self) -> npt.NDArray[np.int64]:
        """The numbers of the chosen cells, row by row of their features: as their squares become whole while the tiles
        of the level are read, row by row and each from left to right."""
        squares_N4 = self._models.crops.squares(self.chosen.boxes_N4)
        rows_N = (squares_N4[:, 3] - 1) // self.windows.plan.tiles.grid.field_px
        return np.lexsort((squares_N4[:, 2], rows_N))

    def _crops(self, done: int, cancelled: Callable[[], bool]) -> Generator[TileBatch]:
        """The crops of the cells, row by row from the `done`th on, `batch` at a time, each batch as soon as it is
        whole. Every frame is read once; a crop that comes before those ahead of it waits for them."""
        crops, level = self._models.crops, self.windows.plan.level
        squares_N4 = crops.squares(self.chosen.boxes_N4[self._as_read[done:]])
        at_once = max(1, min(self.batch, self._models.encoder.contract.max_batch_size))
        start, cut = 0, dict[int, npt.NDArray[np.uint8]]()
        with closing(
            stream_squares(self._task.slide, level, squares_N4, colour=self.look.colour, cancelled=cancelled)
        ) as squares:
            for place, square_SS3 in squares:
                cut[place] = crops.resized(square_SS3)
                while (following := range(start, len(squares_N4))[:at_once]) and all(each in cut for each in following):
                    yield TileBatch(done + start, np.stack([cut.pop(each) for each in following]))
                    start = following.stop

    def _load(self) -> Cells | None:
        def read(data: Mapping[str, npt.NDArray[Any]]) -> Cells | None:
            if json.loads(str(data["of"])) != self._of:
                return None
            return Cells(*(data[name] for name in _ARRAYS))

        return kept(self._task.folder / f"cells-{self.look.name}.npz", read)

    @property
    def _task(self) -> SlideTask:
        return self.windows.task

    @property
    def _models(self) -> ScreeningModels:
        return self.windows.models

    @property
    def _of(self) -> dict[str, str]:
        """All that decides the cells."""
        rule = self._models.detecting
        return {
            **self.windows.belongs_to,
            "look": self.look.name,
            "region": repr(self._task.order.region),
            "rule": f"{rule.score_threshold} {rule.nms_iou} {self._models.rule.top_k}",
            "merging": str(VERSION),
        }

    @property
    def _features_path(self) -> Path:
        return self._task.folder / f"features-{self.look.name}.bin"
