"""What a finished network's card says of its answers: when an object counts as present, and which prompts hold.

All of it is chosen on validation pairs.

**Presence**: a temperature of least log loss (arXiv 1706.04599), then the probability from which sensitivity plus
specificity is greatest (Youden 1950), over windows where presence is known: of each level its own. A level with fewer
than 50 pairs of either label (a share of 50 has a standard error of up to 0.07), or of fewer than five groups, has the
rule of all levels together, in which each counts equally: nuclei have many more windows than tissue.

**Supported**: a prompt has five validation pairs or more, of five groups or more, in a stain that the card names, and
beats its floor: the interval of the mean difference of Dice, as served, to the better of two answers that read nothing
(the whole image; for nuclei Otsu's threshold of haematoxylin) lies above 0. Without a region its pairs are of two known
regions or more. An object that is outlined by a commoner one (`sets.KIND_OF`) must be known absent where that is. What
is not supported is answered all the same, with a finding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from gateway.domain.prompts import UNSPECIFIED, Level, PromptRow, Triple
from training.pathsegmentor.pairs import Table, mean
from training.pathsegmentor.sets import KIND_OF
from training.statistics import best_temperature

FEWEST_PAIRS = FEWEST_GROUPS = 5
FEWEST_OF_A_LABEL = 50
"""Pairs that name the image's own region, present and absent ones each: those without a region are of the same windows
and objects, asked again."""
_LEAST = 1e-6
"""Thresholds keep so far from 0 and 1: beyond, all or nothing would be present."""


@dataclass(frozen=True, slots=True)
class Presence:
    """An object is there where sigmoid(logit / temperature) ≥ threshold; Youden's index there, on the pairs it was
    chosen on: a level's own or, where `pooled`, those of all (the mean over levels)."""

    threshold: float
    temperature: float
    youden: float
    pooled: bool = False

    def probability(self, logits_N: np.ndarray) -> np.ndarray:
        return expit(logits_N / self.temperature)

    def speaks(self, logits_N: np.ndarray) -> np.ndarray:
        """(N,) bool: whether what has these logits of presence is there."""
        return self.probability(logits_N) >= self.threshold


Rules = Mapping[str, Presence]
"""By level."""


def spoken(rules: Rules, table: Table) -> np.ndarray:
    """(N,) bool: whether each pair's object is said to be there."""
    said_N = np.zeros(len(table), bool)
    for level, rule in rules.items():
        of_N = table["level"] == level
        said_N[of_N] = rule.speaks(table["presence"][of_N])
    return said_N


def presence(table: Table) -> dict[str, Presence]:
    """The rule of each level, from pairs with known presence."""
    known = table.where(~np.isnan(table["present"]) & ~np.isnan(table["presence"]))
    pooled = replace(_fitted(known), pooled=True)
    parts = {level.value: known.where(known["level"] == level) for level in Level}
    return {level: _fitted(part) if _enough(part) else pooled for level, part in parts.items()}


def _enough(table: Table) -> bool:
    """Whether a level's pairs may choose a rule of their own."""
    own = table.where(table["own"] == 1)
    labels = [own.where(own["present"] == label) for label in (0, 1)]
    return all(len(of) >= FEWEST_OF_A_LABEL and len(np.unique(of.groups())) >= FEWEST_GROUPS for of in labels)


def _fitted(known: Table) -> Presence:
    """Each level that has both answers counts equally; threshold ½ and temperature 1 where none has both."""
    there_N = known["present"] == 1
    levels = [known["level"] == level for level in np.unique(known["level"])]
    halves = [(of & there_N, of & ~there_N) for of in levels if 0 < there_N[of].sum() < of.sum()]
    if not halves:
        return Presence(0.5, 1.0, 0.0)
    logits_N = known["presence"]
    temperature, _ = best_temperature(np.column_stack([np.zeros(len(logits_N)), logits_N]), there_N.astype(np.int64))
    temperature = round(temperature, 4)
    probabilities_N = expit(logits_N / temperature)

    def youden(cut: float) -> float:
        said_N = probabilities_N >= cut
        return float(np.mean([said_N[there].mean() - said_N[absent].mean() for there, absent in halves]))

    # Halfway between two neighbours, so that the choice does not hang on the last digit of one pair.
    values = np.unique(probabilities_N)
    cuts = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
    threshold = _rounded(float(cuts[int(np.argmax([youden(cut) for cut in cuts]))]))
    return Presence(threshold, temperature, round(youden(threshold), 4))


def _rounded(probability: float) -> float:
    """To four significant digits of what is left to the nearer of 0 and 1."""
    if probability > 0.5:
        return round(1.0 - _rounded(1.0 - probability), 12)
    return max(float(f"{probability:.4g}"), _LEAST)


def support(table: Table, stains: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """By prompt, over pairs in the stains that a card names (None: in any): `val_dice` of the masks as served (None
    where nothing was present) and `val_dice_drawn`, the difference to the floor, `supported`, and if not, `unmet`: why.
    """
    named_N = np.ones(len(table), bool) if stains is None else np.isin(table["stain"], stains)
    found = {}
    for prompt in dict.fromkeys(table["prompt"].tolist()):
        measured_N = (table["prompt"] == prompt) & ~np.isnan(table["dice"])
        rows = table.where(measured_N & named_N)
        floor = max(("whole_image", "otsu"), key=lambda column: np.nan_to_num(rows[column]).sum())
        gap = mean(rows["served"] - rows[floor], rows.groups())
        organs = {*rows["organ"].tolist()} - {UNSPECIFIED}
        unmet = {
            "measured in another stain only": bool(measured_N.any()) and not len(rows),
            f"fewer than {FEWEST_PAIRS} pairs or {FEWEST_GROUPS} groups": len(rows) < FEWEST_PAIRS
            or gap["groups"] < FEWEST_GROUPS,
            "not above its floor": bool(gap) and gap["low"] <= 0,
            "one region only": f" in {UNSPECIFIED} " in prompt and len(organs) < 2,
            "not told from what outlines it": not _told_apart(table, prompt),
        }
        found[prompt] = {
            "val_dice": round(float(rows["served"].mean()), 4) if len(rows) else None,
            "val_dice_drawn": round(float(rows["dice"].mean()), 4) if len(rows) else None,
            "supported": not any(unmet.values()),
            "unmet": [reason for reason, here in unmet.items() if here],
            "above_floor": gap,
        }
    return found


def _told_apart(table: Table, prompt: str) -> bool:
    """Whether a prompt for a kind of another object was asked where that is there and this is not; True for others."""
    for (level, kind), wider in KIND_OF.items():
        if prompt.startswith(f"{level}-level {kind} in "):
            commoner = prompt.replace(f" {kind} ", f" {wider} ", 1)
            images = np.char.add(np.char.add(table["set"], "/"), table["image"])
            there = images[(table["prompt"] == commoner) & (table["present"] == 1)]
            return bool(np.isin(images[(table["prompt"] == prompt) & (table["present"] == 0)], there).any())
    return True


def rows(train_images: Mapping[Triple, int], supports: Mapping[str, Mapping[str, Any]]) -> list[PromptRow]:
    """What prompts.csv says of each prompt that was trained on; one without validation images is not supported."""
    unknown = {"val_dice": None, "supported": False}
    return [
        PromptRow(triple, count, given["val_dice"], given["supported"])
        for triple, count in sorted(train_images.items())
        for given in [supports.get(triple.text, unknown)]
    ]
