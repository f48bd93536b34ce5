"""The slide half of an ensemble: the seam between one case and what a protocol does with each of its slides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from gateway.domain.model import ModelCard, OperatingPoint
from gateway.domain.order import Order, Specimen
from gateway.domain.report import Finding, SegmentationResult, SlideClassification, SlideReading, TissueResult
from gateway.domain.screened import ScreeningResult
from gateway.inference.contract import Contract
from gateway.reports import AttentionMap, CellMap, TileMap
from gateway.reports.spatial import MaskMap
from gateway.slides import Slide, TilePlan


class Engine(Protocol):
    """The inference seam as the protocols need it (`gateway.inference.TritonEngine`)."""

    async def infer(
        self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
    ) -> dict[str, npt.NDArray[Any]]:
        """One batch in, one batch out; arrays by tensor name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideOutcome:
    """What a protocol says of one slide that it has read.

    `level` is the pyramid level that was read; `tiles`, `attention`, `masks` and `cells` are what lies where on it,
    none of them where nothing may be drawn; `pictures` holds encoded pictures by role
    (`gateway.domain.report.Picture`).
    """

    level: int
    reading: SlideReading
    findings: tuple[Finding, ...]
    tissue: TissueResult | None = None
    classes: SlideClassification | None = None
    segmentation: SegmentationResult | None = None
    screening: ScreeningResult | None = None
    tiles: TileMap | None = None
    attention: AttentionMap | None = None
    masks: tuple[MaskMap, ...] = ()
    cells: CellMap | None = None
    pictures: Mapping[str, bytes]

    @property
    def exploratory(self) -> bool:
        results = (self.tissue, self.classes, self.segmentation, self.screening)
        return any(result is not None and result.exploratory for result in results)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A pinned version of a model: its folder (Triton's name of it), its card, its inputs and outputs."""

    folder: str
    card: ModelCard
    contract: Contract


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTask:
    """All that a protocol needs to know about one slide of one order. What must survive a kill goes into `folder`.

    `models` are the protocol's, in its order. `state_folder` is the server's (sites' states lie there; None: there are
    none), `specimen_codes` the SNOMED CT codes of a laboratory's own codes (`Settings.specimen_codes`), `run`
    which of the analysis' runs this is (a person's retry is one more).
    """

    slide: Slide
    models: tuple[ServedModel, ...]
    order: Order
    specimen: Specimen
    options: Mapping[str, float | None]
    folder: Path
    state_folder: Path | None = None
    specimen_codes: Mapping[str, str] = field(default_factory=dict)
    run: int = 1

    @property
    def eye(self) -> ServedModel:
        """The model that sees the tiles, where that is the first: its card says how large and how fine they are."""
        return self.models[0]

    @property
    def card(self) -> ModelCard:
        """The card that speaks for the protocol: labels, operating points, intended use."""
        return self.models[-1].card

    def option(self, name: str) -> float:
        """A setting that has a default."""
        value = self.options[name]
        if value is None:
            raise AssertionError(f"the setting {name} has no default")
        return value

    @property
    def operating_point(self) -> OperatingPoint:
        """The card's operating point, or the order's own."""
        changed = self.options["operating_point.min_probability"]
        if changed is None:
            return self.card.operating_points[0]
        return OperatingPoint(name="order", min_probability=changed, origin="set by the order")


class Plan(Protocol):
    """What will be read of one slide: so many tiles or windows, cut from the tiles of `reads`."""

    def __len__(self) -> int: ...

    @property
    def reads(self) -> tuple[TilePlan, ...]: ...


P = TypeVar("P", bound=Plan)


class SlideHalf(Protocol[P]):
    """One protocol's work on one slide, in three moves."""

    def plan(self, task: SlideTask) -> P:
        """Decide which tiles to read, and keep that in the task's folder. Raises SlideError."""

    async def infer(
        self,
        task: SlideTask,
        plan: P,
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
