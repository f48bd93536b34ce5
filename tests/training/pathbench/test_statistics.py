"""Tests of models against SciPy, against brute force, and against what they claim of their own errors."""

from itertools import pairwise, product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from training.pathbench import statistics
from training.pathbench.statistics import Units
from training.statistics import StatisticsInvalid, replicates

pytestmark = pytest.mark.training


def units(values: list[float] | np.ndarray) -> Units:
    return Units(tuple(f"task {k}" for k in range(len(values))), np.asarray(values, float))


def test_replicates_of_a_bootstrap_are_no_units() -> None:
    drawn = replicates([lambda index: float(index.mean())], np.arange(20), count=30)
    with pytest.raises(StatisticsInvalid, match="not observations"):
        Units(tuple(map(str, range(30))), drawn)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "values", "reason"),
    [(("a", "a"), [1, 2], "more than once"), (("a",), [1, 2], "one value"), (("a", "b"), [1, np.nan], "not a number")],
)
def test_units_are_named_once_and_measured(ids: tuple[str, ...], values: list[float], reason: str) -> None:
    with pytest.raises(StatisticsInvalid, match=reason):
        Units(ids, np.array(values, float))


def test_models_measured_on_other_units_are_not_compared() -> None:
    with pytest.raises(StatisticsInvalid, match="different units"):
        statistics.wilcoxon(Units(("a", "b"), np.ones(2)), Units(("b", "a"), np.zeros(2)))


def brute_force_signed_rank(gaps: np.ndarray) -> float:
    """Two-sided p by all 2^n signs of the ranks."""
    ranks = stats.rankdata(np.abs(gaps))
    observed = abs(ranks[gaps > 0].sum() - ranks.sum() / 2)
    sums = [np.dot(signs, ranks) for signs in product((0, 1), repeat=len(ranks))]
    return float(np.mean([abs(total - ranks.sum() / 2) >= observed - 1e-9 for total in sums]))


def test_signed_rank_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 6, 9):
        gaps = rng.normal(0.3, 1, n)
        found = statistics.wilcoxon(units(gaps), units(np.zeros(n)))
        assert found.exact
        assert found.p == pytest.approx(brute_force_signed_rank(gaps))


def test_signed_rank_with_ties_and_zeros_is_the_normal_approximation() -> None:
    gaps = np.array([0, 0, 1, 1, -1, 2, 2, 3, 3, 3, -2, 4, 5, 5], float)
    found = statistics.wilcoxon(units(gaps), units(np.zeros(14)))
    kept = gaps[gaps != 0]
    ranks = stats.rankdata(np.abs(kept))
    n, (_, ties) = len(kept), np.unique(np.abs(kept), return_counts=True)
    variance = n * (n + 1) * (2 * n + 1) / 24 - np.sum(ties**3 - ties) / 48
    z = (ranks[kept > 0].sum() - n * (n + 1) / 4) / np.sqrt(variance)
    assert (found.pairs, found.zeros, found.exact) == (12, 2, False)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_a_model_against_itself() -> None:
    same = units([0.3, 0.4, 0.9])
    assert statistics.wilcoxon(same, same) == statistics.SignedRank(1.0, 0, 3, True)


def test_holm_by_its_definition() -> None:
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9}
    assert statistics.holm(p) == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.025, "e": 0.9})
    assert list(statistics.holm(p)) == list(p)
    rng = np.random.default_rng(1)
    many = {str(k): float(v) for k, v in enumerate(rng.random(12) ** 3)}
    corrected = statistics.holm(many)
    for alpha in (0.01, 0.05, 0.2):  # step down: reject from the smallest on, until one is not rejected
        rejected = set()
        for place, name in enumerate(sorted(many, key=many.__getitem__)):
            if many[name] > alpha / (len(many) - place):
                break
            rejected.add(name)
        assert {name for name, value in corrected.items() if value <= alpha} == rejected


