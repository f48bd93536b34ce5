"""Networks against each other, on the pairs that both were measured on: what each arm costs or gains.

An arm is told by its recipe. All are held against the published design (arXiv 2506.20988: of several queries one is
selected; here of sixteen), whichever arm is served. Differences are arm minus design, by set, with the signed-rank p
over groups and Holm's adjustment over the sets of an arm. Every arm is one training: what another seed would change is
not in the intervals.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import RunInvalid
from training.files import json_bytes, write_atomic
from training.pathsegmentor.data import unmarked
from training.pathsegmentor.figures import asked_of, names
from training.pathsegmentor.pairs import Table, adjusted, difference, mean_over_prompts
from training.runs import read_json

DESIGN, SPECIALISTS, NAIVE = "published design", "specialists", "not annotated taken for absent"
NO_LEVEL, ONE_QUERY, PRETRAINED = "no level word", "one query per prompt", "pretrained text"
NO_REGION = "no region word"
ARMS = (DESIGN, SPECIALISTS, NO_LEVEL, ONE_QUERY, PRETRAINED, NAIVE, NO_REGION)
"""In the order in which they are to be run."""
COMPARISONS = "comparisons.json"
_DESIGN_RECIPE = "pathsegmentor-small"


def arm_of(recipe: Mapping[str, Any]) -> str:
    """Which arm a recipe is; its own name where it is none of them."""
    if recipe["stage"] == "specialist":
        return SPECIALISTS
    told = {
        DESIGN: recipe["name"] == _DESIGN_RECIPE,
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
    """The files of runs in a folder, by name. Raises RunInvalid for one that is cut off, where two are of one arm and
    set, which would be mixed, and where two are served."""
    found = [read_json(folder, path.name) for path in sorted(folder.glob("*.json"))]
    runs = [content for content in found if "pairs" in content]
    held: dict[tuple[str, str], Any] = {}
    for run in runs:
        for name in run["sets"]:
            other = held.setdefault((run["arm"], name), run)
            if other is not run:
                raise RunInvalid(
                    f"{other['recipe']} and {run['recipe']} are both the arm “{run['arm']}” on {name}. Keep one's file."
                )
    served = [run["recipe"] for run in runs if run["served"]]
    if len(served) > 1:
        raise RunInvalid(f"{' and '.join(served)} are both served. Keep the file of the one that is.")
    return runs


def comparisons(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By arm: its size and cost, and its differences to the published design, where that is among the runs."""
    arms = {arm: [run for run in runs if run["arm"] == arm] for arm in dict.fromkeys(run["arm"] for run in runs)}
    found: dict[str, Any] = {}
    for arm, members in arms.items():
        found[arm] = {
            "runs": [run["recipe"] for run in members],
            "parameters": sum(run["parameters"] for run in members),
            "iterations": sum(run["iterations"] for run in members),
            "training_cpu_s": round(sum(run["training_cpu_s"] for run in members)),
            "prompts": _over_prompts(_table(members)),
        }
    if DESIGN in arms:
        design, sets = _table(arms[DESIGN]), arms[DESIGN][0]["sets"]
        for arm, members in arms.items():
            if arm != DESIGN:
                table = _table(members)
                found[arm] |= against(table, design, sets)
                found[arm]["prompts_design"] = _over_prompts(aligned(table, design)[1])
    return found


def _over_prompts(table: Table) -> dict[str, Any]:
    """The means over prompts on held-out groups, of masks as served and as drawn."""
    inside = table.where((table["external"] == 0) & (table["own"] == 1))
    return {column: mean_over_prompts(inside, column) for column in ("served", "dice")}


def against(arm: Table, design: Table, sets: Sequence[str]) -> dict[str, Any]:
    """Arm minus design: Dice by set; by level and object, at the level's scale and at one for all; and recall, on
    external sources, of what one of `sets`, which were learned from, does not annotate: a network must not have learned
    to call that absent."""
    first, second = aligned(arm, design)
    gaps, asked, every = {}, asked_of(first), np.ones(len(first), bool)
    missing = [f"{level} {name}" for level, name in unmarked(sets)]
    for name, column, keys_N, kept_N in (
        ("by_set", "dice", first["set"], every),
        ("by_object", "dice", asked, every),
        ("by_object_one_scale", "common_scale", asked, every),
        ("external_recall", "recall", asked, (first["external"] == 1) & np.isin(asked, missing)),
    ):
        gaps[name] = adjusted(
            {
                key: difference(first[column][rows], second[column][rows], first.where(rows))
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
    """The pairs of all runs of an arm."""
    return Table.joined(*(Table.read(run["pairs"]) for run in members))
