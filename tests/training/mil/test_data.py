"""Composed slides: what is in them, and that no tile stands on two sides of a split."""

import numpy as np
import pytest

from training.errors import DataMissing
from training.mil.data import compose, folds_of, one_slide, split_tiles
from training.mil.recipe import Slides

pytestmark = pytest.mark.training

LABELS = np.repeat(np.arange(4), 10)
TARGET = 3
SLIDES = Slides(train=4, validation=4, test=4, planted=1, most_training_tiles=64, most_tiles=200, least_share=0.05)


def test_a_split_keeps_groups_whole_and_every_class_in_both_parts() -> None:
    groups = np.arange(40) // 2
    train, test = split_tiles(LABELS, groups, seed=1)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(40))
    assert not set(groups[train]) & set(groups[test])
    assert set(LABELS[train]) == set(LABELS[test]) == {0, 1, 2, 3}
    assert not np.array_equal(test, split_tiles(LABELS, groups, seed=2)[1])
    folds = folds_of(LABELS, groups, train, 3, seed=1)
    assert np.array_equal(np.sort(np.concatenate(folds)), train)
    assert all(set(LABELS[fold]) == {0, 1, 2, 3} for fold in folds)
    assert not set(groups[folds[0]]) & set(groups[folds[1]])


def test_a_class_of_too_few_groups_cannot_be_split() -> None:
    labels = np.array([0, 0, 0, 1])
    with pytest.raises(DataMissing, match="one group of tiles only"):
        split_tiles(labels, np.arange(4), seed=0)
    with pytest.raises(DataMissing, match="fewer groups of tiles than the recipe has inner folds"):
        folds_of(LABELS, np.arange(40) // 5, np.arange(40), 3, seed=0)


def test_half_of_the_slides_hold_the_target_on_the_share_that_was_drawn() -> None:
    part = np.arange(0, 40, 2)
    slides = list(compose(LABELS, part, TARGET, 60, SLIDES, np.random.default_rng(0), most_tiles=200, jitter=False))
    assert [slide.label for slide in slides] == [0, 1] * 30
    sizes = [len(slide.tiles_N) for slide in slides]
    assert 1 <= min(sizes) < 5
    assert 100 < max(sizes) <= 200
    for slide in slides:
        assert set(slide.tiles_N) <= set(part)
        assert np.array_equal(slide.target_N, LABELS[slide.tiles_N] == TARGET)
        assert slide.views_N.max() < 8
    shares = [slide.target_N.mean() for slide in slides if slide.label]
    assert min(shares) < 0.2
    assert max(shares) == 1.0


def test_the_same_seed_composes_the_same_slide() -> None:
    one, other = (one_slide(LABELS, np.arange(40), TARGET, (1, 30), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one.tiles_N, other.tiles_N)
    assert one.target_N.sum() == 1
    features = np.random.default_rng(0).normal(size=(40, 8, 5)).astype(np.float32)
    assert np.array_equal(one.features(features)[3], features[one.tiles_N[3], one.views_N[3]])
