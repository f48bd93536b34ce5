"""One cell of each abnormal class: a target of its own column, told by FROC and precision, and dealt to a bag."""

import numpy as np
import pytest
import torch

from gateway.domain.bethesda import ABNORMAL, NAMES, NILM, column_of
from gateway.slides.cells import Cells
from training.data.common import Source
from training.smartccs.bags import FLAT, bags
from training.smartccs.data import Field
from training.smartccs.detector import Found
from training.smartccs.detector_losses import losses
from training.smartccs.field_crops import crop
from training.smartccs.froc import Answered, figures, marks
from training.smartccs.matching import Target
from training.smartccs.recipe import DetectorLoss

pytestmark = pytest.mark.training
NUMBERS = range(NILM + 1, len(NAMES))


def field(number: int) -> Field:
    source = Source("made.jpg", "made", "0" * 64, "CC0", "A", "", "g")
    return Field(source, "g", "test", 0.245, np.array([[20.0, 20.0, 20.0, 20.0]]), np.array([number]))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lone_cell_is_a_target_whose_column_learns(number: int) -> None:
    shown = crop(np.random.default_rng(0), field(number), np.full((64, 64, 3), 200, np.uint8), 64, 1.0)
    assert shown.columns_K.tolist() == [column_of(number)]
    logits_LBQC = torch.zeros(1, 1, 3, 6, requires_grad=True)
    boxes = torch.tensor(shown.boxes_K4).expand(1, 1, 3, 4)
    target = Target(*(torch.from_numpy(values) for values in (shown.boxes_K4, shown.columns_K, shown.nuclei_M4)), False)
    parts = losses(Found(logits_LBQC, boxes), [target], 1.0, DetectorLoss())
    parts["classes"].backward()
    assert logits_LBQC.grad is not None
    pushed = (logits_LBQC.grad[0, 0] < 0).any(0)  # a rising logit lowers the loss
    assert torch.nonzero(pushed).flatten().tolist() == [column_of(number)]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lone_cell_that_is_found_is_told(number: int) -> None:
    cells = Cells(
        np.array([[20.0, 20.0, 40.0, 40.0]]), np.array([0.9]), np.array([column_of(number)]), np.zeros(1, np.int64)
    )
    answered = [Answered(field(number), cells)]
    assert marks(answered[0]).found_N.tolist() == [number]
    told = figures(answered)
    assert told["froc"] == {"1": 1.0, "2": 1.0, "4": 1.0, "8": 1.0}
    assert told["ap50_by_class"] == {ABNORMAL[column_of(number)]: 1.0}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lone_cell_makes_a_bag_of_its_class(number: int) -> None:
    classes_N = np.append(np.zeros(50, np.int64), number)
    made = bags(classes_N, np.arange(51), 40, np.random.default_rng(1), FLAT)
    assert {bag.label for bag in made} == {NILM, number}
    assert all((bag.cells_K == 50).any() == (bag.label == number) for bag in made)
