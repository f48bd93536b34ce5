"""Measure finished networks: `python -m training.pathsegmentor.evaluate RUN... --out docs/results/pathsegmentor`.

RUN is a run folder. Of each, one JSON file: every pair of image and prompt of the test groups and the external sources,
and the figures made of them; networks of fixed classes are measured on their own set. Then `comparisons.json` over all
files in the folder, and the pictures. Intervals resample groups; everything is seeded.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gateway.domain.prompts import Triple
from training import command
from training.files import json_bytes, write_atomic
from training.pathsegmentor import data, figures
from training.pathsegmentor.calibrate import presence, rows, support
from training.pathsegmentor.comparisons import SHIPPED, arm_of, write_comparisons
from training.pathsegmentor.data import Item
from training.pathsegmentor.fixed_classes import Specialists
from training.pathsegmentor.measuring import measure
from training.pathsegmentor.model import PathSegmentor, load
from training.pathsegmentor.pairs import SEED, Table
from training.pathsegmentor.parts import PARTS, overlaps
from training.pathsegmentor.pictures import write_pictures
from training.pathsegmentor.predictor import Asked, Predictor, TextPrompted
from training.pathsegmentor.prompts import prompts_csv
from training.pathsegmentor.recipe import SegmentorRecipe
from training.pathsegmentor.specialists import load_specialist
from training.pathsegmentor.trends import trends
from training.repeatable import repeatable
from training.runs import Run, open_run, parse_recipe

_CONTROL_IMAGES = 20


def finish(network: PathSegmentor, recipe: SegmentorRecipe) -> tuple[dict[str, Any], bytes]:
    """What a training writes of its network: figures for metrics.json (the presence rule, chosen on validation groups;
    Dice on validation and test groups; what the card shows), and prompts.csv."""
    predictor, sets = TextPrompted(network, recipe.data.without), recipe.data.sets
    validation = _table(predictor, data.load("val", sets), variants=False)
    test = _table(predictor, data.load("test", sets), variants=False)
    chosen, supports = presence(validation), support(validation)
    found = {
        "presence": asdict(chosen),
        "val": figures.overlap(validation),
        "test": figures.overlap(test),
        "absence": figures.absence(test, validation, chosen),
        "supports": supports,
    }
    table = prompts_csv(rows(data.train_images(data.load("train", sets)), supports))
    return found | {"card": _card(found)}, table


def _card(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures with intervals, for a model's card."""
    test = found["test"]
    shown = [("mean Dice over prompts, held-out groups", test["prompts"], "all")]
    shown += [(f"Dice, held-out groups of {name}", row["dice"], name) for name, row in test["by_set"].items()]
    return [
        {"name": name, "label": label, "images": figure.get("pairs", figure.get("prompts"))}
        | {key: figure[key] for key in ("value", "low", "high")}
        for name, figure, label in shown
        if figure and figure["interval"]
    ]


def _table(predictor: Predictor, items: Sequence[Item], *, variants: bool) -> Table:
    return Table.of(list(measure(predictor, items, SEED, variants=variants)))


def evaluate(run: Run) -> dict[str, Any]:
    """All that is told of a run. Raises TrainingError."""
    started = time.process_time()
    predictor, sets, external = opened(run)
    validation = _table(predictor, data.load("val", sets), variants=False)
    test = _table(predictor, data.load("test", sets), variants=external)
    if external:
        outside = _table(predictor, data.load("external"), variants=False)
        test = Table.joined(test, outside)
    chosen = presence(validation)
    found: dict[str, Any] = {
        "recipe": run.recipe["name"],
        "arm": arm_of(run.recipe),
        "seed": run.recipe["seed"],
        "git_commit": run.manifest["git_commit"],
        "git_changed_files": run.manifest["git_changed_files"],
        "weights_sha256": run.weights_sha256,
        "training_cpu_s": run.metrics["cpu_s"],
        "parameters": run.metrics["network"]["parameters"],
        "iterations": run.metrics["training"]["iterations"],
        "sets": list(sets),
        "presence": asdict(chosen),
        "supports": support(validation),
        "figures": figures.summary(test, validation, chosen),
        "trends": trends(test),
        "pairs": test.where(test["own"] == 1).record(),
    }
    if found["arm"] == SHIPPED:
        found["data"] = {"split": _split(), "overlaps": [asdict(pair) for pair in overlaps()]}
    if external:
        found["controls"] = controls(predictor, data.load("test", sets)[:_CONTROL_IMAGES])
    return found | {"evaluation_cpu_s": round(time.process_time() - started, 1)}


def _split() -> dict[str, Any]:
    """How many images and groups of each set lie in each part."""
    found: dict[str, Any] = {}
    for part in PARTS:
        items = data.load(part)
        for name in dict.fromkeys(item.set for item in items):
            groups = [item.group for item in items if item.set == name]
            found.setdefault(name, {})[part] = {"images": len(groups), "groups": len(set(groups))}
    return found


def opened(run: Run) -> tuple[Predictor, tuple[str, ...], bool]:
    """A run's network, the sets that it learned from, and whether it reads prompts (and so can be asked anything)."""
    sets = tuple(run.recipe["data"]["sets"])
    if run.recipe["stage"] == "specialist":
        return Specialists({sets[0]: load_specialist(run)}), sets, False
    recipe = parse_recipe(SegmentorRecipe, run.recipe)
    return TextPrompted(load(run), recipe.data.without), sets, True


def controls(predictor: Predictor, items: Sequence[Item]) -> dict[str, Any]:
    """The same prompt twice: in how many images the answers are the same bits. And alone against among others: in how
    many the masks are the same, and the greatest difference of a probability."""
    same, alone, gap = 0, 0, 0.0
    for item in items:
        first = predictor(item.image_HWC, [Asked(item.triples[0])], item.set)
        again = predictor(item.image_HWC, [Asked(item.triples[0])], item.set)
        among = predictor(item.image_HWC, [Asked(triple) for triple in (item.triples[0], *_others(item))], item.set)
        same += np.array_equal(first.probabilities_PHW, again.probabilities_PHW) and np.array_equal(
            first.presence_P, again.presence_P
        )
        one, many = first.probabilities_PHW[0], among.probabilities_PHW[0]
        alone += np.array_equal(one > 0.5, many > 0.5)
        gap = max(gap, float(np.abs(one - many).max()))
    return {"images": len(items), "same_twice": same, "same_mask_among_others": alone, "largest_difference": gap}


def _others(item: Item) -> list[Triple]:
    """What else is asked in the same request: what is there, and what is not."""
    return [*item.triples[1:], Triple(item.level, "neutrophil", item.organ), Triple(item.level, "gland", item.organ)]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathsegmentor.evaluate", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)

    def work() -> None:
        repeatable()
        chosen.out.mkdir(parents=True, exist_ok=True)
        for folder in chosen.runs:
            run = open_run(folder)
            found = evaluate(run)
            write_atomic(chosen.out / f"{run.name}.json", json_bytes(found))
            if found["arm"] == SHIPPED:
                write_pictures(chosen.out, opened(run)[0], data.load("test", tuple(found["sets"])), found)
        write_comparisons(chosen.out)

    return command.status(work, "The figures")


if __name__ == "__main__":
    sys.exit(main())
