"""What a finished network's card says of its answers: when an object counts as present, and which prompts hold.

All of it is chosen on validation pairs.

**Presence**: a temperature of least log loss (arXiv 1706.04599), then the probability from which sensitivity plus
specificity is greatest (Youden 1950), over pairs where presence is known.

**Supported**: a prompt has five validation pairs or more, of three groups or more, and beats its floor: the interval of
the mean difference of Dice to the better of two answers that read nothing (the whole image; for nuclei Otsu's threshold
of haematoxylin) lies above 0. What is not supported is answered all the same, with a finding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from gateway.domain.prompts import PromptRow, Triple
from training.pathsegmentor.pairs import FEWEST_GROUPS, Table, mean
from training.statistics import best_temperature

FEWEST_PAIRS = 5


@dataclass(frozen=True, slots=True)
class Presence:
    """An object is there where sigmoid(logit / temperature) ≥ threshold; Youden's index there, on the pairs it was
    chosen on."""

    threshold: float
    temperature: float
    youden: float

    def probability(self, logits_N: np.ndarray) -> np.ndarray:
        return expit(logits_N / self.temperature)


def presence(table: Table) -> Presence:
    """From pairs with known presence; threshold ½ and temperature 1 where one of the two answers never occurs."""
    known_N = ~np.isnan(table["present"]) & ~np.isnan(table["presence"])
    logits, there = table["presence"][known_N], table["present"][known_N] == 1
    if there.all() or not there.any():
        return Presence(0.5, 1.0, 0.0)
    temperature, _ = best_temperature(np.column_stack([np.zeros(len(logits)), logits]), there.astype(np.int64))
    probabilities = expit(logits / temperature)
    # Halfway between two neighbours, so that the choice does not hang on the last digit of one pair.
    values = np.unique(probabilities)
    cuts = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
    youden = [float((probabilities[there] >= cut).mean() - (probabilities[~there] >= cut).mean()) for cut in cuts]
    best = int(np.argmax(youden))
    return Presence(round(float(cuts[best]), 4), round(temperature, 4), round(youden[best], 4))


def support(table: Table) -> dict[str, dict[str, Any]]:
    """By prompt: `val_dice` (None where nothing was present), `supported`, and the difference to the floor."""
    found = {}
    for prompt in dict.fromkeys(table["prompt"].tolist()):
        rows = table.where((table["prompt"] == prompt) & ~np.isnan(table["dice"]))
        floor = max(("whole_image", "otsu"), key=lambda column: np.nan_to_num(rows[column]).sum())
        gap = mean(rows["dice"] - rows[floor], rows.groups())
        enough = len(rows) >= FEWEST_PAIRS and gap.get("groups", 0) >= FEWEST_GROUPS
        found[prompt] = {
            "val_dice": round(float(rows["dice"].mean()), 4) if len(rows) else None,
            "supported": bool(enough and gap["low"] > 0),
            "above_floor": gap,
        }
    return found


def rows(train_images: Mapping[Triple, int], supports: Mapping[str, Mapping[str, Any]]) -> list[PromptRow]:
    """What prompts.csv says of each prompt that was trained on; one without validation images is not supported."""
    unknown = {"val_dice": None, "supported": False}
    return [
        PromptRow(triple, count, given["val_dice"], given["supported"])
        for triple, count in sorted(train_images.items())
        for given in [supports.get(triple.text, unknown)]
    ]
