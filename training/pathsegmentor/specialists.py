"""Fixed-class networks, one a set, without words: what the text-prompted one is held against at equal total size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gateway.domain.prompts import Level, Triple
from training.errors import RunInvalid
from training.nn.checkpoints import load_state, read_weights
from training.pathsegmentor.data import Batch, Item
from training.pathsegmentor.losses import bce_and_dice
from training.pathsegmentor.pyramid import BilinearPyramid, ConvPyramid, to_image
from training.pathsegmentor.recipe import SpecialistNetwork, SpecialistRecipe
from training.runs import Run, parse_recipe
from training.ssl.model import IMAGENET

Class = tuple[Level, str]
"""Level and object; the region is the set's own."""


class Specialist(nn.Module):
    """Images (N,3,H,W) float RGB 0-255 to mask logits (N,C,H,W) and presence logits (N,C) of its classes."""

    mean, std = IMAGENET

    def __init__(self, network: SpecialistNetwork, classes: Sequence[Class]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.encoder = ConvPyramid(network.encoder)
        self.pyramid = BilinearPyramid(self.encoder.widths, network.width)
        self.masks = nn.Conv2d(network.width, len(self.classes), 1)
        self.presence = nn.Linear(2 * network.width, len(self.classes))

    @property
    def multiple(self) -> int:
        """What an image's sides must be multiples of, px."""
        return self.encoder.strides[-1]

    def forward(self, image_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (image_N3HW.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        (coarse, _, _), features = self.pyramid(self.encoder((image_N3HW - mean) / std))
        logits = self.masks(F.gelu(features))
        factor = float(self.encoder.strides[0])
        summary = torch.cat([coarse.mean((2, 3)), coarse.amax((2, 3))], dim=-1)
        return F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False), self.presence(summary)

    def place(self, triple: Triple) -> int | None:
        """The class that a prompt asks for; None where this network has none."""
        asked = (triple.level, triple.object)
        return self.classes.index(asked) if asked in self.classes else None


class SpecialistLearner(nn.Module):
    """The same draws as the text-prompted network's: of each crop, the class that its prompt names is supervised."""

    def __init__(self, recipe: SpecialistRecipe, items: Sequence[Item]) -> None:
        super().__init__()
        self._recipe, self.pretraining = recipe, ()
        classes = sorted({(triple.level, triple.object) for item in items for triple in item.triples})
        self.model = Specialist(recipe.network, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        weights = self._recipe.loss
        masks_NCHW, presence_NC = self.model(to_image(batch.image_BHWC, self._device))
        row_N, place_N = torch.arange(len(batch.triples)), self._places(batch.triples)
        logits_N1M = masks_NCHW[row_N, place_N].flatten(1)[:, None]
        truth_NM, valid_NM = (
            torch.from_numpy(values).to(self._device).float().flatten(1) for values in (batch.mask_BHW, batch.valid_BHW)
        )
        there_N = torch.from_numpy(batch.present_B).to(self._device).float()
        bce_N, dice_N = (value.squeeze(1) for value in bce_and_dice(logits_N1M, truth_NM, valid_NM))
        present = there_N.sum().clamp(min=1)
        parts = {
            "bce": weights.bce * (there_N * bce_N).sum() / present,
            "dice": weights.dice * (there_N * dice_N).sum() / present,
            "absent": weights.absent * ((1 - there_N) * bce_N).mean(),
            "presence": weights.presence * F.binary_cross_entropy_with_logits(presence_NC[row_N, place_N], there_N),
        }
        return parts | {"total": torch.stack(list(parts.values())).sum()}

    def answer(self, model: nn.Module, image_NHWC: np.ndarray, triples: Sequence[Triple]) -> Tensor:
        """(N,H,W): mask logits of each crop's class by `model`, which is this learner's or an average of it."""
        masks_NCHW, _ = model(to_image(image_NHWC, self._device))
        return masks_NCHW[torch.arange(len(triples)), self._places(triples)]

    def figures(self) -> Mapping[str, Any]:
        """What the run's figures say of the network itself."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "classes": [list(entry) for entry in self.model.classes],
        }

    @property
    def _device(self) -> torch.device:
        return self.model.masks.weight.device

    def _places(self, triples: Sequence[Triple]) -> Tensor:
        return torch.tensor([self.model.classes.index((triple.level, triple.object)) for triple in triples])


def load_specialist(run: Run) -> Specialist:
    """A finished run's network, frozen. Raises RecipeInvalid, RunInvalid, WeightsInvalid."""
    recipe = parse_recipe(SpecialistRecipe, run.recipe)
    classes = run.metrics.get("network", {}).get("classes")
    if not classes:
        raise RunInvalid(f"metrics.json of the run {run.path.name} names no classes. Train it again.")
    network = Specialist(recipe.network, [(Level(level), name) for level, name in classes])
    load_state(network, read_weights(run.weights_path), run.name)
    return network.eval().requires_grad_(False)
