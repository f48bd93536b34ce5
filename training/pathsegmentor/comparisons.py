"""Networks against each other, on the pairs that both were measured on: what each arm costs or gains.

An arm is told by its recipe. Differences are arm minus shipped, by set, with the signed-rank p over groups and Holm's
adjustment over the sets of an arm. Every arm is one training: what another seed would change is not in the intervals.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.files import json_bytes, write_atomic
from training.pathsegmentor.calibrate import Presence
from training.pathsegmentor.figures import asked_of, names
from training.pathsegmentor.pairs import Table, adjusted, difference
from training.runs import read_json

SHIPPED, SPECIALISTS, NAIVE = "shipped", "specialists", "not annotated taken for absent"
NO_LEVEL, ONE_QUERY, PRETRAINED = "no level word", "one query per prompt", "pretrained text"
NO_REGION = "no region word"
ARMS = (SHIPPED, SPECIALISTS, NO_LEVEL, ONE_QUERY, PRETRAINED, NAIVE, NO_REGION)
"""In the order in which they are to be run."""
COMPARISONS = "comparisons.json"


def arm_of(recipe: Mapping[str, Any]) -> str:
    """Which arm a recipe is; its own name where it is none of them."""
    if recipe["stage"] == "specialist":
        return SPECIALISTS
    told = {
        SHIPPED: recipe.get("publish") is not None,
        NO_LEVEL: "level" in recipe["data"].get("without", ()),
        NO_REGION: "region" in recipe["data"].get("without", ()),
        ONE_QUERY: recipe["network"]["decoder"].get("query_per_prompt", False),
        PRETRAINED: recipe["network"]["text"]["tower"] != "words",
        NAIVE: recipe["data"].get("naive_absent", False),
    }
    return next((arm for arm, here in told.items() if here), str(recipe["name"]))


def write_comparisons(folder: Path) -> None:
    """comparisons.json of the runs' files in a folder."""
    write_atomic(folder / COMPARISONS, json_bytes(comparisons(measured(folder))))


def measured(folder: Path) -> list[dict[str, Any]]:
    """The files of runs in a folder, by name. Raises RunInvalid for one that is cut off."""
    found = [read_json(folder, path.name) for path in sorted(folder.glob("*.json"))]
    return [content for content in found if "pairs" in content]


def comparisons(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By arm: its size and cost, and its differences to the shipped network; empty where that is not among the runs."""
    arms = {arm: [run for run in runs if run["arm"] == arm] for arm in dict.fromkeys(run["arm"] for run in runs)}
    found: dict[str, Any] = {}
    for arm, members in arms.items():
        found[arm] = {
            "runs": [run["recipe"] for run in members],
            "parameters": sum(run["parameters"] for run in members),
            "iterations": sum(run["iterations"] for run in members),
            "training_cpu_s": round(sum(run["training_cpu_s"] for run in members)),
        }
    if SHIPPED in arms:
        shipped = _table(arms[SHIPPED])
        for arm, members in arms.items():
            if arm != SHIPPED:
                found[arm] |= against(_table(members), shipped)
    return found


def against(arm: Table, shipped: Table) -> dict[str, Any]:
    """Arm minus shipped: Dice by set and by level and object, and, on external sources, recall (what a set does not
    annotate is what a network must not have learned to call absent)."""
    first, second = aligned(arm, shipped)
    groups, gaps = first.groups(), {}
    for name, column, keys_N, kept_N in (
        ("by_set", "dice", first["set"], np.ones(len(first), bool)),
        ("by_object", "dice", asked_of(first), np.ones(len(first), bool)),
        ("external_recall", "recall", asked_of(first), first["external"] == 1),
    ):
        gaps[name] = adjusted(
            {
                key: difference(first[column][rows], second[column][rows], groups[rows])
                for key in names(keys_N[kept_N])
                for rows in [np.flatnonzero((keys_N == key) & kept_N)]
            }
        )
    return gaps


def aligned(first: Table, second: Table) -> tuple[Table, Table]:
    """The pairs that both have, asked with the image's own region, in one order."""
    keys = [
        {key: row for row, key in enumerate(zip(table["set"], table["image"], table["prompt"], strict=True))}
        for table in (first, second)
    ]
    own = first["own"] == 1
    both = [key for key, row in keys[0].items() if key in keys[1] and own[row]]
    rows = [np.array([places[key] for key in both], int) for places in keys]
    return first.where(rows[0]), second.where(rows[1])


def _table(members: Sequence[Mapping[str, Any]]) -> Table:
    """The pairs of all runs of an arm. Recall is that of what is served: 0 where the run's own rule calls an object
    absent."""
    return Table.joined(*(_served(Table.read(run["pairs"]), Presence(**run["presence"])) for run in members))


def _served(table: Table, rule: Presence) -> Table:
    counted = rule.probability(table["presence"]) >= rule.threshold
    return table.replaced("recall", table["recall"] * counted)
