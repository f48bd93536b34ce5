"""The teacher follows the student."""

import pytest
import torch
from torch import nn

from training.ssl import ema
from training.ssl.model import CnnBackbone

pytestmark = pytest.mark.training


def test_parameters_follow_by_the_momentum() -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(5, 3), nn.Linear(5, 3)
    old = teacher.weight.detach().clone()
    ema.follow(teacher, student, 0.992)
    torch.testing.assert_close(
        teacher.weight.detach(), 0.992 * old + 0.008 * student.weight.detach(), rtol=0, atol=1e-7
    )


def test_batch_norms_are_copied() -> None:
    teacher, student = CnnBackbone(), CnnBackbone()
    student.train()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(teacher._bn0.running_mean, student._bn0.running_mean)
    ema.follow(teacher, student, 1.0)
    assert torch.equal(teacher._bn0.running_mean, student._bn0.running_mean)
    assert torch.equal(teacher._bn1.running_var, student._bn1.running_var)
