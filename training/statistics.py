"""Figures with bootstrap intervals, and the difference of two on the same resamples.

The bootstrap's unit is the group (patient, or near-duplicates where the patient is unknown): all tiles of a resampled
group travel together. 1000 replicates, percentiles 2.5 and 97.5. A replicate without all classes, or whose score is not
defined, is drawn again and counted.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import rankdata

from training.errors import TrainingError

_log = logging.getLogger(__name__)

Score = Callable[[np.ndarray, np.ndarray], float]
"""(probabilities_NC, labels_N) to a figure."""

ItemScore = Callable[[np.ndarray], float]
"""Indexes of items to their figure; NaN where it is not defined."""


class StatisticsInvalid(TrainingError):
    """Numbers on which a statistic is not defined, or would not mean what it says."""

    reason, title = "statistics-invalid", "Statistic not defined"


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def recalls(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """(C,) recall per class; NaN for a class that has no item."""
    hit = probabilities_NC.argmax(1) == labels_N
    own = [hit[labels_N == label] for label in range(probabilities_NC.shape[1])]
    return np.array([rows.mean() if len(rows) else np.nan for rows in own])


def balanced_accuracy(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean recall over the classes that have items."""
    found = recalls(probabilities_NC, labels_N)
    return float(found[~np.isnan(found)].mean())


def macro_f1(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over the classes of 2·TP / (2·TP + FP + FN)."""
    answers, classes = probabilities_NC.argmax(1), probabilities_NC.shape[1]
    both = np.array([np.sum((answers == k) & (labels_N == k)) for k in range(classes)])
    either = np.bincount(answers, minlength=classes) + np.bincount(labels_N, minlength=classes)
    return float((2.0 * both / np.maximum(either, 1)).mean())


def macro_auroc(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean of the one-versus-rest areas under the ROC curve (ties count half).

    Over the classes that have items and do not hold all of them (an absent class is left out, never 0); NaN where only
    one class is present.
    """
    areas = []
    for label in range(probabilities_NC.shape[1]):
        positive = labels_N == label
        n = positive.sum()
        if n in (0, len(labels_N)):
            continue
        ranks = rankdata(probabilities_NC[:, label])
        areas.append((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(labels_N) - n)))
    return float(np.mean(areas)) if areas else float("nan")


