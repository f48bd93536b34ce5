"""Protocol `tissue-classification`: what tissue is where on an H&E slide.

Triton answers per tile (`tissue_classification`: image UINT8 [B,224,224,3] -> logits FP32 [B,C]); the slide half here
plans the tiles, adds the answers up to areas and shares per class, picks the evidence and draws the map.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gateway.analyses import tiles
from gateway.analyses.batches import REQUEST_TILES, run_batches
from gateway.analyses.intended_use import Use, compare
from gateway.analyses.slide_half import Engine, SlideOutcome, SlideTask
from gateway.analyses.tiles import TileStore
from gateway.domain.model import Label, ModelCard, OperatingPoint
from gateway.domain.report import (
    BoxPx,
    Evidence,
    Finding,
    FindingKind,
    SlideReading,
    TissueClass,
    TissueResult,
)
from gateway.domain.slide import Level, TileGrid
from gateway.domain.tables import finding_code
from gateway.operations.disk import disk_errors, written_whole
from gateway.reports import UNCERTAIN, TileMap, thumbnail_jpeg, tissue_map
from gateway.slides import Slide, TilePlan, find_tissue, plan_tiles, stream_tiles

EVIDENCE_PER_CLASS = 3
MOSTLY_UNCERTAIN = 0.5
COARSER_TOLERANCE = 1.02
THUMBNAIL_PX = 1024
PLAN, TILES = "plan.npz", "tiles.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """The plan of one slide as it lies on disk. `of` is all that decides it: what model and order ask for, and the
    slide's levels."""

    plan: TilePlan
    tissue_area_mm2: float
    of: str

    def save(self, path: Path) -> None:
        plan = self.plan
        meta = {
            "of": self.of,
            "tissue_area_mm2": self.tissue_area_mm2,
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
            return cls(plan=plan, tissue_area_mm2=meta["tissue_area_mm2"], of=meta["of"])


class TissueClassification:
    """The slide half of `tissue-classification`."""

    def plan(self, task: SlideTask) -> TilePlan:
        """Find the tissue, lay the grid. Raises NoTissue, ResolutionTooCoarse."""
        path, of = task.folder / PLAN, _plan_of(task)
        if path.exists() and (planned := _Planned.load(path)).of == of:
            return planned.plan
        tissue = find_tissue(task.slide)
        plan = plan_tiles(
            task.slide,
            tissue,
            mpp=task.card.mpp,
            tile_px=task.card.tile_px,
            min_tissue=_option(task, "tissue.min_share"),
            region=task.order.region,
        )
        _Planned(plan=plan, tissue_area_mm2=tissue.area_mm2, of=of).save(path)
        return plan

    async def infer(
        self,
        task: SlideTask,
        plan: TilePlan,
        engine: Engine,
        *,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        async def logits(images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            answer: npt.NDArray[np.float32] = (await engine.infer(task.model, {"image": images_BHWC}))["logits"]
            return answer

        with TileStore.open(task.folder / TILES, **_ownership(task, plan.digest)) as store:
            progress(store.done)
            if store.done == len(plan.rows_N):
                return  # killed between the last tile and the end of the step
            batches = stream_tiles(task.slide, plan, batch=REQUEST_TILES, skip=store.done, cancelled=cancelled)
            await run_batches(batches, logits, store, progress=progress, cancelled=cancelled)

    def outcome(self, task: SlideTask) -> SlideOutcome:
        planned = _Planned.load(task.folder / PLAN)
        plan = planned.plan
        logits_NC, missing = tiles.load(task.folder / TILES, rows=len(plan), **_ownership(task, plan.digest))
        use = compare(task.specimen, task.slide.header, task.card)
        point = _operating_point(task)
        probabilities_NC = softmax(logits_NC)
        top_N = probabilities_NC.argmax(axis=1)
        supported = [label.index for label in task.card.labels if label.supported]
        certain_N = (probabilities_NC.max(axis=1) >= point.min_probability) & np.isin(top_N, supported)
        classes_N = np.where(certain_N, top_N, UNCERTAIN).astype(np.int32)
        level = task.slide.levels[plan.grid.level]
        tissue = _result(task, plan, level, probabilities_NC, classes_N, use, point)
        return SlideOutcome(
            level=plan.grid.level,
            reading=_reading(task, planned, level, use, missing),
            findings=(*use.findings, *_findings(task, plan, level, tissue, missing)),
            tissue=tissue,
            tiles=None if use.wrong_stain else _tile_map(task, plan, classes_N, probabilities_NC),
            pictures=_pictures(task.slide, task.card, plan, level, classes_N),
        )


def softmax(logits_NC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities (N, C) of logits (N, C); each row depends on itself only."""
    shifted = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)


def _option(task: SlideTask, name: str) -> float:
    value = task.options[name]
    if value is None:
        raise AssertionError(f"the setting {name} has no default")
    return value


def _operating_point(task: SlideTask) -> OperatingPoint:
    """The card's operating point, or the order's own."""
    changed = task.options["operating_point.min_probability"]
    if changed is None:
        return task.card.operating_points[0]
    return OperatingPoint(name="order", min_probability=changed, origin="set by the order")


def _plan_of(task: SlideTask) -> str:
    region = task.order.region
    return json.dumps(
        {
            "mpp": task.card.mpp,
            "tile_px": task.card.tile_px,
            "min_share": _option(task, "tissue.min_share"),
            "region": None if region is None else asdict(region),
            "levels": [asdict(level) for level in task.slide.levels],
        },
        sort_keys=True,
    )


def _ownership(task: SlideTask, digest: str) -> dict[str, Any]:
    version = task.card.version
    belongs_to = {"plan": digest, "model": version.name, "version": version.version, "engine": version.engine_sha256}
    return {"belongs_to": belongs_to, "width": len(task.card.labels)}


def _tile_map(
    task: SlideTask,
    plan: TilePlan,
    classes_N: npt.NDArray[np.int32],
    probabilities_NC: npt.NDArray[np.float32],
) -> TileMap:
    return TileMap(
        series=task.slide.header.series_uid,
        rows_N=plan.rows_N,
        columns_N=plan.columns_N,
        classes_N=classes_N,
        probabilities_NC=probabilities_NC,
        tissue_N=plan.tissue_N,
    )


def _result(
    task: SlideTask,
    plan: TilePlan,
    level: Level,
    probabilities_NC: npt.NDArray[np.float32],
    classes_N: npt.NDArray[np.int32],
    use: Use,
    point: OperatingPoint,
) -> TissueResult:
    # A tile counts with the part of it that lies under tissue, so areas add up to the tissue that was read.
    area_N = plan.tissue_N.astype(np.float64) * plan.grid.tile_area_mm2
    total = float(area_N.sum())

    def one(label: Label) -> TissueClass:
        chosen_N = classes_N == label.index
        area = float(area_N[chosen_N].sum())
        certainty_N = probabilities_NC[chosen_N, label.index]
        return TissueClass(
            index=label.index,
            code=label.exploratory if use.exploratory else label.code,
            color=label.color,
            tiles=int(chosen_N.sum()),
            area_mm2=area,
            share=area / total,
            mean_probability=float(certainty_N.mean()) if len(certainty_N) else None,
            evidence=_evidence(plan, level, chosen_N, probabilities_NC[:, label.index]),
        )

    uncertain = float(area_N[classes_N == UNCERTAIN].sum())
    return TissueResult(
        series=task.slide.header.series_uid,
        exploratory=use.exploratory,
        classes=tuple(one(label) for label in task.card.labels if label.supported),
        uncertain_tiles=int((classes_N == UNCERTAIN).sum()),
        uncertain_area_mm2=uncertain,
        uncertain_share=uncertain / total,
        tiles=len(classes_N),
        area_mm2=total,
        operating_point=point.name,
        min_probability=point.min_probability,
    )


def _evidence(
    plan: TilePlan, level: Level, chosen_N: npt.NDArray[np.bool_], probability_N: npt.NDArray[np.float32]
) -> tuple[Evidence, ...]:
    """The tiles of a class that the model was surest of; equals are taken in reading order."""
    grid, field = plan.grid, plan.grid.field_px
    candidates = np.flatnonzero(chosen_N)
    order = np.lexsort(
        (plan.columns_N[candidates], plan.rows_N[candidates], -probability_N[candidates].astype(np.float64))
    )
    return tuple(
        Evidence(
            sop_instance_uid=level.sop_instance_uids[0],
            box=BoxPx(
                x_px=int(plan.columns_N[n]) * field,
                y_px=int(plan.rows_N[n]) * field,
                width_px=field,
                height_px=field,
            ),
            x_um=float(plan.columns_N[n]) * field * level.mpp_x,
            y_um=float(plan.rows_N[n]) * field * level.mpp_y,
            size_um=grid.tile_um,
            probability=float(probability_N[n]),
        )
        for n in candidates[order[:EVIDENCE_PER_CLASS]]
    )


def _reading(task: SlideTask, planned: _Planned, level: Level, use: Use, missing: int) -> SlideReading:
    header = task.slide.header
    return SlideReading(
        study=header.study_uid,
        series=header.series_uid,
        read=True,
        header=header,
        container=header.container_id or task.specimen.container,
        stain=use.stain,
        site=use.site,
        grid=planned.plan.grid,
        level_mpp=level.mpp,
        level_width_px=level.width_px,
        level_height_px=level.height_px,
        sop_instance_uids=level.sop_instance_uids,
        tissue_area_mm2=planned.tissue_area_mm2,
        tiles_read=len(planned.plan),
        frames_missing=missing,
    )


def _findings(task: SlideTask, plan: TilePlan, level: Level, tissue: TissueResult, missing: int) -> tuple[Finding, ...]:
    found: list[Finding] = []

    def add(kind: FindingKind, key: str, text: str) -> None:
        found.append(Finding(kind=kind, code=finding_code(key), text=text, series=task.slide.header.series_uid))

    if plan.grid.mpp > task.card.mpp * COARSER_TOLERANCE:
        add(
            FindingKind.QUALITY,
            "coarser-than-model",
            f"The finest image has {level.mpp:.3f} µm per pixel; the model was made for {task.card.mpp:g}. "
            "It was read as it is, not enlarged.",
        )
    for remark in task.slide.remarks:
        add(FindingKind.QUALITY, remark.key, remark.text)
    if missing:
        add(FindingKind.QUALITY, "frames-missing", f"{missing} image frames are missing; they were read as background.")
    if tissue.uncertain_share > MOSTLY_UNCERTAIN:
        add(
            FindingKind.CONFIDENCE,
            "mostly-uncertain",
            f"For {100 * tissue.uncertain_share:.0f} % of the tissue the model's best class stays below "
            f"{tissue.min_probability:.2f}.",
        )
    if task.order.region is not None:
        add(FindingKind.SETTING, "region-only", "Only the region named in the order was read.")
    return tuple(found)


def _pictures(
    slide: Slide, card: ModelCard, plan: TilePlan, level: Level, classes_N: npt.NDArray[np.int32]
) -> dict[str, bytes]:
    thumbnail_HW3 = slide.thumbnail(THUMBNAIL_PX)
    map_png = tissue_map(
        thumbnail_HW3,
        plan.grid,
        plan.rows_N,
        plan.columns_N,
        classes_N,
        {label.index: label.color for label in card.labels},
        (level.width_px, level.height_px),
    )
    return {"thumbnail": thumbnail_jpeg(thumbnail_HW3), "tissue-map": map_png}
