"""The cells of a slide for one look at it: merged over its windows, the best of each class cut from the slide, and
their features. Both lie on disk; a cell's features are a row, so that a killed analysis goes on behind the last ones.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
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
from gateway.analyses.screening_tiles import DetectedWindows, Look
from gateway.analyses.slide_half import Engine, SlideTask
from gateway.analyses.tiles import TileStore
from gateway.operations.disk import disk_errors, written_whole
from gateway.slides import TileBatch
from gateway.slides.cells import VERSION, Cells, best_of_each_class, merged
from gateway.slides.squares import stream_squares

MOST_CELLS = 32
"""In one request."""
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
                    self._crops(store.done, cancelled), rows, store, progress=lambda done: None, cancelled=cancelled
                )

    def features(self) -> npt.NDArray[np.float32]:
        """The features (N, D) of the chosen cells. Raises RowsOutdated."""
        return tiles.load(
            self._features_path, belongs_to=self.belongs_to, width=self._models.width, rows=len(self.chosen)
        )[0]

    @property
    def belongs_to(self) -> dict[str, str]:
        """All that decides the features."""
        version = self._models.encoder.card.version
        boxes = hashlib.sha256(self.chosen.boxes_N4.tobytes()).hexdigest()
        return {
            **self._of,
            "encoder": version.name,
            "encoder-version": version.version,
            "encoder-engine": version.engine_sha256,
            "transform": self._models.crops.digest,
            "cells": boxes,
        }

    def _crops(self, done: int, cancelled: Callable[[], bool]) -> Iterator[TileBatch]:
        """The crops of the chosen cells from the `done`th on, in their order, `batch` at a time.

        All are cut before the first is handed out: squares come as the frames do, and each frame is read once. They
        are as small as the encoder's pictures, and at most `top_k` of each class.
        """
        crops, side = self._models.crops, self._models.crops.side_px
        squares_N4 = crops.squares(self.chosen.boxes_N4[done:])
        images_NHWC = np.empty((len(squares_N4), side, side, 3), np.uint8)
        level = self.windows.plan.level
        for cell, square_SS3 in stream_squares(
            self._task.slide, level, squares_N4, colour=self.look.colour, cancelled=cancelled
        ):
            images_NHWC[cell] = crops.resized(square_SS3)
        at_once = max(1, min(self.batch, self._models.encoder.contract.max_batch_size))
        for start in range(0, len(images_NHWC), at_once):
            yield TileBatch(done + start, images_NHWC[start : start + at_once])

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
