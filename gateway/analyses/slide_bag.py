"""The bag of one slide: its tiles' embeddings in the order in which the slide's model sees them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.analyses.bags import BagAnswer, picked
from gateway.analyses.slide_half import SlideTask
from gateway.analyses.tile_answers import TileAnswers
from gateway.operations.errors import ModelRefused
from gateway.slides import TilePlan

_FILE = "bag.npz"


@dataclass(frozen=True, slots=True, eq=False)
class SlideBag:
    """The bag of one task: which tiles of the plan are in it (M,), in which order, and to what its answer belongs."""

    task: SlideTask
    plan: TilePlan
    answers: TileAnswers
    picked_M: npt.NDArray[np.int64]
    least: int

    @classmethod
    def of_task(cls, task: SlideTask, plan: TilePlan) -> "SlideBag":
        """Raises ModelRefused where the models' cards do not say how they fit together."""
        width, card = task.eye.card.embedding_size, task.card
        if width is None or card.tiles is None or card.feature_size != width:
            raise ModelRefused(
                f"The model {task.models[-1].folder} takes {card.feature_size or 'no'} features a tile, and "
                f"{task.eye.folder} gives {width or 'none'}. Promote models that belong together."
            )
        least, most = card.tiles
        chosen_M = picked(plan.rows_N, plan.columns_N, most)
        return cls(task, plan, TileAnswers(task, plan, "embedding", width), chosen_M, least)

    @property
    def too_small(self) -> bool:
        return len(self.picked_M) < self.least

    @property
    def path(self) -> Path:
        return self.task.folder / _FILE

    def answer(self) -> BagAnswer | None:
        """What the slide's model said of it, where that is known."""
        return BagAnswer.load(self.path, self.of)

    @property
    def of(self) -> dict[str, str | int]:
        version = self.task.card.version
        model = {"bag-model": version.name, "bag-version": version.version, "bag-engine": version.engine_sha256}
        return {**self.answers.belongs_to, **model, "bag": len(self.picked_M)}

    def features(self) -> npt.NDArray[np.float32]:
        """The tiles' embeddings (M, D). Raises RowsOutdated."""
        rising_M = np.sort(self.picked_M)
        return self.answers.answers(rising_M)[np.searchsorted(rising_M, self.picked_M)]

    def centres_um(self) -> npt.NDArray[np.float32]:
        """The tiles' centres (M, 2), µm from the slide image's top left corner."""
        grid, level = self.plan.grid, self.task.slide.levels[self.plan.grid.level]
        columns_M, rows_M = self.plan.columns_N[self.picked_M], self.plan.rows_N[self.picked_M]
        across, down = grid.field_px * level.mpp_x, grid.field_px * level.mpp_y
        return np.stack([(columns_M + 0.5) * across, (rows_M + 0.5) * down], axis=1).astype(np.float32)
