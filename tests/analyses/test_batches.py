"""Batches to the engine and answers to disk: in order, few at a time, and never half."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.analyses.batches import IN_FLIGHT, run_batches, windows_a_request
from gateway.analyses.tiles import TileStore, load
from gateway.inference import Contract
from gateway.operations.errors import Cancelled, InferenceError
from gateway.slides import TileBatch

COUNT, SIZE = 9, 4


def batches(
    log: list[str] | None = None, slow: int = COUNT, go_on: threading.Event = threading.Event()
) -> Iterator[TileBatch]:
    """`slow`: the number of the batch that is not decoded before `go_on`."""
    try:
        for number in range(COUNT):
            if log is not None and number == slow:
                log.append("decoding")
                go_on.wait(10)
                log.append("decoded")
            images = np.full((SIZE, 2, 2, 3), number, dtype=np.uint8)
            yield TileBatch(start=number * SIZE, images_BHWC=images, missing=((number, 0),) * (number % 2))
    finally:
        if log is not None:
            log.append("closed")


def test_no_model_is_asked_for_more_windows_than_it_takes() -> None:
    many, two = (Contract("model", (), (), max_batch_size=most, instances=1, steps=(), artefact="") for most in (32, 2))
    assert [windows_a_request(*each, prompts=4) for each in ((many,), (many, two), (two, many))] == [4, 2, 2]
    assert [windows_a_request(many, prompts=count) for count in (32, 100)] == [2, 1]


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


@pytest.mark.parametrize("slow", [IN_FLIGHT, IN_FLIGHT + 1], ids=["while it decodes", "while it waits for an answer"])
async def test_a_cancelled_task_leaves_nothing_running(store: TileStore, slow: int) -> None:
    """However often it is cancelled: the slide is closed when no thread decodes it any more."""
    log: list[str] = []
    go_on = threading.Event()

    async def infer(images_BHWC: np.ndarray) -> np.ndarray:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("request cancelled")
            raise
        raise AssertionError

    source = batches(log, slow, go_on)
    task = asyncio.create_task(run_batches(source, infer, store, progress=lambda done: None, cancelled=never))
    while "decoding" not in log:
        await asyncio.sleep(0.01)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.02)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(log[1:-1]) == ["decoded", *["request cancelled"] * IN_FLIGHT]
    assert log[-1] == "closed"


async def test_a_cancelled_task_waits_for_what_is_being_written() -> None:
    """Else the store would be closed under the thread that writes to it."""
    written: list[int] = []
    writing = threading.Event()

    class Slow:
        done = 0

        def append(self, answer: np.ndarray, missing: tuple[tuple[int, int], ...]) -> None:
            writing.set()
            time.sleep(0.2)
            written.append(len(missing))

    async def infer(images_BHWC: np.ndarray) -> np.ndarray:
        return np.zeros((SIZE, 1), dtype=np.float32)

    task = asyncio.create_task(run_batches(batches(), infer, Slow(), progress=lambda done: None, cancelled=never))
    await asyncio.to_thread(writing.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(written) == 1


async def test_an_error_of_the_slide_reaches_the_caller(store: TileStore) -> None:
    def broken() -> Iterator[TileBatch]:
        yield next(batches())
        raise ValueError("frame")

    async def infer(images_BHWC: np.ndarray) -> np.ndarray:
        return np.zeros((SIZE, 1), dtype=np.float32)

    with pytest.raises(ValueError, match="frame"):
        await run_batches(broken(), infer, store, progress=lambda done: None, cancelled=never)
