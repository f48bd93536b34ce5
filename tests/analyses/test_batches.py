"""Batches to the engine and answers to disk: in order, few at a time, and never half."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.analyses.batches import IN_FLIGHT, run_batches
from gateway.analyses.tiles import TileStore, load
from gateway.operations.errors import Cancelled, InferenceError
from gateway.slides import TileBatch

COUNT, SIZE = 9, 4


def batches(log: list[str] | None = None) -> Iterator[TileBatch]:
    try:
        for number in range(COUNT):
            images = np.full((SIZE, 2, 2, 3), number, dtype=np.uint8)
            yield TileBatch(start=number * SIZE, images_BHWC=images, frames_missing=number % 2)
    finally:
        if log is not None:
            log.append("closed")


KEY = {"belongs_to": {"plan": "p"}, "width": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiles.bin"


@pytest.fixture
def store(path: Path) -> Iterator[TileStore]:
    with TileStore.open(path, **KEY) as opened:
        yield opened


def never() -> bool:
    return False


async def test_keeps_the_order_and_the_bound(store: TileStore, path: Path) -> None:
    running = most = 0
    seen: list[int] = []

    async def infer(images_BHWC: np.ndarray) -> np.ndarray:
        nonlocal running, most
        running += 1
        most = max(most, running)
        number = int(images_BHWC[0, 0, 0, 0])
        await asyncio.sleep(0.02 if number % 2 == 0 else 0.001)  # every second answer comes before its predecessor
        running -= 1
        return np.full((SIZE, 1), number, dtype=np.float32)

    await run_batches(batches(), infer, store, progress=seen.append, cancelled=never)
    values, missing = load(path, **KEY, rows=COUNT * SIZE)
    assert values[:, 0].tolist() == [float(n) for n in range(COUNT) for _ in range(SIZE)]
    assert missing == COUNT // 2
    assert most == IN_FLIGHT
    assert seen == [SIZE * n for n in range(1, COUNT + 1)]


async def test_a_failure_keeps_the_prefix_and_closes_the_source(store: TileStore) -> None:
    log: list[str] = []

    async def infer(images_BHWC: np.ndarray) -> np.ndarray:
        if images_BHWC[0, 0, 0, 0] == 5:
            raise InferenceError("broken")
        return np.zeros((SIZE, 1), dtype=np.float32)

    with pytest.raises(InferenceError):
        await run_batches(batches(log), infer, store, progress=lambda done: None, cancelled=never)
    assert store.done == 5 * SIZE
    assert log == ["closed"]


async def test_cancellation_stops_before_the_next_batch(store: TileStore) -> None:
    calls = 0

    async def infer(images_BHWC: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.zeros((SIZE, 1), dtype=np.float32)

    with pytest.raises(Cancelled):
        await run_batches(batches(), infer, store, progress=lambda done: None, cancelled=lambda: calls >= 2)
    assert calls == 2


async def test_a_cancelled_task_leaves_nothing_running(store: TileStore) -> None:
    log: list[str] = []
    waiting = asyncio.Event()

    async def infer(images_BHWC: np.ndarray) -> np.ndarray:
        waiting.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("request cancelled")
            raise
        raise AssertionError

    task = asyncio.create_task(run_batches(batches(log), infer, store, progress=lambda done: None, cancelled=never))
    await waiting.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["request cancelled"] * IN_FLIGHT + ["closed"]


async def test_an_error_of_the_slide_reaches_the_caller(store: TileStore) -> None:
    def broken() -> Iterator[TileBatch]:
        yield next(batches())
        raise ValueError("frame")

    async def infer(images_BHWC: np.ndarray) -> np.ndarray:
        return np.zeros((SIZE, 1), dtype=np.float32)

    with pytest.raises(ValueError, match="frame"):
        await run_batches(broken(), infer, store, progress=lambda done: None, cancelled=never)
