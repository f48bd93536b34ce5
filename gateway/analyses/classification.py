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
from gateway.reports import UNCERTAIN, TileMap, thumbnail_jpeg, tissue_map
from gateway.slides import Slide, TilePlan, find_tissue, plan_tiles, stream_tiles

EVIDENCE_PER_CLASS = 3
MOSTLY_UNCERTAIN = 0.5
COARSER_TOLERANCE = 1.02
THUMBNAIL_PX = 1024
TILES = "tiles.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """The plan of one slide as it lies on disk."""

    grid: TileGrid
    digest: str
    tissue_area_mm2: float
    rows_N: npt.NDArray[np.int32]
    columns_N: npt.NDArray[np.int32]
    tissue_N: npt.NDArray[np.float32]

    def save(self, path: Path) -> None:
        meta = {"grid": asdict(self.grid), "digest": self.digest, "tissue_area_mm2": self.tissue_area_mm2}
        part = path.with_suffix(".part.npz")
        np.savez(part, meta=json.dumps(meta), rows=self.rows_N, columns=self.columns_N, tissue=self.tissue_N)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            return cls(
                grid=TileGrid(**meta["grid"]),
                digest=meta["digest"],
                tissue_area_mm2=meta["tissue_area_mm2"],
                rows_N=data["rows"],
                columns_N=data["columns"],
                tissue_N=data["tissue"],
            )


class TissueClassification:
    """The slide half of `tissue-classification`."""

    def plan(self, task: SlideTask) -> TilePlan:
        """Find the tissue, lay the grid. Raises NoTissue, ResolutionTooCoarse."""
        tissue = find_tissue(task.slide)
        plan = plan_tiles(
            task.slide,
            tissue,
            mpp=task.card.mpp,
            tile_px=task.card.tile_px,
            min_tissue=_option(task, "tissue.min_share"),
            region=task.order.region,
        )
        task.folder.mkdir(parents=True, exist_ok=True)
        _Planned(
            grid=plan.grid,
            digest=plan.digest,
            tissue_area_mm2=tissue.area_mm2,
            rows_N=plan.rows_N,
            columns_N=plan.columns_N,
            tissue_N=plan.tissue_N,
        ).save(task.folder / "plan.npz")
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
        planned = _Planned.load(task.folder / "plan.npz")
        logits_NC, missing = tiles.load(
            task.folder / TILES, rows=len(planned.rows_N), **_ownership(task, planned.digest)
        )
        use = compare(task.specimen, task.slide.header, task.card)
        point = _operating_point(task)
        probabilities_NC = softmax(logits_NC)
        top_N = probabilities_NC.argmax(axis=1)
        supported = [label.index for label in task.card.labels if label.supported]
        certain_N = (probabilities_NC.max(axis=1) >= point.min_probability) & np.isin(top_N, supported)
        classes_N = np.where(certain_N, top_N, UNCERTAIN).astype(np.int32)
        level = task.slide.levels[planned.grid.level]
        tissue = _result(task, planned, level, probabilities_NC, classes_N, use, point)
        return SlideOutcome(
            level=planned.grid.level,
            reading=_reading(task, planned, level, use, missing),
            findings=(*use.findings, *_findings(task, planned, level, tissue, missing)),
            tissue=tissue,
            tiles=None if use.wrong_stain else _tile_map(task, planned, classes_N, probabilities_NC),
            pictures=_pictures(task.slide, task.card, planned, level, classes_N),
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


def _ownership(task: SlideTask, digest: str) -> dict[str, Any]:
    version = task.card.version
    belongs_to = {"plan": digest, "model": version.name, "version": version.version, "engine": version.engine_sha256}
    return {"belongs_to": belongs_to, "width": len(task.card.labels)}


def _tile_map(
    task: SlideTask,
    planned: _Planned,
    classes_N: npt.NDArray[np.int32],
    probabilities_NC: npt.NDArray[np.float32],
) -> TileMap:
    return TileMap(
        series=task.slide.header.series_uid,
        rows_N=planned.rows_N,
        columns_N=planned.columns_N,
        classes_N=classes_N,
        probabilities_NC=probabilities_NC,
        tissue_N=planned.tissue_N,
    )


def _result(
    task: SlideTask,
    planned: _Planned,
    level: Level,
    probabilities_NC: npt.NDArray[np.float32],
    classes_N: npt.NDArray[np.int32],
    use: Use,
    point: OperatingPoint,
) -> TissueResult:
    # A tile counts with the part of it that lies under tissue, so areas add up to the tissue that was read.
    area_N = planned.tissue_N.astype(np.float64) * planned.grid.tile_area_mm2
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
            evidence=_evidence(planned, level, chosen_N, probabilities_NC[:, label.index]),
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
    planned: _Planned, level: Level, chosen_N: npt.NDArray[np.bool_], probability_N: npt.NDArray[np.float32]
) -> tuple[Evidence, ...]:
    """The tiles of a class that the model was surest of; equals are taken in reading order."""
    grid, field = planned.grid, planned.grid.field_px
    candidates = np.flatnonzero(chosen_N)
    order = np.lexsort(
        (planned.columns_N[candidates], planned.rows_N[candidates], -probability_N[candidates].astype(np.float64))
    )
    return tuple(
        Evidence(
            sop_instance_uid=level.sop_instance_uids[0],
            box=BoxPx(
                x_px=int(planned.columns_N[n]) * field,
                y_px=int(planned.rows_N[n]) * field,
                width_px=field,
                height_px=field,
            ),
            x_um=float(planned.columns_N[n]) * field * level.mpp_x,
            y_um=float(planned.rows_N[n]) * field * level.mpp_y,
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
        grid=planned.grid,
        level_mpp=level.mpp,
        level_width_px=level.width_px,
        level_height_px=level.height_px,
        sop_instance_uids=level.sop_instance_uids,
        tissue_area_mm2=planned.tissue_area_mm2,
        tiles_read=len(planned.rows_N),
        frames_missing=missing,
    )


def _findings(
    task: SlideTask, planned: _Planned, level: Level, tissue: TissueResult, missing: int
) -> tuple[Finding, ...]:
    found: list[Finding] = []

    def add(kind: FindingKind, key: str, text: str) -> None:
        found.append(Finding(kind=kind, code=finding_code(key), text=text, series=task.slide.header.series_uid))

    if planned.grid.mpp > task.card.mpp * COARSER_TOLERANCE:
        add(
            FindingKind.QUALITY,
            "coarser-than-model",
            f"The finest image has {level.mpp:.3f} µm per pixel; the model was made for {task.card.mpp:g}. "
            "It was read as it is, not enlarged.",
        )
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
    slide: Slide, card: ModelCard, planned: _Planned, level: Level, classes_N: npt.NDArray[np.int32]
) -> dict[str, bytes]:
    thumbnail_HW3 = slide.thumbnail(THUMBNAIL_PX)
    map_png = tissue_map(
        thumbnail_HW3,
        planned.grid,
        planned.rows_N,
        planned.columns_N,
        classes_N,
        {label.index: label.color for label in card.labels},
        (level.width_px, level.height_px),
    )
    return {"thumbnail": thumbnail_jpeg(thumbnail_HW3), "tissue-map": map_png}
