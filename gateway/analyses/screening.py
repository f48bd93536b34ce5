"""Protocol `cervical-screening`: what a Papanicolaou smear of the cervix shows, and the cells that say so.

Triton's `smartccs_detect` finds cells in overlapping windows, `smartccs_embed` gives features of the best of each
class, and `smartccs_slide` reads the slide from them; what lies between, and whether a category may be given at all, is
the slide half here. What each model has answered lies on disk: no step is done twice.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from gateway.analyses.intended_use import compare_stain
from gateway.analyses.metrics import CELLS_FOUND, SCREENING_SECONDS
from gateway.analyses.readings import of_pen, reading_of, seen_findings
from gateway.analyses.screening_adequacy import judged
from gateway.analyses.screening_bag import Answers, ask
from gateway.analyses.screening_cells import SlideCells
from gateway.analyses.screening_models import ScreeningModels
from gateway.analyses.screening_pictures import cell_map_of, pictures_of, shown_squares
from gateway.analyses.screening_plan import Screened, ScreeningPlan
from gateway.analyses.screening_result import Evidence, Looked, call, operating_point
from gateway.analyses.screening_site import SiteUsed
from gateway.analyses.screening_stain import stain_of
from gateway.analyses.screening_tiles import DetectedWindows, looks_of
from gateway.analyses.slide_half import Engine, SlideOutcome, SlideTask
from gateway.analyses.specimen import declared
from gateway.domain.report import Finding, FindingKind, SlideReading
from gateway.domain.tables import finding_code
from gateway.operations.errors import RowsOutdated
from gateway.slides import TilePlan, smear_quality
from gateway.slides.grid import tiles_under

_FILE = "bag.npz"
_ENLARGED = 1.02
ACCEPTED_MPP = (0.2, 0.5)
"""Of a scan's finest level: outside, cells may look unlike those that the models have seen, at whatever scale they are
shown to them."""


@dataclass(frozen=True, slots=True, eq=False)
class Screening:
    """What lies on disk of one task: its windows, and its cells as they are and as its site's state shows them."""

    task: SlideTask
    models: ScreeningModels
    screened: Screened
    used: SiteUsed
    windows: DetectedWindows
    plain: SlideCells
    site: SlideCells

    @classmethod
    def of_task(cls, task: SlideTask, used: SiteUsed) -> Self:
        """Raises ModelRefused, ResolutionTooCoarse, InvalidOrder."""
        models, screened = ScreeningModels.of_task(task), Screened.of_task(task)
        looks = looks_of(used.state)
        windows = DetectedWindows(task, screened.windows, models, looks)
        plain = SlideCells(windows, looks[0])
        return cls(task, models, screened, used, windows, plain, SlideCells(windows, looks[1]) if looks[1:] else plain)

    @property
    def looks(self) -> Sequence[SlideCells]:
        return (self.plain,) if self.site is self.plain else (self.plain, self.site)

    @property
    def path(self) -> Path:
        """Of the slide model's answers."""
        return self.task.folder / _FILE

    @property
    def of(self) -> dict[str, str]:
        """All that decides these answers."""
        version = self.models.slide.card.version
        return {
            **{f"{cells.look.name}-{key}": value for cells in self.looks for key, value in cells.belongs_to.items()},
            "state": self.used.state.digest,
            "slide-model": version.name,
            "slide-version": version.version,
            "slide-engine": version.engine_sha256,
        }


