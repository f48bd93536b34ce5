"""Train for segmentation: `python -m training.pathsegmentor.train RECIPE.toml [--resume] [--out DIR] [--dry-run]`.

Stages: `segmentor` (the text-prompted network, PathSegmentor, arXiv 2506.20988), `specialist` (a fixed-class network of
one set). In several processes: `torchrun --nproc-per-node 4 -m training.pathsegmentor.train RECIPE.toml`. With one
thread on a CPU the same recipe and seed give the same bits, whether the run was interrupted or not. `--dry-run` builds
the network without memory for its weights and prints its parts.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gateway.domain.prompts import words
from training import command
from training.errors import RecipeInvalid
from training.files import write_atomic
from training.loop import Loop, figures
from training.nn.checkpoints import round_to_fp16, save_weights
from training.pathsegmentor import data, evaluate
from training.pathsegmentor.data import Item
from training.pathsegmentor.learner import SegmentorLearner
from training.pathsegmentor.loop import Crops, measured, parameter_groups
from training.pathsegmentor.model import PathSegmentor
from training.pathsegmentor.recipe import AnyRecipe, SegmentorRecipe, SpecialistRecipe
from training.pathsegmentor.specialists import SpecialistLearner
from training.repeatable import repeatable
from training.runs import Run, RunWriter, read_toml, runs_folder
from training.ssl.checkpoint import writing
from training.ssl.distributed import World, joined
from training.ssl.recipe import read_recipe

STAGES: dict[str, type[AnyRecipe]] = {"segmentor": SegmentorRecipe, "specialist": SpecialistRecipe}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathsegmentor.train", description=__doc__)
    command.add_arguments(parser)
    parser.add_argument("--iterations", type=int, metavar="N", help="stop after N more iterations, to resume later")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: training.clip=1"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained; train nothing")
    chosen = parser.parse_args(arguments)
    if chosen.dry_run:
        return command.status(lambda: print(describe(read(chosen.recipe, chosen.set)[0])), "Nothing")
    return command.report(
        lambda: train(chosen.recipe, chosen.out, resume=chosen.resume, stop_after=chosen.iterations, changes=chosen.set)
    )


def read(path: Path, changes: Sequence[str] = ()) -> tuple[AnyRecipe, bytes]:
    """A recipe file, with changes, as the class of its stage; and its text. Raises RecipeInvalid."""
    stage = read_toml(path).get("stage")
    if str(stage) not in STAGES:
        raise RecipeInvalid(f"The recipe names the stage {stage!r}; pathsegmentor has the stages {', '.join(STAGES)}.")
    return read_recipe(STAGES[str(stage)], path, changes)


def train(
    recipe_path: Path,
    out: Path | None = None,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    changes: Sequence[str] = (),
) -> Run | None:
    """Train a recipe to a finished run folder; its weights are the averaged ones of the best validation.

    None where it stopped after `stop_after` iterations, or where this is not the writing process. Raises TrainingError.
    """
    recipe, text = read(recipe_path, changes)
    repeatable(deterministic=not torch.cuda.is_available())
    _demand_scales(recipe)
    with joined() as world, ExitStack() as held:
        items, unseen = data.load("train", recipe.data.sets), data.load("val", recipe.data.sets)
        _demand_free(recipe, [*items, *unseen])
        folder = out or runs_folder() / recipe.name
        writer = held.enter_context(writing(folder, text, world, resume=resume))
        torch.manual_seed(recipe.seed)
        learner = _learner(recipe, items)
        loop = _loop(recipe, learner, items, unseen, folder, world, writer)
        total = recipe.training.iterations
        last = total if stop_after is None else min(total, loop.done + stop_after)
        loop.train(last)
        if writer is None:
            return None
        if last < total:
            print(f"Stopped after {last} of {total} iterations; go on with --resume.", file=sys.stderr)
            return None
        return _finish(recipe, writer, learner, loop.best.cpu(), [*items, *unseen])


def _demand_scales(recipe: AnyRecipe) -> None:
    """The card tells the scales of the recipe: they must be those at which the data come. Raises RecipeInvalid."""
    for level, mpp in data.MPP.items():
        if recipe.mpp_by_level.get(level.value) != mpp:
            raise RecipeInvalid(
                f"The recipe's mpp_by_level.{level.value} is not {mpp:g}, at which the data of that level are read."
            )


def _demand_free(recipe: AnyRecipe, items: Sequence[Item]) -> None:
    """Raises RecipeInvalid where a network that is to be served would learn from what is not free to use."""
    if isinstance(recipe, SegmentorRecipe) and recipe.publish is not None:
        for item in items:
            if item.tier != "A":
                raise RecipeInvalid(
                    f"The recipe's set {item.set} is of tier {item.tier}; what ships is trained on tier A only. "
                    "Leave out that set, or the section publish."
                )


def _learner(recipe: AnyRecipe, items: Sequence[Item]) -> SegmentorLearner | SpecialistLearner:
    if isinstance(recipe, SegmentorRecipe):
        return SegmentorLearner(recipe)
    return SpecialistLearner(recipe, items)


def _loop(
    recipe: AnyRecipe,
    learner: nn.Module,
    items: Sequence[Item],
    unseen: Sequence[Item],
    folder: Path,
    world: World,
    writer: RunWriter | None,
) -> Loop:
    settings = recipe.data
    draws = data.Sampler(items, settings.side_px, absent=settings.absent, naive=settings.naive_absent)
    crops = validation_crops(unseen, settings.side_px, recipe.training.validation_crops, recipe.seed)
    size = recipe.training.batch // world.size
    # Images come as they lie in memory, channels last: with weights laid out alike a step is a fifth faster.
    learner.to(memory_format=torch.channels_last)
    return Loop(
        learner,
        parameter_groups(learner, recipe.training),
        recipe.training,
        recipe.seed,
        lambda _, rng: draws.batch(rng, size),
        lambda network: measured(learner, network, crops),
        folder / "work",
        world,
        writer,
    )


def validation_crops(items: Sequence[Item], side_px: int, count: int, seed: int) -> Crops:
    """`count` crops in which the object is there for each triple, drawn from its items in turn; fewer where an object
    is rarely in a crop. Raises RecipeInvalid where there is none at all."""
    by_triple: dict[Any, list[Item]] = {}
    for item in items:
        for triple in item.triples:
            by_triple.setdefault(triple, []).append(item)
    rng, drawn, triples = np.random.default_rng((seed, 1)), [], []
    for triple, holders in sorted(by_triple.items()):
        found = 0
        for attempt in range(4 * count):
            crop = data.crop(rng, holders[attempt % len(holders)], triple, side_px, augment=False)
            if crop.present:
                drawn.append(crop)
                triples.append(triple)
                found += 1
            if found == count:
                break
    if not drawn:
        raise RecipeInvalid("The sets that the recipe names have no object to validate on. Name more sets.")
    return Crops(
        np.stack([crop.image_HWC for crop in drawn]),
        np.stack([crop.mask_HW for crop in drawn]),
        np.stack([crop.valid_HW for crop in drawn]),
        tuple(triples),
    )


def _finish(
    recipe: AnyRecipe,
    writer: RunWriter,
    learner: SegmentorLearner | SpecialistLearner,
    network: nn.Module,
    items: Sequence[Item],
) -> Run:
    round_to_fp16(network)
    save_weights(writer.weights_path, network)
    metrics = {"network": dict(learner.figures()), "training": figures(writer.path / "log.jsonl", "dice")}
    if isinstance(recipe, SegmentorRecipe):
        measured, table = evaluate.finish(network.eval(), recipe)
        metrics |= measured
        write_atomic(writer.path / "prompts.csv", table)
    return writer.finish(
        metrics=metrics,
        seed=recipe.seed,
        data=data.sources(items),
        pretraining=learner.pretraining,
        seen=data.seen(items),
    )


def describe(recipe: AnyRecipe) -> str:
    """What a recipe would train, part by part, without memory for its weights. Raises RecipeInvalid."""
    training = recipe.training
    lines = [f"{recipe.name}: system {recipe.system}, stage {recipe.stage}"]
    if isinstance(recipe, SegmentorRecipe):
        with torch.device("meta"):
            network = PathSegmentor(recipe.network, len(words()))
        parts = {name: _size(part) for name, part in network.named_children()}
        lines += [f"{name}: {size:,} parameters" for name, size in parts.items()]
        lines.append(f"all: {sum(parts.values()):,} parameters")
    lines.append(
        f"batch {training.batch} over all processes at {recipe.data.side_px} px, rate {training.rate:g}, "
        f"{training.iterations:,} iterations in {training.precision}; sets {', '.join(recipe.data.sets)}"
    )
    return "\n".join(lines)


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


if __name__ == "__main__":
    sys.exit(main())
