"""The three models of cervical screening, and whether they belong together: what each card says of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gateway.analyses.slide_half import ServedModel, SlideTask
from gateway.domain.bethesda import ABNORMAL, CLASSES
from gateway.domain.model import DetectorRule, ScreeningRule
from gateway.operations.errors import InferenceError, ModelRefused
from gateway.slides.cell_crops import CellCrops
from gateway.slides.site_state import Source


@dataclass(frozen=True, slots=True, eq=False)
class ScreeningModels:
    """`detector` -> `encoder` -> `slide`. `queries`: boxes of a tile; `width`: of a cell's features; `crops`: how a
    cell is cut; `source`: what sites are held against."""

    detector: ServedModel
    encoder: ServedModel
    slide: ServedModel
    detecting: DetectorRule
    rule: ScreeningRule
    queries: int
    width: int
    crops: CellCrops
    source: Source

    @classmethod
    def of_task(cls, task: SlideTask) -> Self:
        """Those of a task. Raises ModelRefused."""
        return cls.of(task.models)

    @classmethod
    def of(cls, models: Sequence[ServedModel]) -> Self:
        """Raises ModelRefused where a card does not say what is needed, or they do not fit together."""
        detector, encoder, slide = models
        detecting, crop, rule = detector.card.detector, encoder.card.crop, slide.card.screening
        if detecting is None or crop is None or rule is None:
            missing, what = next(
                (model, what)
                for model, said, what in (
                    (detector, detecting, "how cells are detected"),
                    (encoder, crop, "how cells are cut"),
                    (slide, rule, "how a slide is read from its cells"),
                )
                if said is None
            )
            raise ModelRefused(f"The card of {missing.folder} does not say {what}. Promote another version.")
        of_slide = {len(slide.card.labels), len(rule.biases)}
        if len(detector.card.labels) != len(ABNORMAL) or of_slide != {len(CLASSES)}:
            raise ModelRefused(
                f"{detector.folder} must have Bethesda's {len(ABNORMAL)} abnormal classes and {slide.folder} all "
                f"{len(CLASSES)}, each with a bias. Promote versions that have them."
            )
        crops = CellCrops(crop.side_px, crop.context, crop.mean, crop.deviation)
        if not crops.digest == crop.transform_sha256 == rule.transform_sha256:
            raise ModelRefused(
                f"{encoder.folder} and {slide.folder} do not cut cells in the same way. Promote models that belong "
                "together."
            )
        width, most = encoder.card.embedding_size, (slide.card.tiles or (1, 0))[1]
        if width is None or slide.card.feature_size != width or rule.top_k * len(ABNORMAL) > most:
            raise ModelRefused(
                f"The model {slide.folder} takes {slide.card.feature_size or 'no'} features of at most {most} cells; "
                f"{encoder.folder} gives {width or 'none'}, of up to {rule.top_k * len(ABNORMAL)} cells. Promote "
                "models that belong together."
            )
        return cls(
            detector, encoder, slide, detecting, rule, _queries(detector), width, crops, _source(slide, rule, width)
        )


def answered(
    folder: str, answer: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """One output of a model. Raises InferenceError where it is missing, of another size, or no finite number: rows that
    are wrong are never kept."""
    found = answer.get(name)
    if found is None or found.shape != shape or not np.isfinite(found).all():
        raise InferenceError(f"The model {folder} does not answer with finite {name} of the size {shape}.")
    return found.astype(np.float32, copy=False)


def _queries(detector: ServedModel) -> int:
    dims = {spec.name: spec.dims for spec in detector.contract.outputs}
    scores, boxes = dims.get("scores", ()), dims.get("boxes", ())
    if len(scores) != 2 or scores[0] < 1 or (scores, boxes) != ((scores[0], len(ABNORMAL)), (scores[0], 4)):
        raise ModelRefused(
            f"The model {detector.folder} does not give scores [Q, {len(ABNORMAL)}] and boxes [Q, 4] of a fixed number "
            "of boxes. Promote another version."
        )
    return scores[0]


def _source(slide: ServedModel, rule: ScreeningRule, width: int) -> Source:
    source = Source.of(rule)
    if source is not None and len(source.mean_D) == width:
        return source
    raise ModelRefused(f"The card of {slide.folder} does not say what sites are held against. Promote another version.")
