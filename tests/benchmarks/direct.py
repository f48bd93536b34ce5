"""The floor of the engines' rows: served graphs in ONNX Runtime, called directly, with their tiles in memory."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

from gateway.analyses.batches import IN_FLIGHT, REQUEST_TILES
from gateway.inference import ModelRepository
from gateway.slides import Slide, find_tissue, plan_tiles, stream_tiles

_TILES = 1536


def session(file: Path) -> onnxruntime.InferenceSession:
    """As one instance of a served model runs it: one thread, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options)


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


class Clock:
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


class Direct:
    """Served graphs, each fed what the one before it gives, called by as many threads as Triton has instances."""

    def __init__(self, repository: ModelRepository, models: tuple[str, ...]) -> None:
        self._sessions = [
            session(repository.path / model / repository.served_version(model) / "model.onnx") for model in models
        ]

    def _one(self, array: np.ndarray) -> None:
        for graph in self._sessions:
            array = graph.run(None, {graph.get_inputs()[0].name: array})[0]

    def run(self, tiles_NHWC: np.ndarray) -> Cost:
        batches = [tiles_NHWC[n : n + REQUEST_TILES] for n in range(0, len(tiles_NHWC), REQUEST_TILES)]
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            list(threads.map(self._one, batches[:IN_FLIGHT]))
            clock = Clock()
            list(threads.map(self._one, batches))
            return clock.stop(len(tiles_NHWC))


def tiles_in_memory(repository: ModelRepository, model: str, phantom: Path) -> tuple[np.ndarray, int]:
    """The first of a slide's tiles (N,tile_px,tile_px,3) as the model takes them, and the number of all of them."""
    card = repository.card(model)
    kept: list[np.ndarray] = []
    with Slide.open(sorted(phantom.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=card.mpp, tile_px=card.tile_px)
        for batch in stream_tiles(slide, plan, batch=REQUEST_TILES):
            kept.append(batch.images_BHWC.copy())
            if len(kept) * REQUEST_TILES >= _TILES:
                break
    return np.concatenate(kept)[:_TILES], len(plan)
