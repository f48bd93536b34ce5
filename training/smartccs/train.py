"""Train a stage of Smart-CCS: `python -m training.smartccs.train RECIPE.toml [--resume] [--out DIR] [--dry-run]`.

Stages (arXiv 2502.09662): `pretrain` (the encoder of cells), `encoder` (one as it was published), `detect` (the cell
detector), `slide` (the slide head, in one process). In several processes: `torchrun --nproc-per-node 2 -m
training.smartccs.train RECIPE.toml`. With one thread on a CPU the same recipe and seed give the same bits, whether the
run was interrupted or not. `--dry-run` builds the network without memory for its weights and prints its parts.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import command
from training.errors import RecipeInvalid
from training.runs import Recipe, Run, read_toml
from training.smartccs import as_published, detect, pretrain, slide
from training.smartccs.recipe import DetectorRecipe, EncoderRecipe
from training.smartccs.slide import SlideRecipe
from training.ssl.recipe import SelfDistillationRecipe, read_recipe
from training.ssl.train import add_arguments


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage's recipe, what trains it (recipe, its text, out, resume, stop_after), and what describes it."""

    recipe: type[Recipe]
    train: Callable[..., Run | None]
    describe: Callable[[Any], str]


STAGES = {
    "pretrain": Stage(SelfDistillationRecipe, pretrain.train, pretrain.describe),
    "encoder": Stage(EncoderRecipe, as_published.train, as_published.describe),
    "detect": Stage(DetectorRecipe, detect.train, detect.describe),
    "slide": Stage(SlideRecipe, slide.train, slide.describe),
}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.smartccs.train", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained; train nothing")
    chosen = parser.parse_args(arguments)
    if chosen.dry_run:
        return command.status(lambda: print(describe(chosen.recipe, chosen.set)), "Nothing")
    return command.report(
        lambda: train(chosen.recipe, chosen.out, resume=chosen.resume, stop_after=chosen.iterations, changes=chosen.set)
    )


def train(
    path: Path,
    out: Path | None = None,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    changes: Sequence[str] = (),
) -> Run | None:
    """Train a recipe file, with changes, to a finished run; None where it stopped before. Raises TrainingError."""
    stage = _stage(path)
    recipe, text = read_recipe(stage.recipe, path, changes)
    return stage.train(recipe, text, out, resume=resume, stop_after=stop_after)


def describe(path: Path, changes: Sequence[str] = ()) -> str:
    """What a recipe file would train. Raises RecipeInvalid."""
    stage = _stage(path)
    return stage.describe(read_recipe(stage.recipe, path, changes)[0])


def _stage(path: Path) -> Stage:
    stage = read_toml(path).get("stage")
    if str(stage) not in STAGES:
        raise RecipeInvalid(f"The recipe names the stage {stage!r}; smartccs has the stages {', '.join(STAGES)}.")
    return STAGES[str(stage)]


if __name__ == "__main__":
    sys.exit(main())
