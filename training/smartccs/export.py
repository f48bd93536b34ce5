"""What Smart-CCS's runs serve: the cell detector, the encoder of cells, and the slide head.

Each engine ends where numbers stop being of one size: suppression, crops, the choice of cells, and what a site changes
are the gateway's (arXiv 2502.09662 has them in its scripts). The slide head's card speaks for all three.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gateway.domain.bethesda import ABNORMAL, CLASSES, NAMES, column_of
from gateway.slides.site_state import Source
from training.errors import RecipeInvalid
from training.graphs import Arrays, Dim, Graph, TensorSpec
from training.publish import Published, card_texts, synthetic_tiles
from training.runs import Run, parse_recipe
from training.smartccs import data, detector
from training.smartccs.embed import taught
from training.smartccs.heads import SlideHead
from training.smartccs.recipe import DetectorRecipe, EncoderRecipe, PublishedSlide
from training.smartccs.slide import SlideRecipe, trained
from training.ssl.recipe import SelfDistillationRecipe

P = TypeVar("P", bound=Published)
TILES, BAGS = Dim("batch", 1, 4, 16), Dim("batch", 1, 2, 8)
CELLS = Dim("cells", 1, 256, 600)
"""Of a bag: a hundred of each of six classes at most (arXiv 2502.09662)."""


class SlideEngine(nn.Module):
    """features (B,N,D), mask (B,N), gamma and beta (B,D) to logits (B,7) and cell_logits (B,N,7), and attention (B,N)
    of a head that has it."""

    def __init__(self, head: SlideHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, mask: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for part in self.head(features, mask, gamma, beta) if part is not None)


def declare(run: Run) -> Graph:
    """The graph of a finished run. Raises RecipeInvalid, WeightsInvalid."""
    match run.recipe.get("stage"):
        case "detect":
            return _detector(run, parse_recipe(DetectorRecipe, run.recipe))
        case "pretrain":
            taught_by = parse_recipe(SelfDistillationRecipe, run.recipe)
            return _encoder(run, _published(run, taught_by.publish), taught_by.crops.global_px)
        case "encoder":
            taken = parse_recipe(EncoderRecipe, run.recipe)
            return _encoder(run, _published(run, taken.publish), taken.side_px)
        case "slide":
            return _slide(run, parse_recipe(SlideRecipe, run.recipe))
    raise RecipeInvalid(f"The run {run.path.name} is of the stage {run.recipe.get('stage')!r}, which serves nothing.")


def _detector(run: Run, recipe: DetectorRecipe) -> Graph:
    publish, network, merging = _published(run, recipe.publish), detector.load(run), recipe.merging
    _demand_tile(publish, recipe.data.mpp, recipe.data.side_px)
    counts_PC = np.array(run.metrics["cells"])
    labels = [label | {"index": column_of(label["index"])} for label in _labels(data.supported(counts_PC))[1:]]
    side_px, queries = recipe.data.side_px, recipe.network.queries
    return Graph(
        model=publish.model,
        kind="detector",
        network=network,
        inputs=(TensorSpec("image", "UINT8", (side_px, side_px, 3)),),
        outputs=(
            TensorSpec("scores", "FP32", (queries, len(ABNORMAL))),
            TensorSpec("boxes", "FP32", (queries, 4)),
        ),
        samples=lambda sizes: {"image": synthetic_tiles(sizes["batch"], side_px, recipe.seed)},
        card=_texts(run, publish, labels)
        | {
            "metrics": [
                {
                    "classifier": "cell detector",
                    "name": name,
                    "value": figure["value"],
                    "interval": [figure["low"], figure["high"]],
                    "tiles": run.metrics["test"]["fields"],
                    "label": "fields of held-out blocks",
                }
                for name, figure in run.metrics["test"]["leading"].items()
            ],
            "labels": labels,
            "operating_points": [
                {
                    "name": "cell",
                    "min_probability": merging.score_threshold,
                    "origin": "The published threshold of a detected cell (arXiv 2502.09662), not chosen on data: the "
                    "slide model learned from the cells above it.",
                }
            ],
            "overlap_px": recipe.data.overlap_px,
            "score_threshold": merging.score_threshold,
            "nms_iou": merging.nms_iou,
        },
        batch=TILES,
    )


def _encoder(run: Run, publish: Published, side_px: int) -> Graph:
    _demand_tile(publish, data.MPP, side_px)
    eye = taught(run, publish.tile_px)
    with torch.inference_mode():
        width = eye.network(torch.zeros(1, publish.tile_px, publish.tile_px, 3, dtype=torch.uint8)).shape[1]
    return Graph(
        model=publish.model,
        kind="encoder",
        network=eye.network,
        inputs=(TensorSpec("image", "UINT8", (publish.tile_px, publish.tile_px, 3)),),
        outputs=(TensorSpec("embedding", "FP32", (width,)),),
        samples=lambda sizes: {"image": synthetic_tiles(sizes["batch"], publish.tile_px, run.manifest["seed"])},
        card=_texts(run, publish)
        | {
            "metrics": [],
            "embedding_size": width,
            "crop": {
                "side_px": eye.crops.side_px,
                "context": eye.crops.context,
                "mean": list(eye.crops.mean),
                "deviation": list(eye.crops.deviation),
                "transform_sha256": eye.crops.digest,
            },
        },
    )


def _slide(run: Run, recipe: SlideRecipe) -> Graph:
    publish = _published(run, recipe.publish)
    held, served = trained(run), run.metrics["served"]
    _demand_tile(publish, data.MPP, served["crop_px"])
    needs = _needs(run, recipe, publish)
    head, width = held.heads[held.best], served["width"]
    labels = _labels(held.point.supported)
    outputs = [
        TensorSpec("logits", "FP32", (len(CLASSES),)),
        TensorSpec("cell_logits", "FP32", (CELLS, len(CLASSES))),
    ]
    if served["pool"] == "attention":
        outputs.append(TensorSpec("attention", "FP32", (CELLS,)))
    source = held.source
    return Graph(
        model=publish.model,
        kind="bag",
        network=SlideEngine(head).eval(),
        inputs=(
            TensorSpec("features", "FP32", (CELLS, width)),
            TensorSpec("mask", "BOOL", (CELLS,)),
            TensorSpec("gamma", "FP32", (width,)),
            TensorSpec("beta", "FP32", (width,)),
        ),
        outputs=tuple(outputs),
        samples=lambda sizes: synthetic_bags(sizes["batch"], sizes["cells"], source, recipe.seed),
        card=_texts(run, publish, labels)
        | {
            "metrics": _figures(run.metrics["test"]),
            "labels": labels,
            "operating_points": [_point(recipe, served)],
            "encoder": _other(publish.encoder_model, needs),
            "feature_size": width,
            "tiles": [CELLS.min, CELLS.max],
            "composed": True,
            "screening": {
                "temperature": held.calibrated.temperature,
                "biases": list(held.calibrated.biases),
                "transform_sha256": served["transform_sha256"],
                "top_k": served["top_k"],
                "pool": served["pool"],
                "detector": _other(publish.detector_model, needs) if recipe.detector else None,
                "source": served["source"],
            },
        },
        batch=BAGS,
        unordered=(CELLS.name,),
        needs=needs,
    )


def _published(run: Run, publish: P | None) -> P:
    """Raises RecipeInvalid."""
    if publish is None:
        raise RecipeInvalid(f"The recipe of the run {run.path.name} has no section publish, so it serves nothing.")
    return publish


def _demand_tile(publish: Published, mpp: float, tile_px: int) -> None:
    """The card says what was trained on. Raises RecipeInvalid."""
    if (publish.mpp, publish.tile_px) != (mpp, tile_px):
        raise RecipeInvalid(
            f"{publish.model} was trained on {tile_px} px from pixels of {mpp:g} µm. Write mpp = {mpp:g} and tile_px = "
            f"{tile_px} into the recipe's section publish."
        )


def _needs(run: Run, recipe: SlideRecipe, publish: PublishedSlide) -> dict[str, str]:
    """The models that must be in the repository, by the weights that the head learned from. Raises RecipeInvalid."""
    origins = run.manifest["starts_from"]
    if recipe.encoder.kind not in ("teacher", "published") or "encoder" not in origins:
        raise RecipeInvalid(
            f"The slide head {run.path.name} reads features of an encoder that is not served ({recipe.encoder.kind}). "
            "Train it on a teacher's, or a published one's."
        )
    names = {"encoder": publish.encoder_model, "detector": publish.detector_model}
    return {name: origins[role]["weights_sha256"] for role, name in names.items() if role in origins}


def _other(model: str, needs: Mapping[str, str]) -> dict[str, str]:
    return {"model": model, "weights_sha256": needs[model]}


def _labels(supported: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Bethesda's classes by number."""
    return [
        {
            "index": number,
            "code": asdict(entry.code),
            "exploratory": {
                "code": f"CYT-PATTERN-{number}",
                "scheme": "99PATHSERVE",
                "display": f"cytology pattern {number}",
            },
            "supported": supported[number],
            "color": entry.color,
        }
        for number, entry in enumerate(CLASSES)
    ]


