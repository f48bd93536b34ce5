"""What is marked where an object is not: by prompt, over windows without it, and over small squares of images that hold
it elsewhere.

No set has a whole window of a lymph node without tumor, or of a colon without glands. Training draws crops without
them; held-out images have one square of a lymph node without tumor and none of a colon without glands.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from gateway.domain.prompts import Triple
from gateway.slides.tissue import tissue_of_picture
from training.pathsegmentor.calibrate import Rules, spoken
from training.pathsegmentor.figures import names
from training.pathsegmentor.items import UNKNOWN, Item
from training.pathsegmentor.measuring import LEAST_TISSUE
from training.pathsegmentor.pairs import Pair, Table, mean
from training.pathsegmentor.predictor import Asked, Predictor
from training.pathsegmentor.sets import MPP

SIDE_PX, STEP_PX = 128, 64
OBJECTS = {"camelyon": "tumor", "ebhi": "gland"}
"""What is looked for in which sets' squares."""


def measure_squares(predictor: Predictor, items: Sequence[Item]) -> tuple[Table, Table]:
    """Of every square with tissue and without the object: what is marked when it is asked alone, and what the answer to
    its whole image marks in it (with that image's presence)."""
    pairs = [both for item in items if item.set in OBJECTS for both in _squares(predictor, item)]
    alone, inside = ([pair[place] for pair in pairs] for place in (0, 1))
    return Table.of(alone), Table.of(inside)


def _squares(predictor: Predictor, item: Item) -> Iterator[tuple[Pair, Pair]]:
    triple = Triple(item.level, OBJECTS[item.set], item.organ)
    if not item.exhaustively(triple):
        return
    truth_HW = item.mask(triple) | (item.category_HW == UNKNOWN)
    tissue_HW = tissue_of_picture(item.image_HWC, MPP[item.level])
    whole = predictor(item.image_HWC, [Asked(triple)], item.set)
    for top, left in product(*(range(0, length - SIDE_PX + 1, STEP_PX) for length in truth_HW.shape)):
        place = slice(top, top + SIDE_PX), slice(left, left + SIDE_PX)
        if truth_HW[place].any() or tissue_HW[place].mean() < LEAST_TISSUE:
            continue
        said = predictor(np.ascontiguousarray(item.image_HWC[place]), [Asked(triple)], item.set)
        yield (
            _pair(item, triple, f"{top},{left}", said.presence_P[0], said.probabilities_PHW[0]),
            _pair(item, triple, f"{top},{left}", whole.presence_P[0], whole.probabilities_PHW[0][place]),
        )


def _pair(item: Item, triple: Triple, place: str, presence: float, probability_HW: np.ndarray) -> Pair:
    return Pair(
        set=item.set,
        external=item.part == "external",
        part=item.part,
        group=item.group,
        image=f"{item.name} {place}",
        prompt=triple.text,
        level=triple.level,
        own=True,
        organ=item.organ,
        stain=item.stain,
        present=False,
        presence=float(presence),
        area=float((probability_HW > 0.5).mean()),
    )


def by_prompt(table: Table, rules: Rules) -> dict[str, dict[str, Any]]:
    """By set and prompt (with the images' own region), over what is known to lack the object: in which share anything
    is marked, and how much of the area in the mean, as drawn and as served."""
    absent = table.where((table["own"] == 1) & (table["present"] == 0))
    found = {}
    for name in names(absent["set"]):
        of_set = absent.where(absent["set"] == name)
        for prompt in names(of_set["prompt"]):
            rows = of_set.where(of_set["prompt"] == prompt)
            drawn_N = rows["area"]
            served_N = np.where(spoken(rules, rows), drawn_N, 0.0)
            found[f"{name} · {prompt}"] = {
                "places": len(rows),
                "impossible": bool(rows["impossible"].any()),
                **{
                    f"{what}_{when}": mean(values_N, rows.groups())
                    for when, area_N in (("drawn", drawn_N), ("served", served_N))
                    for what, values_N in (("share", (area_N > 0).astype(float)), ("area", area_N))
                },
            }
    return found
