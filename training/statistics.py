"""Figures of a classifier with bootstrap intervals, and the difference of two on the same resamples.

The bootstrap's unit is the group (patient, or near-duplicates where the patient is unknown): all tiles of a resampled
group travel together. 1000 replicates, percentiles 2.5 and 97.5. A replicate without all classes is drawn again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

Score = Callable[[np.ndarray, np.ndarray], float]
"""(probabilities_NC, labels_N) to a figure."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def recalls(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """(C,) recall per class."""
    hit = probabilities_NC.argmax(1) == labels_N
    return np.array([hit[labels_N == label].mean() for label in range(probabilities_NC.shape[1])])


def balanced_accuracy(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean recall over the classes."""
    return float(recalls(probabilities_NC, labels_N).mean())


def macro_f1(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over the classes of 2·TP / (2·TP + FP + FN)."""
    answers, classes = probabilities_NC.argmax(1), probabilities_NC.shape[1]
    both = np.array([np.sum((answers == k) & (labels_N == k)) for k in range(classes)])
    either = np.bincount(answers, minlength=classes) + np.bincount(labels_N, minlength=classes)
    return float((2.0 * both / np.maximum(either, 1)).mean())


def macro_auroc(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over the classes of the one-versus-rest area under the ROC curve (ties count half)."""
    areas = []
    for label in range(probabilities_NC.shape[1]):
        positive = labels_N == label
        n = positive.sum()
        ranks = rankdata(probabilities_NC[:, label])
        areas.append((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(labels_N) - n)))
    return float(np.mean(areas))


def calibration_error(probabilities_NC: np.ndarray, labels_N: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of the top class (Guo et al., arXiv 1706.04599), equal-width bins."""
    top = probabilities_NC.max(1)
    gap = (probabilities_NC.argmax(1) == labels_N).astype(float) - top
    index = np.minimum((top * bins).astype(int), bins - 1)
    return float(sum(abs(gap[index == bin_].sum()) for bin_ in range(bins)) / len(top))


def resamples(labels_N: np.ndarray, groups_N: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """`count` index arrays, each a resample of whole groups that holds every class."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups_N == group) for group in np.unique(groups_N)]
    classes, drawn = len(np.unique(labels_N)), []
    while len(drawn) < count:
        index = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        if len(np.unique(labels_N[index])) == classes:
            drawn.append(index)
    return drawn


def figure(score: Score, runs_RNC: np.ndarray, labels_N: np.ndarray, draws: list[np.ndarray]) -> Figure:
    """A score, averaged over R repeated cross-validations, with its interval over the draws."""
    return _interval(_mean(score, runs_RNC, labels_N), [_mean(score, runs_RNC[:, d], labels_N[d]) for d in draws])


def difference(
    score: Score, first_RNC: np.ndarray, second_RNC: np.ndarray, labels_N: np.ndarray, draws: list[np.ndarray]
) -> Figure:
    """score(first) - score(second), both on the same resamples."""

    def gap(index: np.ndarray) -> float:
        return _mean(score, first_RNC[:, index], labels_N[index]) - _mean(score, second_RNC[:, index], labels_N[index])

    return _interval(gap(np.arange(len(labels_N))), [gap(draw) for draw in draws])


def _mean(score: Score, runs_RNC: np.ndarray, labels_N: np.ndarray) -> float:
    return float(np.mean([score(run, labels_N) for run in runs_RNC]))


def _interval(value: float, replicates: list[float]) -> Figure:
    low, high = np.percentile(replicates, (2.5, 97.5))
    return Figure(round(value, 4), round(float(low), 4), round(float(high), 4))
