"""The operating point: the least step from which answers are right often enough."""

import numpy as np
import pytest

from training.operating_point import OperatingPoint, operating_point

pytestmark = pytest.mark.training

TOP = np.array([0.6, 0.72, 0.8, 0.9, 0.97])


def test_the_operating_point_is_the_least_one_that_is_right_often_enough() -> None:
    assert operating_point(TOP, np.array([0, 0, 1, 1, 1], bool), 0.95, least=0.5) == OperatingPoint(0.75, 1.0)
    assert operating_point(TOP, np.zeros(5, bool), 0.95, least=0.5) == OperatingPoint(0.95, 0.0)


@pytest.mark.parametrize("least", [0.25, 0.5])
def test_it_is_sought_from_the_least_one_on(least: float) -> None:
    assert operating_point(TOP, np.ones(5, bool), 0.95, least) == OperatingPoint(least, 1.0)
