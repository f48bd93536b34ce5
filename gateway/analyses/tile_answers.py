"""What the tiles of one slide are to the model that sees them, and how well they can be seen: one row a tile, on disk.

A row holds the model's answer, then the figures of `gateway.slides.quality`: one store, so that no kill parts them.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.analyses import tiles
from gateway.analyses.batches import REQUEST_TILES, run_batches
from gateway.analyses.slide_half import Engine, SlideTask
from gateway.analyses.tiles import TileStore
from gateway.operations.errors import InferenceError
from gateway.slides import TilePlan, quality, stream_tiles

_FILE = "tiles.bin"


@dataclass(frozen=True, slots=True, eq=False)
class TileAnswers:
    """The rows of one task. `output` is the model's tensor FP32 [B,`width`] that is kept."""

    task: SlideTask
    plan: TilePlan
    output: str
    width: int

    async def compute(self, engine: Engine, *, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> None:
        """Send every tile through the model, continuing after those that are on disk.

        Raises SlideError, InferenceError, DiskFull, Cancelled.
        """
        plan = self.plan

        async def rows(images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            answer, figures_BF = await asyncio.gather(
                engine.infer(self.task.eye.folder, {"image": images_BHWC}),
                asyncio.to_thread(quality.measure, images_BHWC),
            )
            found_BC = answer[self.output]
            if not np.isfinite(found_BC).all():
                raise InferenceError(f"The model {self.task.eye.folder} answered with what is no finite number.")
            return np.concatenate([found_BC, figures_BF], axis=1)

        with TileStore.open(
            self.task.folder / _FILE, belongs_to=self.belongs_to, width=self.width + quality.WIDTH
        ) as store:
            progress(store.done)
            if store.done == len(plan):
                return  # killed between the last tile and the end of the step
            batches = stream_tiles(self.task.slide, plan, batch=REQUEST_TILES, skip=store.done, cancelled=cancelled)
            await run_batches(batches, rows, store, progress=progress, cancelled=cancelled)

    def answers(self, picked_M: npt.NDArray[np.integer] | None = None) -> npt.NDArray[np.float32]:
        """The model's answers (N, width), or those of the tiles `picked_M` (rising). Raises RowsOutdated."""
        return self._load(slice(self.width), picked_M)[0]

    def figures(self) -> tuple[npt.NDArray[np.float32], int]:
        """The quality figures (N, quality.WIDTH), and the number of frames that were missing. Raises RowsOutdated."""
        return self._load(slice(self.width, None))

    @property
    def belongs_to(self) -> dict[str, str]:
        """All that decides the rows: one of them changed, and they are computed anew."""
        version = self.task.eye.card.version
        return {
            "plan": self.plan.digest,
            "model": version.name,
            "version": version.version,
            "engine": version.engine_sha256,
            "figures": quality.VERSION,
        }

    def _load(
        self, columns: slice, picked_M: npt.NDArray[np.integer] | None = None
    ) -> tuple[npt.NDArray[np.float32], int]:
        return tiles.load(
            self.task.folder / _FILE,
            belongs_to=self.belongs_to,
            width=self.width + quality.WIDTH,
            rows=len(self.plan),
            columns=columns,
            picked_M=picked_M,
        )
