"""Which tiles of a slide are read, kept on disk: whoever repeats a step reads the same ones."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from gateway.analyses.slide_half import SlideTask
from gateway.domain.slide import TileGrid
from gateway.operations.disk import disk_errors, written_whole
from gateway.slides import TilePlan, find_tissue, plan_tiles

_FILE = "plan.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The plan of one slide as it lies on disk. `of` is all that decides it: what model and order ask for, and the
    slide's levels."""

    plan: TilePlan
    tissue_area_mm2: float
    pen_area_mm2: float
    of: str

    @classmethod
    def of_task(cls, task: SlideTask) -> Self:
        """The task's plan, made where it is not there yet: find the tissue, lay the grid. Raises NoTissue,
        ResolutionTooCoarse."""
        path, of = task.folder / _FILE, _decided_by(task)
        if path.exists() and (planned := cls.load(path)).of == of:
            return planned
        tissue = find_tissue(task.slide)
        plan = plan_tiles(
            task.slide,
            tissue,
            mpp=task.eye.card.mpp,
            tile_px=task.eye.card.tile_px,
            min_tissue=task.option("tissue.min_share"),
            region=task.order.region,
        )
        made = cls(plan=plan, tissue_area_mm2=tissue.area_mm2, pen_area_mm2=tissue.pen_area_mm2, of=of)
        made.save(path)
        return made

    def save(self, path: Path) -> None:
        plan = self.plan
        meta = {
            "of": self.of,
            "tissue_area_mm2": self.tissue_area_mm2,
            "pen_area_mm2": self.pen_area_mm2,
            "grid": asdict(plan.grid),
            "strip_tiles": plan.strip_tiles,
            "frames": plan.frames,
            "digest": plan.digest,
        }
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as out:
                np.savez(out, meta=json.dumps(meta), rows=plan.rows_N, columns=plan.columns_N, tissue=plan.tissue_N)

    @classmethod
    def load(cls, path: Path) -> Self:
        with disk_errors(), np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            plan = TilePlan(
                grid=TileGrid(**meta["grid"]),
                rows_N=data["rows"],
                columns_N=data["columns"],
                tissue_N=data["tissue"],
                strip_tiles=meta["strip_tiles"],
                frames=meta["frames"],
                digest=meta["digest"],
            )
            return cls(
                plan=plan,
                tissue_area_mm2=meta["tissue_area_mm2"],
                pen_area_mm2=meta.get("pen_area_mm2", 0.0),  # none in what an earlier release wrote
                of=meta["of"],
            )


def _decided_by(task: SlideTask) -> str:
    region = task.order.region
    return json.dumps(
        {
            "mpp": task.eye.card.mpp,
            "tile_px": task.eye.card.tile_px,
            "min_share": task.option("tissue.min_share"),
            "region": None if region is None else asdict(region),
            "levels": [asdict(level) for level in task.slide.levels],
        },
        sort_keys=True,
    )
