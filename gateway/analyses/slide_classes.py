"""Protocol `slide-classification`: what an H&E slide as a whole shows, and the tiles that the answer rests on.

Per tile, Triton's `tile_encoder` gives an embedding; the slide half here makes one bag of them, which `slide_abmil` (or
`slide_transmil`) classifies. The bag's answer lies on disk like the tiles' rows: no step is done twice.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gateway.analyses.bags import BagAnswer, ask
from gateway.analyses.intended_use import Use, compare
from gateway.analyses.metrics import BAG_SECONDS
from gateway.analyses.object_importance import Explaining, explanation_findings, tiles_encoded
from gateway.analyses.planned import Planned
from gateway.analyses.readings import box_of, corner_um, findings_of, reading_of
from gateway.analyses.slide_bag import SlideBag
from gateway.analyses.slide_half import Engine, SlideOutcome, SlideTask
from gateway.domain.model import ModelCard
from gateway.domain.report import Finding, FindingKind, SlideClass, SlideClassification, TopTile
from gateway.domain.slide import Level
from gateway.domain.tables import finding_code
from gateway.operations.errors import RowsOutdated
from gateway.reports import AttentionMap, attention_map, thumbnail_jpeg
from gateway.slides import Slide, TilePlan, stream_tiles
from gateway.slides.windows import WindowPlan

TOP_TILES = 8


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClassificationPlan:
    """The `tiles` of the bag; `windows` over those that are explained, once these are known; and how many tiles are
    `encoded` anew for that, at most."""

    tiles: TilePlan
    windows: tuple[WindowPlan, ...] = ()
    encoded: int = 0

    def __len__(self) -> int:
        return len(self.tiles) + self.encoded

    @property
    def reads(self) -> tuple[TilePlan, ...]:
        return (self.tiles, *(each.tiles for each in self.windows))


class WholeSlideClassification:
    """The slide half of `slide-classification`."""

    def plan(self, task: SlideTask) -> ClassificationPlan:
        tiles = Planned.of_task(task).plan
        if not task.order.prompts:
            return ClassificationPlan(tiles=tiles)
        bag = SlideBag.of_task(task, tiles)
        if bag.too_small:
            return ClassificationPlan(tiles=tiles)
        # Which tiles weigh most is known with the answer only: then the frames under their windows are fetched, too.
        answer = bag.answer()
        windows = () if answer is None else Explaining.of(bag, answer).windows
        return ClassificationPlan(tiles=tiles, windows=windows, encoded=tiles_encoded(bag))

    async def infer(
        self,
        task: SlideTask,
        plan: ClassificationPlan,
        engine: Engine,
        *,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        bag = SlideBag.of_task(task, plan.tiles)
        await bag.answers.compute(engine, progress=progress, cancelled=cancelled)
        if bag.too_small:
            return
        answer = bag.answer()
        if answer is None:
            begun = time.perf_counter()
            answer = await ask(task.models[-1], bag.features(), bag.centres_um(), engine, cancelled=cancelled)
            BAG_SECONDS.labels(task.card.name, answer.evidence).observe(time.perf_counter() - begun)
            answer.save(bag.path, bag.of)
        if task.order.prompts:
            explaining = await asyncio.to_thread(Explaining.of, bag, answer)
            before = len(plan.tiles)
            await explaining.infer(engine, progress=lambda done: progress(before + done), cancelled=cancelled)
            progress(len(plan))

    def outcome(self, task: SlideTask) -> SlideOutcome:
        planned = Planned.of_task(task)
        plan = planned.plan
        bag = SlideBag.of_task(task, plan)
        use = compare(task.specimen, task.slide.header, task.card)
        reading = reading_of(task, planned, use, *bag.answers.figures())
        thumbnail_HW3 = task.slide.thumbnail()
        pictures = {"thumbnail": thumbnail_jpeg(thumbnail_HW3)}
        common = (*use.findings, *findings_of(task, reading))
        level = task.slide.levels[plan.grid.level]
        if bag.too_small:
            few = _finding(
                reading.series,
                "too-few-tiles",
                f"The slide has {len(plan)} tiles of tissue; the model needs {bag.least}. It was not classified.",
            )
            return SlideOutcome(level=plan.grid.level, reading=reading, findings=(*common, few), pictures=pictures)
        answer = bag.answer()
        if answer is None:
            raise RowsOutdated(
                "The stored answer of the slide's model does not belong to this analysis: a model was changed while it "
                "ran. It is computed anew."
            )
        relative_M = (answer.weights_M / answer.weights_M.max()).astype(np.float32)
        top = _top(answer.weights_M)
        classes = _result(bag, answer, use, level, relative_M, top)
        explained: Iterator[Finding] = iter(())
        if task.order.prompts:
            explaining = Explaining.of(bag, answer)
            classes = replace(classes, explanation=explaining.result())
            explained = explanation_findings(explaining, classes, use.site)
        placed = AttentionMap(
            series=reading.series,
            rows_N=plan.rows_N[bag.picked_M],
            columns_N=plan.columns_N[bag.picked_M],
            attention_N=relative_M,
        )
        pictures["attention-map"] = attention_map(thumbnail_HW3, plan.grid, placed, (level.width_px, level.height_px))
        pictures |= _pictures_of(task.slide, plan, bag.picked_M[top])
        return SlideOutcome(
            level=plan.grid.level,
            reading=reading,
            findings=(*common, *_findings(classes, task.card), *explained),
            classes=classes,
            attention=None if use.wrong_stain else placed,
            pictures=pictures,
        )


def _top(weights_M: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The tiles that weigh most, the heaviest first; equals are taken in reading order."""
    order = np.argsort(-weights_M, kind="stable")[:TOP_TILES]
    return order[weights_M[order] > 0]


