"""Which of several models is better, said no more strongly than the data allow.

Ours, not the publication's (arXiv 2505.20202 gives ranks without tests). Every test takes `Units`: one number an
independent unit (patient, task, fold), with its name. Replicates of a bootstrap are none: a test on them measures only
how many were drawn, and `Units` refuses them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from training.statistics import ItemScore, Replicates, StatisticsInvalid, interval, replicates

ALPHA = 0.05
EXACT_TO = 50
"""The largest number of differences for which the signed-rank test uses the exact null distribution."""


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """One value an independent unit. Raises StatisticsInvalid for unnamed, repeated or undefined ones."""

    ids: tuple[str, ...]
    values_U: np.ndarray

    def __post_init__(self) -> None:
        if isinstance(self.values_U, Replicates):
            raise StatisticsInvalid(
                "Replicates of a bootstrap are not observations; a test on them is not valid. "
                "Give one value a patient, task or fold."
            )
        object.__setattr__(self, "values_U", np.asarray(self.values_U, float))
        if self.values_U.shape != (len(self.ids),):
            raise StatisticsInvalid(
                f"{len(self.ids)} units have {self.values_U.size} values. Give each unit one value."
            )
        if len(set(self.ids)) != len(self.ids):
            raise StatisticsInvalid("A unit occurs more than once. Average what belongs to one unit first.")
        if not np.isfinite(self.values_U).all():
            raise StatisticsInvalid("A unit's value is not a number. Leave the unit out, and say so.")

    def minus(self, other: "Units") -> np.ndarray:
        """(U,) differences. Raises StatisticsInvalid where the units are not the same, in the same order."""
        if self.ids != other.ids:
            raise StatisticsInvalid("Two models were measured on different units. Compare them on the common ones.")
        return self.values_U - other.values_U


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second, its 95 % interval, and the two-sided p of no difference."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class SignedRank:
    """Two-sided p over `pairs` differences that are not zero (`zeros` were dropped)."""

    p: float
    pairs: int
    zeros: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Friedman:
    """Chi square of `models` ranked in `tasks` rows, and its p on models - 1 degrees of freedom."""

    chi2: float
    p: float


def paired_bootstrap(
    first: ItemScore,
    second: ItemScore,
    groups_N: np.ndarray,
    labels_N: np.ndarray | None = None,
    count: int = 1000,
    seed: int = 2026,
) -> Difference:
    """Difference of two models' scores on the same items, over the same resamples of whole groups.

    p = 2·min(share ≤ 0, share ≥ 0), at least 1 / (count + 1) and at most 1 (Efron and Tibshirani, chapter 16).
    """
    return paired_bootstraps(first, {"": second}, groups_N, labels_N, count, seed)[""]


def paired_bootstraps(
    first: ItemScore,
    others: Mapping[str, ItemScore],
    groups_N: np.ndarray,
    labels_N: np.ndarray | None = None,
    count: int = 1000,
    seed: int = 2026,
) -> dict[str, Difference]:
    """`paired_bootstrap` of one model against each of several, all on the same resamples."""
    drawn = replicates([first, *others.values()], groups_N, labels_N, count, seed)
    every, found = np.arange(len(groups_N)), {}
    value = first(every)
    for column, (name, other) in enumerate(others.items(), 1):
        gaps_B = drawn.scores_BK[:, 0] - drawn.scores_BK[:, column]
        bounds = interval(value - other(every), gaps_B)
        p = 2 * min(np.mean(gaps_B <= 0), np.mean(gaps_B >= 0))
        found[name] = Difference(bounds.value, bounds.low, bounds.high, float(np.clip(p, 1 / (count + 1), 1)))
    return found


def wilcoxon(first: Units, second: Units) -> SignedRank:
    """Wilcoxon's signed-rank test, two-sided.

    Zero differences are dropped and counted. The exact null distribution up to 50 differences without ties; otherwise
    the normal approximation with tie correction and without continuity correction. p = 1 where every difference is 0.
    """
    gaps_U = first.minus(second)
    kept = gaps_U[gaps_U != 0]
    zeros = len(gaps_U) - len(kept)
    if not len(kept):
        return SignedRank(1.0, 0, zeros, True)
    exact = len(kept) <= EXACT_TO and not zeros and len(np.unique(np.abs(kept))) == len(kept)
    found = stats.wilcoxon(kept, method="exact" if exact else "asymptotic", correction=False)
    return SignedRank(float(found.pvalue), len(kept), zeros, exact)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction over the family of all `p` (Scand. J. Statist. 6, 1979), in the order given."""
    order = sorted(p, key=lambda name: p[name])
    corrected, least = {}, 0.0
    for place, name in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * p[name]))
        corrected[name] = least
    return {name: corrected[name] for name in p}


