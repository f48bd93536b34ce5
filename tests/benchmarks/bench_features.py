"""Features from a slide to its file, against the same engine called directly with its tiles in memory.

Triton is warm, as in `bench_analyze`: it runs, and the model is loaded, before the clock starts. The job runs in a
process of its own, with the packages of training.
"""

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gateway.analyses.batches import IN_FLIGHT, REQUEST_TILES
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from gateway.slides import Slide, find_tissue, plan_tiles, stream_tiles
from tests.benchmarks.direct import session
from tests.benchmarks.rows import Row

MODEL = "tile_encoder"
PYTHON = Path(sys.prefix).parent / ".venv-training" / "bin" / "python"
DIRECT_TILES = 1536


def measure(work: Path, phantom: Path) -> list[Row]:
    """One row; the direct engine is measured before and after."""
    return asyncio.run(_measure(work, phantom))


async def _measure(work: Path, phantom: Path) -> list[Row]:
    settings = Settings(state=work / "state")
    tiles_NHWC, count = _tiles_in_memory(settings, phantom)
    async with TritonEngine.open(settings, (MODEL,)):
        before = await asyncio.to_thread(_direct, settings, tiles_NHWC)
        computed = count / await asyncio.to_thread(_job, settings, phantom, work / "features")
        after = await asyncio.to_thread(_direct, settings, tiles_NHWC)
    floor = (before + after) / 2
    label = f"features from slide to file, {count} tiles"
    return [Row(label, computed, "tiles/s", "same engine called directly", computed / floor, goal=0.90)]


def _job(settings: Settings, phantom: Path, out: Path) -> float:
    """Seconds of a whole job, from the command line."""
    command = [str(PYTHON), "-m", "training.features", "--slides", str(phantom), "--encoder", MODEL, "--out", str(out)]
    environment = {"PATHSERVE_STATE": str(settings.state), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return time.perf_counter() - start


def _direct(settings: Settings, tiles_NHWC: np.ndarray) -> float:
    """Tiles a second of the served graph in ONNX Runtime, called by as many threads as Triton has instances."""
    version = ModelRepository(settings.model_repository).served_version(MODEL)
    engine = session(settings.model_repository / MODEL / version / "model.onnx")
    batches = [tiles_NHWC[n : n + REQUEST_TILES] for n in range(0, len(tiles_NHWC), REQUEST_TILES)]
    with ThreadPoolExecutor(IN_FLIGHT) as threads:

        def run(batch: np.ndarray) -> None:
            engine.run(None, {"image": batch})

        list(threads.map(run, batches[:IN_FLIGHT]))
        start = time.perf_counter()
        list(threads.map(run, batches))
        return len(tiles_NHWC) / (time.perf_counter() - start)


def _tiles_in_memory(settings: Settings, phantom: Path) -> tuple[np.ndarray, int]:
    """Some of the slide's tiles, and the number of all of them."""
    card = ModelRepository(settings.model_repository).card(MODEL)
    kept: list[np.ndarray] = []
    with Slide.open(sorted(phantom.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=card.mpp, tile_px=card.tile_px)
        for batch in stream_tiles(slide, plan, batch=REQUEST_TILES):
            kept.append(batch.images_BHWC.copy())
            if len(kept) * REQUEST_TILES >= DIRECT_TILES:
                break
    return np.concatenate(kept)[:DIRECT_TILES], len(plan)
