"""Cells cut from a slide while others are encoded: whose features they are, how many are under way, and how it ends."""

import asyncio
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gateway.analyses import screening_cells
from gateway.analyses.screening_cells import SlideCells
from gateway.analyses.screening_models import ScreeningModels
from gateway.analyses.screening_plan import Screened
from gateway.analyses.screening_tiles import AS_IT_IS, IN_FLIGHT, DetectedWindows
from gateway.analyses.tiles import TileStore
from gateway.operations.errors import Cancelled, FramesNotFetched, InferenceError
from gateway.slides.cell_crops import CellCrops
from gateway.slides.cells import Cells
from gateway.slides.grid import tiles_under
from gateway.slides.slide import LevelImage
from tests.support.bags import OnnxEngine
from tests.support.screening import screening, write_smear
from tests.support.screening_models import CROPS, WIDTH

SIDE_PX, BATCH, ACROSS, DOWN = 2400, 2, 4, 6
Answer = dict[str, npt.NDArray[Any]]


def cells_of(boxes_N4: npt.NDArray[np.float64]) -> Cells:
    """Of such boxes, the surest first."""
    count = len(boxes_N4)
    return Cells(boxes_N4, np.linspace(0.9, 0.5, count), np.arange(count) % 6, np.zeros(count, np.int64))


def scattered() -> Cells:
    """Cells all over the slide, in no order of place."""
    x, y = np.meshgrid(np.linspace(150, 2250, ACROSS), np.linspace(150, 2250, DOWN))
    middles_N2 = np.random.default_rng(3).permutation(np.stack([x.ravel(), y.ravel()], axis=1))
    return cells_of(np.hstack([middles_N2 - 40, middles_N2 + 40]))


COUNT = len(scattered())


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide no two places of which have the same colour."""
    ramp = np.linspace(40, 200, SIDE_PX).astype(np.uint8)
    image = np.full((SIDE_PX, SIDE_PX, 3), 120, np.uint8)
    image[..., 0], image[..., 1] = ramp, ramp[:, None]
    return write_smear(tmp_path_factory.mktemp("slide"), image, root="ramp")


@pytest.fixture
def engine(screening_models: Path) -> OnnxEngine:
    return OnnxEngine(screening_models)


Open = Callable[[Cells], SlideCells]


@pytest.fixture
def opened(slide: Path, screening_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Call it for a task's cells, as if these had been detected."""
    with screening(slide, screening_models, tmp_path / "task") as task:

        def cells(found: Cells) -> SlideCells:
            monkeypatch.setattr(screening_cells, "merged", lambda windows, iou: found)
            windows = DetectedWindows(task, Screened.of_task(task).windows, ScreeningModels.of_task(task))
            return SlideCells(windows, AS_IT_IS, batch=BATCH)

        yield cells


