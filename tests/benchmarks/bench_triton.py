"""The tile encoder through Triton against the same engine called directly, batch 32, on the same cores.

The direct side is ONNX Runtime as the served model runs it: one session and one caller for each of its instances, one
thread each, the tiles in memory. The served side is `TritonEngine`, once with the pool of shared memory that every
analysis uses, once as an external server is spoken to (plain gRPC). Every served run stands between two direct ones and
is compared with their mean, and the ratio is the median of the rounds': the speed of a shared machine drifts by more
than what is measured.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from gateway.inference import ModelRepository, TritonEngine
from gateway.inference.embedded import read_record
from gateway.operations.settings import Settings
from tests.benchmarks.direct import session
from tests.benchmarks.rows import Row

MODEL = "tile_encoder"
BATCH, BATCHES, ROUNDS = 32, 16, 7
GOAL = 0.95


def measure(work: Path) -> list[Row]:
    """Images/s by shared memory and by gRPC; the better of them has the goal."""
    return asyncio.run(_measure(Settings(state=work / "state")))


async def _measure(settings: Settings) -> list[Row]:
    contract = ModelRepository(settings.model_repository).contract(MODEL)
    instances = contract.instances
    direct = Direct(settings.model_repository / MODEL / "1" / contract.artefact, instances)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8) for _ in range(4)]
    work = [batches[number % len(batches)] for number in range(BATCHES)]
    async with TritonEngine.open(settings, [MODEL]) as engine:
        external = settings.model_copy(update={"triton_url": read_record(settings.state).endpoint.url})
        async with TritonEngine.open(external, [MODEL]) as outsider:
            await through(engine, MODEL, work, instances + 1)
            await direct.run(work)
            rounds: dict[str, list[Round]] = {"shared memory": [], "gRPC": []}
            before = await _images_per_s(direct.run(work))
            for _ in range(ROUNDS):
                for name, served in zip(rounds, (engine, outsider), strict=True):
                    speed = await _images_per_s(through(served, MODEL, work, instances + 1))
                    after = await _images_per_s(direct.run(work))
                    rounds[name].append(Round(speed, (before + after) / 2))
                    before = after
    ratios = {name: statistics.median(each.served / each.direct for each in rounds[name]) for name in rounds}
    best = max(ratios, key=ratios.__getitem__)
    return [
        Row(
            name=f"{MODEL} through Triton, {name}, batch {BATCH}",
            value=statistics.median(each.served for each in rounds[name]),
            unit="images/s",
            floor=f"ONNX Runtime, {instances} callers: {statistics.median(each.direct for each in rounds[name]):.0f}",
            ratio=ratio,
            goal=GOAL if name == best else None,
        )
        for name, ratio in ratios.items()
    ]


class Round(NamedTuple):
    """Images/s of a served run, and of the direct runs before and after it."""

    served: float
    direct: float


class Direct:
    """Sessions of ONNX Runtime with one thread each, and as many callers."""

    def __init__(self, file: Path, callers: int) -> None:
        self._sessions = [session(file) for _ in range(callers)]
        self._threads = ThreadPoolExecutor(callers)

    async def run(self, work: list[np.ndarray]) -> None:
        """All batches, each by whichever caller is free."""
        waiting = iter(work)

        def call(own: onnxruntime.InferenceSession) -> None:
            for images in waiting:
                own.run(None, {"image": images})

        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, call, own) for own in self._sessions))


async def through(engine: TritonEngine, model: str, work: list[np.ndarray], callers: int) -> None:
    """All batches, each by whichever caller is free; with one more than there are instances none waits for us."""
    waiting = iter(work)

    async def call() -> None:
        for images in waiting:
            await engine.infer(model, {"image": images})

    await asyncio.gather(*(call() for _ in range(callers)))


async def _images_per_s(run: Awaitable[None]) -> float:
    start = time.perf_counter()
    await run
    return BATCH * BATCHES / (time.perf_counter() - start)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for row in measure(Path(folder)):
            print(f"{row.name}: {row.value:.1f} {row.unit}, {row.floor}, ratio {row.ratio:.3f}, goal {row.goal}")
