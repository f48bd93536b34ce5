"""Survival in discrete time: golden numbers, hand-made cases, ties, clamps and undefined concordance."""

import numpy as np
import pytest
import torch

from tests.training import golden
from training.errors import TaskInvalid
from training.nn.survival import bin_edges, bin_of, c_index, ce_loss, nll_loss, risk

pytestmark = pytest.mark.training


def test_nll_equals_the_published_numbers() -> None:
    case = golden.case("nll_survival")
    logits, events = golden.tensor(case["input"]), torch.tensor(case["censored"]) == 0
    for name, expected in case["expected"].items():
        found = nll_loss(logits, torch.tensor(case["bin"]), events, float(name.split("=")[1]))
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_concordance_equals_the_published_number() -> None:
    case = golden.case("c_index")
    risks = np.cos(0.9 * np.arange(40))
    found = c_index(risks, np.array(case["time"]), np.array(case["event"]) == 1)
    assert found == pytest.approx(case["expected"], abs=1e-12)


def test_concordance_of_pairs_by_hand() -> None:
    died, lost = True, False
    times = np.array([1.0, 2.0, 2.0, 2.0])
    events = np.array([died, died, died, lost])
    # pairs: 0 with all; 1 and 2 each with 3 (same time, censored), never with each other
    assert c_index(np.array([4.0, 3.0, 2.0, 1.0]), times, events) == 1.0
    assert c_index(np.array([1.0, 2.0, 3.0, 4.0]), times, events) == 0.0
    assert c_index(np.array([4.0, 3.0, 1.0, 1.0]), times, events) == pytest.approx(4.5 / 5)
    assert c_index(np.zeros(4), times, events) == 0.5


def test_concordance_without_a_comparable_pair_is_undefined() -> None:
    assert np.isnan(c_index(np.array([1.0, 2.0]), np.array([3.0, 3.0]), np.array([True, True])))
    assert np.isnan(c_index(np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([False, False])))


def test_bins_come_of_deaths_and_hold_every_time() -> None:
    times = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 90.0])
    events = np.array([True, True, True, True, True, False])
    edges = bin_edges(times, events)
    np.testing.assert_allclose(edges, [1 - 1e-6, 2, 3, 4, 90 + 1e-6])
    assert bin_of(np.array([1.0, 1.99, 2.0, 3.0, 89.0, 0.0, 500.0]), edges).tolist() == [0, 0, 1, 2, 3, 0, 3]


def test_equal_times_make_fewer_bins() -> None:
    times = np.array([5.0, 5.0, 5.0, 9.0])
    edges = bin_edges(times, np.array([True, True, True, False]))
    assert len(edges) == 3
    with pytest.raises(TaskInvalid, match="event"):
        bin_edges(times, np.zeros(4, bool))


def test_losses_against_the_formulas_written_out() -> None:
    logits = torch.tensor([[0.3, -1.0, 0.2], [1.0, 0.5, -0.5]], dtype=torch.float64)
    h = logits.sigmoid()
    died = -(torch.log(1 - h[0, 0]) + torch.log(h[0, 1]))
    lost = -torch.log((1 - h[1, 0]) * (1 - h[1, 1]) * (1 - h[1, 2]))
    bins, events = torch.tensor([1, 2]), torch.tensor([True, False])
    torch.testing.assert_close(nll_loss(logits, bins, events), (died + lost) / 2)
    torch.testing.assert_close(nll_loss(logits, bins, events, 0.4), (died + 0.6 * lost) / 2)
    entropy = -torch.log(1 - (1 - h[0, 0]) * (1 - h[0, 1])) + lost
    torch.testing.assert_close(ce_loss(logits, bins, events), entropy / 2)
    regular = -(torch.log(1 - h[0, 0] + 1e-7) + torch.log(h[0, 1]))
    torch.testing.assert_close(ce_loss(logits, bins, events, 1.0), regular / 2)


def test_risk_rises_with_early_hazard_and_extremes_stay_finite() -> None:
    early, late = torch.tensor([[3.0, -3.0, -3.0]]), torch.tensor([[-3.0, -3.0, 3.0]])
    assert risk(early) > risk(late)
    far = torch.tensor([[200.0, 200.0], [-200.0, -200.0]], requires_grad=True)
    loss = nll_loss(far, torch.tensor([1, 0]), torch.tensor([True, True]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(far.grad).all()
