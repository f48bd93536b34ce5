"""Take an encoder of cells as it was published; see training.smartccs.train. Nothing is learned."""

from pathlib import Path

import torch

from training.nn.checkpoints import round_to_fp16, save_weights
from training.runs import Run, RunWriter, runs_folder
from training.smartccs.recipe import EncoderRecipe
from training.ssl.model import begin, new_backbone


def train(
    recipe: EncoderRecipe, text: bytes, out: Path | None = None, *, resume: bool = False, stop_after: int | None = None
) -> Run:
    """A finished run, whose weights are the published ones, rounded to half precision as all that is released.

    There is nothing to stop or to resume. Raises TrainingError.
    """
    writer = RunWriter(out or runs_folder() / recipe.name, text, resume=resume)
    backbone = new_backbone(recipe.network, masked=False)
    pretraining = begin(backbone, recipe.network, torch.Generator().manual_seed(recipe.seed))
    round_to_fp16(backbone)
    save_weights(writer.weights_path, backbone)
    writer.log("taken", weights=recipe.network.start)
    return writer.finish(metrics={"training": {"iterations": 0}}, seed=recipe.seed, pretraining=pretraining)


def describe(recipe: EncoderRecipe) -> str:
    """What a recipe would take, without its weights."""
    return (
        f"{recipe.name}: system {recipe.system}, stage {recipe.stage}\n"
        f"{recipe.network.arch} with the weights of {recipe.network.start}, on crops of {recipe.side_px} px"
    )
