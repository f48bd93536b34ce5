"""Train by self-distillation: `python -m training.ssl.train RECIPE.toml [--resume] [--out DIR]`.

In several processes: `torchrun --nproc-per-node 2 -m training.ssl.train RECIPE.toml`. With one thread on a CPU, the
same recipe and seed give the same bits, whether the run was interrupted or not.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from training import command
from training.data.corpus import he_corpus
from training.data.cytology import cytology_corpus
from training.nn.checkpoints import load_state, read_weights, save_weights
from training.repeatable import repeatable
from training.runs import Pretraining, Run, find_run, runs_folder
from training.ssl import ema
from training.ssl.checkpoint import writing
from training.ssl.distributed import joined
from training.ssl.loop import Loop
from training.ssl.method import SelfDistillation, Term
from training.ssl.model import Backbone
from training.ssl.recipe import SelfDistillationRecipe, read_recipe
from training.ssl.views import Corpus


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.ssl.train", description=__doc__)
    add_arguments(parser)
    chosen = parser.parse_args(arguments)
    return command.report(
        lambda: run(
            *read_recipe(SelfDistillationRecipe, chosen.recipe, chosen.set),
            chosen.out,
            resume=chosen.resume,
            stop_after=chosen.iterations,
        )
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every self-distillation's command line has."""
    command.add_arguments(parser)
    parser.add_argument("--iterations", type=int, metavar="N", help="stop after N more iterations, to resume later")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: optim.clip=1"
    )


def run(
    recipe: SelfDistillationRecipe,
    text: bytes,
    out: Path | None = None,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    corpus: Corpus | None = None,
    terms: Callable[[Backbone], Mapping[str, Term]] | None = None,
    start: Mapping[str, Tensor] | None = None,
    starts_from: Mapping[str, Run] | None = None,
    pretraining: Iterable[Pretraining] = (),
    evaluate: Callable[[Backbone], Mapping[str, Any]] | None = None,
) -> Run | None:
    """Train a recipe to a finished run folder, whose weights are the EMA teacher's backbone.

    `text` is the recipe as the run folder keeps it; `corpus` the tiles, by default those that the recipe names. `terms`
    makes further losses for the student's backbone. `start` are its first weights (a mask token may be missing);
    without, those of the run that `recipe.start` names, if any. `evaluate` gives further figures of the finished
    backbone. None: stopped after `stop_after` iterations, or not the writing process. Raises TrainingError.
    """
    # On a GPU some of the networks' backward passes have no deterministic form.
    repeatable(deterministic=not torch.cuda.is_available())
    parents = dict(starts_from or {})
    if start is None and recipe.start is not None:
        parents["student"] = find_run(recipe.start)
        start = read_weights(parents["student"].weights_path)
    with joined() as world, ExitStack() as held:
        tiles = corpus if corpus is not None else _corpus(recipe)
        method = SelfDistillation(recipe)
        if terms is not None:
            method.terms.update(terms(method.student["backbone"]))
        if start is not None:
            load_start(method, start)
        writer = held.enter_context(writing(out or runs_folder() / recipe.name, text, world, resume=resume))
        loop = Loop(method, recipe, tiles, writer, world)
        last = recipe.iterations if stop_after is None else min(recipe.iterations, loop.done + stop_after)
        loop.train(last)
        teacher = loop.teacher()
        if writer is None:
            return None
        if last < recipe.iterations:
            print(f"Stopped after {last} of {recipe.iterations} iterations; go on with --resume.", file=sys.stderr)
            return None
        save_weights(writer.weights_path, teacher)
        metrics = {"training": figures(writer.path / "log.jsonl"), **(evaluate(teacher) if evaluate else {})}
        return writer.finish(
            metrics=metrics,
            seed=recipe.seed,
            data=tiles.sources,
            pretraining=(*method.pretraining, *pretraining),
            starts_from=parents,
            seen=tiles.seen,
        )


def load_start(method: SelfDistillation, weights: Mapping[str, Tensor]) -> None:
    """Begin student and teacher with a backbone's weights, all of them; only the mask token may be missing, and it is
    left out where nothing is masked. Raises WeightsInvalid naming the first tensor that differs."""
    backbone = method.student["backbone"]
    own = backbone.state_dict()
    found = {key: value for key, value in weights.items() if key in own or key != "mask_token"}
    if "mask_token" in own:
        found.setdefault("mask_token", own["mask_token"])
    load_state(backbone, found, "the run to start from")
    ema.copy(method.teacher["backbone"], backbone)


def figures(log: Path) -> dict[str, Any]:
    """What a log tells of the training: each loss in the first step and as the mean of the last ten logged ones, the
    teacher's last signs of collapse, and the number of alarms."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = {line["iteration"]: line for line in lines if line["event"] == "step"}
    losses = [steps[iteration]["losses"] for iteration in sorted(steps)]
    signs = [line["signs"] for line in lines if line["event"] == "teacher"]
    return {
        "iterations": max(steps) + 1,
        "losses": {
            name: {"first": first, "last": mean(row[name] for row in losses[-10:])} for name, first in losses[0].items()
        },
        "teacher": signs[-1] if signs else None,
        "alarms": sum(line["event"] == "collapse" for line in lines),
    }


def _corpus(recipe: SelfDistillationRecipe) -> Corpus:
    if recipe.data.corpus == "cytology":
        return cytology_corpus(recipe.data.window_px, shuffled=recipe.data.shuffle_pixels)
    return he_corpus(recipe.data.sets)


if __name__ == "__main__":
    sys.exit(main())
