"""Windows blended to one picture: no seam, silent windows left out, and the same picture cell by cell as at once."""

from dataclasses import replace

import numpy as np
import pytest

from gateway.analyses.blending import CELL_PX, Blender, blend, presence_of, presence_rules, raised_cosine, speaks
from gateway.domain.model import ModelCard, PresenceRule
from gateway.domain.prompts import Level, Triple
from gateway.operations.errors import ModelRefused
from gateway.slides.windows import WindowPlan
from tests.analyses.windows import plan_over


def picture(plan: WindowPlan, logits, spoken, *, batch: int, inside=None) -> np.ndarray:
    """What a Blender makes of the windows, put together."""
    whole = np.zeros((logits.shape[1], plan.height_px, plan.width_px), np.uint8)
    blender = Blender(plan, np.zeros(spoken.shape, bool), 0, lambda row, column: None, inside)
    for start in range(0, len(plan), batch):
        for cell in blender.add(logits[start : start + batch], spoken[start : start + batch]):
            y, x = cell.row * CELL_PX, cell.column * CELL_PX
            part = whole[:, y : y + CELL_PX, x : x + CELL_PX]
            part[:] = cell.fractions_PHW[:, : part.shape[1], : part.shape[2]]
    assert not blender.open
    return whole


def whole(plan: WindowPlan) -> tuple[slice, slice]:
    return slice(0, plan.height_px), slice(0, plan.width_px)


def test_a_field_of_logits_comes_back_without_a_seam() -> None:
    """Windows cut from one smooth field say the same where they overlap: the blend is that field."""
    plan = plan_over(500, 700)
    y, x = np.mgrid[:500, :700]
    field = (3 * np.sin(y / 40) + 2 * np.cos(x / 55)).astype(np.float32)
    logits = np.stack(
        [field[top : top + 256, left : left + 256] for top, left in zip(plan.tops_N, plan.lefts_N, strict=True)]
    )[:, None]
    spoken = np.ones((len(plan), 1), bool)
    (blended,) = blend(plan, logits, spoken, *whole(plan))
    assert np.abs(blended - 1 / (1 + np.exp(-field))).max() < 1e-5


@pytest.mark.parametrize(("height", "width", "side"), [(300, 700, 256), (100, 100, 256), (420, 400, 96)])
def test_cell_by_cell_is_the_same_as_at_once(height: int, width: int, side: int) -> None:
    rng = np.random.default_rng(1)
    plan = plan_over(height, width, side)
    logits = rng.normal(0, 3, (len(plan), 2, side, side)).astype(np.float32)
    spoken = rng.random((len(plan), 2)) < 0.7
    expected = np.rint(blend(plan, logits, spoken, *whole(plan)) * 255).astype(np.uint8)
    expected[expected < 13] = 0  # what is nearly nothing is written as nothing
    assert np.array_equal(picture(plan, logits, spoken, batch=3), expected)


def test_a_window_that_says_not_here_is_left_out() -> None:
    """Of two windows that overlap, the one that speaks decides alone; where only the silent one is, nothing is."""
    plan = plan_over(256, 448)
    logits = np.stack([np.full((1, 256, 256), value, np.float32) for value in (-8.0, 6.0)])
    probability = blend(plan, logits, np.array([[False], [True]]), *whole(plan))[0]
    assert (probability[:, :192] == 0).all()
    assert (probability[:, 192:] > 0.99).all()
    both = blend(plan, logits, np.array([[True], [True]]), *whole(plan))[0]
    assert (both[:, 192:200] < 0.01).all()


def test_nothing_lies_outside_the_region() -> None:
    plan = plan_over(300, 300)
    logits = np.full((len(plan), 1, 256, 256), 5, np.float32)

    def inside(rows: slice, columns: slice) -> np.ndarray:
        y, x = np.mgrid[rows, columns]
        return y + x < 200

    drawn = picture(plan, logits, np.ones((len(plan), 1), bool), batch=4, inside=inside)[0]
    assert np.array_equal(drawn > 0, inside(slice(0, 300), slice(0, 300)))


def test_the_middle_of_a_window_weighs_most_and_no_pixel_nothing() -> None:
    weights = raised_cosine(256)
    assert np.allclose(weights, weights[::-1])
    assert (weights > 0).all()
    assert weights.argmax() in (127, 128)


def test_presence_is_calibrated_by_the_card_for_the_level_of_each_prompt(mask_card: ModelCard) -> None:
    """Two levels of one resolution are windows of one batch."""
    card = replace(
        mask_card,
        presence_by_level={
            "nuclei": PresenceRule(threshold=0.7, temperature=2.0),
            "cell": PresenceRule(threshold=0.8, temperature=1.0),
        },
    )
    cell, nuclei, tissue = (Triple(level, "tumor", "breast") for level in (Level.CELL, Level.NUCLEI, Level.TISSUE))
    rules = presence_rules(card, [nuclei, cell, nuclei])
    presence = presence_of(rules, np.array([[0.0, 1.3, -400.0], [2.0, 1.4, 0.0]], np.float32))
    assert presence == pytest.approx(1 / (1 + np.exp([[0.0, -1.3, 200.0], [-1.0, -1.4, 0.0]])))
    assert speaks(rules, presence).tolist() == [[False, False, False], [True, True, False]]
    with pytest.raises(ModelRefused, match="does not say when an object of tissue prompts is there"):
        presence_rules(card, [nuclei, tissue])