def _texts(run: Run, publish: Published, labels: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What every card says, and which classes may not be answered alone."""
    texts = card_texts(publish, run.manifest["data"], run.manifest["pretraining"])
    names = NAMES[-len(labels) :] if labels else ()
    texts["limits"] += [
        f"The class {name} is not supported: it has fewer than {data.LEAST_TRAINING_CELLS} training cells, or none of "
        "other blocks to choose and to measure by. Its probability counts towards abnormal only."
        for name, label in zip(names, labels or (), strict=True)
        if not label["supported"]
    ]
    return texts


def _figures(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of the test bags that have intervals."""
    bags = sum(test["bags"].values())
    return [
        {
            "classifier": "slide head",
            "name": name,
            "value": test[name]["value"],
            "interval": [test[name]["low"], test[name]["high"]],
            "tiles": bags,
            "label": "synthetic bags of cells of held-out blocks",
        }
        for name in ("auc", "sensitivity", "specificity")
    ]


def _point(recipe: SlideRecipe, served: Mapping[str, Any]) -> dict[str, Any]:
    share = f"{served['sensitivity']:.0%}"
    return {
        "name": f"{share} sensitivity",
        "min_probability": served["abnormal_from"],
        "origin": f"The highest 1 - p(NILM) from which {share} of the abnormal ones among {recipe.bags.validation} "
        "synthetic bags of one block of images were called abnormal, the lowest over the validation blocks; validation "
        f"centre: {served['validation_centre']}.",
    }


def synthetic_bags(count: int, cells: int, source: Source, seed: int) -> Arrays:
    """Features drawn about the source's, and adaptations about the identity; all float32 but the mask, which is true.
    A bag is the same among others."""
    drawn: dict[str, list[np.ndarray]] = {"features": [], "gamma": [], "beta": []}
    width = len(source.mean_D)
    for bag in range(count):
        rng = np.random.default_rng((seed, bag))
        drawn["gamma"].append(rng.uniform(0.5, 1.5, width))
        drawn["beta"].append(source.deviation_D * rng.normal(0, 0.2, width))
        drawn["features"].append(source.mean_D + source.deviation_D * rng.normal(size=(cells, width)))
    arrays = {name: np.stack(rows).astype(np.float32) for name, rows in drawn.items()}
    return arrays | {"mask": np.ones((count, cells), np.bool_)}
