"""Train an encoder on cytology without labels; see training.smartccs.train. The method is training.ssl's.

Smart-CCS's first step (arXiv 2502.09662), DINOv2 (arXiv 2304.07193) on windows of smears.
"""

import torch

from training.ssl.method import SelfDistillation
from training.ssl.recipe import CnnNetwork, SelfDistillationRecipe
from training.ssl.train import run as train

__all__ = ["describe", "train"]


def describe(recipe: SelfDistillationRecipe) -> str:
    """What a recipe would train, without memory for its weights, and without those that it starts from."""
    network = recipe.network
    if isinstance(network, CnnNetwork):
        recipe = recipe.model_copy(update={"network": network.model_copy(update={"start": "random"})})
    with torch.device("meta"):
        method = SelfDistillation(recipe)
    sizes = {name: sum(value.numel() for value in part.parameters()) for name, part in method.student.items()}
    data, crops = recipe.data, recipe.crops
    return "\n".join(
        [
            f"{recipe.name}: system {recipe.system}, stage {recipe.stage}",
            *(f"{name}: {size:,} parameters" for name, size in sizes.items()),
            f"corpus {data.corpus}, windows of {data.window_px[0]} to {data.window_px[1]} px; batch {data.batch}, "
            f"2 crops of {crops.global_px} px and {crops.local_count} of {crops.local_px} px",
            f"rate {recipe.peak_rate:.3g}, {recipe.iterations:,} of {recipe.optim.plan:,} iterations in "
            f"{recipe.launch.precision}",
        ]
    )
