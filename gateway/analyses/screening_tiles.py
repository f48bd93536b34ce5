"""What the detector says of a slide's windows, and how well they can be seen: one row a window, on disk.

A window is looked at once for each `Look`: as it is and, where the slide's site has colours of its own, with these
mapped to the model's. A row holds the detector's scores and boxes for each look, then the figures of
`gateway.slides.smear_quality` and `gateway.slides.quality` of the window as it is: one store, so that no kill parts
them. Non-maximum suppression comes after, so that a row does not depend on its neighbours.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.analyses import tiles
from gateway.analyses.batches import run_batches
from gateway.analyses.screening_models import ScreeningModels, answered
from gateway.analyses.slide_half import Engine, SlideTask
from gateway.analyses.tiles import TileStore
from gateway.domain.bethesda import ABNORMAL
from gateway.operations.errors import InferenceError
from gateway.slides import quality, smear_quality
from gateway.slides.cells import Cells, cells_of_tile
from gateway.slides.rescale import rescaled
from gateway.slides.site_colour import ColourMap
from gateway.slides.site_state import SiteState
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import WindowPlan

_FILE = "windows.bin"
MOST_WINDOWS = 4
"""In one request: with those in flight, the most that is computed again after a kill. On a CPU a window costs as much
alone; of eight it costs a sixth more."""
IN_FLIGHT = 3
_SEEN = smear_quality.WIDTH + quality.WIDTH


@dataclass(frozen=True, slots=True)
class Look:
    """One way of looking at a slide: with which colours mapped (None: as it is). `name` tells its files apart."""

    name: str
    colour: ColourMap | None = None


AS_IT_IS = Look("plain")


def looks_of(state: SiteState) -> tuple[Look, ...]:
    """The looks that a site's state asks for: the slide as it is, and with its colours mapped where they are."""
    return (AS_IT_IS,) if state.colour is None else (AS_IT_IS, Look("site", state.colour))