class CervicalScreening:
    """The slide half of `cervical-screening`."""

    def plan(self, task: SlideTask) -> ScreeningPlan:
        """Raises ModelRefused, InvalidSetting, ResolutionTooCoarse, InvalidOrder."""
        operating_point(task.card, task.options)  # before a pixel is read
        screened = Screened.of_task(task)
        try:
            used = SiteUsed.of_task(task, ScreeningModels.of_task(task))
        except RowsOutdated:
            return ScreeningPlan(windows=screened.windows)
        screening = Screening.of_task(task, used)
        if not screening.windows.complete:
            return ScreeningPlan(windows=screened.windows)
        # Which cells are cut is known with the detector's answers only: then the frames round them are fetched, too.
        return ScreeningPlan(windows=screened.windows, cells=_tiles_round(screening))

    async def infer(
        self,
        task: SlideTask,
        plan: ScreeningPlan,
        engine: Engine,
        *,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        used = await asyncio.to_thread(lambda: SiteUsed.chosen(task, ScreeningModels.of_task(task)))
        screening = await asyncio.to_thread(Screening.of_task, task, used)
        with _timed("windows"):
            await screening.windows.compute(engine, progress=progress, cancelled=cancelled)
        with _timed("merge"):
            for cells in screening.looks:
                await asyncio.to_thread(getattr, cells, "chosen")  # merged now, not in the loop of events
        with _timed("cells"):
            for cells in screening.looks:
                await cells.embed(engine, cancelled=cancelled)
        if await asyncio.to_thread(Answers.load, screening.path, screening.of) is None:
            with _timed("slide"):
                answers = await ask(screening.models, used.state, screening.plain, screening.site, engine)
            answers.save(screening.path, screening.of)
            CELLS_FOUND.observe(len(screening.plain.found))

    def outcome(self, task: SlideTask) -> SlideOutcome:
        used = SiteUsed.of_task(task, ScreeningModels.of_task(task))
        screening = Screening.of_task(task, used)
        answers = Answers.load(screening.path, screening.of)
        if answers is None:
            raise RowsOutdated(
                "The stored answer of the slide's model does not belong to this analysis: a model was changed while it "
                "ran. It is computed anew."
            )
        smear_NF, quality_NF, missing = screening.windows.seen()
        use = compare_stain(task.specimen, task.slide.header, task.card)
        specimen = declared(task.specimen, task.slide.header, task.specimen_codes)
        reading = reading_of(task, screening.screened.planned, use, None, missing)
        figures = smear_quality.summarise(smear_NF, screening.screened.window_um2, screening.screened.pen_area_mm2)
        level = task.slide.levels[screening.screened.windows.level]
        said = call(
            Evidence(
                task=task,
                level=level,
                scale=level.mpp / screening.screened.windows.mpp,
                use=use,
                specimen=specimen,
                stain=stain_of(quality_NF),
                judged=judged(task, figures),
                site=used,
                adapted=Looked(screening.site.found, screening.site.chosen, answers.adapted),
                unadapted=Looked(screening.plain.found, screening.plain.chosen, answers.unadapted),
            )
        )
        cells = None if said.cells is None else cell_map_of(task, said.cells, screening.screened.windows.tiles)
        return SlideOutcome(
            level=level.index,
            reading=reading,
            findings=(
                *specimen.findings,
                *use.findings,
                *seen_findings(task, reading),
                *_pen_findings(reading, screening.screened.pen_area_mm2),
                *_scale_findings(task, reading),
                *said.findings,
            ),
            screening=said.result,
            cells=cells,
            pictures=pictures_of(task, level, cells, said.gallery),
        )


def _tiles_round(screening: Screening) -> TilePlan:
    """The tiles of the level under all squares that are cut round cells: the encoder's, and those of pictures."""
    task, number = screening.task, screening.screened.windows.level
    level = task.slide.levels[number]
    squares = []
    for cells in screening.looks:
        boxes_N4 = cells.chosen.boxes_N4
        squares += [screening.models.crops.squares(boxes_N4), shown_squares(level, boxes_N4)]
    return tiles_under(task.slide, level, np.concatenate(squares), screening.screened.windows.digest)


def _pen_findings(reading: SlideReading, pen_area_mm2: float) -> Iterator[Finding]:
    """What lies under ink is never read; `seen_findings` says so only where tiles were measured as tissue's are."""
    for key, text in of_pen(pen_area_mm2):
        yield Finding(kind=FindingKind.QUALITY, code=finding_code(key), text=text, series=reading.series)


def _scale_findings(task: SlideTask, reading: SlideReading) -> Iterator[Finding]:
    """Where the scan is finer or coarser than accepted; and where the level is coarser than the detector's resolution,
    so that windows were enlarged."""
    assert reading.level_mpp is not None
    finest, (least, most) = round(task.slide.levels[0].mpp, 3), ACCEPTED_MPP
    if not least <= finest <= most:
        yield Finding(
            kind=FindingKind.QUALITY,
            code=finding_code("scan-scale-outside"),
            text=f"The slide was scanned at {finest:.3f} µm per pixel; from {least:g} to {most:g} is accepted. How "
            "well cells are found in such a scan was not measured.",
            series=reading.series,
        )
    wanted = task.eye.card.mpp
    if reading.level_mpp > wanted * _ENLARGED:
        yield Finding(
            kind=FindingKind.QUALITY,
            code=finding_code("coarser-than-model"),
            text=f"The finest image has {reading.level_mpp:.3f} µm per pixel; cells are looked for at {wanted:g}. It "
            f"was enlarged by {reading.level_mpp / wanted:.2f}.",
            series=reading.series,
        )


@contextmanager
def _timed(stage: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    SCREENING_SECONDS.labels(stage).observe(time.perf_counter() - begun)
