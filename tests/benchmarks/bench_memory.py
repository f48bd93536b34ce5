"""Peak memory of a worker over a small and a sixteen times larger slide: it must not grow with the slide."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from gateway.analyses.local import case_of
from gateway.analyses.steps import CaseRun
from gateway.archive import FolderArchive
from gateway.domain.order import Order
from gateway.inference import TritonEngine
from gateway.operations.settings import Settings
from tests.benchmarks.rows import Row

MODEL = "tissue_classification"


def measure(work: Path, small: Path, large: Path) -> list[Row]:
    """Peak resident memory (MB) of the process that reads the slide and talks to Triton; Triton itself apart."""
    peaks = asyncio.run(_peaks(work, (small, large)))
    return [
        Row("worker's peak memory, 20,000² phantom", peaks[0], "MB", goal=700, lower_is_better=True),
        Row("worker's peak memory, 80,000² phantom", peaks[1], "MB", goal=700, lower_is_better=True),
        Row(
            "worker's peak memory, 80,000² over 20,000²",
            peaks[1],
            "MB",
            "20,000² phantom",
            peaks[1] / peaks[0],
            1.15,
            lower_is_better=True,
        ),
    ]


async def _peaks(work: Path, slides: tuple[Path, ...]) -> list[float]:
    settings = Settings(state=work / "state")
    peaks = []
    async with TritonEngine.open(settings, (MODEL,)):  # the server belongs to this process, not to the measured one
        for slide in slides:
            command = [sys.executable, "-m", "tests.benchmarks.bench_memory", str(work), str(slide)]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            output, _ = await process.communicate()
            if process.returncode != 0:
                raise RuntimeError(f"the measured worker ended with status {process.returncode}")
            peaks.append(json.loads(output)["peak_mb"])
    return peaks


async def _work(work: Path, slide: Path) -> None:
    archive = FolderArchive(slide)
    order = Order("tissue-classification", case_of(archive.entries()))
    settings = Settings(state=work / "state")
    # Nobody ordered: there are no identifiers to compare with the slide's.
    run = CaseRun(slide.name, order, work / f"run-{slide.name}", settings=settings, archive=archive, released=None)
    await run.fetch()
    await run.infer()
    await run.report()


if __name__ == "__main__":
    asyncio.run(_work(Path(sys.argv[1]), Path(sys.argv[2])))
    # VmHWM starts afresh with the program; ru_maxrss begins at the size of the process that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"peak_mb": int(status["VmHWM"].split()[0]) / 1024}))