def calibration_error(probabilities_NC: np.ndarray, labels_N: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of the top class (Guo et al., arXiv 1706.04599), equal-width bins."""
    top = probabilities_NC.max(1)
    gap = (probabilities_NC.argmax(1) == labels_N).astype(float) - top
    index = np.minimum((top * bins).astype(int), bins - 1)
    return float(sum(abs(gap[index == bin_].sum()) for bin_ in range(bins)) / len(top))


def best_temperature(logits_NC: np.ndarray, labels_N: np.ndarray) -> tuple[float, float]:
    """The temperature of least log loss (Guo et al., arXiv 1706.04599) between 1/20 and 20, and that loss."""

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits_NC / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(labels_N)), labels_N].mean())

    found = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
    return float(np.exp(found.x)), float(found.fun)


def _auroc_of_weights(runs_RNC: np.ndarray, labels_N: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
    """(B,) mean `macro_auroc` of the runs where item n counts weights_BN[b, n] times; no class is without weight.

    The area is the share of pairs, one item in the class and one not, that are in order: what the runs say of a pair is
    added up once, and each resample only weighs it.
    """
    areas = []
    for label in range(runs_RNC.shape[2]):
        inside, outside = np.flatnonzero(labels_N == label), np.flatnonzero(labels_N != label)
        if not len(inside) or not len(outside):
            continue
        weights_BQ = weights_BN[:, outside]
        ahead_B = np.zeros(len(weights_BN))
        for block in np.array_split(inside, -(-len(inside) * len(outside) // _PAIRS_AT_ONCE)):
            order_PQ = np.zeros((len(block), len(outside)))
            for run_N in runs_RNC[:, :, label]:
                order_PQ += np.sign(run_N[block][:, None] - run_N[outside])
            ahead_B += ((weights_BN[:, block] @ order_PQ) * weights_BQ).sum(1)
        pairs_B = weights_BN[:, inside].sum(1) * weights_BQ.sum(1)
        areas.append((1 + ahead_B / (len(runs_RNC) * pairs_B)) / 2)
    return np.mean(areas, 0)


def _recall_of_weights(runs_RNC: np.ndarray, labels_N: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
    """(B,) mean `balanced_accuracy` of the runs under weights, as above."""
    hits_N = (runs_RNC.argmax(2) == labels_N).mean(0)
    own = [labels_N == label for label in np.unique(labels_N)]
    return np.mean([weights_BN @ (hits_N * of_N) / (weights_BN @ of_N) for of_N in own], 0)


def _f1_of_weights(runs_RNC: np.ndarray, labels_N: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
    """(B,) mean `macro_f1` of the runs under weights, as above."""
    found = []
    for answers_N in runs_RNC.argmax(2):
        for label in range(runs_RNC.shape[2]):
            answered_N, true_N = answers_N == label, labels_N == label
            either_B = weights_BN @ answered_N + weights_BN @ true_N
            found.append(2.0 * (weights_BN @ (answered_N & true_N)) / np.maximum(either_B, 1))
    return np.mean(found, 0)


_OF_WEIGHTS = {macro_auroc: _auroc_of_weights, balanced_accuracy: _recall_of_weights, macro_f1: _f1_of_weights}
_PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class RunsScore:
    """An `ItemScore`: the mean over R repeated trainings of macro_auroc, balanced_accuracy or macro_f1."""

    score: Score
    runs_RNC: np.ndarray
    labels_N: np.ndarray

    def __call__(self, index: np.ndarray) -> float:
        return _mean(self.score, self.runs_RNC[:, index], self.labels_N[index])

    def of_weights(self, weights_BN: np.ndarray) -> np.ndarray:
        """(B,) the same where items count several times."""
        return _OF_WEIGHTS[self.score](self.runs_RNC, self.labels_N, weights_BN)


@dataclass(frozen=True, slots=True)
class Replicates:
    """Scores of bootstrap resamples: they make an interval, and are no observations of their own."""

    scores_BK: np.ndarray
    redrawn: int


def picks(groups: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers of groups without end, each a resample of as many groups as there are."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(0, groups, groups)


def whole_groups(groups_N: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Index arrays without end, each a resample of whole groups."""
    members = [np.flatnonzero(groups_N == group) for group in np.unique(groups_N)]
    for picked in picks(len(members), seed):
        yield np.concatenate([members[k] for k in picked])


def resamples(labels_N: np.ndarray, groups_N: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """`count` index arrays, each a resample of whole groups that holds every class."""
    classes, drawn = len(np.unique(labels_N)), []
    for index in whole_groups(groups_N, seed):
        if len(drawn) == count:
            break
        if len(np.unique(labels_N[index])) == classes:
            drawn.append(index)
    return drawn


def replicates(
    scores: Sequence[ItemScore],
    groups_N: np.ndarray,
    labels_N: np.ndarray | None = None,
    count: int = 1000,
    seed: int = 2026,
) -> Replicates:
    """The scores (B, K) of `count` resamples of whole groups, the same resample for all K scores.

    With `labels_N` every class must be in each resample. A resample on which a score is NaN is drawn again. Raises
    StatisticsInvalid where that happens to more than half of them. Where every score is a `RunsScore` of these labels,
    all resamples are scored at once: the same draws and figures, an order of magnitude sooner.
    """
    if labels_N is not None and all(isinstance(score, RunsScore) for score in scores):
        drawn = _weighted(scores, groups_N, labels_N, count, seed)
    else:
        drawn = _one_by_one(scores, groups_N, labels_N, count, seed)
    if drawn.redrawn > 0.05 * count:
        _warn(drawn.redrawn, count)
    return drawn


@cache
def _warn(redrawn: int, count: int) -> None:
    """Once for the same draws, which every encoder, probe and pair of a cohort has."""
    _log.warning("%d resamples beside %d were drawn again: few groups hold a class", redrawn, count)


def _one_by_one(
    scores: Sequence[ItemScore], groups_N: np.ndarray, labels_N: np.ndarray | None, count: int, seed: int
) -> Replicates:
    classes = 0 if labels_N is None else len(np.unique(labels_N))
    kept: list[list[float]] = []
    redrawn = 0
    for index in whole_groups(groups_N, seed):
        if len(kept) == count:
            break
        _demand_enough(redrawn, count)
        whole = labels_N is None or len(np.unique(labels_N[index])) == classes
        found = [score(index) for score in scores] if whole else [float("nan")]
        if np.isnan(found).any():
            redrawn += 1
        else:
            kept.append(found)
    return Replicates(np.array(kept), redrawn)


def _weighted(
    scores: Sequence[RunsScore], groups_N: np.ndarray, labels_N: np.ndarray, count: int, seed: int
) -> Replicates:
    names, group_of_N = np.unique(groups_N, return_inverse=True)
    classes, class_of_N = np.unique(labels_N, return_inverse=True)
    if len(classes) < 2:
        raise StatisticsInvalid("All items are of one class: there is nothing to tell apart. Leave the task out.")
    holds_GC = np.zeros((len(names), len(classes)), int)
    np.add.at(holds_GC, (group_of_N, class_of_N), 1)
    kept, redrawn = [], 0
    for picked in picks(len(names), seed):
        if len(kept) == count:
            break
        _demand_enough(redrawn, count)
        if holds_GC[picked].sum(0).all():
            kept.append(np.bincount(picked, minlength=len(names)))
        else:
            redrawn += 1
    weights_BN = np.array(kept, float)[:, group_of_N]
    return Replicates(np.stack([score.of_weights(weights_BN) for score in scores], 1), redrawn)


def _demand_enough(redrawn: int, count: int) -> None:
    if redrawn > count:
        raise StatisticsInvalid(
            "More than half of the resamples had no defined score: too few groups hold a class or an event. "
            "Join classes, or leave the task out."
        )


def bootstrap(
    score: ItemScore,
    groups_N: np.ndarray,
    labels_N: np.ndarray | None = None,
    count: int = 1000,
    seed: int = 2026,
) -> Figure:
    """A score of items and its interval over resamples of their groups, unrounded; see `replicates`."""
    drawn = replicates([score], groups_N, labels_N, count, seed)
    return interval(score(np.arange(len(groups_N))), drawn.scores_BK[:, 0])


def interval(value: float, scores_B: np.ndarray | Sequence[float]) -> Figure:
    """A value with the percentiles 2.5 and 97.5 of its replicates, unrounded."""
    low, high = np.percentile(scores_B, (2.5, 97.5))
    return Figure(float(value), float(low), float(high))


def figure(score: Score, runs_RNC: np.ndarray, labels_N: np.ndarray, draws: list[np.ndarray]) -> Figure:
    """A score, averaged over R repeated cross-validations, with its interval over the draws, to 4 decimals."""
    return _rounded(_mean(score, runs_RNC, labels_N), [_mean(score, runs_RNC[:, d], labels_N[d]) for d in draws])


def difference(
    score: Score, first_RNC: np.ndarray, second_RNC: np.ndarray, labels_N: np.ndarray, draws: list[np.ndarray]
) -> Figure:
    """score(first) - score(second), both on the same resamples, to 4 decimals."""

    def gap(index: np.ndarray) -> float:
        return _mean(score, first_RNC[:, index], labels_N[index]) - _mean(score, second_RNC[:, index], labels_N[index])

    return _rounded(gap(np.arange(len(labels_N))), [gap(draw) for draw in draws])


def _mean(score: Score, runs_RNC: np.ndarray, labels_N: np.ndarray) -> float:
    return float(np.mean([score(run, labels_N) for run in runs_RNC]))


def _rounded(value: float, scores: list[float]) -> Figure:
    found = interval(value, scores)
    return Figure(round(found.value, 4), round(found.low, 4), round(found.high, 4))
