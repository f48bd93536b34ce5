"""Train a slide head on composed slides: `python -m training.mil.train RECIPE.toml [--resume] [--out DIR]`.

Tiles are split several times; a head is trained on slides composed of each split's training tiles, chosen on its
validation tiles and measured once on its test tiles. On a CPU with one thread the same recipe gives the same bits.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from gateway.operations.errors import PathserveError
from training.data import crc9
from training.data.dataset import Dataset
from training.errors import RecipeInvalid
from training.graphs import declare
from training.mil import evaluate
from training.mil.data import ComposedSlide, Parts, compose, split_tiles
from training.mil.evaluate import Answers
from training.mil.model import SlideHead
from training.mil.recipe import SlideHeadRecipe
from training.nn.checkpoints import load_state, read_weights, round_to_fp16, save_weights
from training.nn.mil import HeadKind
from training.runs import Run, RunWriter, find_run, parse_recipe, read_toml, runs_folder
from training.statistics import macro_auroc
from training.tissue.data import VIEWS
from training.tissue.probe import best_temperature
from training.tissue.train import cached, embed, random_encoder

_CLASSES = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What a row of the figures is trained on: features (N,V,D) of the tiles, and whether slides keep their labels."""

    kind: HeadKind
    features_NVD: np.ndarray
    shuffled: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.mil.train", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--resume", action="store_true", help="continue a run that was interrupted")
    parser.add_argument("--out", type=Path, help="run folder; default: the recipe's name in PATHSERVE_RUNS")
    chosen = parser.parse_args(arguments)
    try:
        run = train(chosen.recipe, chosen.out, resume=chosen.resume)
    except PathserveError as error:
        print(error.detail, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The run folder cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    print(run.path)
    return 0


def train(recipe_path: Path, out: Path | None = None, *, resume: bool = False) -> Run:
    """Run a recipe to a finished run folder. Raises TrainingError."""
    threadpool_limits(1)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    values = read_toml(recipe_path)
    if (stage := values.get("stage")) != "head":
        raise RecipeInvalid(f"The recipe names the stage {stage!r}; the mil system has the stage head.")
    recipe = parse_recipe(SlideHeadRecipe, values)
    tiles = crc9.load()
    if recipe.target not in tiles.classes:
        raise RecipeInvalid(f"The recipe's target {recipe.target!r} is not one of the set's classes.")
    base = find_run(recipe.encoder)
    encoder = declare(base).network
    run = RunWriter(out or runs_folder() / recipe.name, recipe_path.read_bytes(), resume=resume)
    views = VIEWS["orientations+jitter"]
    features_NVD = cached(run, "embeddings", lambda: embed(encoder, tiles, recipe.seed, views))
    random_NVD = cached(run, "random", lambda: embed(random_encoder(tiles, recipe.seed), tiles, recipe.seed, views))
    tasks = {
        evaluate.HEAD: _Task(recipe.head, features_NVD),
        "mean pooling": _Task("mean", features_NVD),
        "control: shuffled labels": _Task(recipe.head, features_NVD, shuffled=True),
        "control: random encoder": _Task(recipe.head, random_NVD),
    }
    rows = {
        name: [
            train_split(run, recipe, name, task, tiles, split)
            for split in range(recipe.splits if name == evaluate.HEAD else recipe.control_splits)
        ]
        for name, task in tasks.items()
    }
    served = SlideHead(recipe.head, features_NVD.shape[2], _CLASSES)
    load_state(served, read_weights(run.work / f"{_key(evaluate.HEAD, 0)}.safetensors"), recipe.name)
    save_weights(run.weights_path, served)
    metrics = evaluate.summary(recipe, tiles, features_NVD.shape[2], rows)
    return run.finish(metrics=metrics, seed=recipe.seed, data=tiles.sources, starts_from={"encoder": base})


def train_split(run: RunWriter, recipe: SlideHeadRecipe, name: str, task: _Task, tiles: Dataset, split: int) -> Answers:
    """One row's head of one split, and what it answers; an interrupted run does not train it again."""
    weights, answered = (run.work / f"{_key(name, split)}.{ending}" for ending in ("safetensors", "npz"))
    if answered.is_file():
        return Answers.read(answered)
    parts = split_tiles(tiles.labels_N, tiles.groups_N, recipe.seed + split)
    head, point = fit_head(run, recipe, name, task, tiles, parts, split)
    round_to_fp16(head)
    save_weights(weights, head)
    answers = evaluate.answer(recipe, head, point, task.features_NVD, tiles, parts.test_N, split)
    answers.write(answered)
    run.log("split", row=name, split=split, min_probability=point.min_probability, auroc=round(answers.auroc, 4))
    return answers


def fit_head(
    run: RunWriter, recipe: SlideHeadRecipe, name: str, task: _Task, tiles: Dataset, parts: Parts, split: int
) -> tuple[SlideHead, evaluate.OperatingPoint]:
    """A head trained on one slide at a time and calibrated, and its operating point, both by the validation slides."""
    setting, slides, target = recipe.optimiser, recipe.slides, tiles.classes.index(recipe.target)
    mean_D, deviation_D = _standard(task.features_NVD[parts.train_N])
    standard_NVD = (task.features_NVD - mean_D) / deviation_D
    drawn = partial(compose, tiles.labels_N, target=target, slides=slides, most_tiles=slides.most_training_tiles)
    rng = np.random.default_rng((recipe.seed, split, 1))
    validation = list(drawn(part_N=parts.validation_N, count=slides.validation, jitter=False, rng=rng))
    labels_N = np.array([slide.label for slide in validation])
    if task.shuffled:
        labels_N = rng.permutation(labels_N)
    torch.manual_seed(recipe.seed + split)
    head = SlideHead(task.kind, standard_NVD.shape[2], _CLASSES)
    optimiser = torch.optim.Adam(head.parameters(), lr=setting.rate, weight_decay=setting.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, setting.epochs)
    best, best_logits_NC, best_epoch, best_state = (-1.0, 0.0), np.zeros((0, _CLASSES)), 0, head.state_dict()
    for epoch in range(setting.epochs):
        rng = np.random.default_rng((recipe.seed, split, 2, epoch))
        bags = list(drawn(part_N=parts.train_N, count=slides.train, jitter=True, rng=rng))
        bag_labels_N = rng.permutation([bag.label for bag in bags]) if task.shuffled else [bag.label for bag in bags]
        loss = _epoch(head.train(), optimiser, bags, bag_labels_N, standard_NVD)
        schedule.step()
        logits_NC = evaluate.logits_of(head.eval(), validation, standard_NVD)
        held_loss = float(F.cross_entropy(torch.from_numpy(logits_NC), torch.from_numpy(labels_N)))
        held = macro_auroc(softmax(logits_NC, axis=1), labels_N)
        figures = {"loss": loss, "validation_loss": held_loss, "validation_auroc": held}
        run.log("epoch", row=name, split=split, epoch=epoch, **{key: round(value, 4) for key, value in figures.items()})
        if (held, -held_loss) > best:
            best, best_logits_NC, best_epoch = (held, -held_loss), logits_NC, epoch
            best_state = {key: value.clone() for key, value in head.state_dict().items()}
        if epoch - best_epoch >= setting.patience:
            break
    head.load_state_dict(best_state)
    # The validation slides hold a handful of tiles: they may call for less certainty, never for more.
    temperature = max(1.0, best_temperature(best_logits_NC, labels_N)[0])
    head.standardise(mean_D, deviation_D)
    head.soften(temperature)
    probabilities_NC = softmax(best_logits_NC / temperature, axis=1)
    return head.eval(), evaluate.operating_point(probabilities_NC, labels_N, recipe.accuracy_when_answered)


def _epoch(
    head: SlideHead,
    optimiser: torch.optim.Optimizer,
    bags: Sequence[ComposedSlide],
    labels_N: Sequence[int],
    features_NVD: np.ndarray,
) -> float:
    """One pass over the bags in random order; the mean loss."""
    losses = []
    for place in torch.randperm(len(bags)).tolist():
        loss = F.cross_entropy(head.logits(bags[place].features(features_NVD)), torch.tensor([int(labels_N[place])]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def _standard(features_NVD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) of all views. Dimensions that hardly vary count as if they varied a tenth of the mean."""
    rows = features_NVD.reshape(-1, features_NVD.shape[2])
    deviation_D = rows.std(0)
    return rows.mean(0), np.maximum(deviation_D, 0.1 * deviation_D.mean())


def _key(name: str, split: int) -> str:
    return f"{name.replace(' ', '-').replace(':', '')}-{split}"


if __name__ == "__main__":
    sys.exit(main())
