"""What both kinds of network are to the training loop: parameters by rate, crops to validate on, and their Dice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gateway.domain.prompts import Triple
from training.loop import Measured
from training.pathsegmentor.data import Batch
from training.pathsegmentor.recipe import Training

_TABLES = ("words.weight", "embeddings.weight", "positions", "levels", "queries")
_VALIDATION_BATCH = 16


class Learner(Protocol):
    """A network `model` with its losses; see SegmentorLearner."""

    model: nn.Module

    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...
    def answer(self, model: nn.Module, image_NHWC: np.ndarray, triples: Sequence[Triple]) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """N fixed crops with a prompt each, whose object is there."""

    image_NHWC: np.ndarray
    mask_NHW: np.ndarray
    valid_NHW: np.ndarray
    triples: tuple[Triple, ...]


def parameter_groups(learner: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Parameters by rate and decay: encoders have rates of their own; vectors and tables do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = training.rate
        rate *= training.image_rate if name.startswith("model.encoder.") else 1.0
        rate *= training.text_rate if name.startswith("model.text.") else 1.0
        decay = 0.0 if parameter.ndim <= 1 or name.endswith(_TABLES) else training.decay
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def measured(learner: Learner, model: nn.Module, crops: Crops) -> Measured:
    """The mean Dice over the prompts, and each one's."""
    found = dice_by_triple(learner, model, crops)
    mean = float(np.mean(list(found.values())))
    triples = {triple.text: round(dice, 4) for triple, dice in found.items()}
    return Measured(mean, {"dice": round(mean, 4), "triples": triples})


@torch.inference_mode()
def dice_by_triple(learner: Learner, model: nn.Module, crops: Crops) -> Mapping[Triple, float]:
    """Mean Dice over the crops of each triple, over valid pixels, at the crop's own resolution."""
    model.eval()
    found: dict[Triple, list[float]] = {}
    for start in range(0, len(crops.triples), _VALIDATION_BATCH):
        part = slice(start, start + _VALIDATION_BATCH)
        logits_NHW = learner.answer(model, crops.image_NHWC[part], crops.triples[part]).cpu().numpy()
        said_NHW, valid_NHW = (logits_NHW > 0) & crops.valid_NHW[part], crops.valid_NHW[part]
        true_NHW = crops.mask_NHW[part] & valid_NHW
        shared_N = (said_NHW & true_NHW).sum((1, 2))
        dice_N = 2 * shared_N / np.maximum(said_NHW.sum((1, 2)) + true_NHW.sum((1, 2)), 1)
        for triple, dice in zip(crops.triples[part], dice_N, strict=True):
            found.setdefault(triple, []).append(float(dice))
    return {triple: float(np.mean(values)) for triple, values in sorted(found.items())}
