"""Rows sorted by score: near ties may change places, nothing else may."""

import numpy as np
import pytest

from exporters.ranks import aligned, is_sorted
from training.graphs import Arrays

pytestmark = pytest.mark.training

BOUNDS = {"scores": 1e-4, "boxes": 1e-4}


def answer() -> Arrays:
    """Forty rows of two images, the second and third of each nearly alike in score."""
    scores = np.linspace(0.9, 0.2, 40, dtype=np.float32)[None].repeat(2, 0)
    scores[:, 2] = scores[:, 1] - 1e-6
    boxes = np.random.default_rng(0).random((2, 40, 4)).astype(np.float32)
    return {"scores": scores, "boxes": boxes}


def gap(found: Arrays, due: Arrays) -> float:
    return max(float(np.abs(found[name] - due[name]).max()) for name in due)


def test_equal_answers_stay() -> None:
    rows, given = aligned(answer(), answer(), "scores", BOUNDS)
    assert gap(rows, answer()) == 0
    assert given == 0


def test_near_ties_that_changed_places_are_put_back() -> None:
    due, found = answer(), answer()
    found["scores"][0, 1:3] = due["scores"][0, 1:3] + np.array([0, 1e-6], np.float32)
    found["boxes"][0, [1, 2]] = due["boxes"][0, [2, 1]]
    rows, given = aligned(found, due, "scores", BOUNDS)
    assert gap(rows, due) < 1e-5
    assert given == 0


def test_a_wrong_box_stays_wrong() -> None:
    due, found = answer(), answer()
    found["boxes"][1, 5] += 0.1
    rows, given = aligned(found, due, "scores", BOUNDS)
    assert gap(rows, due) == pytest.approx(0.1, abs=1e-6)
    assert given == 0


def test_rows_that_are_no_ties_do_not_change_places() -> None:
    due, found = answer(), answer()
    found["boxes"][0, [5, 6]] = due["boxes"][0, [6, 5]]
    assert gap(aligned(found, due, "scores", BOUNDS)[0], due) > 0.1


def test_a_tie_at_the_cut_may_have_been_decided_otherwise() -> None:
    due, found = answer(), answer()
    found["boxes"][0, 39] = 0.5
    rows, given = aligned(found, due, "scores", BOUNDS)
    assert (gap(rows, due), given) == (0, 1)


def test_but_not_for_many_rows() -> None:
    due, found = answer(), answer()
    for each in (due, found):
        each["scores"][:] = 0.5
    found["boxes"][0] = 1 - found["boxes"][0]
    rows, given = aligned(found, due, "scores", BOUNDS)
    assert gap(rows, due) > 0.1
    assert given == 0


def test_a_score_per_class_ranks_by_the_greatest() -> None:
    due, found = answer(), answer()
    for each in (due, found):
        each["scores"] = np.stack([each["scores"], each["scores"] / 2], axis=2)
    found["scores"][0, [1, 2]], found["boxes"][0, [1, 2]] = due["scores"][0, [2, 1]], due["boxes"][0, [2, 1]]
    found["scores"] += np.float32(1e-6)
    assert gap(aligned(found, due, "scores", BOUNDS)[0], due) < 1e-5


def test_rows_in_an_order_of_their_own_are_not_sorted() -> None:
    """By falling score, of every image; by the best class where a row has several."""
    due = answer()
    due["scores"][:, 2] = due["scores"][:, 1]
    assert is_sorted(due, "scores")
    several = {"scores": np.stack([np.zeros_like(due["scores"]), due["scores"]], 2)}
    assert is_sorted(several, "scores")
    due["scores"][1, [5, 6]] = due["scores"][1, [6, 5]]
    assert not is_sorted(due, "scores")
