"""What the fit of a site takes from one slide, seen as it is or with the site's colours mapped; and its file.

A fit looks at dozens of slides twice. What it has of a slide is kept in its work folder, so that one that was
interrupted goes on where it stopped, and nothing computed with another engine, map or slide is ever used.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses.kept_arrays import kept
from gateway.analyses.screening_adequacy import judged
from gateway.analyses.screening_cells import SlideCells
from gateway.analyses.screening_models import ScreeningModels
from gateway.analyses.screening_plan import Screened, ScreeningPlan, stained_on
from gateway.analyses.screening_stain import said_of, stain_of
from gateway.analyses.screening_tiles import DetectedWindows, Look
from gateway.analyses.slide_half import Engine, SlideTask
from gateway.domain.bethesda import ABNORMAL
from gateway.domain.tables import finding_code
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import NoTissue, SlideError, StateError
from gateway.slides import Slide, TilePlan, smear_quality, stream_tiles
from gateway.slides.grid import tiles_under
from gateway.slides.site_colour import Counts, counted
from gateway.slides.site_state import Features

_TILES = 32


class StainNotPapanicolaou(SlideError):
    """A slide whose colours are those of another stain: a site is not fitted to it."""

    reason, title = "stain-not-papanicolaou", "The stain is not Papanicolaou's"


class StainColourless(SlideError):
    """A slide that has hardly any colour, so that nobody knows its stain: a site is not fitted to it."""

    reason, title = "stain-colourless", "The slide has no colour"


class SmearUnsatisfactory(SlideError):
    """A slide that screening would not judge, for another reason than how little lies on it: its cells would shift a
    site's moments by what hides or spoils them."""

    reason, title = "smear-unsatisfactory", "The smear is unsatisfactory"


_AMOUNT = {finding_code(f"unsatisfactory-{key}") for key in ("few-cells", "empty")}
"""Reasons against a slide that say how little is on it: what is there may be counted."""
_REFUSALS: dict[str, type[SlideError]] = {each.reason: each for each in (StainNotPapanicolaou, StainColourless)}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SeenSlide:
    """What is held of a slide that was seen: all but its cells, which lie in the file `path`. `cells`: how many;
    `detected`, `counts_3V`, `stain_measured`: as `Seen` has them."""

    path: Path
    of: Mapping[str, object]
    cells: int
    detected: tuple[int, ...]
    counts_3V: Counts
    stain_measured: bool

    def seen(self) -> "Seen":
        """With its cells. Raises StateError where they are not there any more."""
        seen = Seen.load(self.path, self.of)
        if seen is None:
            raise StateError("What a fit has seen of a slide is gone from its work folder. Fit the site again.")
        return seen


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Seen:
    """One slide. `features_ND`, `scores_N` (0..1, the detector's): the cells of its bag; `detected_6`: how many cells
    the detector found of each abnormal class; `counts_3V`: the values of the pixels under its tissue;
    `stain_measured`: whether its colours were found to be Papanicolaou's (else too little is stained to tell)."""

    features_ND: Features
    scores_N: npt.NDArray[np.float64]
    detected_6: npt.NDArray[np.int64]
    counts_3V: Counts
    stain_measured: bool

    def save(self, path: Path, of: Mapping[str, object]) -> None:
        """Keep it, whole or not at all. `of`: all that decides it. Raises DiskFull, StateError."""
        with disk_errors():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with written_whole(path) as out:
                np.savez(
                    out,
                    of=json.dumps(of, sort_keys=True),
                    features=self.features_ND,
                    scores=self.scores_N,
                    detected=self.detected_6,
                    counts=self.counts_3V,
                    stain_measured=self.stain_measured,
                )

    def held(self, path: Path, of: Mapping[str, object]) -> SeenSlide:
        """What is held of it once it was saved there."""
        return SeenSlide(
            path=path,
            of=of,
            cells=len(self.features_ND),
            detected=tuple(self.detected_6.tolist()),
            counts_3V=self.counts_3V,
            stain_measured=self.stain_measured,
        )

    @classmethod
    def load(cls, path: Path, of: Mapping[str, object]) -> "Seen | None":
        """What was kept of exactly this; None where nothing was. Raises StateError."""

        def read(data: Mapping[str, npt.NDArray[Any]]) -> Seen | None:
            if str(data["of"]) != json.dumps(of, sort_keys=True):
                return None
            return cls(
                features_ND=data["features"],
                scores_N=data["scores"],
                detected_6=data["detected"],
                counts_3V=data["counts"],
                stain_measured=bool(data["stain_measured"]),
            )

        return kept(path, read)


