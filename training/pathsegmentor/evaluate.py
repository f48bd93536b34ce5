"""Measure finished networks: `python -m training.pathsegmentor.evaluate RUN... --out docs/results/pathsegmentor`.

RUN is a run folder. Of each, one JSON file: every pair of image and prompt of the test groups and the external sources,
and the figures made of them; networks of fixed classes are measured on their own set. Then `comparisons.json` over all
files in the folder, and the pictures. Intervals resample groups; everything is seeded.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.domain.prompts import Triple
from training import command
from training.files import json_bytes, write_atomic
from training.pathsegmentor import data, figures
from training.pathsegmentor.absent_places import by_prompt, measure_squares
from training.pathsegmentor.calibrate import Rules, presence, rows, support
from training.pathsegmentor.comparisons import arm_of, write_comparisons
from training.pathsegmentor.data import Item
from training.pathsegmentor.fixed_classes import Specialists
from training.pathsegmentor.measuring import measure, measure_presence
from training.pathsegmentor.model import PathSegmentor, load
from training.pathsegmentor.pairs import SEED, Table, mean, mean_over_prompts
from training.pathsegmentor.parts import PARTS, overlaps
from training.pathsegmentor.pictures import write_pictures
from training.pathsegmentor.predictor import Asked, Predictor, TextPrompted
from training.pathsegmentor.prompts import prompts_csv
from training.pathsegmentor.recipe import SegmentorRecipe
from training.pathsegmentor.specialists import load_specialist
from training.pathsegmentor.trends import trends
from training.repeatable import repeatable
from training.runs import Run, open_run, parse_recipe

_CONTROLS_PER_SET = 4
_TABLE_STAIN = "HE"
"""What a card's figure is in, where its name says nothing else."""


def finish(network: PathSegmentor, recipe: SegmentorRecipe) -> tuple[dict[str, Any], bytes]:
    """What a training writes of its network: figures for metrics.json (the presence rules, chosen on validation groups;
    Dice on validation and test groups; what the card shows), and prompts.csv."""
    stains = recipe.publish.stains if recipe.publish is not None else None
    told = _measured(TextPrompted(network, recipe.data.without), recipe.data.sets, variants=False)
    supports = support(told.validation, stains)
    found = {
        "presence": _record(told.rules),
        "val": figures.overlap(told.validation),
        "test": figures.overlap(told.test),
        "absence": figures.absence(told.test, told.validation, told.rules),
        "absence_by_level": _by_level(told),
        "supports": supports,
        "card": _card(told, stains),
    }
    return found, prompts_csv(rows(told.train_images, supports))


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """A network's pairs: of windows, with what is absent, of validation and test groups; the presence rules of the
    former; and whole images of both. In how many training images each triple is."""

    rules: Rules
    validation_windows: Table
    test_windows: Table
    validation: Table
    test: Table
    train_images: Mapping[Triple, int]


def _measured(predictor: Predictor, sets: Sequence[str], *, variants: bool) -> _Measured:
    validation, test = data.load("val", sets), data.load("test", sets)
    train_images = data.train_images(data.load("train", sets))
    known = {(triple.level, triple.object) for triple, images in train_images.items() if images}
    windows = [Table.of(list(measure_presence(predictor, items, known))) for items in (validation, test)]
    rules = presence(windows[0])
    return _Measured(
        rules,
        *windows,
        _table(predictor, validation, rules, variants=False),
        _table(predictor, test, rules, variants=variants),
        train_images,
    )


def _record(rules: Rules) -> dict[str, Any]:
    return {level: asdict(rule) for level, rule in rules.items()}


def _by_level(told: _Measured) -> dict[str, Any]:
    """The rules on the windows that they were chosen on, and on those of test groups."""
    return {
        "validation": figures.by_level(told.validation_windows, told.rules),
        "test": figures.by_level(told.test_windows, told.rules),
    }


