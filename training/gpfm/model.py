"""The networks that gpfm's runs give, and the weights that a student starts from."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import RecipeInvalid, WeightsInvalid
from training.gpfm.recipe import ContrastiveRecipe, DistillRecipe, SslRecipe, SupervisedRecipe
from training.nn.checkpoints import load_state, read_weights
from training.nn.vit import ViT, unchunked
from training.runs import Run, parse_recipe
from training.ssl.model import CnnBackbone, new_backbone

AnyRecipe = SslRecipe | DistillRecipe | SupervisedRecipe | ContrastiveRecipe
STAGES: dict[str, type[AnyRecipe]] = {
    "ssl": SslRecipe,
    "expert-ssl": SslRecipe,
    "distill": DistillRecipe,
    "expert-supervised": SupervisedRecipe,
    "expert-contrastive": ContrastiveRecipe,
}
_NESTS = ("teacher", "model", "state_dict")
_HEADS = ("dino_head.", "ibot_head.", "head.", "fc.")
# DINOv2's own names of SwiGLU's layers, and ours.
_RENAMED = ((re.compile(r"\.mlp\.w12\."), ".mlp.fc1."), (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."))


class ImageEncoder(nn.Module):
    """Crops (B,3,H,W), scaled as the backbone wants them, to a vector (B,D) and patch tokens (B,N,D), or None.

    With `dim`, the vector is a normalised linear map of the class token (that side of an image-text pair which sees),
    and there are no patch tokens: only the vector was trained.
    """

    def __init__(self, backbone: ViT | CnnBackbone, dim: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = None if dim is None else nn.Linear(backbone.width, dim, bias=False)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = self.backbone(x_BCHW)
        if self.projection is None:
            return tokens.cls_BD, tokens.patches_BND
        return F.normalize(self.projection(tokens.cls_BD), dim=-1), None

    @property
    def dim(self) -> int:
        """Width of the vector."""
        return self.backbone.width if self.projection is None else self.projection.out_features


def kind_of(values: Mapping[str, object]) -> type[AnyRecipe]:
    """The class of a recipe's stage. Raises RecipeInvalid."""
    stage = values.get("stage")
    if str(stage) not in STAGES:
        raise RecipeInvalid(f"The recipe names the stage {stage!r}; gpfm has the stages {', '.join(STAGES)}.")
    return STAGES[str(stage)]


def recipe_of(values: Mapping[str, object]) -> AnyRecipe:
    """A recipe's values as the class of its stage. Raises RecipeInvalid."""
    return parse_recipe(kind_of(values), values)


def network_of(run: Run) -> ImageEncoder:
    """A finished run's network with its weights, frozen. Raises RecipeInvalid, WeightsInvalid."""
    recipe, tensors = recipe_of(run.recipe), read_weights(run.weights_path)
    backbone = new_backbone(recipe.network, masked="mask_token" in tensors)
    if isinstance(recipe, ContrastiveRecipe):
        encoder = ImageEncoder(backbone, recipe.dim)
        load_state(encoder, tensors, run.name)
    else:
        encoder = ImageEncoder(backbone)
        load_state(backbone, tensors, run.name)
    return encoder.eval().requires_grad_(False)


def read_start(path: Path) -> dict[str, Tensor]:
    """A backbone's tensors out of a checkpoint file under the names of `training.nn.vit`, whatever their nesting.

    The published release loads such a file without checking it: wrongly nested, nothing is loaded and nothing is said.
    Here it is unwrapped, and who loads it does so strictly. Raises WeightsInvalid.
    """
    tensors: object
    if path.suffix == ".safetensors":
        tensors = read_weights(path)
    else:
        try:
            tensors = torch.load(path, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            raise WeightsInvalid(
                f"The start {path.name} is missing. Put the file there or name another start."
            ) from None
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
            raise WeightsInvalid(f"The start {path.name} cannot be read: it is no checkpoint of tensors.") from None
    for nest in _NESTS:
        if isinstance(tensors, dict) and isinstance(tensors.get(nest), dict):
            tensors = tensors[nest]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsInvalid(f"The start {path.name} holds no tensors by name. Name a checkpoint of a backbone.")
    prefix = "backbone." if any(name.startswith("backbone.") for name in tensors) else ""
    own = {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}
    own = {name: value for name, value in own.items() if not name.startswith(_HEADS)}
    plain = {new: own[old] for old, new in unchunked(list(own)).items()}
    for pattern, ours in _RENAMED:
        plain = {pattern.sub(ours, name): value for name, value in plain.items()}
    return {name: value.reshape(1, -1) if name == "mask_token" else value for name, value in plain.items()}
