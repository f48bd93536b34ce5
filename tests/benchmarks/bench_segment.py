"""Segmentation by words: a region while somebody waits, and a whole slide against the same engines called directly.

The region has 1,024 × 1,024 pixels at the resolution of nuclei. Its first prompt pays for the frames, the image encoder
and the decoder; a further prompt on it, of other words, for its words and the decoder. Both are asked as a viewer asks
them, JSON included, on regions that nobody has asked for before; Triton is warm.

A whole analysis (fetch, inference, report with its DICOM segmentations) is compared with the image encoder and the
decoder in ONNX Runtime, called directly with the windows in memory, as many at a time and in as many threads.
"""

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from gateway.analyses.batches import IN_FLIGHT, REQUEST_WINDOWS
from gateway.analyses.ledger import Ledger
from gateway.analyses.local import case_of
from gateway.analyses.prompt_texts import text_vectors
from gateway.analyses.slide_half import ServedModel
from gateway.analyses.steps import CaseRun
from gateway.archive import FolderArchive
from gateway.domain.order import Order
from gateway.http.app import create_app
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.auth import ApiKey
from gateway.operations.prompts import parse
from gateway.operations.settings import Settings
from gateway.slides import Slide, find_tissue
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import plan_windows
from tests.benchmarks.direct import Clock, Cost, session
from tests.benchmarks.rows import Row

PROMPT = "nuclei-level nucleus in colon pathology"
FURTHER = (
    "nuclei-level epithelial in colon pathology",
    "nuclei-level inflammatory in colon pathology",
    "nuclei-level spindle in colon pathology",
)
REGIONS, SIDE_PX = 5, 1024
FURTHER_GOAL, SLIDE_GOAL = 0.3, 0.9
_DIRECT_WINDOWS = 256
_KEY = "bench"


def measure(work: Path, phantom: Path) -> list[Row]:
    """The region's rows, then the slide's."""
    settings = Settings(state=work / "state", archive=f"folder:{phantom}", rate_limit=1_000_000)
    settings.state.mkdir(parents=True)
    return asyncio.run(_measure(settings, phantom, work))


async def _measure(settings: Settings, phantom: Path, work: Path) -> list[Row]:
    async with TritonEngine.open(settings, ("pathseg_text", "pathseg")) as engine:
        return [*await _regions(settings, phantom), *await _slide(settings, phantom, work, engine)]


async def _regions(settings: Settings, phantom: Path) -> list[Row]:
    ledger = Ledger.open(settings.ledger_url, settings.state)
    app, context = create_app(settings, ledger, ApiKey.of(_KEY))
    headers = {"Authorization": f"Bearer {_KEY}"}
    first: list[float] = []
    further: list[float] = []
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://bench", headers=headers, timeout=90
        ) as client:
            for number, ask in enumerate(_asks(settings, phantom)):
                seconds = [await _seconds(client, ask | {"prompts": [prompt]}) for prompt in (PROMPT, *FURTHER)]
                if number:  # the first opens the engine
                    first.append(seconds[0])
                    further += seconds[1:]
    finally:
        await asyncio.to_thread(context.service.close)
        ledger.close()
    label = f"segment a region of {SIDE_PX} × {SIDE_PX} pixels"
    first_s, further_s = statistics.median(first), statistics.median(further)
    return [
        Row(f"{label}, first prompt", first_s, "s", lower_is_better=True),
        Row(
            f"{label}, each further prompt",
            further_s,
            "s",
            floor=f"first prompt: {first_s:.2f} s",
            ratio=further_s / first_s,
            goal=FURTHER_GOAL,
            lower_is_better=True,
        ),
    ]


async def _seconds(client: httpx.AsyncClient, ask: dict[str, Any]) -> float:
    began = time.perf_counter()
    answer = await client.post("/v1/segment", json=ask)
    seconds = time.perf_counter() - began
    answer.raise_for_status()
    return seconds


