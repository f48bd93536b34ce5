"""One slide through `cervical-screening` beside a Triton that runs already: what each stage took, as a line of JSON.

    python -m tests.benchmarks.screened_slide SLIDE FOLDER

In a process of its own, so that its peak memory is the analysis's. State and models are those of the environment.
"""

import asyncio
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.analyses.local import case_of
from gateway.analyses.metrics import SCREENING_SECONDS
from gateway.analyses.steps import CaseRun
from gateway.archive import FolderArchive
from gateway.domain.order import Order
from gateway.operations.settings import Settings
from gateway.slides.metrics import FRAMES_DECODED

PROTOCOL = "cervical-screening"
STAGES = ("fetch", "start", "windows", "merge", "cells", "slide", "report")
"""In order. `fetch` finds the tissue and lays the windows, too; `start` is what of the inference is none of the four
stages that follow: the slide is opened, and Triton found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """An analysis of one slide. `stages_s`: seconds by STAGES; `frames`: decoded, each time that one was; `cells`: that
    the encoder was given; `peak_mb`: resident memory of the process, at its highest."""

    windows: int
    cells: int
    frames: int
    stages_s: dict[str, float]
    peak_mb: float

    @property
    def whole_s(self) -> float:
        return sum(self.stages_s.values())

    @property
    def windows_per_s(self) -> float:
        return self.windows / self.stages_s["windows"]

    @property
    def cells_per_s(self) -> float:
        return self.cells / self.stages_s["cells"]


async def screened(settings: Settings, slide: Path, folder: Path) -> Taken:
    """Fetch, infer and report, with what the gateway itself says of its stages. Once in a process: it counts for all
    its life."""
    archive = FolderArchive(slide)
    order = Order(PROTOCOL, case_of(archive.entries()))
    # Nobody ordered: there are no identifiers to compare with the slide's.
    run = CaseRun(folder.name, order, folder, settings=settings, archive=archive, released=None)
    at_s = [time.perf_counter()]
    await run.fetch()
    at_s.append(time.perf_counter())
    windows = int((await run.infer())["tiles"])
    at_s.append(time.perf_counter())
    await run.report()
    at_s.append(time.perf_counter())
    fetch_s, infer_s, report_s = (after - before for before, after in itertools.pairwise(at_s))
    inferred_s = {stage: _seconds(stage) for stage in STAGES[2:-1]}
    report = json.loads((run.artifacts / "report.json").read_text())
    [result] = report["screenings"]
    return Taken(
        windows=windows,
        cells=result["bag"],
        frames=int(FRAMES_DECODED.collect()[0].samples[0].value),
        stages_s={
            "fetch": fetch_s,
            "start": infer_s - sum(inferred_s.values()),
            **inferred_s,
            "report": report_s,
        },
        peak_mb=_peak_mb(),
    )


def _seconds(stage: str) -> float:
    """What the gateway's own metric says of a stage."""
    return next(
        sample.value
        for metric in SCREENING_SECONDS.collect()
        for sample in metric.samples
        if sample.name.endswith("_sum") and sample.labels["stage"] == stage
    )


def _peak_mb() -> float:
    # VmHWM starts afresh with the program; ru_maxrss begins at the size of the process that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    slide, folder = map(Path, sys.argv[1:])
    print(json.dumps(asdict(asyncio.run(screened(Settings(), slide, folder)))))
