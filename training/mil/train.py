"""Train a slide head on composed slides: `python -m training.mil.train RECIPE.toml [--resume] [--out DIR]`.

Tiles are split several times; a head is trained on slides composed of each split's training tiles and measured once on
slides of its test tiles. The served head is trained on all tiles in the same way. On a CPU with one thread the same
recipe gives the same bits.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from training import command
from training.data import crc9
from training.data.dataset import Dataset
from training.data.stain import stain_reference
from training.data.views import VIEWS
from training.embedding import cached, embed, on_tiles, random_encoder
from training.errors import RecipeInvalid
from training.graphs import declare
from training.head_card import demand_same_tile, encoder_has_seen
from training.mil import evaluate
from training.mil.data import split_tiles
from training.mil.evaluate import Answers
from training.mil.fit import Task, fit_head
from training.mil.recipe import SlideHeadRecipe
from training.nn.checkpoints import round_to_fp16, save_weights
from training.repeatable import repeatable
from training.runs import Run, RunWriter, find_run, parse_recipe, read_toml, runs_folder


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.mil.train", description=__doc__)
    command.add_arguments(parser)
    chosen = parser.parse_args(arguments)
    return command.report(lambda: train(chosen.recipe, chosen.out, resume=chosen.resume))


def train(recipe_path: Path, out: Path | None = None, *, resume: bool = False) -> Run:
    """Run a recipe to a finished run folder. Raises TrainingError."""
    repeatable()
    values = read_toml(recipe_path)
    if (stage := values.get("stage")) != "head":
        raise RecipeInvalid(f"The recipe names the stage {stage!r}; the mil system has the stage head.")
    recipe = parse_recipe(SlideHeadRecipe, values)
    tiles = crc9.load()
    if recipe.target not in tiles.classes:
        raise RecipeInvalid(f"The recipe's target {recipe.target!r} is not one of the set's classes.")
    base = find_run(recipe.encoder)
    graph = declare(base)
    demand_same_tile(recipe.publish, graph)
    encoder = on_tiles(graph, tiles)
    run = RunWriter(out or runs_folder() / recipe.name, recipe_path.read_bytes(), resume=resume)
    views = VIEWS["orientations+jitter"]
    features_NVD = cached(run, "embeddings", lambda: embed(encoder, tiles, recipe.seed, views))
    random_NVD = cached(run, "random", lambda: embed(random_encoder(tiles, recipe.seed), tiles, recipe.seed, views))
    tasks = {
        evaluate.HEAD: Task(recipe.head, features_NVD),
        "mean pooling": Task("mean", features_NVD),
        "control: shuffled labels": Task(recipe.head, features_NVD, shuffled=True),
        "control: random encoder": Task(recipe.head, random_NVD),
    }
    rows = {
        name: [
            train_split(run, recipe, name, task, tiles, split)
            for split in range(recipe.splits if name == evaluate.HEAD else recipe.control_splits)
        ]
        for name, task in tasks.items()
    }
    everything = np.arange(len(tiles.labels_N))
    served = fit_head(run, recipe, tasks[evaluate.HEAD], tiles, everything, recipe.splits, "served")
    round_to_fp16(served.head)
    save_weights(run.weights_path, served.head)
    metrics = evaluate.summary(recipe, tiles, features_NVD.shape[2], rows, served.point) | encoder_has_seen(base, tiles)
    metrics["stain_reference"] = stain_reference(tiles)
    return run.finish(metrics=metrics, seed=recipe.seed, data=tiles.sources, starts_from={"encoder": base})


def train_split(run: RunWriter, recipe: SlideHeadRecipe, name: str, task: Task, tiles: Dataset, split: int) -> Answers:
    """What one row's head of one split answers; an interrupted run does not train it again."""
    answered = run.work / f"{name.replace(' ', '-').replace(':', '')}-{split}.npz"
    if answered.is_file():
        return Answers.read(answered)
    train_N, test_N = split_tiles(tiles.labels_N, tiles.groups_N, recipe.seed + split)
    fitted = fit_head(run, recipe, task, tiles, train_N, split, name)
    round_to_fp16(fitted.head)
    answers = evaluate.answer(recipe, fitted.head, fitted.point, task.features_NVD, tiles, test_N, split)
    answers.write(answered)
    run.log("split", row=name, split=split, min_probability=fitted.point.min_probability, auroc=round(answers.auroc, 4))
    return answers


if __name__ == "__main__":
    sys.exit(main())
