"""Masks where an object is not: squares that hold none of it, and their share and area by prompt."""

import dataclasses

import numpy as np
import pytest

from gateway.domain.prompts import Level
from tests.training.pathsegmentor.painted import item
from training.pathsegmentor.absent_page import absent_places
from training.pathsegmentor.absent_places import by_prompt, measure_squares
from training.pathsegmentor.calibrate import Presence
from training.pathsegmentor.predictor import blended


def right_half(image_HW3, asked, dataset, *, queries=False):
    """Marks the right half of whatever it is shown, and is surer of what is wider."""

    def answer(tile_HW3):
        logits = np.full((len(asked), *tile_HW3.shape[:2]), -2.0, np.float32)
        logits[..., tile_HW3.shape[1] // 2 :] = 2.0
        return logits, np.full(len(asked), 1.0 if tile_HW3.shape[1] > 128 else -1.0), None

    return blended(image_HW3, answer)


def test_squares_without_the_object_are_asked_alone_and_seen_in_their_window():
    category = np.zeros((256, 256), np.uint8)
    category[10:60, 10:60] = 1
    image = np.full((256, 256, 3), (200, 150, 180), np.uint8)
    image[128:, 128:] = 245  # glass: not read
    made = dataclasses.replace(
        item(0), set="ebhi", level=Level.TISSUE, image_HWC=image, category_HW=category, objects={"gland": (1,)},
        exhaustive=frozenset({"gland"}),
    )  # fmt: skip
    alone, inside = measure_squares(right_half, [made, dataclasses.replace(made, set="glomeruli")])
    assert len(alone) == len(inside) == 7  # of nine, one holds the gland and one is glass
    assert set(alone["area"]) == {0.5}
    assert set(inside["area"]) == {0.0, 0.5, 1.0}
    rules = {Level.TISSUE: Presence(0.5, 1.0, 0.0)}
    (row,) = by_prompt(alone, rules).values()
    assert (row["places"], row["share_drawn"]["value"], row["share_served"]["value"]) == (7, 1.0, 0.0)
    assert (row["area_drawn"]["value"], row["area_served"]["value"]) == (0.5, 0.0)
    (row,) = by_prompt(inside, rules).values()
    assert row["area_served"]["value"] == row["area_drawn"]["value"] == pytest.approx(inside["area"].mean(), abs=1e-4)
    (told,) = by_prompt(alone, rules)
    many, few = by_prompt(alone, rules), by_prompt(alone.where(np.arange(7) < 4), rules)
    text = "\n".join(absent_places({"windows": {}, "squares": many, "squares, in their windows": few}))
    assert f"| {told} | 7 | 1 | 1.00 " in text
    assert f"| {told} | 4 | 1 | too few to say |" in text
    assert text.count("| camelyon · tumor | no such square |") == 2
    assert "| ebhi · gland | no such square" not in text
