"""What the tissue system's runs serve: a tile encoder, or a tissue head with its ensemble."""

from typing import Any

import numpy as np

from training.errors import RecipeInvalid
from training.graphs import Ensemble, Graph, TensorSpec
from training.head_card import card_labels, card_metrics, seen_limits, unsupported
from training.nn.checkpoints import load_state, read_weights
from training.nn.tile_encoder import EMBEDDING, TileEncoder
from training.publish import Published, card_texts, synthetic_tiles
from training.runs import Run, parse_recipe
from training.tissue.model import TissueHead
from training.tissue.recipe import EncoderRecipe, HeadRecipe


def declare(run: Run) -> Graph:
    """The graph of a finished run. Raises RecipeInvalid, WeightsInvalid."""
    stage = run.recipe.get("stage")
    if stage == "encoder":
        return _encoder(run, parse_recipe(EncoderRecipe, run.recipe))
    if stage == "head":
        return _head(run, parse_recipe(HeadRecipe, run.recipe))
    raise RecipeInvalid(f"The run {run.path.name} is of the stage {stage!r}, which serves nothing.")


def _encoder(run: Run, recipe: EncoderRecipe) -> Graph:
    network = TileEncoder()
    load_state(network, read_weights(run.weights_path), run.name)
    side_px = recipe.publish.tile_px
    return Graph(
        model=recipe.publish.model,
        kind="encoder",
        network=network.eval(),
        inputs=(TensorSpec("image", "UINT8", (side_px, side_px, 3)),),
        outputs=(TensorSpec("embedding", "FP32", (EMBEDDING,)),),
        samples=lambda sizes: {"image": synthetic_tiles(sizes["batch"], side_px, recipe.seed)},
        card=_card(run, recipe.publish, "probe") | {"embedding_size": EMBEDDING},
    )


def _head(run: Run, recipe: HeadRecipe) -> Graph:
    labels = recipe.publish.labels
    tensors = read_weights(run.weights_path)
    width = tensors["linear.weight"].shape[1] if "linear.weight" in tensors else EMBEDDING
    network = TissueHead(len(labels), width)
    load_state(network, tensors, run.name)
    encoder = recipe.ensemble.steps[0] if recipe.ensemble else "tile_encoder"
    point, recall = run.metrics["operating_point"], run.metrics["recall"]
    said = card_labels(labels, [recall[name] for name in run.metrics["classes"]])
    card = _card(run, recipe.publish, "head")
    card["limits"] += [
        f"The class {name} is not supported: the interval of its recall reaches down to chance."
        for name in unsupported(said)
    ]
    card["limits"] += seen_limits(run.metrics)
    card |= {
        "labels": said,
        "operating_points": [
            {
                "name": "answer",
                "min_probability": point["min_probability"],
                "origin": f"The least top-class probability (steps of 0.05) from which {point['aim']:.0%} of the "
                f"cross-validated answers on {run.metrics['tiles']} tiles were right; {point['answered']:.0%} of the "
                "tiles are answered there. Chosen on the same held-out answers, patients unknown.",
            }
        ],
    }
    return Graph(
        model=recipe.publish.model,
        kind="head",
        network=network.eval(),
        inputs=(TensorSpec("embedding", "FP32", (width,)),),
        outputs=(TensorSpec("logits", "FP32", (len(labels),)),),
        samples=lambda sizes: {"embedding": synthetic_embeddings(sizes["batch"], recipe.seed, width)},
        card=card,
        needs={encoder: run.manifest["starts_from"]["encoder"]["weights_sha256"]},
        ensemble=Ensemble(**recipe.ensemble.model_dump()) if recipe.ensemble else None,
    )


def _card(run: Run, publish: Published, row: str) -> dict[str, Any]:
    """The texts of a card: from the recipe, the run's figures and its manifest."""
    return card_texts(publish, run.manifest["data"], run.manifest["pretraining"]) | {
        "metrics": card_metrics(run.metrics, (row, "colour statistics"), run.metrics["grouping"])
    }


def synthetic_embeddings(count: int, seed: int, width: int = EMBEDDING) -> np.ndarray:
    """(N,width) float32, not negative and right-skewed, as most of an embedding is."""
    return np.stack([np.random.default_rng((seed, index)).exponential(0.4, width) for index in range(count)]).astype(
        np.float32
    )
