"""What a recipe would train, told without memory for its weights: parts, FSDP's units, experts."""

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from training.errors import TrainingError
from training.gpfm.experts import heads, open_expert
from training.gpfm.model import AnyRecipe, ImageEncoder
from training.gpfm.recipe import ContrastiveRecipe, Distillation, DistillRecipe, SupervisedRecipe
from training.runs import find_run, runs_folder
from training.ssl.distributed import shards
from training.ssl.method import SelfDistillation
from training.ssl.model import new_backbone
from training.ssl.recipe import SelfDistillationRecipe

_BYTES_TRAINED = 16
"""A trained fp32 parameter, its gradient and AdamW's two averages."""


def describe(recipe: AnyRecipe) -> str:
    """The plan in lines of text. Raises TrainingError."""
    lines = [f"{recipe.name}: system {recipe.system}, stage {recipe.stage}"]
    with torch.device("meta"), warnings.catch_warnings():
        # Published weights that a network begins with are compared with it, and then go nowhere.
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
        if isinstance(recipe, SupervisedRecipe | ContrastiveRecipe):
            dim = recipe.dim if isinstance(recipe, ContrastiveRecipe) else None
            encoder = ImageEncoder(new_backbone(recipe.network, masked=False), dim)
            return "\n".join([*lines, _count("encoder", encoder)])
        method = SelfDistillation(recipe)
        if isinstance(recipe, DistillRecipe):
            method.terms["experts"] = heads(recipe.kd, method.student["backbone"].width)
    lines += [_count(f"student {name}", part) for name, part in method.student.items()]
    if isinstance(recipe, DistillRecipe):
        lines += [_count(f"distill head {name}", head) for name, head in method.terms["experts"].items()]
    trained, averaged = _size(method.trained().values()), _size(method.teacher.parameters())
    lines += [f"trained {trained:,}, averaged by the teacher {averaged:,}", _schedule(recipe)]
    if recipe.launch.strategy == "fsdp":
        lines += _units(method, recipe.launch.chunks)
        state = trained * _BYTES_TRAINED + averaged * 4
        lines.append(f"state over all processes: {state / 2**30:.1f} GiB, without activations and experts")
    if isinstance(recipe, DistillRecipe):
        lines += [*_beginning(recipe), *_experts(recipe.kd, recipe.crops.global_px)]
    return "\n".join(lines)


def _count(name: str, part: nn.Module) -> str:
    return f"{name}: {_size(part.parameters()):,} parameters"


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _schedule(recipe: SelfDistillationRecipe) -> str:
    return (
        f"batch {recipe.data.batch} over all processes, peak rate {recipe.peak_rate:.6g}, "
        f"{recipe.iterations:,} iterations out of a plan of {recipe.optim.plan:,}; "
        f"{recipe.launch.strategy} in {recipe.launch.precision}"
    )


def _units(method: SelfDistillation, chunks: int) -> list[str]:
    """FSDP's units in the order in which they are wrapped."""
    names = {module: name for name, module in method.named_modules()}
    lines, counted = [], set()
    for number, unit in enumerate(shards(method, chunks)):
        own = {parameter for module in unit for parameter in module.parameters()} - counted
        counted |= own
        first, last = names[unit[0]], names[unit[-1]]
        where = first if first == last else f"{first} … {last}"
        lines.append(f"fsdp unit {number}: {where}, {_size(own):,} parameters")
    left = [name for name, parameter in method.named_parameters() if parameter not in counted]
    return [*lines, *(f"not sharded: {name}" for name in left)]


def _beginning(recipe: DistillRecipe) -> list[str]:
    if recipe.start is not None:
        try:
            return [f"start: the run {find_run(recipe.start).name}"]
        except TrainingError as error:
            return [f"start MISSING: {error.detail}"]
    if recipe.start_file is not None:
        there = (runs_folder() / recipe.start_file).is_file()
        return [f"start{'' if there else ' MISSING'}: the file {recipe.start_file} in the runs folder"]
    return ["start: fresh weights"]


def _experts(kd: Distillation, crop_px: int) -> list[str]:
    lines = []
    for settings in kd.experts:
        what = f"expert {settings.name}: {settings.dim}-d, cls {settings.cls:g}, patch {settings.patch:g}"
        try:
            expert = open_expert(settings, crop_px)
        except TrainingError as error:
            lines.append(f"{what}; MISSING: {error.detail}")
        else:
            lines.append(f"{what}; sha256 {expert.sha256[:12]}, {' and '.join(expert.licences)}")
    return lines
