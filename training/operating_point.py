"""From which probability on a classifier answers."""

from typing import NamedTuple

import numpy as np


class OperatingPoint(NamedTuple):
    """A top-class probability, and the share of right answers from it on, on the answers that it was chosen on."""

    min_probability: float
    reached: float


def operating_point(top_N: np.ndarray, right_N: np.ndarray, aim: float, least: float) -> OperatingPoint:
    """The least top-class probability, in steps of 0.05 from `least` to 0.95, from which answers are right often
    enough; 0.95 if there is none. `top_N` are the top-class probabilities, `right_N` (bool) whether they are right."""
    for step in range(round(least * 20), 20):
        answered_N = top_N >= step / 20
        reached = float(right_N[answered_N].mean()) if answered_N.any() else 0.0
        if reached >= aim:
            break
    return OperatingPoint(step / 20, reached)
