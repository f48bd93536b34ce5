"""The figures of one network, from its pairs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from training.pathsegmentor.baselines import ABSENT_BELOW, BetaTest
from training.pathsegmentor.calibrate import Rules, spoken
from training.pathsegmentor.measuring import ALL_NUCLEI
from training.pathsegmentor.pairs import (
    SEED,
    Table,
    adjusted,
    auroc_figure,
    auroc_within,
    difference,
    mean,
    mean_over_prompts,
)

BASELINES = ("otsu", "box_union", "box_instances", "whole_image")
VARIANTS = ("no_level", "no_region", "no_constant")
EXHAUSTIVE_OBJECTS = 3
"""A set needs as many objects for its presence figure to count: among fewer, an object is told by its set."""
_STATISTICS = ("inside", "red", "green", "blue")


def overlap(table: Table) -> dict[str, Any]:
    """Dice of the network (as served: what the presence rule hides counts 0; and as drawn) and of what needs none, over
    the prompts with the image's own region: by set, by set and prompt, and over all. Prompts with one outline in an
    image count once, but where they are told apart."""
    own = table.where(table["own"] == 1)
    columns = ("served", "dice", *BASELINES)

    def row(part: Table) -> dict[str, Any]:
        return {column: mean(part[column], part.groups(), part.shares()) for column in columns}

    by_set = {name: row(own.where(own["set"] == name)) for name in names(own["set"])}
    by_prompt = {
        f"{dataset} · {prompt}": row(own.where((own["set"] == dataset) & (own["prompt"] == prompt)))
        for dataset in by_set
        for prompt in names(own["prompt"][own["set"] == dataset])
    }
    return {
        "by_set": by_set,
        "by_prompt": {name: found for name, found in by_prompt.items() if found["dice"]},
        "pairs": row(own),
        "prompts": mean_over_prompts(own, "served"),
        "prompts_drawn": mean_over_prompts(own, "dice"),
    }


def against(table: Table, baseline: str, kept: Callable[[Table], np.ndarray]) -> dict[str, Any]:
    """Dice minus a baseline's on the same pairs, by set, with Holm's p over the sets."""
    rows = table.where((table["own"] == 1) & kept(table))
    family = {}
    for name in names(rows["set"]):
        part = rows.where(rows["set"] == name)
        family[name] = difference(part["dice"], part[baseline], part)
    return adjusted(family)


def baselines(table: Table) -> dict[str, Any]:
    """Against Otsu on all nuclei, and against both box oracles everywhere."""
    return {
        "otsu": against(table, "otsu", all_nuclei),
        "box_union": against(table, "box_union", everything),
        "box_instances": against(table, "box_instances", everything),
        "whole_image": against(table, "whole_image", everything),
    }


def all_nuclei(table: Table) -> np.ndarray:
    return objects_of(table) == ALL_NUCLEI


def everything(table: Table) -> np.ndarray:
    return np.ones(len(table), bool)


def words(table: Table) -> dict[str, Any]:
    """What leaving out a word costs, by level and object: on the level's own scale, and at one scale for all levels.
    `levels` is how many levels an object is annotated on: only one of two or more can be mistaken for the other."""
    own = table.where((table["own"] == 1) & ~np.isnan(table["dice"]) & (table["external"] == 0))
    objects_N = objects_of(own)
    asked_N = asked_of(own)
    found = {}
    for name in names(asked_N):
        rows = own.where(asked_N == name)
        found[name] = {
            "levels": len(names(own["level"][objects_N == objects_N[asked_N == name][0]])),
            "dice": mean(rows["dice"], rows.groups(), rows.shares()),
            **{variant: difference(rows[variant], rows["dice"], rows) for variant in VARIANTS},
            "common_scale": mean(rows["common_scale"], rows.groups(), rows.shares()),
            "common_scale_no_level": difference(rows["common_scale_no_level"], rows["common_scale"], rows),
        }
    return found


def wrong(table: Table) -> dict[str, Any]:
    """Dice of the right prompt minus that of a wrong one on the same truth: by set, Holm over the sets; and of prompts
    exchanged over all pairs (control)."""
    return {
        column: against(table, column, lambda rows: rows["external"] == 0)
        for column in ("wrong_level", "wrong_object", "permuted")
    }


def exchanged(table: Table) -> dict[str, Any]:
    """By set, of held-out groups: Dice of prompts exchanged over all pairs, beside that of marking each image's largest
    object (told by the truth), to which a network falls that is told nothing by its prompt; and how many different
    outlines an image has at most: where it is one, the largest is the one that is asked for."""
    own = table.where((table["own"] == 1) & (table["external"] == 0) & ~np.isnan(table["permuted"]))
    found = {}
    for name in names(own["set"]):
        rows = own.where(own["set"] == name)
        groups_N, shares_N = rows.groups(), rows.shares()
        found[name] = {
            "outlines": int(rows["outline"].max()) + 1,
            "dice": mean(rows["dice"], groups_N, shares_N),
            "permuted": mean(rows["permuted"], groups_N, shares_N),
            "largest_object": mean(rows["largest_object"], groups_N, shares_N),
            "gap": difference(rows["permuted"], rows["largest_object"], rows),
        }
    return found


def selection(table: Table) -> dict[str, Any]:
    """What the best of the queries would reach over the one that is chosen (oracle), in images of one window."""
    own = table.where(table["own"] == 1)
    kept = own.where(~np.isnan(own["best_query"]))
    return {
        "chosen": mean(kept["dice"], kept.groups(), kept.shares()),
        "best": mean(kept["best_query"], kept.groups(), kept.shares()),
        "gap": difference(kept["best_query"], kept["dice"], kept),
    }


def absence(table: Table, validation: Table, presence: Rules) -> dict[str, Any]:
    """By set, over whole images: the area under the ROC curve of presence within prompts, and over all prompts of the
    set together (`pooled`) beside two controls that read no image: how often the prompt's object is there in validation
    images, and presence shuffled. And how often a mask is shown where nothing is, and none where something is, under
    four rules. A Beta test is fitted on validation pairs; what it knows no prompt of has no figure of it.
    """
    told = validation.where((validation["own"] == 1) & ~np.isnan(validation["present"]))
    often = {prompt: float(told["present"][told["prompt"] == prompt].mean()) for prompt in names(told["prompt"])}
    present = validation.where(validation["present"] == 1)
    fitted = BetaTest.fit(present["prompt"].tolist(), np.stack([present[name] for name in _STATISTICS], 1))
    known = table.where((table["own"] == 1) & ~np.isnan(table["present"]))
    found = {name: _absence(known.where(known["set"] == name), often, fitted, presence) for name in names(known["set"])}
    counted = [row for row in found.values() if row["objects"] >= EXHAUSTIVE_OBJECTS and row["within_prompts"]]
    return {
        "by_set": found,
        "mean_within_sets": {
            kind: round(float(np.mean([row[kind]["value"] for row in counted])), 4)
            for kind in ("within_prompts", "pooled")
            if counted
        },
    }


def _absence(rows: Table, often: Mapping[str, float], fitted: BetaTest, presence: Rules) -> dict[str, Any]:
    there = rows["present"] == 1
    groups = rows.groups()
    statistics_N4 = np.stack([rows[name] for name in _STATISTICS], 1)
    beta_p = np.array([fitted.p(prompt, four) for prompt, four in zip(rows["prompt"], statistics_N4, strict=True)])
    by_prompt = np.array([often.get(prompt, np.nan) for prompt in rows["prompt"]])
    in_validation = not np.isnan(by_prompt).any()
    some = rows["area"] > 0
    head = spoken(presence, rows)
    rules = {
        "neither": some,
        "head": some & head,
        "Beta test": some & (beta_p >= ABSENT_BELOW),
        "both": some & head & (beta_p >= ABSENT_BELOW),
    }
    if not in_validation:
        rules = {name: rules[name] for name in ("neither", "head")}
    shuffled = np.random.default_rng(SEED).permutation(there)
    return {
        "objects": len(names(objects_of(rows)[~there])),
        "present": int(there.sum()),
        "absent": int((~there).sum()),
        "within_prompts": auroc_within(rows["presence"], there, rows["prompt"], groups),
        "pooled": auroc_figure(rows["presence"], there, groups),
        "prompt_alone": auroc_figure(by_prompt, there, groups) if in_validation else {},
        "shuffled": auroc_figure(rows["presence"], shuffled, groups),
        "beta_auroc": auroc_figure(beta_p, there, groups) if in_validation else {},
        "false_mask": {name: mean(_where(shown, ~there), groups) for name, shown in rules.items()},
        "missed": {name: mean(_where(~shown, there), groups) for name, shown in rules.items()},
        "false_area": mean(_where(rows["area"], ~there), groups),
    }


def by_level(windows: Table, presence: Rules) -> dict[str, Any]:
    """Of each level, over windows as they are served: the area under the ROC curve of presence among what is outlined,
    within each set's prompts; how often a mask is shown where the object is not, before and after
    the presence rule, by how that is known; how often none is where it is; and how many windows lack which object: of
    one that is not named there, nothing is known."""
    known = windows.where(~np.isnan(windows["present"]))
    return {level: _of_level(known.where(known["level"] == level), presence) for level in names(known["level"])}


def _of_level(rows: Table, presence: Rules) -> dict[str, Any]:
    own_N, there_N, impossible_N = rows["own"] == 1, rows["present"] == 1, rows["impossible"] == 1
    groups = rows.groups()
    drawn_N = rows["area"] > 0
    served_N = drawn_N & spoken(presence, rows)
    absent = {
        "outlined": own_N & ~there_N & ~impossible_N,
        "impossible": own_N & ~there_N & impossible_N,
        "impossible, no region": ~own_N & ~there_N & impossible_N,
    }
    outlined = rows.where(own_N & ~impossible_N)
    objects_N = objects_of(rows)[own_N & ~there_N]
    return {
        "present": int((own_N & there_N).sum()),
        "absent": {name: int(kept_N.sum()) for name, kept_N in absent.items()},
        "absent_objects": {name: int((objects_N == name).sum()) for name in names(objects_N)},
        "within_prompts": auroc_within(
            outlined["presence"],
            outlined["present"] == 1,
            np.char.add(np.char.add(outlined["set"], " · "), outlined["prompt"]),
            outlined.groups(),
        ),
        "false_mask": {
            name: {"drawn": mean(_where(drawn_N, kept_N), groups), "served": mean(_where(served_N, kept_N), groups)}
            for name, kept_N in absent.items()
        },
        "missed": {
            "drawn": mean(_where(~drawn_N, own_N & there_N), groups),
            "served": mean(_where(~served_N, own_N & there_N), groups),
        },
    }


def _where(values_N: np.ndarray, kept_N: np.ndarray) -> np.ndarray:
    return np.where(kept_N, values_N.astype(float), np.nan)


def names(values_N: np.ndarray) -> list[str]:
    return list(dict.fromkeys(values_N.tolist()))


def objects_of(table: Table) -> np.ndarray:
    """(N,) str: the object's word of each prompt."""
    return np.array([prompt.split("-level ", 1)[1].rsplit(" in ", 1)[0] for prompt in table["prompt"]], str)


def asked_of(table: Table) -> np.ndarray:
    """(N,) str: level and object of each prompt."""
    return np.char.add(np.char.add(table["level"], " "), objects_of(table))


def summary(test: Table, validation: Table, presence: Rules) -> Mapping[str, Any]:
    """All figures of a network's test pairs (external sets among them)."""
    inside = test.where(test["external"] == 0)
    return {
        "overlap": {"test": overlap(inside), "external": overlap(test.where(test["external"] == 1))},
        "validation": overlap(validation),
        "baselines": baselines(test),
        "words": words(test),
        "wrong": wrong(test),
        "exchanged": exchanged(test),
        "selection": selection(inside),
        "absence": absence(test, validation, presence),
    }
