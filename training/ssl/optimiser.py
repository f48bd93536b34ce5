"""AdamW with layer-wise rates, the settings of each step, and clipping (DINOv2, arXiv 2304.07193, appendix B)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.ssl.distributed import whole
from training.ssl.method import SelfDistillation
from training.ssl.recipe import Optim, SelfDistillationRecipe
from training.ssl.schedules import Schedule

_BLOCK = re.compile(r"\._?blocks\.(\d+)\.")
_FIRST_LAYER = ("cls_token", "reg_token", "pos_embed", "mask_token", "patch_embed", "_conv_stem", "backbone._bn0")
_UNDECAYED = ("norm", "gamma", "_bn")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the schedules say for one iteration."""

    rate: float
    decay: float
    momentum: float
    last_layer_frozen: bool


class Plan:
    """Learning rate, weight decay and EMA momentum over the iterations."""

    def __init__(self, recipe: SelfDistillationRecipe) -> None:
        optim, plan = recipe.optim, recipe.optim.plan
        self._rate = Schedule(recipe.peak_rate, optim.min_lr, plan, optim.warmup_epochs * optim.epoch_iterations)
        self._decay = Schedule(*optim.decay, plan)
        self._momentum = Schedule(*recipe.teacher.momentum, plan)
        self._frozen = optim.freeze_last_layer_epochs * optim.epoch_iterations

    def __call__(self, iteration: int) -> Settings:
        return Settings(
            self._rate(iteration), self._decay(iteration), self._momentum(iteration), iteration < self._frozen
        )


def layer(name: str, depth: int) -> int:
    """0 for tokens, positions and the patch embedding (or a CNN's stem), i + 1 for block i, depth + 1 for the rest."""
    block = _BLOCK.search(f".{name}")
    if block:
        return int(block[1]) + 1
    return 0 if "backbone." in name and any(part in name for part in _FIRST_LAYER) else depth + 1


def multipliers(name: str, depth: int, optim: Optim) -> tuple[float, float]:
    """What a parameter's learning rate and weight decay are multiplied with."""
    rate = optim.layer_decay ** (depth + 1 - layer(name, depth))
    if "patch_embed" in name:
        rate *= optim.patch_embed
    undecayed = name.endswith(".bias") or any(part in name for part in _UNDECAYED)
    return rate, 0.0 if undecayed else 1.0


def make_optimiser(method: SelfDistillation, optim: Optim) -> torch.optim.AdamW:
    """AdamW over all that is trained, one group for parameters treated alike; its state exists from the start."""
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    depth = method.depth
    for name, parameter in method.trained().items():
        last_layer = "last_layer" in name and (name.startswith("student.") or optim.freeze_distill_last_layer)
        groups.setdefault((*multipliers(name, depth, optim), last_layer), []).append(parameter)
    optimiser = torch.optim.AdamW(
        [
            {"params": parameters, "rate": rate, "decay": decay, "last_layer": last_layer}
            for (rate, decay, last_layer), parameters in groups.items()
        ],
        lr=0.0,
        betas=optim.betas,
        foreach=True,
    )
    for parameter in method.trained().values():
        optimiser.state[parameter] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimiser


def apply(settings: Settings, optimiser: torch.optim.Optimizer) -> None:
    """Set every group's learning rate and weight decay."""
    for group in optimiser.param_groups:
        frozen = settings.last_layer_frozen and group["last_layer"]
        group["lr"] = 0.0 if frozen else settings.rate * group["rate"]
        group["weight_decay"] = settings.decay * group["decay"]


def clip(method: SelfDistillation, optim: Optim) -> dict[str, Tensor]:
    """Scale the gradients of each part down to the norm `optim.clip`; the norms before. Parts: the student's backbone,
    each of its heads, and, where the recipe says so, the heads of further terms."""
    if optim.clip is None:
        return {}
    parts: Mapping[str, nn.Module] = dict(method.student.items())
    if optim.clip_distill_heads:
        parts = {**parts, **{f"term_{name}": term for name, term in method.terms.items()}}
    return {
        name: whole(nn.utils.clip_grad_norm_(part.parameters(), optim.clip, foreach=True))
        for name, part in parts.items()
    }


def state(optimiser: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """The optimiser's own tensors by the names of their parameters."""
    return {
        f"{name}.{key}": value
        for name, parameter in trained.items()
        for key, value in optimiser.state[parameter].items()
    }
