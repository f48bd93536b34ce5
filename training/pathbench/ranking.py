"""The published leaderboard rule (arXiv 2505.20202 and its public site), and what may be concluded from it.

Within a task the models are ranked by each metric's mean score, the ranks are averaged over the task's metrics, and the
order of these averages is the task rank; the overall rank is the mean of the task ranks: lower is better. A task here
is an organ, task and cohort together. Higher scores are better.

Two things differ from the site: equal scores share the average of their places (`ties="released"` gives the site's:
the first place, then input order), and models are never averaged over different rows. The tests, intervals and
balanced variants are ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from scipy.stats import rankdata

from training.errors import TrainingError
from training.pathbench import statistics
from training.pathbench.statistics import Units

Ties = Literal["average", "released"]
Key = TypeVar("Key")
RESAMPLES = 2000
SEED = 2026


class ScoresInvalid(TrainingError):
    """A table of scores that cannot be ranked."""

    reason, title = "scores-invalid", "Scores cannot be ranked"


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """What one score was measured on, and by which metric."""

    organ: str
    task: str
    cohort: str
    metric: str

    @property
    def place(self) -> tuple[str, str, str]:
        return self.organ, self.task, self.cohort

    @property
    def internal(self) -> bool:
        return self.cohort.casefold() == "internal"


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """`values_RM`: a score a row and model, higher is better, NaN where the model was not measured."""

    rows: tuple[Row, ...]
    models: tuple[str, ...]
    values_RM: np.ndarray

    @property
    def lacking(self) -> dict[str, int]:
        """The models without a score in some rows, and how many they lack."""
        counts = np.isnan(self.values_RM).sum(0)
        return {model: int(count) for model, count in zip(self.models, counts, strict=True) if count}

    def where(self, keep_R: Sequence[bool] | np.ndarray) -> "Scores":
        kept = np.flatnonzero(keep_R)
        return Scores(tuple(self.rows[r] for r in kept), self.models, self.values_RM[kept])

    def of(self, models: Sequence[str]) -> "Scores":
        columns = [self.models.index(model) for model in models]
        return Scores(self.rows, tuple(models), self.values_RM[:, columns])

    def task_averages(self) -> "Scores":
        """The cohorts of a task averaged, metric by metric: they share training data, so they are no rows apart."""
        rows, means = _averaged([Row(row.organ, row.task, "", row.metric) for row in self.rows], self.values_RM)
        return Scores(rows, self.models, means)


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Task ranks `ranks_TM` of the models in every place (organ, task, cohort)."""

    models: tuple[str, ...]
    places: tuple[tuple[str, str, str], ...]
    ranks_TM: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """(M,) mean rank over the places."""
        return self.ranks_TM.mean(0)

    @property
    def firsts(self) -> np.ndarray:
        """(M,) how often each model was first; who shares the best place of a task was first in it."""
        return np.sum(self.ranks_TM == self.ranks_TM.min(1, keepdims=True), 0)

    def by_mean(self, mean_M: np.ndarray | None = None) -> dict[str, float]:
        """Model to mean rank, best first."""
        mean_M = self.means if mean_M is None else mean_M
        return {self.models[m]: float(mean_M[m]) for m in np.argsort(mean_M, kind="stable")}

    def intervals(self) -> np.ndarray | None:
        """(M, 2) 95 % bootstrap of the mean ranks over tasks, the cohorts of a task together; None below two tasks."""
        tasks = sorted({place[:2] for place in self.places})  # so that the order of rows does not matter
        if len(tasks) < 2:
            return None
        number = {task: u for u, task in enumerate(tasks)}
        task_of_T = np.array([number[place[:2]] for place in self.places])
        sums_UM = np.zeros((len(tasks), len(self.models)))
        np.add.at(sums_UM, task_of_T, self.ranks_TM)
        draws_BU = np.random.default_rng(SEED).multinomial(len(tasks), [1 / len(tasks)] * len(tasks), RESAMPLES)
        means_BM = draws_BU @ sums_UM / (draws_BU @ np.bincount(task_of_T))[:, None]
        return np.percentile(means_BM, (2.5, 97.5), axis=0).T

    def organ_balanced(self) -> np.ndarray:
        """(M,) mean over the organs of the mean rank within each."""
        organs = np.array([place[0] for place in self.places])
        return np.mean([self.ranks_TM[organs == organ].mean(0) for organ in np.unique(organs)], 0)


