"""The slide half of an ensemble: the seam between one case and what a protocol does with each of its slides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from gateway.domain.model import ModelCard
from gateway.domain.order import Order, Specimen
from gateway.domain.report import Finding, SlideReading, TissueResult
from gateway.reports import TileMap
from gateway.slides import Slide, TilePlan


class Engine(Protocol):
    """The inference seam as the protocols need it (`gateway.inference.TritonEngine`)."""

    async def infer(
        self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
    ) -> dict[str, npt.NDArray[Any]]:
        """One batch in, one batch out; arrays by tensor name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideOutcome:
    """What a protocol says of one slide that it has read. `level` is the pyramid level that was read; `tiles` is what
    lies where on it, None where nothing may be drawn; `pictures` holds encoded pictures by role (thumbnail: JPEG,
    tissue-map: PNG)."""

    level: int
    reading: SlideReading
    findings: tuple[Finding, ...]
    tissue: TissueResult | None
    tiles: TileMap | None
    pictures: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTask:
    """All that a protocol needs to know about one slide of one order. What must survive a kill goes into `folder`.

    `model` is the folder of the pinned version of the protocol's first model (Triton's name of it); `card` is its card.
    """

    slide: Slide
    model: str
    card: ModelCard
    order: Order
    specimen: Specimen
    options: Mapping[str, float | None]
    folder: Path


class SlideHalf(Protocol):
    """One protocol's work on one slide, in three moves."""

    def plan(self, task: SlideTask) -> TilePlan:
        """Decide which tiles to read, and keep that in the task's folder. Raises SlideError."""

    async def infer(
        self,
        task: SlideTask,
        plan: TilePlan,
        engine: Engine,
        *,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Run the models over the planned tiles, continuing after those already in the folder.

        `progress` gets the number of tiles done. Raises SlideError, InferenceError, DiskFull, Cancelled.
        """

    def outcome(self, task: SlideTask) -> SlideOutcome:
        """The result of one slide from what `infer` left in the folder."""
