"""What a detector's answer costs, against published figures and made answers."""

import pytest
import torch

from gateway.domain.bethesda import AGC, column_of
from training.smartccs.detector import Found
from training.smartccs.detector_losses import focal, ignored, losses
from training.smartccs.matching import Target, giou, matched
from training.smartccs.recipe import DetectorLoss

pytestmark = pytest.mark.training
WEIGHTS = DetectorLoss()


def target(*boxes: tuple[float, float, float, float], column: int = 0, negative: bool = False) -> Target:
    at = torch.tensor(boxes).reshape(-1, 4)
    return Target(at, torch.full((len(at),), column), at, negative)


def answer(batch: int, queries: int = 5, layers: int = 2) -> Found:
    torch.manual_seed(1)
    logits = torch.randn(layers, batch, queries, 6).requires_grad_()
    return Found(logits, torch.rand(layers, batch, queries, 4).mul(0.4).add(0.1).requires_grad_())


def test_focal_and_giou_have_their_published_values() -> None:
    found = focal(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert found.tolist() == pytest.approx([0.04332, 0.12996], abs=1e-5)
    one = torch.tensor([0.0, 0, 1, 1])
    others = torch.tensor([[0.5, 0, 1.5, 1], [2.0, 0, 3, 1]])
    assert giou(one, others).tolist() == pytest.approx([1 / 3, -1 / 3])


def test_each_box_gets_the_query_that_costs_least_in_all() -> None:
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2]])
    queries, numbers = matched(torch.zeros(3, 6), boxes, target((0.3, 0.3, 0.2, 0.2), (0.72, 0.7, 0.2, 0.2)), WEIGHTS)
    assert dict(zip(numbers.tolist(), queries.tolist(), strict=True)) == {0: 0, 1: 1}
    sure = torch.zeros(3, 6)
    sure[2] = 3.0  # a hundredth of the way farther, but much surer of the class
    queries, _ = matched(sure, boxes, target((0.3, 0.3, 0.2, 0.2)), WEIGHTS)
    assert queries.tolist() == [2]


def test_a_field_whose_only_cell_is_glandular_teaches_the_sixth_column() -> None:
    found = answer(1)
    parts = losses(found, [target((0.4, 0.4, 0.2, 0.2), column=column_of(AGC), negative=True)], 1, WEIGHTS)
    parts["total"].backward()
    gradient = found.logits_LBQC.grad[:, 0]
    assert column_of(AGC) == 5
    assert ((gradient[:, :, 5] < 0).sum(1) == 1).all()  # in each layer one query is to say it, and only that
    assert (gradient[:, :, :5] > 0).all()


def test_without_boxes_only_the_classes_cost() -> None:
    found = answer(2)
    parts = losses(found, [target(negative=True), target(negative=True)], 0, WEIGHTS)
    parts["total"].backward()
    truth = torch.zeros_like(found.logits_LBQC)
    assert parts["total"].item() == pytest.approx(2 * focal(found.logits_LBQC, truth).sum().item() / 2)
    assert parts["l1"] == parts["giou"] == 0
    assert found.boxes_LBQ4.grad.abs().max() == 0  # there, so that processes with and without boxes agree


def test_processes_together_cost_what_one_does() -> None:
    found = answer(2)
    targets = [target((0.4, 0.4, 0.2, 0.2)), target((0.2, 0.2, 0.1, 0.1), (0.6, 0.6, 0.1, 0.1), (0.8, 0.2, 0.1, 0.1))]
    whole = losses(found, targets, 4, WEIGHTS)
    halves = [
        losses(Found(found.logits_LBQC[:, [at]], found.boxes_LBQ4[:, [at]]), [targets[at]], 4 / 2, WEIGHTS)
        for at in range(2)
    ]
    for name, value in whole.items():
        assert (halves[0][name] + halves[1][name]).item() / 2 == pytest.approx(value.item(), rel=1e-5)


def test_what_may_be_a_cell_that_nobody_annotated_carries_no_loss() -> None:
    logits = torch.full((4, 6), -5.0)
    logits[:3, 2] = 0.0  # three queries are half sure
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.59, 0.5, 0.1, 0.1], [0.61, 0.5, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]])
    here = (0.5, 0.5, 0.1, 0.1)
    assert ignored(logits, boxes, target(here), 0.3).tolist() == [False, False, True, False]
    assert not ignored(logits, boxes, target(here), 0.6).any()
    assert not ignored(logits, boxes, target(here, negative=True), 0.3).any()
    assert ignored(logits, boxes, target(), 0.3).tolist() == [True, True, True, False]
    found = Found(logits[None, None].clone().requires_grad_(), boxes[None, None])
    losses(found, [target(here)], 1, WEIGHTS)["total"].backward()
    assert found.logits_LBQC.grad[0, 0].abs().amax(-1).gt(0).tolist() == [True, True, False, True]