def test_friedman_equals_scipy_with_and_without_ties() -> None:
    rng = np.random.default_rng(2)
    for scores in (rng.normal(size=(9, 5)), rng.integers(0, 3, (12, 4)).astype(float)):
        found = statistics.friedman(stats.rankdata(-scores, axis=1))
        expected = stats.friedmanchisquare(*scores.T)
        assert (found.chi2, found.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert statistics.friedman(np.full((4, 3), 2.0)) == statistics.Friedman(0.0, 1.0)
    with pytest.raises(StatisticsInvalid):
        statistics.friedman(np.ones((1, 3)))


def test_nemenyi_has_the_published_quantiles() -> None:
    published = {2: 1.960, 3: 2.343, 5: 2.728, 10: 3.164}  # Demšar 2006, table 5
    for models, q in published.items():
        assert statistics.nemenyi_q(models) == pytest.approx(q, abs=1e-3)
    assert statistics.nemenyi_cd(19, 64) == pytest.approx(3.4987, abs=1e-4)


def brute_force_delong(first: np.ndarray, second: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Difference and p from all placements, pair by pair."""
    wins = [
        (s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive]) for s in (first, second)
    ]
    gap = wins[0] - wins[1]
    variance = gap.mean(1).var(ddof=1) / gap.shape[0] + gap.mean(0).var(ddof=1) / gap.shape[1]
    return float(gap.mean()), float(2 * stats.norm.sf(abs(gap.mean()) / np.sqrt(variance)))


def test_delong_equals_brute_force() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(60) < 0.4
    first = (rng.normal(size=60) + 1.2 * positive).round(1)  # with ties
    second = (rng.normal(size=60) + 0.6 * positive).round(1)
    found = statistics.delong(first, second, positive)
    assert (found.value, found.p) == pytest.approx(brute_force_delong(first, second, positive))
    assert found.value == pytest.approx(roc_auc_score(positive, first) - roc_auc_score(positive, second))
    assert found.low < found.value < found.high
    assert statistics.delong(first, first * 3 - 1, positive).p == 1.0
    with pytest.raises(StatisticsInvalid):
        statistics.delong(first[:3], second[:3], np.array([True, False, False]))


def test_paired_bootstrap_agrees_with_delong_where_items_are_independent() -> None:
    rng = np.random.default_rng(4)
    positive = np.arange(160) % 2 == 0
    first, second = (rng.normal(size=160) + shift * positive for shift in (1.3, 0.8))
    found = statistics.paired_bootstrap(
        lambda i: float(roc_auc_score(positive[i], first[i])),
        lambda i: float(roc_auc_score(positive[i], second[i])),
        np.arange(160),
        positive,
        count=300,
    )
    expected = statistics.delong(first, second, positive)
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_paired_bootstrap_of_nothing_and_of_everything() -> None:
    values = np.arange(30.0)
    score = lambda index: float(values[index].mean())  # noqa: E731
    same = statistics.paired_bootstrap(score, score, np.arange(30), count=99)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    apart = statistics.paired_bootstrap(lambda i: score(i) + 1, score, np.arange(30), count=99)
    assert apart.p == pytest.approx(1 / 100)


def test_corrected_t_is_the_plain_one_where_no_training_data_are_shared() -> None:
    gaps = np.array([0.02, 0.05, 0.01, 0.04, -0.01])
    plain = stats.ttest_1samp(gaps, 0)
    assert statistics.corrected_resampled_t(units(gaps), 0.0).p == pytest.approx(plain.pvalue)
    widths = [(d := statistics.corrected_resampled_t(units(gaps), share)).high - d.low for share in (0.0, 0.25, 1.0)]
    assert all(narrow < wide for narrow, wide in pairwise(widths))
    assert widths[1] / widths[0] == pytest.approx(np.sqrt((1 / 5 + 0.25) / (1 / 5)))
    assert statistics.corrected_resampled_t(units(np.zeros(4)), 0.25).p == 1.0


def test_kendall_counts_pairs() -> None:
    first, second = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])
    assert statistics.kendall_tau(units(first), units(second)) == pytest.approx((5 - 1) / 6)
    assert np.isnan(statistics.kendall_tau(units(first), units(np.ones(4))))
