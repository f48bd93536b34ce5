"""Cervical screening: the engines' part in its time, what each stage takes, and whether the cost follows the tissue.

    python -m tests.benchmarks.bench_screening [--full]

Rates and stages are of a slide composed of public fields (a phantom where there are none), with `--full` of one of
28,000 pixels a side; cost and memory of three phantoms, whose tissue is known, and as 1 : 2 : 4. Each is
analysed in a process of its own beside a Triton that is warm.

The floor is the raw rate of the same engines in the same Triton: requests of the same size, as many in flight, with
their pictures in memory and nothing done beside. It is measured before and after each slide; costs are compared in
the engine's own time, so that they do not drift with the machine. A stage's time is all of it: from before the first
frame is read for it until the last answer is on disk, the engine waiting for its first pictures included.
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from gateway.analyses.protocols import protocol_named
from gateway.analyses.screening_cells import MOST_CELLS
from gateway.analyses.screening_tiles import IN_FLIGHT, MOST_WINDOWS
from gateway.domain.codes import Code
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from gateway.slides import Slide, find_tissue
from gateway.slides.phantom import PhantomTruth, write_phantom
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import plan_windows
from tests.benchmarks.bench_triton import through
from tests.benchmarks.rows import TRAINING_PYTHON, Row, publish
from tests.benchmarks.screened_slide import PROTOCOL, STAGES, Taken

SIDE_PX, FULL_PX = 9_000, 28_000
PHANTOMS_PX = (5_000, 7_072, 10_000)
RATE_GOAL, LINEAR_GOAL, MEMORY_GOAL = 0.9, 1.1, 1.2
_MODELS = protocol_named(PROTOCOL).models
_WINDOWS, _CELLS = 64, 256
"""Pictures of one measurement of the raw rates."""
_LEAST_CELLS = 32
"""With fewer, nothing is said of the encoder's rate."""
_ROOT = Path(__file__).resolve().parents[2]
_CERVIX = Code("71252005", "SCT", "Cervix")


@dataclass(frozen=True, slots=True)
class Raw:
    """Pictures a second of the engines alone."""

    windows_per_s: float
    cells_per_s: float

    @classmethod
    def mean(cls, each: Sequence["Raw"]) -> Self:
        windows, cells = (
            sum(values) / len(each)
            for values in zip(*((raw.windows_per_s, raw.cells_per_s) for raw in each), strict=True)
        )
        return cls(windows, cells)


def are_served() -> bool:
    """Whether the model repository holds what is measured."""
    return all((Settings().model_repository / model).is_dir() for model in _MODELS)


def measure(work: Path, *, full: bool = False) -> list[Row]:
    """The rows; with `full` rates and stages are of a slide of FULL_PX."""
    work.mkdir(parents=True, exist_ok=True)
    label, slide = _slide(work / "slide", FULL_PX if full else SIDE_PX)
    folders = [work / f"phantom-{side}" for side in PHANTOMS_PX]
    areas_mm2 = [_phantom(*phantom).tissue_area_mm2 for phantom in zip(folders, PHANTOMS_PX, strict=True)]
    taken, raws = asyncio.run(measured(Settings(state=work / "state"), [slide, *folders], work))
    return [*rates_of(label, taken[0], Raw.mean(raws[:2])), *costs_of(areas_mm2, taken[1:], raws[1:])]


def rates_of(label: str, taken: Taken, raw: Raw) -> list[Row]:
    """What is said of one slide: its rates against the engines' raw ones, and its stages."""
    rows = [
        Row(
            f"screening detector rate, {taken.windows} windows, figures measured and {taken.frames} frames decoded",
            taken.windows_per_s,
            "windows/s",
            f"raw through Triton: {raw.windows_per_s:.1f}",
            taken.windows_per_s / raw.windows_per_s,
            RATE_GOAL,
        )
    ]
    if taken.cells >= _LEAST_CELLS:
        rows.append(
            Row(
                f"screening encoder rate, {taken.cells} cells, cut from the slide",
                taken.cells_per_s,
                "cells/s",
                f"raw through Triton: {raw.cells_per_s:.1f}",
                taken.cells_per_s / raw.cells_per_s,
                RATE_GOAL,
            )
        )
    else:
        print(f"the encoder's rate is not measured: {taken.cells} cells were found", file=sys.stderr)
    rows.append(Row(f"screening whole analysis, {label}", taken.whole_s, "s"))
    rows.append(Row(f"screening peak memory, {label}", taken.peak_mb, "MB"))
    return rows + [Row(f"screening whole analysis: {stage}", taken.stages_s[stage], "s") for stage in STAGES]


