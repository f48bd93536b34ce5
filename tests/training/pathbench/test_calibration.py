"""The simulations tell a sound test from an unsound one; at full size their figures stand in docs/results."""

from pathlib import Path

import pytest
import torch

from training.pathbench import calibration
from training.pathbench.calibration import Sizes

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_intervals_over_patients_hold_the_truth_and_over_tiles_do_not() -> None:
    held = calibration.coverage(Sizes(simulations=60, resamples=150))
    assert held["patients"] >= 0.87  # 0.95 but in one of a thousand runs
    assert held["tiles"] <= 0.8


def test_nothing_is_found_where_nothing_is_and_replicates_find_it_anyway() -> None:
    found = calibration.null(Sizes(null_tasks=10, resamples=150))
    assert found["paired_bootstrap"] <= 0.3  # 0.05 but in one of a thousand runs
    assert found["delong"] <= 0.3
    assert found["replicates"] >= 0.6


def test_a_worse_encoder_is_found_more_often_on_more_tasks() -> None:
    lines = calibration.power(Sizes(power_tasks=6, seeds=(0,), swapped=0.2, draws=60))
    assert [line["tasks"] for line in lines] == [6, 10, 20, 40]
    assert lines[0]["loss"] > 0
    assert lines[-1]["found"] >= lines[0]["found"]


def test_the_page_of_small_runs(tmp_path: Path) -> None:
    sizes = Sizes(simulations=3, resamples=20, null_tasks=2, power_tasks=2, seeds=(0, 1), draws=5)
    found = {part: getattr(calibration, part)(sizes) for part in ("coverage", "null", "power")}
    text = calibration.page(sizes, found)
    assert "2 tasks with permuted labels" in text
    assert text.count("\n| 6 |") == 2
    assert calibration.null(sizes) == found["null"]


def test_binomial_interval_of_twenty_tasks() -> None:
    assert calibration.binomial_interval(20) == (0.0, 3 / 20)
