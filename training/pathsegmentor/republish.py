"""Publish a finished run: `python -m training.pathsegmentor.republish RUN RECIPE.toml --out FOLDER`.

What a card says of a network's limits is known when its figures are, after the training; and which of several networks
is served is decided then. RECIPE is the run's own but for its section publish. FOLDER gets the run's weights, what the
card shows measured anew in the stains that the section names, and a manifest that keeps by which recipe the weights
were trained. A recipe without the section takes a run back from being served.
"""

import argparse
import sys
from pathlib import Path

from training import command
from training.errors import RecipeInvalid
from training.pathsegmentor import evaluate
from training.pathsegmentor.model import load
from training.pathsegmentor.recipe import SegmentorRecipe
from training.pathsegmentor.train import read
from training.publish import demand_only_published
from training.repeatable import repeatable
from training.runs import Run, open_run, resealed


def republish(run: Run, recipe_path: Path, out: Path) -> Run:
    """The run under the recipe, in the folder `out`. Raises RecipeInvalid where the recipe differs in more than its
    section publish or would serve what was trained on data that are not free, and RunInvalid."""
    recipe, text = read(recipe_path)
    if not isinstance(recipe, SegmentorRecipe) or run.recipe.get("stage") != recipe.stage:
        raise RecipeInvalid("Only a network that reads prompts is published. Name a run and a recipe of one.")
    demand_only_published(run, SegmentorRecipe, recipe)
    measured, table = evaluate.finish(load(run), recipe)
    return resealed(run, out, text, run.metrics | measured, {"prompts.csv": table})


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathsegmentor.republish", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the new run folder")
    chosen = parser.parse_args(arguments)

    def work() -> Run:
        repeatable()
        return republish(open_run(chosen.run), chosen.recipe, chosen.out)

    return command.report(work)


if __name__ == "__main__":
    sys.exit(main())
