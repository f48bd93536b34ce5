"""A whole `analyze` against the same engine called directly with its tiles in memory, on the same cores.

Warm servers: Triton runs and the models are loaded before the clock starts. The direct engine is ONNX Runtime with the
settings of the served model (one thread a request, as many callers as instances), on the model_repository's own files.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from gateway.analyses.batches import IN_FLIGHT, REQUEST_TILES
from gateway.analyses.local import case_of
from gateway.analyses.steps import CaseRun
from gateway.archive import Archive, FolderArchive, open_archive
from gateway.domain.order import Order
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from gateway.slides import Slide, find_tissue, plan_tiles, stream_tiles
from tests.benchmarks.direct import session
from tests.benchmarks.rows import Row
from tests.support.orthanc import running_orthanc

PROTOCOL, MODEL, PARTS = "tissue-classification", "tissue_classification", ("tile_encoder", "tissue_head")
DIRECT_TILES = 1536


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds of one run over `tiles` tiles."""

    tiles: int
    wall_s: float
    cpu_s: float

    @property
    def tiles_per_s(self) -> float:
        return self.tiles / self.wall_s

    @property
    def cpu_ms_per_tile(self) -> float:
        return 1000 * self.cpu_s / self.tiles


def measure(work: Path, phantom: Path) -> list[Row]:
    """Rows for a whole analysis from a folder and from Orthanc; the direct engine is measured before and after each."""
    return asyncio.run(_measure(work, phantom))


async def _measure(work: Path, phantom: Path) -> list[Row]:
    settings = Settings(state=work / "state", archive=f"folder:{phantom}")
    direct = Direct(settings)
    tiles = _tiles_in_memory(settings, phantom)
    rows: list[Row] = []
    async with TritonEngine.open(settings, (MODEL,)):  # warm: owns the server for all that follows
        for name, goal, archive in (("folder", 0.90, None), ("Orthanc", 0.80, running_orthanc)):
            before = await asyncio.to_thread(direct.run, tiles)
            if archive is None:
                cost = await _analyze(settings, FolderArchive(phantom), work / name)
            else:
                with archive(work / "orthanc") as orthanc:
                    orthanc.upload(phantom)
                    cost = await _analyze(settings, open_archive(orthanc.address), work / name)
            after = await asyncio.to_thread(direct.run, tiles)
            floor = (before.tiles_per_s + after.tiles_per_s) / 2
            engine_ms = (before.cpu_ms_per_tile + after.cpu_ms_per_tile) / 2
            label = f"analyze from {name}, {cost.tiles} tiles, {direct.name}"
            rows += [
                Row(label, cost.tiles_per_s, "tiles/s", "same engine called directly", cost.tiles_per_s / floor, goal),
                Row(
                    f"analyze from {name}: CPU outside the engine",
                    cost.cpu_ms_per_tile - engine_ms,
                    "ms/tile",
                    goal=1.0,
                    lower_is_better=True,
                ),
            ]
            rows.append(Row(f"engine called directly ({name} run)", floor, "tiles/s"))
    return rows


class Direct:
    """The served graphs in ONNX Runtime, called by as many threads as Triton has instances."""

    def __init__(self, settings: Settings) -> None:
        repository = ModelRepository(settings.model_repository)
        self._sessions = [
            session(settings.model_repository / part / repository.served_version(part) / "model.onnx") for part in PARTS
        ]
        self.name = f"{PARTS[0]} {repository.card(PARTS[0]).version.engine_sha256[:12]}"

    def _one(self, images_BHWC: np.ndarray) -> np.ndarray:
        encoder, head = self._sessions
        embedding = encoder.run(None, {"image": images_BHWC})[0]
        return np.asarray(head.run(None, {"embedding": embedding})[0])

    def run(self, tiles_NHWC: np.ndarray) -> Cost:
        batches = [tiles_NHWC[n : n + REQUEST_TILES] for n in range(0, len(tiles_NHWC), REQUEST_TILES)]
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            list(threads.map(self._one, batches[:IN_FLIGHT]))
            clock = _Clock()
            list(threads.map(self._one, batches))
            return clock.stop(len(tiles_NHWC))


async def _analyze(settings: Settings, archive: Archive, folder: Path) -> Cost:
    entries = [entry for study in _studies(settings) for entry in archive.find_series(study)]
    run = CaseRun(
        folder.name.lower(), Order(PROTOCOL, case_of(tuple(entries))), folder, settings=settings, archive=archive
    )
    clock = _Clock()
    await run.fetch()
    summary = await run.infer()
    await run.report()
    return clock.stop(summary["tiles"])


def _studies(settings: Settings) -> list[str]:
    folder = FolderArchive(Path(settings.archive_address.removeprefix("folder:")))
    return sorted({entry.study for entry in folder.entries()})


def _tiles_in_memory(settings: Settings, phantom: Path) -> np.ndarray:
    card = ModelRepository(settings.model_repository).card(MODEL)
    kept: list[np.ndarray] = []
    with Slide.open(sorted(phantom.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=card.mpp, tile_px=card.tile_px)
        for batch in stream_tiles(slide, plan, batch=REQUEST_TILES):
            kept.append(batch.images_BHWC.copy())
            if len(kept) * REQUEST_TILES >= DIRECT_TILES:
                break
    return np.concatenate(kept)[:DIRECT_TILES]


class _Clock:
    """Wall time, and CPU time of this process and all that it started (Triton and its stubs)."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_s()

    def stop(self, tiles: int) -> Cost:
        return Cost(tiles, time.perf_counter() - self._wall, _cpu_s() - self._cpu)


def _cpu_s() -> float:
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
