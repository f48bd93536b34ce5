"""What a slide head's run serves: a bag model on the embeddings of one encoder."""

from typing import Any

import numpy as np

from training.errors import RecipeInvalid
from training.graphs import Dim, Graph, TensorSpec
from training.head_card import card_labels, card_metrics, seen_limits, unsupported
from training.mil.evaluate import HEAD
from training.mil.model import SlideHead
from training.mil.recipe import SlideHeadRecipe
from training.nn.checkpoints import load_state, read_weights
from training.publish import card_texts
from training.runs import Run, parse_recipe

_SHOWN = (HEAD, "mean pooling")


def declare(run: Run) -> Graph:
    """The graph of a finished run. Raises RecipeInvalid, WeightsInvalid."""
    if (stage := run.recipe.get("stage")) != "head":
        raise RecipeInvalid(f"The run {run.path.name} is of the stage {stage!r}, which serves nothing.")
    recipe = parse_recipe(SlideHeadRecipe, run.recipe)
    width, labels = run.metrics["feature_size"], recipe.publish.labels
    network = SlideHead(recipe.head, width, len(labels), recipe.hidden)
    load_state(network, read_weights(run.weights_path), run.name)
    tiles = Dim("tiles", 1, min(500, recipe.greatest_bag // 2), recipe.greatest_bag)
    outputs = [TensorSpec("logits", "FP32", (1, len(labels)))]
    if network.explains:
        outputs.append(TensorSpec("attention", "FP32", (1, tiles)))
    return Graph(
        model=recipe.publish.model,
        kind="bag",
        network=network.eval(),
        inputs=(TensorSpec("features", "FP32", (1, tiles, width)),),
        outputs=tuple(outputs),
        samples=lambda sizes: {"features": synthetic_bag(sizes["tiles"], width, recipe.seed)},
        card=_card(run, recipe, tiles),
        batch=None,
        unordered=("tiles",) if network.explains else (),
        needs={recipe.encoder_model: run.manifest["starts_from"]["encoder"]["weights_sha256"]},
    )


def _card(run: Run, recipe: SlideHeadRecipe, tiles: Dim) -> dict[str, Any]:
    """The texts of the card: from the recipe, the run's figures and its manifest."""
    publish, metrics = recipe.publish, run.metrics
    labels = card_labels(publish.labels, [metrics["rows"][HEAD][score] for score in ("specificity", "sensitivity")])
    point = metrics["operating_point"]
    stain = metrics["stain_reference"]
    return card_texts(publish, run.manifest["data"], run.manifest["pretraining"]) | {
        "limits": list(publish.limits)
        + [
            f"The label {name} is not supported: its recall's interval reaches down to chance."
            for name in unsupported(labels)
        ]
        + seen_limits(metrics),
        "metrics": card_metrics(metrics, _SHOWN, f"composed slides, {metrics['grouping']}"),
        "labels": labels,
        "operating_points": [
            {
                "name": "answer",
                "min_probability": point["min_probability"],
                "origin": f"The least step of 0.05, up to 0.95, at which {point['aim']:.0%} of the answers on "
                f"slides composed of held-out tiles (inner folds) were right; {point['reached']:.0%} were. "
                "Patients unknown.",
            }
        ],
        "feature_size": metrics["feature_size"],
        "tiles": [tiles.min, tiles.max],
        "composed": True,
        **({"stain_reference": stain} if stain else {}),
    }


def synthetic_bag(tiles: int, width: int, seed: int) -> np.ndarray:
    """(1,N,D) float32, not negative and right-skewed, as most of an embedding is."""
    return np.random.default_rng((seed, tiles)).exponential(0.4, (1, tiles, width)).astype(np.float32)
