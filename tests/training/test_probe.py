"""The nested probe: it learns what is there, finds nothing in noise, and keeps groups together."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from training.statistics import balanced_accuracy
from training.tissue.probe import Protocol, best_temperature, cross_validate, fit, splits

pytestmark = pytest.mark.training

FEW = Protocol(folds=4, repeats=1, inner_folds=3, augmentations=("none",), penalties=(0.01, 0.1))


def test_the_short_cut_through_the_rows_equals_the_plain_fit() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(2.0, 3.0, (30, 1, 80)), np.arange(30) % 3
    (linear,) = fit(features, labels, (0.05,))
    standard = (features[:, 0] - features[:, 0].mean(0)) / features[:, 0].std(0)
    plain = LogisticRegression(C=0.05, max_iter=2000, tol=1e-8).fit(standard, labels)
    found = softmax(linear.logits(features[:, 0]), axis=1)
    np.testing.assert_allclose(found, plain.predict_proba(standard), atol=2e-3)


def test_views_share_a_tiles_weight() -> None:
    rng = np.random.default_rng(1)
    features, labels = rng.normal(0, 1, (24, 1, 10)), np.arange(24) % 3
    once, (often,) = fit(features, labels, (0.1,))[0], fit(np.repeat(features, 4, axis=1), labels, (0.1,))
    np.testing.assert_allclose(once.weight_DC, often.weight_DC, atol=2e-3)


def test_a_signal_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(2)
    labels, groups = np.arange(60) % 3, np.arange(60)
    noise = rng.normal(0, 1, (60, 1, 40))
    signal = noise + 8.0 * np.eye(40)[labels][:, None]
    found, choices = cross_validate(lambda train: signal, labels, groups, FEW, 1)
    nothing, _ = cross_validate(lambda train: noise, labels, groups, FEW, 1)
    assert balanced_accuracy(found[0], labels) > 0.9
    assert balanced_accuracy(nothing[0], labels) < 0.55
    assert len(choices) == FEW.folds
    np.testing.assert_allclose(found.sum(2), 1.0)


def test_near_duplicates_never_cross_a_split() -> None:
    groups = np.repeat(np.arange(20), 3)
    for train, test in splits(np.repeat(np.arange(20) % 4, 3), groups, 5, 0):
        assert not set(groups[train]) & set(groups[test])


def test_features_see_training_indices_only() -> None:
    labels, seen = np.arange(24) % 3, []

    def features(train_N: np.ndarray) -> np.ndarray:
        seen.append(train_N)
        return np.random.default_rng(0).normal(0, 1, (24, 1, 5))

    cross_validate(features, labels, np.arange(24), FEW, 3)
    held_out = np.concatenate([np.setdiff1d(np.arange(24), train) for train in seen])
    assert sorted(held_out) == list(range(24))


def test_temperature_recovers_a_known_scale() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 1.5, (4000, 3))
    labels = np.array([rng.choice(3, p=p) for p in softmax(logits, axis=1)])
    temperature, _ = best_temperature(logits * 3.0, labels)
    assert temperature == pytest.approx(3.0, rel=0.1)
