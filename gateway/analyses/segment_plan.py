"""Which windows of a slide are read for an order's prompts, kept on disk: whoever repeats a step reads the same ones.

Prompts whose levels are read at one resolution share their windows, so that a picture is encoded once for all of them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from gateway.analyses.planned import Planned
from gateway.analyses.prompt_texts import asked
from gateway.analyses.slide_half import SlideTask
from gateway.domain.slide import TileGrid
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import ModelRefused, NoTissue, ResolutionTooCoarse
from gateway.slides import TilePlan, find_tissue
from gateway.slides.windows import WindowPlan, covered_mm2, plan_windows

_FILE = "windows.npz"
_ARRAYS = ("tops_N", "lefts_N", "strips_N", "tissue_N")
_TILE_ARRAYS = ("rows_N", "columns_N", "tissue_N")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentPlan:
    """The windows of one slide: of each resolution that prompts ask for (the card's µm per pixel), the finest first.

    Resolutions that the slide does not have are left out. `read_mm2`: the tissue under the windows and in the region.
    `of` is all that decides the plan.
    """

    windows: Mapping[float, WindowPlan]
    tissue_area_mm2: float
    pen_area_mm2: float
    read_mm2: float
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
        """The task's plan, made where it is not there yet. Raises NoTissue, InvalidOrder (region), PromptInvalid, and
        ResolutionTooCoarse where the slide is too coarse for every prompt."""
        path, of = task.folder / _FILE, _decided_by(task)
        if path.exists() and (plan := cls.load(path)).of == of:
            return plan
        tissue, region = find_tissue(task.slide), task.order.region
        windows: dict[float, WindowPlan] = {}
        coarse: ResolutionTooCoarse | None = None
        for mpp in resolutions(task):
            try:
                windows[mpp] = plan_windows(
                    task.slide,
                    tissue,
                    mpp=mpp,
                    side_px=task.card.tile_px,
                    region=region,
                    min_tissue=task.option("tissue.min_share"),
                )
            except ResolutionTooCoarse as error:
                coarse = error
        if not windows:
            assert coarse is not None
            raise coarse
        read_mm2 = covered_mm2(next(iter(windows.values())), tissue, region)
        if read_mm2 == 0:
            raise NoTissue("There is no tissue in the region of the order. Order one with tissue in it.")
        plan = cls(
            windows=windows,
            tissue_area_mm2=tissue.area_mm2,
            pen_area_mm2=tissue.pen_area_mm2,
            read_mm2=read_mm2,
            of=of,
        )
        plan.save(path)
        return plan

    def save(self, path: Path) -> None:
        """Raises DiskFull, StateError."""
        arrays: dict[str, Any] = {}
        groups = []
        for number, (mpp, plan) in enumerate(self.windows.items()):
            arrays |= {f"{name}-{number}": getattr(plan, name) for name in _ARRAYS}
            arrays |= {f"tiles-{name}-{number}": getattr(plan.tiles, name) for name in _TILE_ARRAYS}
            fields = {
                name: getattr(plan, name)
                for name in ("level", "mpp_x", "mpp_y", "side_px", "field_px", "height_px", "width_px", "digest")
            }
            tiles = {"strip_tiles": plan.tiles.strip_tiles, "frames": plan.tiles.frames, "digest": plan.tiles.digest}
            groups.append({"mpp": mpp, "fields": fields, "grid": asdict(plan.tiles.grid), "tiles": tiles})
        meta = {
            "of": self.of,
            "tissue_area_mm2": self.tissue_area_mm2,
            "pen_area_mm2": self.pen_area_mm2,
            "read_mm2": self.read_mm2,
            "groups": groups,
        }
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as out:
                np.savez(out, meta=json.dumps(meta), **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises StateError."""
        with disk_errors(), np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            windows = {}
            for number, group in enumerate(meta.pop("groups")):
                tiles = TilePlan(
                    grid=TileGrid(**group["grid"]),
                    **{name: data[f"tiles-{name}-{number}"] for name in _TILE_ARRAYS},
                    **group["tiles"],
                )
                arrays = {name: data[f"{name}-{number}"] for name in _ARRAYS}
                windows[float(group["mpp"])] = WindowPlan(**group["fields"], **arrays, tiles=tiles)
            return cls(windows=windows, **meta)


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
