"""Rows that a network sorts by score: which of one answer are which of another, where near ties changed places."""

from collections.abc import Mapping

import numpy as np

from training.graphs import Arrays


def aligned(found: Arrays, due: Arrays, ranked: str, bounds: Mapping[str, float]) -> tuple[Arrays, int]:
    """`found` with its rows (axis 1) in the order of `due`, and how many rows it was given from there.

    Two answers whose scores agree within some gap may sort rows in another order where scores differ by less than twice
    that gap, and no other rows. At the cut such a row may have been taken in place of another: a row without a
    counterpart within `bounds` (per output), whose score is that near to the last one's, is taken from `due`; but no
    more than one in twenty of an image's rows, and one.
    """
    scores, reference = _top(found[ranked]), _top(due[ranked])
    gap_B = np.abs(np.sort(scores, axis=1) - np.sort(reference, axis=1)).max(axis=1, initial=0.0)
    width_B = 2 * np.minimum(gap_B, bounds[ranked]) + np.finfo(np.float32).eps
    rows, given = {name: array.copy() for name, array in found.items()}, 0
    for image, width in enumerate(width_B):
        near = np.abs(scores[image] - reference[image][:, None]) <= width
        order = _match({name: _apart(array[image], due[name][image]) for name, array in found.items()}, near)
        for name in rows:
            rows[name][image] = found[name][image, order]
        lone = np.zeros(len(order), bool)
        for name, bound in bounds.items():
            gaps = np.abs(rows[name][image].astype(np.float64) - due[name][image])
            lone |= ~(gaps.reshape(len(order), -1).max(axis=1) <= bound)
        lone &= reference[image] <= reference[image].min() + width
        if 0 < lone.sum() <= 1 + len(order) // 20:
            given += int(lone.sum())
            for name in rows:
                rows[name][image][lone] = due[name][image][lone]
    return rows, given


def is_sorted(answer: Arrays, ranked: str) -> bool:
    """Whether every image's rows stand by falling score. Queries that a network keeps in its own order do not."""
    return bool((np.diff(_top(answer[ranked]), axis=1) <= 0).all())


def _match(apart: Mapping[str, np.ndarray], near_QQ: np.ndarray) -> np.ndarray:
    """For each due row the free found row that is least apart, among those of nearly its score if there are any."""
    apart_QQ = sum(apart.values(), np.zeros(near_QQ.shape))
    free, order = np.ones(len(near_QQ), bool), np.empty(len(near_QQ), np.int64)
    for row, near in enumerate(near_QQ):
        places = np.flatnonzero(free & near)
        if not places.size:
            places = np.flatnonzero(free)
        order[row] = places[np.argmin(apart_QQ[row, places])]
        free[order[row]] = False
    return order


def _apart(found: np.ndarray, due: np.ndarray) -> np.ndarray:
    """(Q,Q) sums of absolute differences: due row by found row."""
    count = len(due)
    rows, others = (array.reshape(count, -1).astype(np.float64) for array in (due, found))
    return np.abs(rows[:, None] - others[None]).sum(axis=2)


def _top(scores: np.ndarray) -> np.ndarray:
    """(B,Q) of (B,Q) or, per class, of (B,Q,C)."""
    return scores if scores.ndim == 2 else scores.max(axis=2)