def rank(scores: Scores, ties: Ties = "average") -> Ranking:
    """Task ranks of models that all have every score. Raises ScoresInvalid where there is nothing, or a gap."""
    if not scores.rows or not scores.models:
        raise ScoresInvalid("There is nothing to rank. Give at least one row of scores and one model.")
    if scores.lacking:
        raise ScoresInvalid(_gaps(scores))
    places, means_TM = _metric_ranks(scores, "average" if ties == "average" else "min")
    # Means of the same ranks in another order may differ in the last bit: they are equal.
    ranks_TM = rankdata(means_TM.round(9), "average" if ties == "average" else "ordinal", axis=1)
    return Ranking(scores.models, places, ranks_TM)


def _metric_ranks(
    scores: Scores, method: Literal["average", "min"]
) -> tuple[tuple[tuple[str, str, str], ...], np.ndarray]:
    """The places, and in each the models' ranks (T, M) averaged over its metrics."""
    return _averaged([row.place for row in scores.rows], rankdata(-scores.values_RM, method, axis=1))


def _averaged(keys_R: Sequence[Key], values_RM: np.ndarray) -> tuple[tuple[Key, ...], np.ndarray]:
    """The different keys in order of appearance, and the means (K, M) of the rows of each."""
    number = {key: k for k, key in enumerate(dict.fromkeys(keys_R))}
    key_of_R = np.array([number[key] for key in keys_R], int)
    sums_KM = np.zeros((len(number), values_RM.shape[1]))
    np.add.at(sums_KM, key_of_R, values_RM)
    return tuple(number), sums_KM / np.bincount(key_of_R, minlength=len(number))[:, None]


def _gaps(scores: Scores) -> str:
    named = ", ".join(f"{model} {count}" for model, count in list(scores.lacking.items())[:3])
    more = ", …" if len(scores.lacking) > 3 else ""
    return (
        f"{len(scores.lacking)} of {len(scores.models)} models lack scores in some of the {len(scores.rows)} rows "
        f"({named}{more}); models measured on different rows are not ranked together. "
        "Fill the gaps, leave these models out, or rank on the rows that all have (--common)."
    )


def conclusions(scores: Scores, ties: Ties = "average") -> dict[str, Any]:
    """Mean ranks, first places, Friedman's test, critical difference and the best against each other model.

    What is not defined (one model, one task) is None. The signed-rank tests compare the scores of the best model by
    mean rank with each other one's over the places, Holm-corrected over the family of these comparisons.
    """
    ranking = rank(scores, ties)
    mean, firsts = ranking.by_mean(), dict(zip(ranking.models, ranking.firsts.tolist(), strict=True))
    found: dict[str, Any] = {
        **mean_and_interval(ranking),
        "n_first": {model: firsts[model] for model in mean},
        "tasks": len(ranking.places),
        "friedman_chi2": None,
        "friedman_p": None,
        "nemenyi_cd_0_05": None,
        "best": next(iter(mean)),
        "wilcoxon_two_sided_best_vs": {},
    }
    if len(ranking.models) > 1 and len(ranking.places) > 1:
        test = statistics.friedman(ranking.ranks_TM)
        found["friedman_chi2"], found["friedman_p"] = test.chi2, test.p
        found["nemenyi_cd_0_05"] = statistics.nemenyi_cd(len(ranking.models), len(ranking.places))
        found["wilcoxon_two_sided_best_vs"] = _best_against_others(scores, found["best"])
    found["statement"] = statement(found)
    return found


