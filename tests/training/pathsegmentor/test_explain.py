"""Importance of objects and object-aware pooling: the definitions, and a small made experiment."""

import numpy as np
import pytest
import torch

from training.pathsegmentor.explain import CONTROL, OBJECT_AWARE, OBJECTS, Setting, make, one_seed
from training.pathsegmentor.object_mil import ObjectMIL, blurred, elsewhere, importance, object_features

SMALL = Setting(seeds=1, train=24, test=16, patches=5, epochs=4)


def test_an_objects_feature_is_the_mean_under_its_mask():
    features = torch.arange(8.0).reshape(1, 2, 2, 2)
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    rows, held = object_features(features, masks)
    torch.testing.assert_close(rows, torch.tensor([[[1.5, 5.5], [0.0, 0.0]]]))
    assert held.tolist() == [[True, False]]


def test_patches_without_the_object_and_objects_without_patches_do_not_count():
    torch.manual_seed(0)
    model = ObjectMIL(4, 2, 3)
    rows, held = torch.randn(1, 5, 3, 4), torch.zeros(1, 5, 3, dtype=torch.bool)
    held[0, :2, 0] = held[0, 1:3, 1] = True
    before = model(rows, held)
    changed = rows.clone()
    changed[0, 2:, 0], changed[0, 3:, 1], changed[0, :, 2] = 9.0, -9.0, 7.0
    torch.testing.assert_close(model(changed, held), before)
    nothing = model(rows, torch.zeros_like(held))
    torch.testing.assert_close(nothing[0], model.classifier.bias)


def test_blurring_changes_what_lies_under_the_mask_alone():
    image = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    mask = np.zeros((32, 32), bool)
    mask[8:16, 8:16] = True
    found = blurred(image, mask, 3.0)
    np.testing.assert_array_equal(found[~mask], image[~mask])
    assert found[mask].std() < image[mask].std() / 2


def test_the_control_region_is_as_large():
    mask = np.tri(16, dtype=bool)
    rng = np.random.default_rng(1)
    moved = [elsewhere(mask, rng) for _ in range(5)]
    assert {int(other.sum()) for other in moved} == {int(mask.sum())}
    assert any(not np.array_equal(other, mask) for other in moved)


def test_importance_is_a_ratio_of_means():
    loss = np.array([0.001, 1.0, 1.0])
    found = importance(loss, np.array([1.001, 2.0, 2.0]), loss)
    assert found.imp[0] == pytest.approx(5.001 / 2.001, abs=1e-4)  # the mean of ratios would be 335
    assert found.control == (1.0, 1.0, 1.0)
    assert found.excess[0] == pytest.approx(found.imp[0] - 1.0, abs=1e-4)


def test_a_made_slide_hangs_on_its_causal_object():
    rng = np.random.default_rng(3)
    slides = make(SMALL, 300, 2, rng)
    striped = np.array(
        [
            np.mean(
                [image[mask].std() for image, mask in zip(s.images_NHW3, s.masks_NOHW[:, 2], strict=True) if mask.any()]
            )
            for s in slides
            if s.masks_NOHW[:, 2].any()
        ]
    )
    labels = np.array([s.label for s in slides if s.masks_NOHW[:, 2].any()])
    assert striped[labels == 1].mean() > striped[labels == 0].mean() + 5
    assert all((s.masks_NOHW.sum(1) <= 1).all() for s in slides)  # objects share no pixel


def test_a_small_experiment_gives_every_figure_and_repeats():
    first, again = one_seed(SMALL, 0), one_seed(SMALL, 0)
    assert first == again
    assert set(first["objects"]) == set(OBJECTS)
    assert 1 <= first["causal_rank"] <= len(OBJECTS)
    assert {OBJECT_AWARE, CONTROL} < set(first["auroc"])
