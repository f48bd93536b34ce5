"""The figures of a reader study, in numpy: proportions with Wilson's interval, the AUC with a bootstrap over patients.

Wilson 1927 for proportions, since a bootstrap of a share that is 0 or 1 has no width; percentiles of the bootstrap for
the AUC, whole patients drawn at once, since the slides of one are alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054
"""Of 95 %, two-sided."""


@dataclass(frozen=True, slots=True)
class Share:
    """`of` among `among`, with the 95 % interval; all None where there are none."""

    of: int
    among: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Area:
    """An area under the ROC curve (0..1), None without a case of each side; its 95 % interval, None with fewer than two
    patients of either side. `resamples`: how many it rests on."""

    value: float | None
    low: float | None
    high: float | None
    positives: int
    negatives: int
    patients: int
    resamples: int


def share(of: int, among: int) -> Share:
    """A proportion with Wilson's interval."""
    if not among:
        return Share(of, among, None, None, None)
    value, weight = of / among, _Z**2 / among
    middle = (value + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(value * (1 - value) / among + weight / (4 * among))
    return Share(of, among, value, max(0.0, middle - half), min(1.0, middle + half))


def area(
    scores: Sequence[float], positive: Sequence[bool], patients: Sequence[str], *, resamples: int, seed: int
) -> Area:
    """The chance that a positive case has the higher score, ties half; all three of one length, a case each.

    A resample without a case of either side is drawn again.
    """
    scores_N, positive_N = np.asarray(scores, np.float64), np.asarray(positive, np.bool_)
    names, patient_N = np.unique(np.asarray(patients, np.str_), return_inverse=True)
    counts = (int(positive_N.sum()), int((~positive_N).sum()), len(names))
    if not min(counts[:2]):
        return Area(None, None, None, *counts, 0)
    _, place_N = np.unique(scores_N, return_inverse=True)

    def of(weights_N: np.ndarray) -> float:
        high_U, low_U = (np.bincount(place_N, weights_N * side_N) for side_N in (positive_N, ~positive_N))
        below_U = np.cumsum(low_U) - low_U / 2
        return float(high_U @ below_U / (high_U.sum() * low_U.sum()))

    value = of(np.ones(len(scores_N)))
    if min(len(set(patient_N[side_N].tolist())) for side_N in (positive_N, ~positive_N)) < 2:
        return Area(value, None, None, *counts, 0)
    random = np.random.default_rng(seed)
    drawn: list[float] = []
    while len(drawn) < resamples:
        times_P = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
        weights_N = times_P[patient_N].astype(np.float64)
        if weights_N[positive_N].any() and weights_N[~positive_N].any():
            drawn.append(of(weights_N))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Area(value, float(low), float(high), *counts, resamples)
