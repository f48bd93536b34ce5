"""Survival from a table: a planted signal is found, no signal is not, and what looks at the fold is optimistic."""

from dataclasses import replace

import numpy as np
import pytest

from training.data.tcga import SurvivalTable
from training.errors import TaskInvalid
from training.pathbench.protocols.survival import evaluate, mean_c_index, optimism, principal_components
from training.pathbench.recipe import Survival

pytestmark = pytest.mark.training
SETTINGS = Survival(components=(4,), rate=0.02, batch=16, epochs=8, folds=3, seeds=(1, 2))


def table(strength: float, count: int = 150, sites: int = 15) -> SurvivalTable:
    """Twenty genes of which three tell the risk, with strength; exponential times, a third censored."""
    rng = np.random.default_rng(11)
    rna = rng.normal(0, 1, (count, 20)).astype(np.float32)
    rna[:, :3] += rng.normal(0, 2, (count, 1)).astype(np.float32)
    months = rng.exponential(20 * np.exp(-strength * rna[:, :3].mean(1) / 2))
    return SurvivalTable(
        cancer="MADE",
        cases_N=np.array([f"case {k}" for k in range(count)]),
        months_N=months,
        event_N=rng.random(count) < 0.6,
        sites_N=np.array([f"site {k % sites}" for k in range(count)]),
        genes=tuple(f"gene {k}" for k in range(20)),
        rna_NG=rna,
        sources=(),
    )


def test_a_planted_signal_is_found_and_the_test_part_is_read_once() -> None:
    outcome = evaluate(table(2.0), SETTINGS, replicates=100, seed=0)
    assert outcome.figure is not None
    assert outcome.figure.low > 0.6
    assert len(outcome.values) == 6
    assert np.mean(outcome.values) == pytest.approx(outcome.figure.value)
    assert (outcome.test_reads, outcome.optimistic, outcome.items, outcome.groups) == (1, False, 150, 15)
    assert 0.5 < outcome.also["last_epoch"] < 1
    assert "as in released code, it would be 0." in outcome.notes[0]
    again = evaluate(table(2.0), SETTINGS, replicates=100, seed=0)
    assert again.values == outcome.values


def test_the_released_protocol_finds_signal_where_there_is_none() -> None:
    """Outcomes dealt out at random: the best epoch of a fold is above chance, the nested choice is not."""
    base, gaps, nested = table(2.0, count=90), [], []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(base))
        mixed = replace(base, months_N=base.months_N[order], event_N=base.event_N[order])
        values = [
            mean_c_index(mixed, SETTINGS.model_copy(update={"protocol": protocol, "seeds": (1,)}), 0)
            for protocol in ("nested", "released")
        ]
        nested.append(values[0])
        gaps.append(values[1] - values[0])
    assert abs(np.mean(nested) - 0.5) < 0.06
    assert 0.01 < np.mean(gaps) < 0.2


@pytest.mark.parametrize("change", [{"protocol": "released"}, {"bins_from": "all"}])
def test_what_reads_more_than_training_rows_is_marked_optimistic(change: dict) -> None:
    outcome = evaluate(table(1.0), SETTINGS.model_copy(update={**change, "epochs": 2}), replicates=20, seed=0)
    assert outcome.optimistic
    assert "optimistic" in outcome.notes[0]


def test_components_come_of_training_rows_alone() -> None:
    rna = table(1.0).rna_NG
    train = np.arange(100)
    found = principal_components(rna, train, 4)
    np.testing.assert_allclose(found[train].std(0), 1, rtol=1e-4)
    changed = rna.copy()
    changed[100:] *= 50
    assert np.array_equal(principal_components(changed, train, 4)[train], found[train])
    flat = rna.copy()
    flat[:, 5] = 3.0
    assert np.isfinite(principal_components(flat, train, 400)).all()
    assert principal_components(flat, train, 400).shape[1] <= 20


def test_a_resample_without_a_pair_in_a_fold_says_nothing_of_it() -> None:
    """Three sites, three folds: a resample that lacks a site lacks a fold, and the interval is still defined."""
    outcome = evaluate(table(2.0, sites=3), SETTINGS, replicates=50, seed=0)
    assert outcome.figure is not None
    assert outcome.figure.low <= outcome.figure.value <= outcome.figure.high


def test_a_fold_that_says_nothing_is_refused() -> None:
    """One site, one fold: its only death is the last one seen, and no two of its patients can be compared."""
    base = table(2.0, sites=3)
    inside = np.flatnonzero(base.sites_N == "site 0")
    events = base.event_N.copy()
    events[inside] = False
    events[inside[base.months_N[inside].argmax()]] = True
    outcome = evaluate(replace(base, event_N=events), SETTINGS, replicates=20, seed=0)
    assert outcome.figure is None
    assert "no two comparable patients" in outcome.refused


def test_the_gap_to_the_released_protocol_is_judged_by_fold() -> None:
    """Patients' outcomes dealt out: the gap is the difference of both protocols, with folds as units."""
    base = table(0.0, count=90)
    nested = mean_c_index(base, SETTINGS, 0)
    released = mean_c_index(base, SETTINGS.model_copy(update={"protocol": "released"}), 0)
    gap = optimism(np.full((3, 2), nested), base, SETTINGS, 0)
    assert gap.value == pytest.approx(released - nested)
    assert gap.low < gap.value < gap.high


def test_one_hospital_in_the_training_folds_is_refused() -> None:
    with pytest.raises(TaskInvalid, match="one site"):
        evaluate(table(2.0, sites=2), SETTINGS.model_copy(update={"folds": 2}), replicates=5, seed=0)
