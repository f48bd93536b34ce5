"""Publish a finished run: `python -m training.smartccs.republish RUN RECIPE.toml --out FOLDER [--measure]`.

A card's limits are written when a run's figures are known, after the training. RECIPE is the run's own but for its
section publish. FOLDER gets the run's weights and figures as they are, and a manifest that keeps by which recipe the
weights were trained. A recipe without the section takes a run back from being served. `--measure` measures a detector's
fields anew, where what joins and suppresses its boxes has changed since it was trained.
"""

import argparse
import sys
from pathlib import Path

from training import command
from training.errors import RecipeInvalid
from training.publish import demand_only_published
from training.repeatable import repeatable
from training.runs import Run, open_run, read_toml, resealed
from training.smartccs import detect
from training.smartccs.detector import load
from training.smartccs.recipe import DetectorRecipe
from training.smartccs.train import STAGES
from training.ssl.recipe import read_recipe


def republish(run: Run, recipe_path: Path, out: Path, *, measure: bool = False) -> Run:
    """The run under the recipe, in the folder `out`. Raises RecipeInvalid where the recipe is of another stage, differs
    in more than its section publish, would serve what was trained on data that are not free, or is to be measured anew
    and no detector's; RunInvalid; DataMissing."""
    stage = str(run.recipe.get("stage"))
    if stage not in STAGES or read_toml(recipe_path).get("stage") != stage:
        raise RecipeInvalid(f"The run {run.path.name} is of the stage {stage!r}. Name a recipe of that stage.")
    kind = STAGES[stage].recipe
    recipe, text = read_recipe(kind, recipe_path)
    demand_only_published(run, kind, recipe)
    if not measure:
        return resealed(run, out, text, run.metrics, {})
    if not isinstance(recipe, DetectorRecipe):
        raise RecipeInvalid(
            f"Only a detector is measured anew here, and the run is of the stage {stage}. Train it again."
        )
    repeatable()
    return resealed(run, out, text, {**run.metrics, **detect.measured(load(run), recipe)}, {})


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.smartccs.republish", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the new run folder")
    parser.add_argument("--measure", action="store_true", help="measure a detector's fields anew")
    chosen = parser.parse_args(arguments)
    return command.report(lambda: republish(open_run(chosen.run), chosen.recipe, chosen.out, measure=chosen.measure))


if __name__ == "__main__":
    sys.exit(main())
