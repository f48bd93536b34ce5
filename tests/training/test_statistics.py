"""Figures against scikit-learn, and intervals that mean what they say."""

import numpy as np
import pytest
from sklearn import metrics

from training import statistics

pytestmark = pytest.mark.training


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 90)
    logits = rng.normal(0, 1, (90, 4)) + 1.2 * np.eye(4)[labels]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def test_scores_equal_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = answers
    top = probabilities.argmax(1)
    assert statistics.balanced_accuracy(*answers) == pytest.approx(metrics.balanced_accuracy_score(labels, top))
    assert statistics.macro_f1(*answers) == pytest.approx(metrics.f1_score(labels, top, average="macro"))
    assert statistics.macro_auroc(*answers) == pytest.approx(
        metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )


def test_auroc_counts_ties_half() -> None:
    assert statistics.macro_auroc(np.full((6, 2), 0.5), np.array([0, 0, 0, 1, 1, 1])) == 0.5


def test_calibration_error_of_known_cases() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    sure = np.tile([1.0, 0.0], (10, 1))
    fair = np.tile([0.8, 0.2], (10, 1))
    assert statistics.calibration_error(sure, labels) == pytest.approx(0.2)
    assert statistics.calibration_error(fair, labels) == pytest.approx(0.0, abs=1e-12)


def test_absent_classes_are_left_out() -> None:
    labels, scores = (
        np.array([0, 0, 1, 1]),
        np.array([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.3, 0.6, 0.1], [0.1, 0.7, 0.2]]),
    )
    assert np.isnan(statistics.recalls(scores, labels)[2])
    assert statistics.balanced_accuracy(scores, labels) == 0.75
    assert statistics.macro_auroc(scores, labels) == 1.0
    assert np.isnan(statistics.macro_auroc(scores, np.zeros(4, int)))


def test_bootstrap_is_the_figure_on_the_same_resamples(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = answers
    groups = np.arange(len(labels)) // 3
    draws = statistics.resamples(labels, groups, 200, seed=5)
    rounded = statistics.figure(statistics.macro_f1, probabilities[None], labels, draws)
    found = statistics.bootstrap(
        lambda index: statistics.macro_f1(probabilities[index], labels[index]), groups, labels, count=200, seed=5
    )
    assert (round(found.value, 4), round(found.low, 4), round(found.high, 4)) == (
        rounded.value,
        rounded.low,
        rounded.high,
    )


def test_undefined_scores_are_drawn_again(caplog: pytest.LogCaptureFixture) -> None:

    def score(index: np.ndarray) -> float:
        return float(index.mean()) if np.sum(index == 0) < 2 else float("nan")

    statistics._warn.cache_clear()
    found = statistics.replicates([score], np.arange(5), count=40, seed=1)
    assert np.array_equal(statistics.replicates([score], np.arange(5), count=40, seed=1).scores_BK, found.scores_BK)
    assert found.scores_BK.shape == (40, 1)
    assert np.isfinite(found.scores_BK).all()
    assert found.redrawn > 40 * 0.05
    assert caplog.text.count("drawn again") == 1
    with pytest.raises(statistics.StatisticsInvalid, match="More than half"):
        statistics.bootstrap(lambda index: float("nan"), np.arange(5), count=20)


@pytest.mark.parametrize("score", [statistics.macro_auroc, statistics.balanced_accuracy, statistics.macro_f1])
def test_resamples_scored_at_once_are_those_scored_one_by_one(score: statistics.Score) -> None:
    rng = np.random.default_rng(7)
    labels, groups = rng.integers(0, 3, 70), rng.integers(0, 14, 70)
    runs = rng.random((3, 70, 3)).round(1)  # with ties
    several = statistics.RunsScore(score, runs, labels)
    at_once = statistics.replicates([several, statistics.RunsScore(score, runs[:1], labels)], groups, labels, 130, 4)
    one_by_one = statistics.replicates([several, lambda i: score(runs[0, i], labels[i])], groups, labels, 130, 4)
    assert at_once.redrawn == one_by_one.redrawn
    np.testing.assert_allclose(at_once.scores_BK, one_by_one.scores_BK, rtol=1e-12)


def test_items_of_one_class_have_no_interval() -> None:
    score = statistics.RunsScore(statistics.macro_auroc, np.full((1, 6, 2), 0.5), np.zeros(6, int))
    with pytest.raises(statistics.StatisticsInvalid, match="one class"):
        statistics.bootstrap(score, np.arange(6), np.zeros(6, int))


def test_groups_are_resampled_whole() -> None:
    labels, groups = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2])
    for draw in statistics.resamples(labels, groups, 50, seed=1):
        counts = np.bincount(draw, minlength=6)
        assert (counts[0], counts[2], counts[4]) == (counts[1], counts[3], counts[5])
        assert set(labels[draw]) == {0, 1}


def test_a_classifier_minus_itself_is_nothing(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = answers
    draws = statistics.resamples(labels, np.arange(len(labels)), 50, seed=2)
    gap = statistics.difference(statistics.macro_f1, probabilities[None], probabilities[None], labels, draws)
    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(3), 0
    labels, tries = np.repeat([0, 1], 60), 150
    for seed in range(tries):
        right = rng.random(120) < 0.7
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
        draws = statistics.resamples(labels, np.arange(120), 120, seed)
        found = statistics.figure(statistics.balanced_accuracy, probabilities[None], labels, draws)
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / tries <= 0.99
