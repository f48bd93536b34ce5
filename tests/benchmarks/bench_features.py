"""Features from a slide to its file, against the same engine called directly with its tiles in memory.

Triton is warm, as in `bench_analyze`: it runs, and the model is loaded, before the clock starts. The job runs in a
process of its own, with the packages of training.
"""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from tests.benchmarks.direct import Direct, tiles_in_memory
from tests.benchmarks.rows import TRAINING_PYTHON, Row

MODEL = "tile_encoder"


def measure(work: Path, phantom: Path) -> list[Row]:
    """One row; the direct engine is measured before and after."""
    return asyncio.run(_measure(work, phantom))


async def _measure(work: Path, phantom: Path) -> list[Row]:
    settings = Settings(state=work / "state")
    repository = ModelRepository(settings.model_repository)
    direct = Direct(repository, (MODEL,))
    tiles_NHWC, count = tiles_in_memory(repository, MODEL, phantom)
    async with TritonEngine.open(settings, (MODEL,)):
        before = await asyncio.to_thread(direct.run, tiles_NHWC)
        computed = count / await asyncio.to_thread(_job, settings, phantom, work / "features")
        after = await asyncio.to_thread(direct.run, tiles_NHWC)
    floor = (before.tiles_per_s + after.tiles_per_s) / 2
    label = f"features from slide to file, {count} tiles"
    return [Row(label, computed, "tiles/s", "same engine called directly", computed / floor, goal=0.90)]


def _job(settings: Settings, phantom: Path, out: Path) -> float:
    """Seconds of a whole job, from the command line."""
    job = ("training.features", "--slides", str(phantom), "--encoder", MODEL, "--out", str(out))
    environment = {"PATHSERVE_STATE": str(settings.state), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    start = time.perf_counter()
    subprocess.run([str(TRAINING_PYTHON), "-m", *job], check=True, env=environment, stdout=sys.stderr)
    return time.perf_counter() - start
