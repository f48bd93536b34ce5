"""What a mask, a choice and a presence score cost, by hand."""

import math

import pytest
import torch

from training.pathsegmentor.decoder import Heads
from training.pathsegmentor.losses import Target, averaged, bce_and_dice, losses, matched, sampled
from training.pathsegmentor.recipe import Loss

LOG2 = math.log(2.0)


def test_a_perfect_mask_costs_no_dice() -> None:
    bce, dice = bce_and_dice(torch.full((1, 1, 4), 100.0), torch.ones(1, 4), torch.ones(1, 4))
    assert (bce.item(), dice.item()) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_half_certain_of_half_a_mask() -> None:
    bce, dice = bce_and_dice(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2))
    assert (bce.item(), dice.item()) == pytest.approx((0.6931, 1 / 3), abs=1e-4)


def test_pixels_beyond_the_image_do_not_count() -> None:
    logits, mask = torch.tensor([[[0.0, 0.0, 50.0, -50.0]]]), torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    bce, dice = bce_and_dice(logits, mask, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert (bce.item(), dice.item()) == pytest.approx((LOG2, 1 / 3))


def test_the_truth_is_averaged_over_valid_pixels() -> None:
    mask = torch.tensor([[[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])
    valid = torch.tensor([[[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]])
    found, weight = averaged(mask, valid, 2)
    assert found.tolist() == [[[0.25, 1.0]]]
    assert weight.tolist() == [[[1.0, 0.5]]]


def test_matching_weighs_the_choice_twice_and_the_mask_fivefold() -> None:
    z = torch.tensor([[0.0, 0.0, math.log(2.0)]])  # softmax 1/4, 1/4, 1/2
    bce, dice = torch.tensor([[0.1, 0.1, 0.1]]), torch.tensor([[0.2, 0.11, 0.2]])
    # Costs: -0.5 + 0.5 + 1, -0.5 + 0.5 + 0.55, -1 + 0.5 + 1.
    assert matched(z, bce, dice).item() == 2
    assert matched(z, bce, dice - torch.tensor([[0.0, 0.02, 0.0]])).item() == 1


def one_depth(cosines: list[float], logits: list[float]) -> Heads:
    """Queries whose mask is one logit everywhere."""
    return Heads(torch.tensor([[[value] for value in logits]]), torch.tensor([cosines]), torch.zeros(1, len(logits), 1))


def cost(heads: list[Heads], mask: list[float], present: float, presence: float = 0.0, **weights: float) -> dict:
    target = Target(torch.tensor([[mask]]), torch.ones(1, 1, len(mask)), torch.tensor([present]))
    features = torch.ones(1, 1, 1, len(mask))
    log_scale = torch.tensor(math.log(3.0))
    found = losses(heads, features, torch.tensor([presence]), log_scale, target, Loss(**weights))
    return {name: value.item() for name, value in found.items()}


def test_a_present_object_costs_its_matched_query_at_every_depth() -> None:
    heads = [one_depth([0.0, 1.0], [0.0, -20.0]), one_depth([1.0, 0.0], [0.0, -20.0])]
    found = cost(heads, [1.0, 0.0], present=1.0)
    assert found["bce"] == pytest.approx(2 * LOG2)
    assert found["dice"] == pytest.approx(2 / 3)
    entropies = math.log(1 + math.exp(3.0)) + math.log(1 + math.exp(-3.0))  # query 0 is matched at both depths
    assert found["match"] == pytest.approx(0.8 * entropies)
    assert found["absent"] == 0.0
    assert found["presence"] == pytest.approx(LOG2)
    assert found["total"] == pytest.approx(sum(found.values()) - found["total"])


def test_an_absent_object_costs_half_the_selected_query_s_mask() -> None:
    found = cost([one_depth([0.9, 0.1], [2.0, -9.0])], [0.0, 0.0], present=0.0, presence=-1.0)
    assert found["absent"] == pytest.approx(0.5 * math.log(1 + math.exp(2.0)))
    assert found["bce"] == found["dice"] == found["match"] == 0.0
    assert found["presence"] == pytest.approx(math.log(1 + math.exp(-1.0)))


def test_a_batch_is_averaged_over_its_present_and_over_all() -> None:
    heads = Heads(torch.zeros(4, 1, 1), torch.zeros(4, 1), torch.zeros(4, 1, 1))
    mask = torch.zeros(4, 1, 2)
    mask[:2, 0, 0] = 1.0
    target = Target(mask, torch.ones(4, 1, 2), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    found = losses([heads], torch.ones(4, 1, 1, 2), torch.zeros(4), torch.zeros(()), target, Loss())
    assert found["bce"].item() == pytest.approx(LOG2)
    assert found["dice"].item() == pytest.approx(1 / 3)
    assert found["absent"].item() == pytest.approx(0.5 * LOG2 * 2 / 4)


def test_the_scale_of_cosines_has_a_limit() -> None:
    target = Target(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1))
    heads = one_depth([0.0, 1.0], [9.0, -9.0])
    found = losses([heads], torch.ones(1, 1, 1, 1), torch.zeros(1), torch.tensor(50.0), target, Loss(match=1.0))
    assert found["match"].item() == pytest.approx(100.0)


def test_points_are_sampled_between_pixel_centres() -> None:
    values = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    at = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.5, 0.75]]])
    assert sampled(values, at).flatten().tolist() == pytest.approx([0.0, 1.0, 1.5, 2.5])


def test_points_of_even_masks_cost_what_all_pixels_cost() -> None:
    heads = [one_depth([0.0, 1.0], [0.0, -20.0])]
    dense, points = cost(heads, [1.0] * 4, 1.0), cost(heads, [1.0] * 4, 1.0, points=40)
    assert points["bce"] == pytest.approx(dense["bce"], abs=1e-5)
    assert points["match"] == pytest.approx(dense["match"])


def test_uncertain_points_come_first() -> None:
    """Half of the mask is uncertain and wrong: three quarters of the points lie there, not half of them."""
    torch.manual_seed(0)
    heads = [one_depth([1.0], [1.0])]
    features = torch.cat([torch.zeros(1, 1, 8, 4), torch.full((1, 1, 8, 4), 30.0)], dim=3)
    truth = torch.ones(1, 8, 8)
    target = Target(truth, torch.ones(1, 8, 8), torch.ones(1))
    found = losses(heads, features, torch.zeros(1), torch.zeros(()), target, Loss(points=400))
    assert 0.8 * LOG2 < found["bce"].item() < 0.95 * LOG2  # all pixels would give 0.5 of it