def _result(
    bag: SlideBag,
    answer: BagAnswer,
    use: Use,
    level: Level,
    relative_M: npt.NDArray[np.float32],
    top: npt.NDArray[np.int64],
) -> SlideClassification:
    task, plan = bag.task, bag.plan
    point = task.operating_point
    best = int(answer.probabilities_C.argmax())
    classes = tuple(
        SlideClass(
            index=label.index,
            code=label.exploratory if use.exploratory else label.code,
            color=label.color,
            supported=label.supported,
            probability=float(answer.probabilities_C[label.index]),
        )
        for label in task.card.labels
    )
    reached = answer.probabilities_C[best] >= point.min_probability and classes[best].supported
    return SlideClassification(
        series=task.slide.header.series_uid,
        exploratory=use.exploratory,
        classes=classes,
        answer=best if reached else None,
        operating_point=point.name,
        min_probability=point.min_probability,
        tiles=len(plan),
        bag=len(bag.picked_M),
        evidence=answer.evidence,
        top_tiles=tuple(
            _top_tile(plan, level, int(bag.picked_M[m]), float(relative_M[m]), float(answer.weights_M[m])) for m in top
        ),
    )


def _top_tile(plan: TilePlan, level: Level, n: int, attention: float, share: float) -> TopTile:
    box = box_of(plan.grid, int(plan.rows_N[n]), int(plan.columns_N[n]))
    x_um, y_um = corner_um(box, level)
    return TopTile(
        sop_instance_uid=level.sop_instance_uids[0],
        box=box,
        x_um=x_um,
        y_um=y_um,
        size_um=plan.grid.tile_um,
        attention=attention,
        share=share,
    )


def _finding(series: str, key: str, text: str) -> Finding:
    return Finding(kind=FindingKind.CONFIDENCE, code=finding_code(key), text=text, series=series)


def _findings(classes: SlideClassification, card: ModelCard) -> Iterator[Finding]:
    series = classes.series
    if card.composed:
        yield _finding(
            series,
            "composed-training",
            "The slide's model was trained and measured on slides that were composed of tiles, never on a whole "
            "slide: how often it is right on one is not known.",
        )
    best = max(classes.classes, key=lambda each: each.probability)
    if not best.supported:
        yield _finding(
            series,
            "not-supported",
            "The model's best class is one that it was not measured for: the slide has no answer.",
        )
    elif classes.answer is None:
        yield _finding(
            series,
            "low-confidence",
            f"The model's best class has a probability of {best.probability:.2f}, below "
            f"{classes.min_probability:.2f}: the slide has no answer.",
        )
    if classes.bag < classes.tiles:
        yield _finding(
            series,
            "bag-reduced",
            f"The slide has {classes.tiles} tiles; the model saw {classes.bag} of them, evenly spaced.",
        )


def _pictures_of(slide: Slide, plan: TilePlan, tiles_K: npt.NDArray[np.int64]) -> Mapping[str, bytes]:
    """The tiles as the model saw them, by role, in this order."""
    rising_K = np.sort(tiles_K)
    batches = stream_tiles(slide, plan.part(rising_K), batch=TOP_TILES)
    images = [image for batch in batches for image in batch.images_BHWC]
    places_K = np.searchsorted(rising_K, tiles_K).tolist()
    return {f"top-tile-{rank}": thumbnail_jpeg(images[place]) for rank, place in enumerate(places_K, 1)}
