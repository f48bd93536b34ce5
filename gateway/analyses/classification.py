"""Protocol `tissue-classification`: what tissue is where on an H&E slide.

Triton answers per tile (`tissue_classification`: image UINT8 [B,224,224,3] -> logits FP32 [B,C]); the slide half here
adds the answers up to areas and shares per class, picks the evidence and draws the map.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gateway.analyses.intended_use import Use, compare
from gateway.analyses.planned import Planned
from gateway.analyses.probabilities import softmax
from gateway.analyses.readings import box_of, corner_um, findings_of, reading_of
from gateway.analyses.slide_half import Engine, SlideOutcome, SlideTask
from gateway.analyses.tile_answers import TileAnswers
from gateway.domain.model import Label, ModelCard, OperatingPoint
from gateway.domain.report import Evidence, Finding, FindingKind, TissueClass, TissueResult
from gateway.domain.slide import Level
from gateway.domain.tables import finding_code
from gateway.reports import UNCERTAIN, TileMap, thumbnail_jpeg, tissue_map
from gateway.slides import Slide, TilePlan

EVIDENCE_PER_CLASS = 3
MOSTLY_UNCERTAIN = 0.5


class TissueClassification:
    """The slide half of `tissue-classification`."""

    def plan(self, task: SlideTask) -> TilePlan:
        return Planned.of_task(task).plan

    async def infer(
        self,
        task: SlideTask,
        plan: TilePlan,
        engine: Engine,
        *,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        await _answers(task, plan).compute(engine, progress=progress, cancelled=cancelled)

    def outcome(self, task: SlideTask) -> SlideOutcome:
        planned = Planned.of_task(task)
        plan = planned.plan
        answers = _answers(task, plan)
        use = compare(task.specimen, task.slide.header, task.card)
        reading = reading_of(task, planned, use, *answers.figures())
        probabilities_NC = softmax(answers.answers())
        point = task.operating_point
        top_N = probabilities_NC.argmax(axis=1)
        supported = [label.index for label in task.card.labels if label.supported]
        certain_N = (probabilities_NC.max(axis=1) >= point.min_probability) & np.isin(top_N, supported)
        classes_N = np.where(certain_N, top_N, UNCERTAIN).astype(np.int32)
        level = task.slide.levels[plan.grid.level]
        tissue = _result(task, plan, level, probabilities_NC, classes_N, use, point)
        return SlideOutcome(
            level=plan.grid.level,
            reading=reading,
            findings=(*use.findings, *findings_of(task, reading), *_findings(tissue)),
            tissue=tissue,
            tiles=None if use.wrong_stain else _tile_map(task, plan, classes_N, probabilities_NC),
            pictures=_pictures(task.slide, task.card, plan, level, classes_N),
        )


def _answers(task: SlideTask, plan: TilePlan) -> TileAnswers:
    return TileAnswers(task, plan, "logits", len(task.card.labels))


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
    candidates = np.flatnonzero(chosen_N)
    order = np.lexsort(
        (plan.columns_N[candidates], plan.rows_N[candidates], -probability_N[candidates].astype(np.float64))
    )
    found = []
    for n in candidates[order[:EVIDENCE_PER_CLASS]]:
        box = box_of(plan.grid, int(plan.rows_N[n]), int(plan.columns_N[n]))
        x_um, y_um = corner_um(box, level)
        found.append(
            Evidence(
                sop_instance_uid=level.sop_instance_uids[0],
                box=box,
                x_um=x_um,
                y_um=y_um,
                size_um=plan.grid.tile_um,
                probability=float(probability_N[n]),
            )
        )
    return tuple(found)


def _findings(tissue: TissueResult) -> tuple[Finding, ...]:
    if tissue.uncertain_share <= MOSTLY_UNCERTAIN:
        return ()
    return (
        Finding(
            kind=FindingKind.CONFIDENCE,
            code=finding_code("mostly-uncertain"),
            text=f"For {100 * tissue.uncertain_share:.0f} % of the tissue the model's best class stays below "
            f"{tissue.min_probability:.2f}.",
            series=tissue.series,
        ),
    )


def _pictures(
    slide: Slide, card: ModelCard, plan: TilePlan, level: Level, classes_N: npt.NDArray[np.int32]
) -> dict[str, bytes]:
    thumbnail_HW3 = slide.thumbnail()
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
