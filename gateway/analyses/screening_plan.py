"""Which windows of a slide the detector of cells sees, kept on disk: whoever repeats a step reads the same ones.

A slide without tissue has a plan without windows: it is reported as unsatisfactory, not refused.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np

from gateway.analyses.planned import Planned
from gateway.analyses.screening_models import ScreeningModels
from gateway.analyses.slide_half import SlideTask
from gateway.analyses.window_file import arrays_of, plan_of, values_of
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import NoTissue, ResolutionTooCoarse
from gateway.slides import Slide, TilePlan, TissueMask, tissue_and_pen
from gateway.slides.windows import WindowPlan, plan_windows

_FILE = "windows.npz"
_COARSEST_MPP = 0.525
"""A scan at 20×. The detector's own resolution lies between that and a scan at 40×; the finer is reduced to it, the
coarser enlarged."""
LEAST_CELL_UM2 = 64.0
"""Least area of what is looked at: a pixel of the picture in which tissue is found. A cell that lies alone on glass may
be the only abnormal one; discs of 20 µm (300 µm²) cut from CRIC round abnormal cells are found in 99 of 100. Coloured
dust is read with them: at the most, every window of the slide. Noise of compression is none. Of a slide of
cerebrospinal fluid all 576 windows are read, 511 without what is smaller than 2000 µm²; of 100 of a composed slide 85
in place of 82; of one with few cells 6 either way."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Screened:
    """The windows of one slide. `read_um2`: the area that they cover, each place once. `of`: all that decides it."""

    windows: WindowPlan
    tissue_area_mm2: float
    pen_area_mm2: float
    read_um2: float
    of: str

    @property
    def window_um2(self) -> float:
        """What a window stands for of the area that was read: its own where there is none."""
        plan = self.windows
        return self.read_um2 / len(plan) if len(plan) else (plan.side_px * plan.mpp) ** 2

    @property
    def planned(self) -> Planned:
        """The same as what every protocol's reading of a slide is told from: the tiles under the windows."""
        return Planned(
            plan=self.windows.tiles, tissue_area_mm2=self.tissue_area_mm2, pen_area_mm2=self.pen_area_mm2, of=self.of
        )

    @classmethod
    def of_task(cls, task: SlideTask) -> Self:
        """The task's windows, laid where that is not done yet. Raises ResolutionTooCoarse, InvalidOrder (region),
        ModelRefused."""
        path, of = task.folder / _FILE, _decided_by(task)
        if path.exists() and (plan := cls.load(path)) is not None and plan.of == of:
            return plan
        plan = cls._laid(task, of)
        plan.save(path)
        return plan

    @classmethod
    def _laid(cls, task: SlideTask, of: str) -> Self:
        models = ScreeningModels.of_task(task)
        finest = task.slide.levels[0]
        if finest.mpp > _COARSEST_MPP:
            raise ResolutionTooCoarse(
                f"The slide's finest level has {finest.mpp:.3g} µm per pixel; cells are looked for in scans of at most "
                f"{_COARSEST_MPP:g}. Scan the slide at 20× or more, or send its finest level."
            )

        def windows(tissue: TissueMask | None) -> WindowPlan:
            return plan_windows(
                task.slide,
                tissue,
                mpp=task.eye.card.mpp,
                side_px=task.eye.card.tile_px,
                region=task.order.region,
                min_tissue=task.option("tissue.min_share"),
                overlap_px=models.detecting.overlap_px,
            )

        tissue = stained_on(task.slide)
        try:
            laid = windows(tissue)
        except NoTissue:
            laid = _without_windows(windows(None))
        return cls(
            windows=laid,
            tissue_area_mm2=tissue.area_mm2,
            pen_area_mm2=tissue.pen_area_mm2,
            read_um2=_covered_px(laid) * laid.mpp_x * laid.mpp_y,
            of=of,
        )

    def save(self, path: Path) -> None:
        """Raises DiskFull, StateError."""
        meta = {
            "of": self.of,
            "tissue_area_mm2": self.tissue_area_mm2,
            "pen_area_mm2": self.pen_area_mm2,
            "read_um2": self.read_um2,
            "windows": values_of(self.windows),
        }
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as out:
                np.savez(out, meta=json.dumps(meta), **arrays_of(self.windows))

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """None where the file is damaged, or an earlier release wrote it. Raises StateError."""
        try:
            with disk_errors(), path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                meta = json.loads(str(data["meta"]))
                return cls(windows=plan_of(data, meta.pop("windows")), **meta)
        except (EOFError, BadZipFile, LookupError, TypeError, ValueError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScreeningPlan:
    """The `windows` of the detector; and once its cells are known, the tiles under them and round them (`cells`)."""

    windows: WindowPlan
    cells: TilePlan | None = None

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def reads(self) -> tuple[TilePlan, ...]:
        return (self.windows.tiles,) if self.cells is None else (self.windows.tiles, self.cells)


def stained_on(slide: Slide) -> TissueMask:
    """What is stained on a slide, from a single cell on; an area of 0 where nothing is. Raises CorruptFrame,
    TruncatedFile."""
    return tissue_and_pen(slide, LEAST_CELL_UM2 / 1e6)


def _without_windows(plan: WindowPlan) -> WindowPlan:
    """A plan over the same level that reads nothing."""
    none = np.zeros(0, np.int32)
    tiles = replace(plan.tiles.part(none), frames=0)
    nothing = np.zeros(0, np.float32)
    return replace(plan, tops_N=none, lefts_N=none, strips_N=none, tissue_N=nothing, tiles=tiles)


def _covered_px(plan: WindowPlan) -> int:
    """The mask pixels under any window, inside the level."""
    if not len(plan):
        return 0
    edges_y, edges_x = (
        np.unique(np.concatenate([starts, starts + plan.side_px])) for starts in (plan.tops_N, plan.lefts_N)
    )
    covered_YX = np.zeros((len(edges_y) - 1, len(edges_x) - 1), np.bool_)
    for top, left in zip(plan.tops_N, plan.lefts_N, strict=True):
        rows, columns = (
            slice(*np.searchsorted(edges, [start, start + plan.side_px]))
            for edges, start in ((edges_y, top), (edges_x, left))
        )
        covered_YX[rows, columns] = True
    heights, widths = np.diff(edges_y.clip(max=plan.height_px)), np.diff(edges_x.clip(max=plan.width_px))
    return int((covered_YX * heights[:, None] * widths).sum())


def _decided_by(task: SlideTask) -> str:
    region = task.order.region
    return json.dumps(
        {
            "mpp": task.eye.card.mpp,
            "tile_px": task.eye.card.tile_px,
            "overlap_px": ScreeningModels.of_task(task).detecting.overlap_px,
            "min_share": task.option("tissue.min_share"),
            "least_cell_um2": LEAST_CELL_UM2,
            "region": None if region is None else asdict(region),
            "levels": [asdict(level) for level in task.slide.levels],
        },
        sort_keys=True,
    )