def _asks(settings: Settings, phantom: Path) -> list[dict[str, Any]]:
    """Regions one beside the other from the slide's middle on, and one more to begin with."""
    side_um = SIDE_PX * ModelRepository(settings.model_repository).card("pathseg").mpp
    with Slide.open(sorted(phantom.glob("*.dcm"))) as slide:
        level, header = slide.levels[0], slide.header
    left_um, top_um = level.width_px * level.mpp_x / 3, level.height_px * level.mpp_y / 2
    named = {"study": header.study_uid, "series": header.series_uid}
    return [
        named | {"region": {"x_um": left_um + n * side_um, "y_um": top_um, "width_um": side_um, "height_um": side_um}}
        for n in range(REGIONS + 1)
    ]


async def _slide(settings: Settings, phantom: Path, work: Path, engine: TritonEngine) -> list[Row]:
    repository = ModelRepository(settings.model_repository)
    direct = await _direct(repository, phantom, engine)
    before = await asyncio.to_thread(direct.run)
    cost = await _analyze(settings, phantom, work / "analysis")
    after = await asyncio.to_thread(direct.run)
    floor = (before.tiles_per_s + after.tiles_per_s) / 2
    label = f"segmentation of a whole slide, {cost.tiles} windows, one prompt"
    return [
        Row(label, cost.tiles_per_s, "windows/s", "same engines called directly", cost.tiles_per_s / floor, SLIDE_GOAL)
    ]


async def _analyze(settings: Settings, phantom: Path, folder: Path) -> Cost:
    archive = FolderArchive(phantom)
    order = Order("segmentation", case_of(archive.entries()), prompts=(PROMPT,))
    # Nobody ordered: there are no identifiers to compare with the slide's.
    run = CaseRun(folder.name, order, folder, settings=settings, archive=archive, released=None)
    clock = Clock()
    await run.fetch()
    summary = await run.infer()
    await run.report()
    return clock.stop(summary["tiles"])


async def _direct(repository: ModelRepository, phantom: Path, engine: TritonEngine) -> "_Direct":
    """The steps of the ensemble, the first of the slide's windows, and the prompt's vectors."""
    card = repository.card("pathseg")
    text = ServedModel(
        folder="pathseg_text", card=repository.card("pathseg_text"), contract=repository.contract("pathseg_text")
    )
    texts = await text_vectors(text, [parse(PROMPT)], engine)
    with Slide.open(sorted(phantom.glob("*.dcm"))) as slide:
        plan = plan_windows(slide, find_tissue(slide), mpp=card.mpp, side_px=card.tile_px)
        kept: list[np.ndarray] = []
        for batch in stream_windows(slide, plan, batch=REQUEST_WINDOWS):
            kept.append(batch.images_BHWC)
            if len(kept) * REQUEST_WINDOWS >= _DIRECT_WINDOWS:
                break
    return _Direct(repository, kept, texts.repeated(REQUEST_WINDOWS))


class _Direct:
    """Image encoder and decoder, called by as many threads as an analysis has requests in flight."""

    def __init__(self, repository: ModelRepository, batches: list[np.ndarray], texts: dict[str, np.ndarray]) -> None:
        self._image, self._decoder = (
            session(repository.path / step / repository.served_version(step) / "model.onnx")
            for step in repository.contract("pathseg").steps
        )
        self._batches = batches
        self._texts = texts

    def run(self) -> Cost:
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            list(threads.map(self._one, self._batches[:IN_FLIGHT]))
            clock = Clock()
            list(threads.map(self._one, self._batches))
            return clock.stop(sum(map(len, self._batches)))

    def _one(self, images_BHWC: np.ndarray) -> None:
        names = [output.name for output in self._image.get_outputs()]
        features = dict(zip(names, self._image.run(names, {"image": images_BHWC}), strict=True))
        texts = {name: array[: len(images_BHWC)] for name, array in self._texts.items()}
        self._decoder.run(None, features | texts)
