"""The figures of one network, from its pairs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from training.pathsegmentor.baselines import ABSENT_BELOW, BetaTest
from training.pathsegmentor.calibrate import Presence
from training.pathsegmentor.measuring import ALL_NUCLEI
from training.pathsegmentor.pairs import SEED, Table, adjusted, auroc_figure, difference, mean, mean_over_prompts

BASELINES = ("otsu", "box_union", "box_instances", "whole_image")
VARIANTS = ("no_level", "no_region", "no_constant")
EXHAUSTIVE_OBJECTS = 3
"""A set needs as many objects for its presence figure to count: among fewer, an object is told by its set."""
_STATISTICS = ("inside", "red", "green", "blue")


def overlap(table: Table) -> dict[str, Any]:
    """Dice of the network and of what needs none, over the prompts with the image's own region: by set, by set and
    prompt, and over all."""
    own = table.where(table["own"] == 1)
    columns = ("dice", *BASELINES)

    def row(part: Table) -> dict[str, Any]:
        return {column: mean(part[column], part.groups()) for column in columns}

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
        "prompts": mean_over_prompts(own),
    }


def against(table: Table, baseline: str, kept: Callable[[Table], np.ndarray]) -> dict[str, Any]:
    """Dice minus a baseline's on the same pairs, by set, with Holm's p over the sets."""
    rows = table.where((table["own"] == 1) & kept(table))
    family = {}
    for name in names(rows["set"]):
        part = rows.where(rows["set"] == name)
        family[name] = difference(part["dice"], part[baseline], part.groups())
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
            "dice": mean(rows["dice"], rows.groups()),
            **{variant: difference(rows[variant], rows["dice"], rows.groups()) for variant in VARIANTS},
            "common_scale": mean(rows["common_scale"], rows.groups()),
            "common_scale_no_level": difference(rows["common_scale_no_level"], rows["common_scale"], rows.groups()),
        }
    return found


def wrong(table: Table) -> dict[str, Any]:
    """Dice of the right prompt minus that of a wrong one on the same truth: by set, Holm over the sets; and of prompts
    exchanged over all pairs (control)."""
    return {
        column: against(table, column, lambda rows: rows["external"] == 0)
        for column in ("wrong_level", "wrong_object", "permuted")
    }


def selection(table: Table) -> dict[str, Any]:
    """What the best of the queries would reach over the one that is chosen (oracle)."""
    own = table.where(table["own"] == 1)
    kept = own.where(~np.isnan(own["best_query"]))
    return {
        "chosen": mean(kept["dice"], kept.groups()),
        "best": mean(kept["best_query"], kept.groups()),
        "gap": difference(kept["best_query"], kept["dice"], kept.groups()),
    }


def absence(table: Table, validation: Table, presence: Presence) -> dict[str, Any]:
    """By set: the area under the ROC curve of presence, the same with presence shuffled (control), and how often a mask
    is shown where nothing is, and none where something is, under four rules. A Beta test is fitted on validation pairs.
    """
    present = validation.where(validation["present"] == 1)
    fitted = BetaTest.fit(present["prompt"].tolist(), np.stack([present[name] for name in _STATISTICS], 1))
    known = table.where((table["own"] == 1) & ~np.isnan(table["present"]))
    found = {name: _absence(known.where(known["set"] == name), fitted, presence) for name in names(known["set"])}
    counted = [row["auroc"]["value"] for row in found.values() if row["objects"] >= EXHAUSTIVE_OBJECTS and row["auroc"]]
    pooled = auroc_figure(known["presence"], known["present"] == 1, known.groups())
    return {
        "by_set": found,
        "mean_within_sets": round(float(np.mean(counted)), 4) if counted else None,
        "pooled": pooled,
    }


def _absence(rows: Table, fitted: BetaTest, presence: Presence) -> dict[str, Any]:
    there = rows["present"] == 1
    groups = rows.groups()
    statistics_N4 = np.stack([rows[name] for name in _STATISTICS], 1)
    beta_p = np.array([fitted.p(prompt, four) for prompt, four in zip(rows["prompt"], statistics_N4, strict=True)])
    some = rows["area"] > 0
    head = presence.probability(rows["presence"]) >= presence.threshold
    rules = {
        "neither": some,
        "head": some & head,
        "Beta test": some & (beta_p >= ABSENT_BELOW),
        "both": some & head & (beta_p >= ABSENT_BELOW),
    }
    shuffled = np.random.default_rng(SEED).permutation(there)
    return {
        "objects": len(names(rows["prompt"][~there])),
        "auroc": auroc_figure(rows["presence"], there, groups),
        "shuffled": auroc_figure(rows["presence"], shuffled, groups),
        "beta_auroc": auroc_figure(beta_p, there, groups),
        "false_mask": {name: mean(_where(shown, ~there), groups) for name, shown in rules.items()},
        "missed": {name: mean(_where(~shown, there), groups) for name, shown in rules.items()},
        "false_area": mean(_where(rows["area"], ~there), groups),
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


def summary(test: Table, validation: Table, presence: Presence) -> Mapping[str, Any]:
    """All figures of a network's test pairs (external sets among them)."""
    inside = test.where(test["external"] == 0)
    return {
        "overlap": {"test": overlap(inside), "external": overlap(test.where(test["external"] == 1))},
        "validation": overlap(validation),
        "baselines": baselines(test),
        "words": words(test),
        "wrong": wrong(test),
        "selection": selection(inside),
        "absence": absence(test, validation, presence),
    }
