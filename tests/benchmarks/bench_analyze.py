"""A whole `analyze` against the same engine called directly with its tiles in memory, on the same cores.

Warm servers: Triton runs and the models are loaded before the clock starts. The direct engine is ONNX Runtime with the
settings of the served model (one thread a request, as many callers as instances), on the model_repository's own files.
"""

import asyncio
from pathlib import Path

from gateway.analyses.local import case_of
from gateway.analyses.steps import CaseRun
from gateway.archive import Archive, FolderArchive, open_archive
from gateway.domain.order import Order
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from tests.benchmarks.direct import Clock, Cost, Direct, tiles_in_memory
from tests.benchmarks.rows import Row
from tests.support.orthanc import running_orthanc

PROTOCOL, MODEL, PARTS = "tissue-classification", "tissue_classification", ("tile_encoder", "tissue_head")


def measure(work: Path, phantom: Path) -> list[Row]:
    """Rows for a whole analysis from a folder and from Orthanc; the direct engine is measured before and after each."""
    return asyncio.run(_measure(work, phantom))


async def _measure(work: Path, phantom: Path) -> list[Row]:
    settings = Settings(state=work / "state", archive=f"folder:{phantom}")
    repository = ModelRepository(settings.model_repository)
    direct = Direct(repository, PARTS)
    engine = f"{PARTS[0]} {repository.card(PARTS[0]).version.engine_sha256[:12]}"
    tiles_NHWC, _ = tiles_in_memory(repository, MODEL, phantom)
    rows: list[Row] = []
    async with TritonEngine.open(settings, (MODEL,)):  # warm: owns the server for all that follows
        for name, goal, archive in (("folder", 0.90, None), ("Orthanc", 0.80, running_orthanc)):
            before = await asyncio.to_thread(direct.run, tiles_NHWC)
            if archive is None:
                cost = await _analyze(settings, FolderArchive(phantom), work / name)
            else:
                with archive(work / "orthanc") as orthanc:
                    orthanc.upload(phantom)
                    cost = await _analyze(settings, open_archive(orthanc.address), work / name)
            after = await asyncio.to_thread(direct.run, tiles_NHWC)
            floor = (before.tiles_per_s + after.tiles_per_s) / 2
            engine_ms = (before.cpu_ms_per_tile + after.cpu_ms_per_tile) / 2
            label = f"analyze from {name}, {cost.tiles} tiles, {engine}"
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


async def _analyze(settings: Settings, archive: Archive, folder: Path) -> Cost:
    entries = [entry for study in _studies(settings) for entry in archive.find_series(study)]
    order = Order(PROTOCOL, case_of(tuple(entries)))
    # Nobody ordered: there are no identifiers to compare with the slide's.
    run = CaseRun(folder.name.lower(), order, folder, settings=settings, archive=archive, released=None)
    clock = Clock()
    await run.fetch()
    summary = await run.infer()
    await run.report()
    return clock.stop(summary["tiles"])


def _studies(settings: Settings) -> list[str]:
    folder = FolderArchive(Path(settings.archive_address.removeprefix("folder:")))
    return sorted({entry.study for entry in folder.entries()})
