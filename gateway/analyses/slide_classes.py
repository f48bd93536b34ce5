"""Protocol `slide-classification`: what an H&E slide as a whole shows, and the tiles that the answer rests on.

Per tile, Triton's `tile_encoder` gives an embedding; the slide half here makes one bag of them, which `slide_abmil` (or
`slide_transmil`) classifies. The bag's answer lies on disk like the tiles' rows: no step is done twice.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gateway.analyses.bags import BagAnswer, ask, picked
from gateway.analyses.intended_use import Use, compare
from gateway.analyses.metrics import BAG_SECONDS
from gateway.analyses.planned import Planned
from gateway.analyses.readings import box_of, corner_um, findings_of, reading_of
from gateway.analyses.slide_half import Engine, SlideOutcome, SlideTask
from gateway.analyses.tile_answers import TileAnswers
from gateway.domain.model import ModelCard
from gateway.domain.report import Finding, FindingKind, SlideClass, SlideClassification, TopTile
from gateway.domain.slide import Level
from gateway.domain.tables import finding_code
from gateway.operations.errors import ModelRefused, RowsOutdated
from gateway.reports import AttentionMap, attention_map, thumbnail_jpeg
from gateway.slides import Slide, TilePlan, stream_tiles

TOP_TILES = 8
_FILE = "bag.npz"


@dataclass(frozen=True, slots=True, eq=False)
class _Bag:
    """The bag of one task: which tiles of the plan are in it (M,), in which order, and to what its answer belongs."""

    task: SlideTask
    plan: TilePlan
    answers: TileAnswers
    picked_M: npt.NDArray[np.int64]
    least: int

    @classmethod
    def of_task(cls, task: SlideTask, plan: TilePlan) -> "_Bag":
        """Raises ModelRefused where the models' cards do not say how they fit together."""
        width, card = task.eye.card.embedding_size, task.card
        if width is None or card.tiles is None or card.feature_size != width:
            raise ModelRefused(
                f"The model {task.models[-1].folder} takes {card.feature_size or 'no'} features a tile, and "
                f"{task.eye.folder} gives {width or 'none'}. Promote models that belong together."
            )
        least, most = card.tiles
        chosen_M = picked(plan.rows_N, plan.columns_N, most)
        return cls(task, plan, TileAnswers(task, plan, "embedding", width), chosen_M, least)

    @property
    def too_small(self) -> bool:
        return len(self.picked_M) < self.least

    @property
    def path(self) -> Path:
        return self.task.folder / _FILE

    @property
    def of(self) -> dict[str, str | int]:
        version = self.task.card.version
        model = {"bag-model": version.name, "bag-version": version.version, "bag-engine": version.engine_sha256}
        return {**self.answers.belongs_to, **model, "bag": len(self.picked_M)}

    def features(self) -> npt.NDArray[np.float32]:
        """The tiles' embeddings (M, D). Raises RowsOutdated."""
        rising_M = np.sort(self.picked_M)
        return self.answers.answers(rising_M)[np.searchsorted(rising_M, self.picked_M)]

    def centres_um(self) -> npt.NDArray[np.float32]:
        """The tiles' centres (M, 2), µm from the slide image's top left corner."""
        grid, level = self.plan.grid, self.task.slide.levels[self.plan.grid.level]
        columns_M, rows_M = self.plan.columns_N[self.picked_M], self.plan.rows_N[self.picked_M]
        across, down = grid.field_px * level.mpp_x, grid.field_px * level.mpp_y
        return np.stack([(columns_M + 0.5) * across, (rows_M + 0.5) * down], axis=1).astype(np.float32)


class WholeSlideClassification:
    """The slide half of `slide-classification`."""

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
        bag = _Bag.of_task(task, plan)
        await bag.answers.compute(engine, progress=progress, cancelled=cancelled)
        if bag.too_small or BagAnswer.load(bag.path, bag.of) is not None:
            return
        begun = time.perf_counter()
        answer = await ask(task.models[-1], bag.features(), bag.centres_um(), engine, cancelled=cancelled)
        BAG_SECONDS.labels(task.card.name, answer.evidence).observe(time.perf_counter() - begun)
        answer.save(bag.path, bag.of)

    def outcome(self, task: SlideTask) -> SlideOutcome:
        planned = Planned.of_task(task)
        plan = planned.plan
        bag = _Bag.of_task(task, plan)
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
        answer = BagAnswer.load(bag.path, bag.of)
        if answer is None:
            raise RowsOutdated(
                "The stored answer of the slide's model does not belong to this analysis: a model was changed while it "
                "ran. It is computed anew."
            )
        relative_M = (answer.weights_M / answer.weights_M.max()).astype(np.float32)
        top = _top(answer.weights_M)
        classes = _result(bag, answer, use, level, relative_M, top)
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
            findings=(*common, *_findings(classes, task.card)),
            classes=classes,
            attention=None if use.wrong_stain else placed,
            pictures=pictures,
        )


def _top(weights_M: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The tiles that weigh most, the heaviest first; equals are taken in reading order."""
    order = np.argsort(-weights_M, kind="stable")[:TOP_TILES]
    return order[weights_M[order] > 0]


def _result(
    bag: _Bag,
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