@pytest.fixture
def cut_px(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sides of the squares that were cut, as they come."""
    cut: list[int] = []
    original = CellCrops.resized

    def noting(self: CellCrops, square_SS3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        cut.append(len(square_SS3))
        return original(self, square_SS3)

    monkeypatch.setattr(CellCrops, "resized", noting)
    return cut


@pytest.fixture
def frames_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    original = LevelImage.read_frames

    def noting(self: LevelImage, frames: list[int]) -> list[memoryview]:
        read.extend(frames)
        return original(self, frames)

    monkeypatch.setattr(LevelImage, "read_frames", noting)
    return read


class Encoder:
    """Calls `before` with the number of each request, from 1 on, before it answers; logs what is cancelled."""

    def __init__(self, engine: OnnxEngine, before: Callable[[int], Any]) -> None:
        self._engine, self._before = engine, before
        self.asked = self.running = self.most = 0
        self.cancelled: list[int] = []

    async def infer(self, model: str, batch: Any, *, deadline_s: float = 120.0) -> Answer:
        self.asked += 1
        number = self.asked
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._before(number)
            return await self._engine.infer(model, batch)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.running -= 1


async def at_once(number: int) -> None:
    await asyncio.sleep(0)


async def never(number: int) -> None:
    await asyncio.Event().wait()


def go_on() -> bool:
    return False


async def features_of(cells: SlideCells, engine: OnnxEngine) -> npt.NDArray[np.float32]:
    """Of the chosen cells, cut from the whole level and asked for in one request."""
    whole_HWC = cells.windows.task.slide.read_level(cells.windows.plan.level)
    answer = await engine.infer("smartccs_embed", {"image": CROPS(whole_HWC, cells.chosen.boxes_N4)})
    return np.asarray(answer["embedding"])


def frames_under(cells: SlideCells, boxes_N4: npt.NDArray[np.float64]) -> int:
    slide = cells.windows.task.slide
    return tiles_under(slide, slide.levels[cells.windows.plan.level], CROPS.squares(boxes_N4), "").frames


async def assert_over(cut_px: list[int]) -> None:
    """Nothing is cut any more, and no thread reads frames."""
    cut = len(cut_px)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("frames")]
    await asyncio.sleep(0.1)
    assert len(cut_px) == cut


async def test_each_cell_has_its_own_features_and_each_frame_is_read_once(
    opened: Open, engine: OnnxEngine, frames_read: list[int]
) -> None:
    cells = opened(scattered())
    frames_read.clear()
    await cells.embed(engine, cancelled=go_on)
    assert len(frames_read) == len(set(frames_read)) == frames_under(cells, cells.chosen.boxes_N4)
    assert len(cells.chosen) == COUNT
    assert (np.diff(cells.chosen.boxes_N4[:, 3]) < 0).any()  # they are not read in the order in which they are told
    features_ND = cells.features()
    np.testing.assert_array_equal(features_ND, await features_of(cells, engine))
    assert len(np.unique(features_ND, axis=0)) == COUNT


async def test_a_cell_that_is_whole_before_its_turn_waits(opened: Open, engine: OnnxEngine, cut_px: list[int]) -> None:
    """A large one that reaches beyond the slide, so that it ends with the last tiles there are."""
    small, large = [1780.0, 2350, 1820, 2390], [100.0, 2120, 560, 2580]
    cells = opened(cells_of(np.array([large, small, [300, 300, 360, 360]])))
    await cells.embed(engine, cancelled=go_on)
    assert cut_px == [66, 506, 44]
    np.testing.assert_array_equal(cells.features(), await features_of(cells, engine))


async def test_cells_are_cut_while_others_are_encoded_and_no_more_than_a_few(
    opened: Open, engine: OnnxEngine, cut_px: list[int]
) -> None:
    """While no request is answered, those in flight, one that waits and one behind it are cut."""
    most, cut_at_first = (IN_FLIGHT + 2) * BATCH, list[int]()

    async def held_back(number: int) -> None:
        cut_at_first.append(len(cut_px))
        if number <= IN_FLIGHT:
            while len(cut_px) < most:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            if number == 1:
                assert len(cut_px) == most

    cells, encoder = opened(scattered()), Encoder(engine, held_back)
    async with asyncio.timeout(20):
        await cells.embed(encoder, cancelled=go_on)
    assert cut_at_first[0] <= 2 * BATCH < most < COUNT
    assert encoder.most == IN_FLIGHT
    assert len(cut_px) == COUNT
    np.testing.assert_array_equal(cells.features(), await features_of(cells, engine))


async def test_a_lost_encoder_ends_the_cutting_and_what_it_answered_is_kept(
    opened: Open, engine: OnnxEngine, cut_px: list[int], frames_read: list[int]
) -> None:
    async def lost(number: int) -> None:
        if number == 2:
            raise InferenceError("The model is lost.")

    cells, encoder = opened(scattered()), Encoder(engine, lost)
    with pytest.raises(InferenceError, match="lost"):
        await cells.embed(encoder, cancelled=go_on)
    # One was answered before it; then as many as can be under way.
    assert len(cut_px) <= (1 + IN_FLIGHT + 2) * BATCH < COUNT
    assert encoder.running == 0
    await assert_over(cut_px)

    cut_px.clear()
    frames_read.clear()
    again = Encoder(engine, at_once)
    await cells.embed(again, cancelled=go_on)
    assert again.asked == COUNT // BATCH - 1
    assert len(cut_px) == COUNT - BATCH
    rest = cells.chosen.boxes_N4[np.lexsort((cells.chosen.boxes_N4[:, 2], cells.chosen.boxes_N4[:, 3]))[BATCH:]]
    assert len(frames_read) == frames_under(cells, rest)
    np.testing.assert_array_equal(cells.features(), await features_of(cells, engine))


async def test_a_frame_that_is_not_there_ends_the_requests(
    opened: Open, engine: OnnxEngine, cut_px: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then eight requests are answered, and others are in flight."""
    whole = screening_cells.stream_squares

    def broken(*args: Any, **options: Any) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        with closing(whole(*args, **options)) as squares:
            yield from itertools.islice(squares, 10 * BATCH)
            raise FramesNotFetched("They are not there.")

    async def hangs(number: int) -> None:
        if number > 8:
            await asyncio.Event().wait()

    monkeypatch.setattr(screening_cells, "stream_squares", broken)
    cells, encoder = opened(scattered()), Encoder(engine, hangs)
    async with asyncio.timeout(20):
        with pytest.raises(FramesNotFetched):
            await cells.embed(encoder, cancelled=go_on)
    assert encoder.asked > 8
    assert encoder.cancelled == list(range(9, encoder.asked + 1))
    await assert_over(cut_px)


async def test_a_cancelled_analysis_ends_requests_and_cutting(
    opened: Open, engine: OnnxEngine, cut_px: list[int]
) -> None:
    cells, encoder = opened(scattered()), Encoder(engine, never)
    async with asyncio.timeout(20):
        with pytest.raises(Cancelled):
            await cells.embed(encoder, cancelled=lambda: encoder.asked > 0)
    assert encoder.cancelled == list(range(1, encoder.asked + 1))
    assert len(cut_px) <= 3 * BATCH < COUNT
    await assert_over(cut_px)


async def test_rows_of_the_same_cells_in_another_order_are_not_taken(
    opened: Open, engine: OnnxEngine, tmp_path: Path
) -> None:
    cells = opened(scattered())
    surest_first = hashlib.sha256(cells.chosen.boxes_N4.tobytes()).hexdigest()
    belongs_to = cells.belongs_to | {"cells": surest_first}
    with TileStore.open(tmp_path / "task" / "features-plain.bin", belongs_to=belongs_to, width=WIDTH) as store:
        store.append(np.zeros((COUNT, WIDTH), np.float32))
    await cells.embed(engine, cancelled=go_on)
    np.testing.assert_array_equal(cells.features(), await features_of(cells, engine))
