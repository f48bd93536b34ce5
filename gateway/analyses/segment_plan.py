"""Which windows of a slide are read for an order's prompts, kept on disk: whoever repeats a step reads the same ones.

Prompts whose levels are read at one resolution share their windows, so that a picture is encoded once for all of them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np

from gateway.analyses.planned import Planned
from gateway.analyses.prompt_texts import asked
from gateway.analyses.slide_half import SlideTask
from gateway.analyses.window_file import arrays_of, plan_of, values_of
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import ModelRefused, NoTissue, ResolutionTooCoarse
from gateway.slides import TilePlan, find_tissue
from gateway.slides.windows import WindowPlan, covered_mm2, plan_windows

_FILE = "windows.npz"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentPlan:
    """The windows of one slide: of each resolution that prompts ask for (the card's µm per pixel), the finest first.

    `read_mm2`: the tissue under the windows of each, and in the region. `left_out`: why there are no windows of another
    (the error's `reason`). `of` is all that decides the plan.
    """

    windows: Mapping[float, WindowPlan]
    read_mm2: Mapping[float, float]
    left_out: Mapping[float, str]
    tissue_area_mm2: float
    pen_area_mm2: float
    of: str

    def __len__(self) -> int:
        return sum(map(len, self.windows.values()))

    @property
    def reads(self) -> tuple[TilePlan, ...]:
        return tuple(windows.tiles for windows in self.windows.values())

    @property
    def finest(self) -> WindowPlan:
        return next(iter(self.windows.values()))

    @property
    def planned(self) -> Planned:
        """The same as what every protocol's reading of a slide is told from: the tiles under the finest windows."""
        return Planned(
            plan=self.finest.tiles, tissue_area_mm2=self.tissue_area_mm2, pen_area_mm2=self.pen_area_mm2, of=self.of
        )

    @classmethod
    def of_task(cls, task: SlideTask) -> Self:
        """The task's plan, made where it is not there yet. Raises InvalidOrder (region), PromptInvalid, and where no
        prompt can be answered NoTissue, ResolutionTooCoarse."""
        path, of = task.folder / _FILE, _decided_by(task)
        if path.exists() and (plan := cls.load(path)) is not None and plan.of == of:
            return plan
        tissue, region = find_tissue(task.slide), task.order.region
        windows: dict[float, WindowPlan] = {}
        read_mm2: dict[float, float] = {}
        refused: dict[float, NoTissue | ResolutionTooCoarse] = {}
        for mpp in resolutions(task):
            try:
                laid = plan_windows(
                    task.slide,
                    tissue,
                    mpp=mpp,
                    side_px=task.card.tile_px,
                    region=region,
                    min_tissue=task.option("tissue.min_share"),
                )
                area_mm2 = covered_mm2(laid, tissue, region)
                if area_mm2 == 0:
                    raise NoTissue("There is no tissue in the region of the order. Order one with tissue in it.")
            except (NoTissue, ResolutionTooCoarse) as error:
                refused[mpp] = error
            else:
                windows[mpp], read_mm2[mpp] = laid, area_mm2
        if not windows:
            raise next(iter(refused.values()))
        plan = cls(
            windows=windows,
            read_mm2=read_mm2,
            left_out={mpp: error.reason for mpp, error in refused.items()},
            tissue_area_mm2=tissue.area_mm2,
            pen_area_mm2=tissue.pen_area_mm2,
            of=of,
        )
        plan.save(path)
        return plan

    def save(self, path: Path) -> None:
        """Raises DiskFull, StateError."""
        arrays: dict[str, Any] = {}
        groups = []
        for number, (mpp, plan) in enumerate(self.windows.items()):
            arrays |= arrays_of(plan, number)
            groups.append({"mpp": mpp, "read_mm2": self.read_mm2[mpp], **values_of(plan)})
        meta = {
            "of": self.of,
            "tissue_area_mm2": self.tissue_area_mm2,
            "pen_area_mm2": self.pen_area_mm2,
            "left_out": [*self.left_out.items()],
            "groups": groups,
        }
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as out:
                np.savez(out, meta=json.dumps(meta), **arrays)

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """None where the file is damaged, or an earlier release wrote it. Raises StateError."""
        try:
            with disk_errors():
                return cls._loaded(path)
        except (EOFError, BadZipFile, LookupError, TypeError, ValueError):
            return None

    @classmethod
    def _loaded(cls, path: Path) -> Self:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            windows, read_mm2 = {}, {}
            for number, group in enumerate(meta.pop("groups")):
                mpp = float(group["mpp"])
                windows[mpp] = plan_of(data, group, number)
                read_mm2[mpp] = float(group["read_mm2"])
            left_out = {float(mpp): reason for mpp, reason in meta.pop("left_out")}
            return cls(windows=windows, read_mm2=read_mm2, left_out=left_out, **meta)


def resolutions(task: SlideTask) -> tuple[float, ...]:
    """The resolutions that the order's prompts are answered at, finest first. Raises ModelRefused, PromptInvalid."""
    by_level = task.card.mpp_by_level
    if not by_level:
        raise ModelRefused(
            f"The model {task.models[-1].folder} does not say at which resolution it answers. Promote another version."
        )
    return tuple(sorted({by_level[each.triple.level] for each in asked(task.order.prompts, task.card)}))


def _decided_by(task: SlideTask) -> str:
    region = task.order.region
    return json.dumps(
        {
            "mpp": resolutions(task),
            "tile_px": task.card.tile_px,
            "min_share": task.option("tissue.min_share"),
            "region": None if region is None else asdict(region),
            "levels": [asdict(level) for level in task.slide.levels],
        },
        sort_keys=True,
    )
