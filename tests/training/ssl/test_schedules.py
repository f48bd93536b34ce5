import numpy as np
import pytest

from training.ssl.schedules import Schedule

pytestmark = pytest.mark.training


def test_every_value_equals_the_published_generator() -> None:
    schedule = Schedule(2e-3, 1e-6, total=50, warmup=7, start=1e-5)
    n = 50 - 7
    cosine = 1e-6 + 0.5 * (2e-3 - 1e-6) * (1 + np.cos(np.pi * np.arange(n) / n))
    expected = np.concatenate([np.linspace(1e-5, 2e-3, 7), cosine, np.full(5, 1e-6)])
    assert [schedule(i) for i in range(55)] == pytest.approx(list(expected), rel=1e-12)


def test_a_warm_up_of_one_is_its_start() -> None:
    assert [Schedule(1.0, 0.0, total=2, warmup=1)(i) for i in range(3)] == [0.0, 1.0, 0.0]