def _card(told: _Measured, stains: Sequence[str] | None) -> list[dict[str, Any]]:
    """Figures of test groups with intervals, for a model's card. Of masks as served, Dice over prompts in the stains
    that the card names, and by set; of each level in those stains, among what is outlined, how often a mask is served
    where nothing is, and none where something is."""
    own = told.test.where((told.test["own"] == 1) & ~np.isnan(told.test["served"]))
    named = _in(own, stains)
    shown = [("mean Dice over prompts, held-out groups", mean_over_prompts(named, "served"), named, "all")]
    for name in figures.names(own["set"]):
        part = own.where(own["set"] == name)
        other = sorted({*part["stain"].tolist()} - {_TABLE_STAIN})
        title = f"Dice, held-out groups of {name}" + (f" ({', '.join(other)})" if other else "")
        shown.append((title, mean(part["served"], part.groups(), part.shares()), part, name))
    windows = _in(told.test_windows, stains)
    windows = windows.where((windows["own"] == 1) & (windows["impossible"] == 0) & ~np.isnan(windows["present"]))
    for level, found in figures.by_level(windows, told.rules).items():
        part = windows.where(windows["level"] == level)
        for title, state, figure in (
            ("share with a mask, windows of held-out groups without the object", 0, found["false_mask"]["outlined"]),
            ("share without a mask, windows of held-out groups with the object", 1, found["missed"]),
        ):
            shown.append((f"{title}, {level}", figure["served"], part.where(part["present"] == state), level))
    return [
        {"name": name, "label": label, "images": part.images()} | {key: figure[key] for key in ("value", "low", "high")}
        for name, figure, part, label in shown
        if figure and figure["interval"]
    ]


def _in(table: Table, stains: Sequence[str] | None) -> Table:
    return table if stains is None else table.where(np.isin(table["stain"], stains))


def _table(predictor: Predictor, items: Sequence[Item], rules: Rules, *, variants: bool) -> Table:
    return Table.of(list(measure(predictor, items, SEED, variants=variants, rules=rules)))


def evaluate(run: Run, predictor: Predictor, sets: Sequence[str], external: bool) -> dict[str, Any]:
    """All that is told of a run, `opened`. Raises TrainingError."""
    started = time.process_time()
    told = _measured(predictor, sets, variants=external)
    test = told.test
    if external:
        test = Table.joined(test, _table(predictor, data.load("external"), told.rules, variants=False))
    published = run.recipe.get("publish")
    stains = published["stains"] if published else None
    found: dict[str, Any] = {
        "recipe": run.recipe["name"],
        "arm": arm_of(run.recipe),
        "served": published is not None,
        "seed": run.recipe["seed"],
        "git_commit": run.manifest["git_commit"],
        "git_changed_files": run.manifest["git_changed_files"],
        "weights_sha256": run.weights_sha256,
        "training_cpu_s": run.metrics["training"]["cpu_s"],
        "parameters": run.metrics["network"]["parameters"],
        "iterations": run.metrics["training"]["iterations"],
        "sets": list(sets),
        "presence": _record(told.rules),
        "supports": support(told.validation, stains),
        "figures": figures.summary(test, told.validation, told.rules),
        "absence_by_level": _by_level(told),
        "trends": trends(test),
        "pairs": test.where(test["own"] == 1).record(),
    }
    if found["served"]:
        alone, inside = measure_squares(predictor, data.load("test", sets))
        found["absent_places"] = {
            "windows": by_prompt(told.test_windows, told.rules),
            "squares": by_prompt(alone, told.rules),
            "squares, in their windows": by_prompt(inside, told.rules),
        }
        found["data"] = {"split": _split(), "overlaps": [asdict(pair) for pair in overlaps()]}
    if external:
        found["controls"] = controls(predictor, _spread(data.load("test", sets)))
    return found | {"evaluation_cpu_s": round(time.process_time() - started, 1)}


def _spread(items: Sequence[Item]) -> list[Item]:
    """A few images of each set, far from each other."""
    chosen = []
    for name in dict.fromkeys(item.set for item in items):
        of_set = [item for item in items if item.set == name]
        chosen += of_set[:: max(len(of_set) // _CONTROLS_PER_SET, 1)][:_CONTROLS_PER_SET]
    return chosen


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
            predictor, sets, external = opened(run)
            found = evaluate(run, predictor, sets, external)
            write_atomic(chosen.out / f"{run.name}.json", json_bytes(found))
            if found["served"]:
                write_pictures(chosen.out, predictor, data.load("test", sets), found)
        write_comparisons(chosen.out)

    return command.status(work, "The figures")


if __name__ == "__main__":
    sys.exit(main())