def costs_of(areas_mm2: Sequence[float], taken: Sequence[Taken], raws: Sequence[Raw]) -> list[Row]:
    """How cost and memory grow with the tissue of slides, smallest first; each was measured between two raw rates."""
    around = [Raw.mean(pair) for pair in itertools.pairwise(raws)]
    first, last = taken[0], taken[-1]
    # In windows that the engine would have answered meanwhile.
    costs = [each.whole_s * beside.windows_per_s for each, beside in zip(taken, around, strict=True)]
    windows = [each.windows for each in taken]
    further = [
        (after - before) / (more - fewer)
        for (before, after), (fewer, more) in zip(itertools.pairwise(costs), itertools.pairwise(windows), strict=True)
    ]
    return [
        Row(
            f"screening cost linear in tissue: a mm² of {areas_mm2[-1]:.1f}, {windows[-1]} windows",
            last.whole_s / areas_mm2[-1],
            "s/mm²",
            f"of {areas_mm2[0]:.1f} mm²: {first.whole_s / areas_mm2[0]:.2f}",
            costs[-1] / areas_mm2[-1] / (costs[0] / areas_mm2[0]),
            LINEAR_GOAL,
            lower_is_better=True,
        ),
        Row(
            f"screening cost of each window beyond {windows[-2]}",
            1000 * further[-1] / around[-1].windows_per_s,
            "ms",
            f"beyond {windows[0]} windows",
            further[-1] / further[0],
            lower_is_better=True,
        ),
        Row(
            f"screening peak memory, tissue of {areas_mm2[-1]:.1f} mm²",
            last.peak_mb,
            "MB",
            f"of {areas_mm2[0]:.1f} mm²: {first.peak_mb:.0f}",
            last.peak_mb / first.peak_mb,
            MEMORY_GOAL,
            lower_is_better=True,
        ),
    ]


async def measured(settings: Settings, slides: Sequence[Path], work: Path) -> tuple[list[Taken], list[Raw]]:
    """Each slide's analysis, and the raw rates before the first and after each."""
    windows, cells = await asyncio.to_thread(_requests, settings, slides[0])
    # The server belongs to this process, not to the measured ones.
    async with TritonEngine.open(settings, _MODELS) as engine:
        await _raw(engine, windows, cells)
        taken, raws = list[Taken](), [await _raw(engine, windows, cells)]
        for slide in slides:
            taken.append(await _screened(settings, slide, work / f"run-{len(taken)}"))
            raws.append(await _raw(engine, windows, cells))
    return taken, raws


async def _raw(engine: TritonEngine, windows: list[np.ndarray], cells: list[np.ndarray]) -> Raw:
    detector, encoder, _ = _MODELS
    rates = []
    for model, work in ((detector, windows), (encoder, cells)):
        start = time.perf_counter()
        await through(engine, model, work, IN_FLIGHT)
        rates.append(sum(map(len, work)) / (time.perf_counter() - start))
    return Raw(*rates)


async def _screened(settings: Settings, slide: Path, folder: Path) -> Taken:
    command = [sys.executable, "-m", "tests.benchmarks.screened_slide", str(slide), str(folder)]
    environment = {"PATHSERVE_STATE": str(settings.state), "PATHSERVE_MODEL_REPOSITORY": str(settings.model_repository)}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, cwd=_ROOT, env=os.environ | environment
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the measured analysis ended with status {process.returncode}")
    return Taken(**json.loads(output.splitlines()[-1]))


def _requests(settings: Settings, folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As an analysis sends them: windows of a slide, and pieces of these as large as cells are cut."""
    repository = ModelRepository(settings.model_repository)
    detector, encoder = (repository.card(model) for model in _MODELS[:2])
    assert detector.detector is not None
    windows: list[np.ndarray] = []
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        plan = plan_windows(
            slide,
            find_tissue(slide),
            mpp=detector.mpp,
            side_px=detector.tile_px,
            overlap_px=detector.detector.overlap_px,
        )
        for batch in stream_windows(slide, plan, batch=MOST_WINDOWS):
            windows.append(batch.images_BHWC)
            if len(windows) * MOST_WINDOWS >= _WINDOWS:
                break
    side = encoder.tile_px
    whole = np.concatenate(windows)
    pieces = [
        whole[window, top : top + side, left : left + side]
        for top, left in itertools.product(range(0, detector.tile_px - side + 1, side), repeat=2)
        for window in range(len(whole))
    ]
    return windows, [np.stack(pieces[start : start + MOST_CELLS]) for start in range(0, _CELLS, MOST_CELLS)]


def _slide(folder: Path, side_px: int) -> tuple[str, Path]:
    """What it is, and its folder: composed where the public data are there."""
    command = ["training.smartccs.compose", "--part", "test", "--class", "LSIL", "--seed", "1"]
    composing = [str(TRAINING_PYTHON), "-m", *command, "--size-px", str(side_px), "--out", str(folder)]
    if TRAINING_PYTHON.exists() and subprocess.run(composing, stdout=sys.stderr, cwd=_ROOT).returncode == 0:
        return f"composed slide of {side_px:,}²", next(folder.glob("slide-*"))
    _phantom(folder, side_px)
    return f"phantom of {side_px:,}²", folder


def _phantom(folder: Path, side_px: int) -> PhantomTruth:
    kind = {"coverage": 0.6, "organ": _CERVIX}
    return write_phantom(folder, kind="cytology", width_px=side_px, height_px=side_px, mpp=0.25, seed=1, **kind)


def main() -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_screening")
    parser.add_argument("--full", action="store_true", help=f"rates and stages of a slide of {FULL_PX:,} pixels a side")
    full = parser.parse_args().full
    if not are_served():
        print(f"The model repository does not hold {', '.join(_MODELS)}: nothing is measured.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="pathserve-bench-") as folder:
        publish(measure(Path(folder), full=full), _ROOT / "build" / "bench-screening.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