def reads_of(task: SlideTask, look: Look) -> ScreeningPlan:
    """What is read of a slide for a look: the detector's windows and, once these are done, what lies under the cells.

    Raises SlideError (NoTissue where there is nothing to read), ModelRefused.
    """
    windows = _windows(task, look)
    if not windows.complete:
        return ScreeningPlan(windows=windows.plan)
    squares_N4 = windows.models.crops.squares(SlideCells(windows, look).chosen.boxes_N4)
    level = task.slide.levels[windows.plan.level]
    return ScreeningPlan(windows=windows.plan, cells=tiles_under(task.slide, level, squares_N4, windows.plan.digest))


async def see(task: SlideTask, look: Look, engine: Engine, *, cancelled: Callable[[], bool]) -> Seen:
    """One look at a slide by the detector and the encoder, continuing after the rows in the task's folder; the pixels
    under its tissue are counted where no colours are mapped.

    Raises SlideError (StainNotPapanicolaou, StainColourless, SmearUnsatisfactory), ModelRefused, InferenceError,
    DiskFull, Cancelled, FramesNotFetched (some under its cells are not there yet: `reads_of` names them now).
    """
    windows = _windows(task, look)
    await windows.compute(engine, progress=lambda done: None, cancelled=cancelled)
    smear_NF, quality_NF, _ = windows.seen()
    stain = said_of(stain_of(quality_NF))
    if stain is not None and stain.refused:
        raise _REFUSALS[stain.key](stain.text)
    screened = Screened.of_task(task)
    figures = smear_quality.summarise(smear_NF, screened.window_um2, screened.pen_area_mm2)
    if against := [finding.text for finding in judged(task, figures).findings if finding.code not in _AMOUNT]:
        raise SmearUnsatisfactory(" ".join(against))
    cells = SlideCells(windows, look)
    found = await asyncio.to_thread(lambda: cells.found)
    await cells.embed(engine, cancelled=cancelled)
    counts: Counts = np.zeros((3, 256), np.int64)
    if look.colour is None:
        counts = await asyncio.to_thread(tissue_counts, task.slide, windows.plan.tiles)
    return Seen(
        features_ND=cells.features(),
        scores_N=cells.chosen.scores_N,
        detected_6=np.bincount(found.classes_N, minlength=len(ABNORMAL)),
        counts_3V=counts,
        stain_measured=stain is None,
    )


def _windows(task: SlideTask, look: Look) -> DetectedWindows:
    windows = Screened.of_task(task).windows
    if not len(windows):
        raise NoTissue("No tissue was found on the slide.")
    return DetectedWindows(task, windows, ScreeningModels.of_task(task), (look,))


def tissue_counts(slide: Slide, tiles: TilePlan) -> Counts:
    """The values of the slide's pixels that lie under what is stained and under these tiles, each pixel of them once.

    Raises CorruptFrame, TruncatedFile, FramesNotFetched.
    """
    tissue, grid = stained_on(slide), tiles.grid
    level = slide.levels[grid.level]
    height, width = tissue.mask.shape
    across, down = (mpp * grid.field_px / tissue.um_per_px for mpp in (level.mpp_x, level.mpp_y))
    steps = (np.arange(grid.tile_px) + 0.5) / grid.tile_px
    total: Counts = np.zeros((3, 256), np.int64)
    for batch in stream_tiles(slide, tiles, batch=_TILES):
        for number, image_HWC in enumerate(batch.images_BHWC, batch.start):
            rows = ((tiles.rows_N[number] + steps) * down).astype(np.int64)
            columns = ((tiles.columns_N[number] + steps) * across).astype(np.int64)
            # What reaches beyond the slide is no tissue.
            within = (rows < height)[:, None] & (columns < width)
            where = tissue.mask[np.minimum(rows, height - 1)[:, None], np.minimum(columns, width - 1)] & within
            total += counted(image_HWC, where)
    return total


def slide_facts(slide: Slide) -> dict[str, object]:
    """What tells whether a slide is still the one that was seen."""
    return {"series": slide.header.series_uid, "levels": [asdict(level) for level in slide.levels]}
