"""The losses against their sums written out term by term."""

import math

import pytest
import torch
from torch import Tensor

from training.ssl.losses import Centre, cross_entropy, dino_global, dino_local, ibot, koleo, sinkhorn

pytestmark = pytest.mark.training

IMAGES, LOCALS, OUTPUTS = 3, 4, 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def teacher() -> Tensor:
    return random(2 * IMAGES, OUTPUTS, seed=1).softmax(-1)


def test_every_local_crop_meets_both_global_crops_of_its_own_image() -> None:
    teacher_GK = teacher()
    z_LK = random(LOCALS * IMAGES, OUTPUTS, seed=2)
    total = 0.0
    for half in range(2):
        for crop in range(LOCALS):
            for image in range(IMAGES):
                q, z = teacher_GK[half * IMAGES + image], z_LK[crop * IMAGES + image]
                total += float(-(q * torch.log_softmax(z / 0.1, -1)).sum()) / IMAGES
    assert float(dino_local(teacher_GK, z_LK, LOCALS)) == pytest.approx(total / (2 + 2 * LOCALS), rel=1e-5)


def test_each_global_crop_meets_the_other_one() -> None:
    teacher_GK = teacher()
    z_GK = random(2 * IMAGES, OUTPUTS, seed=3)
    one = cross_entropy(teacher_GK[:IMAGES], z_GK[IMAGES:]).mean()
    other = cross_entropy(teacher_GK[IMAGES:], z_GK[:IMAGES]).mean()
    assert float(dino_global(teacher_GK, z_GK, LOCALS)) == pytest.approx(
        float(one + other) / (2 + 2 * LOCALS), rel=1e-5
    )


def test_without_local_crops_only_the_global_pairs_count() -> None:
    teacher_GK = teacher()
    assert float(dino_local(teacher_GK, random(0, OUTPUTS), 0)) == 0.0
    z_GK = random(2 * IMAGES, OUTPUTS, seed=3)
    assert float(dino_global(teacher_GK, z_GK, 0)) == pytest.approx(
        float(dino_global(teacher_GK, z_GK, LOCALS)) * 5, rel=1e-5
    )


def test_masked_patches_weigh_by_their_crop() -> None:
    mask_GN = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])
    q_MK, z_MK = random(4, OUTPUTS, seed=4).softmax(-1), random(4, OUTPUTS, seed=5)
    each = cross_entropy(q_MK, z_MK)
    expected = (each[:3].sum() / 3 + each[3]) / 3
    assert float(ibot(q_MK, z_MK, mask_GN)) == pytest.approx(float(expected), rel=1e-6)


def test_a_batch_without_masked_patches_gives_zero_and_leaves_the_centre() -> None:
    nothing = random(0, OUTPUTS)
    centre = Centre(OUTPUTS)
    centre.update(random(5, OUTPUTS))
    before = centre.centre.clone()
    centre.update(nothing)
    assert torch.equal(centre.centre, before)
    assert float(ibot(centre.targets(nothing, 0.04), nothing, torch.zeros(3, 4, dtype=torch.bool))) == 0.0
    assert sinkhorn(nothing, 0.04).shape == (0, OUTPUTS)


def test_koleo_names_the_nearest_of_the_other_rows() -> None:
    angles = torch.tensor([0.0, 0.1, 1.0])
    rows_BD = 5 * torch.stack([angles.cos(), angles.sin()], 1)
    chord = [2 * math.sin(gap / 2) for gap in (0.1, 0.1, 0.9)]
    assert float(koleo(rows_BD)) == pytest.approx(-sum(map(math.log, chord)) / 3, rel=1e-5)


def test_koleo_of_one_row_is_zero_and_identical_rows_stay_finite() -> None:
    assert float(koleo(random(1, 8))) == 0.0
    rows_BD = torch.ones(4, 8, requires_grad=True)
    koleo(rows_BD).backward()
    assert torch.isfinite(rows_BD.grad).all()


def test_sinkhorn_uses_every_prototype_alike_and_equals_its_definition() -> None:
    z_BK, temp = random(12, 5, seed=6), 0.5
    shares_KB = torch.exp(z_BK / temp).T
    shares_KB /= shares_KB.sum()
    for _ in range(3):
        shares_KB /= shares_KB.sum(1, keepdim=True)
        shares_KB /= 5
        shares_KB /= shares_KB.sum(0, keepdim=True)
        shares_KB /= 12
    torch.testing.assert_close(sinkhorn(z_BK, temp), (shares_KB * 12).T)
    torch.testing.assert_close(sinkhorn(z_BK, temp).sum(1), torch.ones(12))
    torch.testing.assert_close(sinkhorn(z_BK, temp, 40).sum(0), torch.full((5,), 12 / 5), rtol=1e-3, atol=0)


def test_sinkhorn_stays_finite_for_large_logits() -> None:
    assert torch.isfinite(sinkhorn(3 * random(6, 5), 0.04)).all()


def test_the_losses_reach_only_the_student() -> None:
    z_GK, teacher_GK = random(6, OUTPUTS).requires_grad_(), random(6, OUTPUTS, seed=9).requires_grad_()
    dino_global(Centre(OUTPUTS).targets(teacher_GK, 0.04), z_GK, 0).backward()
    assert z_GK.grad.abs().sum() > 0
    assert teacher_GK.grad is None
