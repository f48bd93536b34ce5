"""Train one stage of the gpfm system: `python -m training.gpfm.train RECIPE.toml [--resume] [--out DIR] [--dry-run]`.

Stages: `expert-supervised`, `expert-contrastive`, `expert-ssl` (the experts that we train ourselves), `ssl` (plain
self-distillation: a student's first weights and its baseline), `distill` (GPFM). In several processes the last three:
`torchrun --nproc-per-node 2 -m training.gpfm.train RECIPE.toml`. `--dry-run` builds the networks without memory for
their weights and prints what would be trained, in which parts, with which experts.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from training import command
from training.files import sha256_file
from training.gpfm import labelled, plan
from training.gpfm.data import resized, unseen
from training.gpfm.evaluate import TILES, agreement, licences
from training.gpfm.experts import Expert, Regression, open_experts
from training.gpfm.model import AnyRecipe, kind_of, network_of, read_start
from training.gpfm.recipe import DistillRecipe, SslRecipe
from training.repeatable import repeatable
from training.runs import Pretraining, Run, RunWriter, find_run, read_toml, runs_folder
from training.ssl import train as ssl
from training.ssl.checkpoint import occupy
from training.ssl.method import SelfDistillation
from training.ssl.model import Backbone
from training.ssl.recipe import read_recipe


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.gpfm.train", description=__doc__)
    ssl.add_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained; train nothing")
    chosen = parser.parse_args(arguments)
    if chosen.dry_run:
        return _dry_run(chosen.recipe, chosen.set)
    return command.report(
        lambda: train(chosen.recipe, chosen.out, resume=chosen.resume, stop_after=chosen.iterations, changes=chosen.set)
    )


def train(
    recipe_path: Path,
    out: Path | None = None,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    changes: Sequence[str] = (),
) -> Run | None:
    """Run a recipe to a finished run folder; None where it stopped after `stop_after` iterations, or where this is not
    the writing process. Raises TrainingError."""
    recipe, text = read(recipe_path, changes)
    if isinstance(recipe, SslRecipe):
        return ssl.run(recipe, text, out, resume=resume, stop_after=stop_after)
    if isinstance(recipe, DistillRecipe):
        return distill(recipe, text, out, resume=resume, stop_after=stop_after)
    repeatable()
    run = RunWriter(out or runs_folder() / recipe.name, text, resume=resume)
    with occupy(run.work):
        return labelled.train(recipe, run, stop_after)


def read(path: Path, changes: Sequence[str] = ()) -> tuple[AnyRecipe, bytes]:
    """A recipe file, with changes, as the class of its stage; and its text. Raises RecipeInvalid."""
    return read_recipe(kind_of(read_toml(path)), path, changes)


def distill(
    recipe: DistillRecipe, text: bytes, out: Path | None, *, resume: bool, stop_after: int | None
) -> Run | None:
    """Self-distillation with the experts' losses; the run says what it agrees on with each expert."""
    experts = open_experts(recipe.kd, recipe.crops.global_px)
    parents = {f"expert_{expert.settings.name}": expert.run for expert in experts if expert.run is not None}
    if recipe.start is not None:
        parents["student"] = find_run(recipe.start)
    start, pretraining = _start(recipe, parents.get("student"))
    made: list[Regression] = []

    def terms(backbone: Backbone) -> dict[str, Regression]:
        made.append(Regression(recipe.kd, experts, backbone.width, recipe.seed))
        return {"experts": made[0]}

    def evaluate(teacher: Backbone) -> dict[str, Any]:
        return {"experts": licences(experts), "agreement": _agreement(recipe, experts, start, teacher, made[0])}

    return ssl.run(
        recipe,
        text,
        out,
        resume=resume,
        stop_after=stop_after,
        terms=terms,
        start=start,
        starts_from=parents,
        pretraining=(*pretraining, *(expert.pretraining for expert in experts if expert.pretraining)),
        evaluate=evaluate,
    )


def _start(
    recipe: DistillRecipe, parent: Run | None
) -> tuple[Mapping[str, torch.Tensor] | None, tuple[Pretraining, ...]]:
    """The backbone's first weights, of the run `parent` or of a file, if any; and what the file is."""
    if parent is not None:
        return network_of(parent).backbone.state_dict(), ()
    if recipe.start_file is None:
        return None, ()
    path = runs_folder() / recipe.start_file
    tensors = read_start(path)
    values = sum(value.numel() for value in tensors.values())
    print(f"The student starts from {path.name}: {len(tensors)} tensors, {values:,} values.", file=sys.stderr)
    return tensors, (Pretraining("file", "", path.name, sha256_file(path), "not stated", "not stated"),)


def _agreement(
    recipe: DistillRecipe,
    experts: Sequence[Expert],
    start: Mapping[str, torch.Tensor] | None,
    teacher: Backbone,
    regression: Regression,
) -> dict[str, Any] | None:
    """None where the heads are shared out over processes, which this one cannot gather alone."""
    if any(hasattr(parameter, "full_tensor") for parameter in regression.parameters()):
        return None
    first = SelfDistillation(recipe)
    if start is not None:
        ssl.load_start(first, start)
    heads = Regression(recipe.kd, experts, teacher.width, recipe.seed)
    tiles_KHWC, groups_K = unseen(TILES, recipe.data.sets)
    crops_KHWC = torch.from_numpy(resized(tiles_KHWC, recipe.crops.global_px))
    students = (teacher.cpu(), regression.cpu()), (first.student["backbone"], heads)
    return agreement(*students, crops_KHWC, groups_K, recipe.seed)


def _dry_run(path: Path, changes: Sequence[str]) -> int:
    def describe() -> None:
        recipe, _ = read(path, changes)
        print(plan.describe(recipe))

    return command.report(describe)


if __name__ == "__main__":
    sys.exit(main())
