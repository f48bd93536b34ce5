"""Train the cell detector on fields with annotated nuclei; see training.smartccs.train.

Smart-CCS's second stage (arXiv 2502.09662), with Deformable DETR's losses and rates (arXiv 2010.04159).
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.loop import Loop, figures
from training.nn.checkpoints import round_to_fp16, save_weights
from training.repeatable import repeatable
from training.runs import Pretraining, Run, RunWriter, runs_folder
from training.smartccs import data, detecting, froc
from training.smartccs.detector import Detector, initialise
from training.smartccs.detector_figures import leading_figures
from training.smartccs.detector_losses import losses
from training.smartccs.field_crops import Crop, FieldCrops
from training.smartccs.matching import Target
from training.smartccs.recipe import DetectorRecipe, DetectorTraining
from training.ssl.checkpoint import writing
from training.ssl.distributed import World, joined

_PLACES = (".offsets.", ".reference.")
_RESAMPLES = 1000


class DetectorLearner(nn.Module):
    """The network with its losses: a batch of crops to what a step costs."""

    def __init__(self, recipe: DetectorRecipe, world: World) -> None:
        super().__init__()
        self._recipe, self._world = recipe, world
        self.model = Detector(recipe.network)
        self.pretraining = initialise(self.model)

    def forward(self, batch: Sequence[Crop]) -> dict[str, Tensor]:
        device = self.model.queries.device
        images_BHWC = torch.from_numpy(np.stack([crop.image_HWC for crop in batch])).to(device)
        targets = [_target(crop, device) for crop in batch]
        count = torch.tensor(float(sum(len(target.columns_K) for target in targets)), device=device)
        half = self._recipe.training.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            found = self.model.found(images_BHWC)
        return losses(found, targets, float(self._world.mean(count)), self._recipe.loss)


def _target(crop: Crop, device: torch.device) -> Target:
    boxes_K4, columns_K, nuclei_M4 = (
        torch.from_numpy(values).to(device) for values in (crop.boxes_K4, crop.columns_K, crop.nuclei_M4)
    )
    return Target(boxes_K4, columns_K, nuclei_M4, crop.negative)


def parameter_groups(learner: nn.Module, training: DetectorTraining) -> list[dict[str, Any]]:
    """Parameters by rate: the backbone, and what says where to look, have rates of their own."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = training.rate
        rate *= training.backbone_rate if name.startswith("model.backbone.") else 1.0
        rate *= training.places_rate if any(part in name for part in _PLACES) else 1.0
        groups.setdefault(rate, []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": training.decay} for rate, members in groups.items()]


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """This process's share of each iteration's crops, which are numbered through."""

    crops: FieldCrops
    batch: int
    world: World

    def __call__(self, iteration: int, rng: np.random.Generator) -> list[Crop]:
        share = self.batch // self.world.size
        first = iteration * self.batch + self.world.rank * share
        return [self.crops[number] for number in range(first, first + share)]


def train(
    recipe: DetectorRecipe, text: bytes, out: Path | None = None, *, resume: bool = False, stop_after: int | None = None
) -> Run | None:
    """Train a recipe, whose `text` the run folder keeps, to a finished run: the weights of the best validation.

    None where it stopped after `stop_after` iterations, or where this is not the writing process. Raises TrainingError.
    """
    repeatable(deterministic=not torch.cuda.is_available())
    with joined() as world, ExitStack() as held:
        fields, unseen = data.load("train"), data.load("validation")
        pictures = detecting.scaled(unseen, recipe.data.mpp)
        folder = out or runs_folder() / recipe.name
        writer = held.enter_context(writing(folder, text, world, resume=resume))
        torch.manual_seed(recipe.seed)
        learner = DetectorLearner(recipe, world)
        loop = Loop(
            learner,
            parameter_groups(learner, recipe.training),
            recipe.training,
            recipe.seed,
            Draws(
                FieldCrops(fields, recipe.data.side_px, recipe.seed, recipe.data.scales, by_factor=recipe.data.jitter),
                recipe.training.batch,
                world,
            ),
            lambda network: detecting.measured(network, pictures, recipe.data, recipe.merging),
            folder / "work",
            world,
            writer,
        )
        total = recipe.training.iterations
        last = total if stop_after is None else min(total, loop.done + stop_after)
        loop.train(last)
        if writer is None:
            return None
        if last < total:
            print(f"Stopped after {last} of {total} iterations; go on with --resume.", file=sys.stderr)
            return None
        return _finish(recipe, writer, loop.best.cpu().eval(), [*fields, *unseen], pictures, learner.pretraining)


def _finish(
    recipe: DetectorRecipe,
    writer: RunWriter,
    network: Detector,
    learned: Sequence[data.Field],
    validation: Sequence[detecting.Scaled],
    pretraining: tuple[Pretraining, ...],
) -> Run:
    round_to_fp16(network)
    save_weights(writer.weights_path, network)
    metrics: dict[str, Any] = {
        "network": {"parameters": _size(network)},
        "training": figures(writer.path / "log.jsonl", "sensitivity"),
        "cells": data.counts(data.load()).tolist(),
        **measured(network, recipe, validation),
    }
    return writer.finish(
        metrics=metrics,
        seed=recipe.seed,
        data=[field.source for field in learned],
        pretraining=pretraining,
        seen=data.seen(learned),
    )


def measured(
    network: Detector, recipe: DetectorRecipe, validation: Sequence[detecting.Scaled] | None = None
) -> dict[str, Any]:
    """What a run's metrics say of the validation and test fields. Raises DataMissing."""
    found = {}
    for part in ("validation", "test"):
        given = validation if part == "validation" else None
        pictures = detecting.scaled(data.load(part), recipe.data.mpp) if given is None else given
        answers = detecting.answered(network, pictures, recipe.data, recipe.merging)
        blobs = [froc.Answered(entry.field, froc.dark_blobs(entry.field, entry.field.read())) for entry in answers]
        found[part] = froc.figures(answers) | {"froc_of_dark_blobs": froc.told(froc.sensitivities(blobs))}
        if part == "test":
            found[part]["leading"] = leading_figures(answers, _RESAMPLES)
    return found


def describe(recipe: DetectorRecipe) -> str:
    """What a recipe would train, part by part, without memory for its weights."""
    with torch.device("meta"):
        network = Detector(recipe.network)
    sizes = {name: _size(part) for name, part in network.named_children()}
    sizes["tables"] = _size(network) - sum(sizes.values())
    training, settings = recipe.training, recipe.data
    return "\n".join(
        [
            f"{recipe.name}: system {recipe.system}, stage {recipe.stage}",
            *(f"{name}: {size:,} parameters" for name, size in sizes.items()),
            f"all: {_size(network):,} parameters",
            f"batch {training.batch} over all processes at {settings.side_px} px, rate {training.rate:g}, "
            f"{training.iterations:,} iterations in {training.precision}; served at {settings.mpp:g} µm per pixel",
        ]
    )


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
