"""Figures of the frame pipeline: its speed over bare JPEG decoding, and its memory on a small and a large slide."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg

from gateway.slides import Slide, TilePlan, find_tissue, plan_tiles, stream_tiles
from gateway.slides.grid import frames_under
from gateway.slides.phantom import write_phantom

_SMALL_PX, _LARGE_PX = 20_000, 80_000
_BATCH, _REPEATS = 64, 7
_WORKERS = min(4, os.cpu_count() or 1)

# Runs in a process of its own: the peak of resident memory belongs to a process. Read from VmHWM, which starts afresh
# with the program; ru_maxrss begins at the size of the process that started it.
_STREAM = """
import sys
from pathlib import Path
from gateway.slides import Slide, find_tissue, plan_tiles, stream_tiles
with Slide.open(sorted(Path(sys.argv[1]).glob("*.dcm"))) as slide:
    plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
    tiles = sum(len(batch.images_BHWC) for batch in stream_tiles(slide, plan, batch=64, workers=int(sys.argv[2])))
assert tiles == len(plan)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def measure() -> list[dict[str, object]]:
    """The rows of this file, measured now; phantoms are written to a temporary folder (1 GB) and removed."""
    with tempfile.TemporaryDirectory(prefix="bench-frames-") as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        write_phantom(small, width_px=_SMALL_PX, height_px=_SMALL_PX, seed=1)
        pipeline, floor = _speed(small)
        write_phantom(large, width_px=_LARGE_PX, height_px=_LARGE_PX, seed=1)
        small_mb, large_mb = _peak_mb(small), _peak_mb(large)
    return [
        {
            "name": f"frame pipeline alone, {_WORKERS} threads",
            "value": pipeline,
            "unit": "frames/s",
            "floor": f"simplejpeg, the same frames in memory: {floor:.0f}",
            "ratio": pipeline / floor,
            "goal": 0.85,
            "lower_is_better": False,
        },
        {
            "name": f"peak memory of a bare stream, {_LARGE_PX:,}² pixels",
            "value": large_mb,
            "unit": "MB",
            "floor": f"{_SMALL_PX:,}² pixels: {small_mb:.0f}",
            "ratio": large_mb / small_mb,
            "goal": 1.15,
            "lower_is_better": True,
        },
    ]


def _speed(folder: Path) -> tuple[float, float]:
    """Frames per second of the pipeline and of decoding alone: medians of runs that take turns, files warm."""
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
        frames = encoded_frames(slide, plan)
        runs = [(_seconds(lambda: stream(slide, plan)), _seconds(lambda: decode(frames))) for _ in range(_REPEATS + 1)][
            1:
        ]
    pipeline, floor = (statistics.median(column) for column in zip(*runs, strict=True))
    return plan.frames / pipeline, len(frames) / floor


def encoded_frames(slide: Slide, plan: TilePlan) -> list[bytes]:
    """The frames that the plan needs, as they lie in the file."""
    image = slide.image(plan.grid.level)
    chosen = np.zeros((plan.grid.rows, plan.grid.columns), np.bool_)
    chosen[plan.rows_N, plan.columns_N] = True
    numbers = np.sort(image.frame_at_RC[frames_under(image, plan.grid, chosen)])
    return [bytes(frame) for frame in image.read_frames(numbers.tolist())]


def stream(slide: Slide, plan: TilePlan, workers: int = _WORKERS) -> None:
    for _ in stream_tiles(slide, plan, batch=_BATCH, workers=workers):
        pass


def decode(frames: list[bytes], workers: int = _WORKERS) -> None:
    """Decode all frames and drop them, on the same number of threads, eight to a task as in the pipeline."""

    def task(start: int) -> None:
        for frame in frames[start : start + 8]:
            simplejpeg.decode_jpeg(frame, colorspace="RGB")

    with ThreadPoolExecutor(max_workers=workers) as pool:
        for _ in pool.map(task, range(0, len(frames), 8)):
            pass


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak_mb(folder: Path) -> float:
    command = [sys.executable, "-c", _STREAM, str(folder), str(_WORKERS)]
    root = Path(__file__).parents[2]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)


if __name__ == "__main__":
    for row in measure():
        print(f"{row['name']}: {row['value']:.0f} {row['unit']}, ratio {row['ratio']:.3f} (goal {row['goal']})")