@dataclass(frozen=True, slots=True, eq=False)
class DetectedWindows:
    """The rows of one task. `batch`: windows in one request, at most."""

    task: SlideTask
    plan: WindowPlan
    models: ScreeningModels
    looks: tuple[Look, ...] = (AS_IT_IS,)
    batch: int = MOST_WINDOWS

    async def compute(self, engine: Engine, *, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> None:
        """Send every window through the detector, continuing after those that are on disk.

        Raises SlideError, InferenceError, DiskFull, Cancelled.
        """
        with TileStore.open(self.task.folder / _FILE, belongs_to=self.belongs_to, width=self._width) as store:
            progress(store.done)
            if store.done == len(self.plan):
                return
            windows = stream_windows(
                self.task.slide,
                self.plan,
                batch=self._at_once,
                first=store.done,
                resize=rescaled,
                cancelled=cancelled,
            )

            async def rows(images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
                return await self._rows(engine, images_BHWC)

            await run_batches(windows, rows, store, progress=progress, cancelled=cancelled, in_flight=IN_FLIGHT)

    def cells(self, look: Look) -> Iterator[Cells]:
        """The cells of each window for one look, in pixels of the level, window by window. Raises RowsOutdated."""
        first = self.looks.index(look) * self._answer
        queries, rule, window = self.models.queries, self.models.detecting, 0
        lefts_N, tops_N = self.plan.in_level(self.plan.lefts_N), self.plan.in_level(self.plan.tops_N)
        for rows_BF, _ in self._each():
            for row_F in rows_BF[:, first : first + self._answer]:
                found = cells_of_tile(
                    row_F[: queries * len(ABNORMAL)].reshape(queries, len(ABNORMAL)),
                    row_F[queries * len(ABNORMAL) :].reshape(queries, 4),
                    (float(lefts_N[window]), float(tops_N[window])),
                    float(self.plan.field_px),
                    window,
                    min_score=rule.score_threshold,
                    nms_iou=rule.nms_iou,
                )
                window += 1
                yield self._on_slide(found)

    def seen(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], int]:
        """The figures of `smear_quality` (N, its WIDTH) and of `quality` (N, its WIDTH), and the number of frames that
        were missing. Raises RowsOutdated."""
        figures_NF, missing = tiles.load(
            self.task.folder / _FILE,
            belongs_to=self.belongs_to,
            width=self._width,
            rows=len(self.plan),
            columns=slice(self._width - _SEEN, None),
        )
        return figures_NF[:, : smear_quality.WIDTH], figures_NF[:, smear_quality.WIDTH :], missing

    @property
    def complete(self) -> bool:
        """Whether every window's row is on disk."""
        return tiles.is_complete(
            self.task.folder / _FILE, belongs_to=self.belongs_to, width=self._width, rows=len(self.plan)
        )

    @property
    def belongs_to(self) -> dict[str, str]:
        """All that decides the rows: one of them changed, and they are computed anew."""
        version = self.models.detector.card.version
        colours = [None if look.colour is None else repr(look.colour) for look in self.looks]
        return {
            "plan": self.plan.digest,
            "model": version.name,
            "version": version.version,
            "engine": version.engine_sha256,
            "looks": repr(colours),
            "smear": smear_quality.VERSION,
            "figures": quality.VERSION,
        }

    def _on_slide(self, cells: Cells) -> Cells:
        """Without those whose middle lies beyond the level, since a window that reaches there shows its mirror image;
        or beyond the order's region, round which more is read."""
        level, region = self.task.slide.levels[self.plan.level], self.task.order.region
        first_2, end_2 = np.zeros(2), np.array([level.width_px, level.height_px], np.float64)
        if region is not None:
            mpp_2 = np.array([level.mpp_x, level.mpp_y])
            corner_2, size_2 = np.array([[region.x_um, region.y_um], [region.width_um, region.height_um]])
            first_2 = np.maximum(first_2, corner_2 / mpp_2)
            end_2 = np.minimum(end_2, (corner_2 + size_2) / mpp_2)
        middles_N2 = (cells.boxes_N4[:, :2] + cells.boxes_N4[:, 2:]) / 2
        inside_N2: npt.NDArray[np.bool_] = (middles_N2 >= first_2) & (middles_N2 < end_2)
        return cells.chosen(np.asarray(inside_N2.all(axis=1)))

    @property
    def _answer(self) -> int:
        return self.models.queries * (len(ABNORMAL) + 4)

    @property
    def _width(self) -> int:
        return len(self.looks) * self._answer + _SEEN

    @property
    def _at_once(self) -> int:
        return max(1, min(self.batch, self.models.detector.contract.max_batch_size))

    def _each(self) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
        return tiles.each(self.task.folder / _FILE, belongs_to=self.belongs_to, width=self._width, rows=len(self.plan))

    async def _rows(self, engine: Engine, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        *answers, figures_BF = await asyncio.gather(
            *(self._asked(engine, look, images_BHWC) for look in self.looks),
            asyncio.to_thread(_figures, images_BHWC, self.plan.mpp),
        )
        return np.concatenate([*answers, figures_BF], axis=1)

    async def _asked(self, engine: Engine, look: Look, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if look.colour is not None:
            images_BHWC = await asyncio.to_thread(look.colour, images_BHWC)
        folder, count = self.models.detector.folder, len(images_BHWC)
        answer = await engine.infer(folder, {"image": images_BHWC})
        scores_BQC = answered(folder, answer, "scores", (count, self.models.queries, len(ABNORMAL)))
        boxes_BQ4 = answered(folder, answer, "boxes", (count, self.models.queries, 4))
        if scores_BQC.min() < 0 or scores_BQC.max() > 1:
            raise InferenceError(f"The model {folder} answers with scores that are no probabilities.")
        return np.concatenate([scores_BQC.reshape(count, -1), boxes_BQ4.reshape(count, -1)], axis=1)


def _figures(images_BHWC: npt.NDArray[np.uint8], mpp: float) -> npt.NDArray[np.float32]:
    return np.concatenate([smear_quality.measure(images_BHWC, mpp), quality.measure(images_BHWC)], axis=1)
