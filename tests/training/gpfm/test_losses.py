"""Expert distillation's losses against the published implementation's numbers."""

import pytest
import torch

from tests.training import golden
from training.gpfm.losses import cosine, kl_divergence, patches, resize_grid

pytestmark = pytest.mark.training


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-4, abs=1e-6)


def test_kl_divergence() -> None:
    case = golden.case("kd_kldiv")
    loss = kl_divergence(golden.tensor(case["student"]), golden.tensor(case["teacher"]), case["temperature"])
    assert float(loss) == near(case["expected"])


def test_cosine() -> None:
    case = golden.case("kd_cosine")
    assert float(cosine(golden.tensor(case["student"]), golden.tensor(case["teacher"]))) == near(case["expected"])


def test_patches_on_another_grid() -> None:
    case = golden.case("kd_patch")
    target_BND = resize_grid(golden.tensor(case["teacher"]), case["student_grid"])
    loss = patches(golden.tensor(case["student"]), target_BND, case["cos_weight"], case["smooth_l1_weight"])
    assert float(loss) == near(case["expected"])


def test_an_equal_grid_is_left_alone_and_a_constant_one_stays_constant() -> None:
    tokens_BND = torch.randn(2, 49, 5)
    assert resize_grid(tokens_BND, 7) is tokens_BND
    torch.testing.assert_close(resize_grid(torch.full((1, 49, 3), 2.5), 8), torch.full((1, 64, 3), 2.5))


def test_temperature_keeps_the_gradients_size() -> None:
    student_BD, target_BD = torch.randn(4, 8).requires_grad_(), torch.randn(4, 8)
    sizes = []
    for temperature in (20.0, 40.0):
        (gradient,) = torch.autograd.grad(kl_divergence(student_BD, target_BD, temperature), student_BD)
        sizes.append(float(gradient.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