def mean_and_interval(ranking: Ranking) -> dict[str, Any]:
    """Model to mean rank, best first, and to its interval over tasks (None below two tasks)."""
    mean, bounds_M2 = ranking.by_mean(), ranking.intervals()
    if bounds_M2 is None:
        return {"mean_rank": mean, "mean_rank_95": None}
    bounds = dict(zip(ranking.models, bounds_M2.tolist(), strict=True))
    return {"mean_rank": mean, "mean_rank_95": {model: bounds[model] for model in mean}}


def balanced(scores: Scores, ties: Ties = "average") -> dict[str, Any]:
    """The same with the cohorts of a task averaged first, and with every organ weighing once as well.

    Cohorts of a task share training data, and often patients: the tests on task averages are the ones to trust.
    `kendall_tau` is the agreement of either order with the one by rows (None where one orders nothing).
    """
    averages, mean = scores.task_averages(), rank(scores, ties).by_mean()
    by_task = rank(averages, ties)
    by_organ = by_task.by_mean(by_task.organ_balanced())
    return {
        "task_balanced": {**conclusions(averages, ties), "kendall_tau": _agreement(mean, by_task.by_mean())},
        "organ_balanced": {"mean_rank": by_organ, "kendall_tau": _agreement(mean, by_organ)},
    }


def _agreement(first: dict[str, float], second: dict[str, float]) -> float | None:
    models = tuple(first)
    one, two = (Units(models, np.array([of[model] for model in models])) for of in (first, second))
    tau = statistics.kendall_tau(one, two)
    return None if np.isnan(tau) else tau


def _best_against_others(scores: Scores, best: str) -> dict[str, dict[str, float]]:
    """The unit is a place: its score, or where some place has several metrics, the mean of its ranks by metric.

    Metrics of one place are no units of their own, and their scores have no common unit to be averaged in.
    """
    places, ranks_TM = _metric_ranks(scores, "average")
    values_TM = scores.values_RM if len(places) == len(scores.rows) else -ranks_TM.round(9)
    ids = tuple(" | ".join(place) for place in places)
    units = {model: Units(ids, values_TM[:, m]) for m, model in enumerate(scores.models)}
    p = {model: statistics.wilcoxon(units[best], units[model]).p for model in scores.models if model != best}
    corrected = statistics.holm(p)
    return {model: {"p": p[model], "holm": corrected[model]} for model in sorted(p, key=p.__getitem__)}


def statement(found: dict[str, Any]) -> str:
    """In words: which differences the tests support."""
    if found["nemenyi_cd_0_05"] is None:
        return "Two models on two tasks at least are needed to say that one is better."
    cd, mean, best = found["nemenyi_cd_0_05"], found["mean_rank"], found["best"]
    if found["friedman_p"] >= statistics.ALPHA:
        return (
            f"Friedman's test finds no difference among the {len(mean)} models over {found['tasks']} tasks "
            f"(p = {found['friedman_p']:.2g}): the order may be chance."
        )
    level = [model for model in mean if mean[model] - mean[best] < cd]
    behind = [m for m, test in found["wilcoxon_two_sided_best_vs"].items() if test["holm"] < statistics.ALPHA]
    first = (
        f"The first {len(level)} ({', '.join(level)}) are not separable by Nemenyi's test"
        if len(level) > 1
        else f"{best} is separable from every other model by Nemenyi's test"
    )
    return (
        f"{first}: mean ranks over {found['tasks']} tasks must differ by {cd:.2f} (α 0.05). Task by task, the "
        f"signed-rank test with Holm's correction finds {best} different from {len(behind)} of {len(mean) - 1} others"
        f"{': ' + ', '.join(behind) if behind else ''}."
    )


def cliques(mean: dict[str, float], cd: float) -> Iterator[tuple[str, ...]]:
    """The largest runs of models, best first, whose mean ranks lie within the critical difference."""
    models, ends = list(mean), 0
    for start in range(len(models)):
        stop = max(k for k in range(start, len(models)) if mean[models[k]] - mean[models[start]] < cd) + 1
        if stop > ends and stop - start > 1:
            yield tuple(models[start:stop])
        ends = max(ends, stop)