def friedman(ranks_TK: np.ndarray) -> Friedman:
    """Friedman's test of K models over T tasks from their ranks (average ranks for ties, which are corrected for).

    Raises StatisticsInvalid below two models or two tasks.
    """
    tasks, models = ranks_TK.shape
    if tasks < 2 or models < 2:
        raise StatisticsInvalid("Friedman's test needs two models on two tasks at least. Measure more.")
    spread = np.sum((ranks_TK - (models + 1) / 2) ** 2)
    between = np.sum((ranks_TK.sum(0) - tasks * (models + 1) / 2) ** 2)
    chi2 = float((models - 1) * between / spread) if spread else 0.0
    return Friedman(chi2, float(stats.chi2.sf(chi2, models - 1)))


def nemenyi_q(models: int, alpha: float = ALPHA) -> float:
    """q_α(k)/√2: the studentised range of k models with infinite degrees of freedom over √2 (Demšar 2006, table 5)."""
    return float(stats.studentized_range.ppf(1 - alpha, models, np.inf) / np.sqrt(2))


def nemenyi_cd(models: int, tasks: int, alpha: float = ALPHA) -> float:
    """The critical difference of two mean ranks: q_α(k)/√2 · √(k(k+1)/(6N)) (Demšar 2006, section 3.2.2)."""
    return nemenyi_q(models, alpha) * float(np.sqrt(models * (models + 1) / (6 * tasks)))


def delong(first_N: np.ndarray, second_N: np.ndarray, positive_N: np.ndarray) -> Difference:
    """Difference of two correlated areas under the ROC curve (DeLong et al. 1988; midranks of Sun and Xu 2014).

    Scores (N,) of independent items, higher for positive ones; `positive_N` bool. Raises StatisticsInvalid below two
    items of either class. Two models that order every pair alike differ by 0 with p = 1.
    """
    positive_N = np.asarray(positive_N, bool)
    m, n = int(positive_N.sum()), int((~positive_N).sum())
    if min(m, n) < 2:
        raise StatisticsInvalid("DeLong's test needs two items of each class at least. Measure more.")
    v10_2m, v01_2n = np.empty((2, m)), np.empty((2, n))
    for row, scores_N in enumerate((first_N, second_N)):
        every = stats.rankdata(scores_N)
        v10_2m[row] = (every[positive_N] - stats.rankdata(scores_N[positive_N])) / n
        v01_2n[row] = 1 - (every[~positive_N] - stats.rankdata(scores_N[~positive_N])) / m
    value = float(v10_2m[0].mean() - v10_2m[1].mean())
    variance = float(np.var(v10_2m[0] - v10_2m[1], ddof=1) / m + np.var(v01_2n[0] - v01_2n[1], ddof=1) / n)
    if variance < 1e-18:
        return Difference(value, value, value, 1.0 if abs(value) < 1e-12 else 0.0)
    error = np.sqrt(variance)
    half = stats.norm.ppf(1 - ALPHA / 2) * error
    return Difference(value, value - half, value + half, float(2 * stats.norm.sf(abs(value) / error)))


def corrected_resampled_t(gaps: Units, test_share: float) -> Difference:
    """Student's t over J folds that share training data, with variance factor 1/J + n_test/n_train.

    Nadeau and Bengio 2003. `gaps`: one difference a fold; `test_share` = n_test/n_train. Raises StatisticsInvalid below
    two folds.
    """
    folds = len(gaps.ids)
    if folds < 2:
        raise StatisticsInvalid("A t-test over folds needs two folds at least. Run more.")
    value, spread = float(gaps.values_U.mean()), float(gaps.values_U.std(ddof=1))
    error = spread * np.sqrt(1 / folds + test_share)
    if error == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    half = float(stats.t.ppf(1 - ALPHA / 2, folds - 1) * error)
    return Difference(value, value - half, value + half, float(2 * stats.t.sf(abs(value) / error, folds - 1)))


def kendall_tau(first: Units, second: Units) -> float:
    """Kendall's τ-b of two orders of the same models; NaN where one of them orders nothing."""
    first.minus(second)  # the same models, in the same order
    if min(np.ptp(first.values_U), np.ptp(second.values_U)) == 0:
        return float("nan")
    return float(stats.kendalltau(first.values_U, second.values_U).statistic)
