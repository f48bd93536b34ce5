"""Synthetic bags: of one class beside NILM, in the shares that are told, and of cells of one part only."""

import numpy as np
import pytest

from gateway.domain.bethesda import AGC, SCC
from gateway.slides.cells import Cells, best_of_each_class, merged
from training.data.split import PARTS
from training.errors import LeakageRefused, TaskInvalid
from training.smartccs.bags import FLAT, Bag, bags, by_part, surest
from training.smartccs.data import DISTRACTOR, UNKNOWN

pytestmark = pytest.mark.training

CLASSES = np.repeat([0, 1, 2, 3, 4, 6, DISTRACTOR, UNKNOWN], 60)
GROUPS = np.array([f"block {number % 6}" for number in range(len(CLASSES))])
SIDES = np.array([PARTS[number % 6 % 3] for number in range(len(CLASSES))])


def test_bags_hold_what_their_class_allows_and_no_class_is_dropped() -> None:
    made = bags(CLASSES, np.arange(len(CLASSES)), 600, np.random.default_rng(1), FLAT)
    assert {bag.label for bag in made} == {0, 1, 2, 3, 4, AGC}  # there is no cell of SCC, and so no bag
    for bag in made:
        kinds = CLASSES[bag.cells_K]
        assert 40 <= len(kinds) <= 200
        assert set(kinds.tolist()) <= {0, DISTRACTOR, bag.label}
        share = float((kinds == bag.label).mean()) if bag.label else 0.0
        assert share == pytest.approx(bag.fraction)
        assert bag.label == 0 or 1 / len(kinds) <= share <= 0.3 + 1 / len(kinds)
    shares = [bag.fraction for bag in made if bag.label]
    assert np.mean(shares) == pytest.approx(1.2 / 9.2, abs=0.015)


@pytest.mark.parametrize("unknown", [False, True])
def test_the_rest_of_a_bag_tells_nothing_of_its_class(unknown: bool) -> None:
    made = bags(CLASSES, np.arange(len(CLASSES)), 900, np.random.default_rng(4), FLAT, unknown=unknown)
    others = [DISTRACTOR, UNKNOWN] if unknown else [DISTRACTOR]
    for abnormal in (False, True):
        kinds = np.concatenate([CLASSES[bag.cells_K] for bag in made if bool(bag.label) == abnormal])
        rest = kinds[np.isin(kinds, [0, DISTRACTOR, UNKNOWN])]
        for kind in others:
            assert (rest == kind).mean() == pytest.approx(1 / (1 + len(others)), abs=0.01)
        assert unknown or UNKNOWN not in rest


def test_prevalence_keeps_its_proportions_where_a_class_has_no_cells() -> None:
    made = bags(CLASSES, np.arange(len(CLASSES)), 4000, np.random.default_rng(2))
    found = np.bincount([bag.label for bag in made], minlength=7) / len(made)
    assert found[SCC] == 0
    assert found == pytest.approx(np.array([0.75, 0.1, 0.06, 0.02, 0.04, 0, 0.02]) / 0.99, abs=0.02)


def test_parts_share_no_group_of_cells() -> None:
    made = by_part(CLASSES, GROUPS, SIDES, dict.fromkeys(PARTS, 30), seed=5)
    groups = [{group for bag in made[part] for group in GROUPS[bag.cells_K]} for part in PARTS]
    assert [len(found) for found in groups] == [2, 2, 2]
    assert len(set.union(*groups)) == 6
    again = by_part(CLASSES, GROUPS, SIDES, {"test": 30}, seed=5)
    assert all(np.array_equal(a.cells_K, b.cells_K) for a, b in zip(made["test"], again["test"], strict=True))
    leaked = SIDES.copy()
    leaked[0] = "test"
    with pytest.raises(LeakageRefused, match="block 0 stand in the parts test and train"):
        by_part(CLASSES, GROUPS, leaked, {"test": 1}, seed=5)


def test_bags_without_nilm_cells_are_refused() -> None:
    with pytest.raises(TaskInvalid, match="NILM"):
        bags(np.array([1, 2]), np.arange(2), 1, np.random.default_rng(0))


def test_known_labels_stand_also_where_no_cell_of_a_class_was_found() -> None:
    classes_N = np.repeat([0, 4], [60, 30])
    made = bags(classes_N, np.arange(90), 5, np.random.default_rng(3), labels=[4, 0, SCC, SCC, 4])
    assert [bag.label for bag in made] == [4, 0, SCC, SCC, 4]
    assert [(classes_N[bag.cells_K] > 0).any() for bag in made] == [True, False, False, False, True]
    assert [bag.fraction > 0 for bag in made] == [True, False, False, False, True]


def test_a_bag_of_detections_is_what_a_served_slide_is_answered_from() -> None:
    found_N = np.array([0, 0, 0, 2, 2, 5, -1])
    scores_N = np.array([0.3, 0.9, 0.5, 0.4, 0.8, 0.6, 1.0])
    bag = Bag(4, np.array([0, 1, 2, 3, 4, 5, 1]), 0.5)
    kept = surest(bag, found_N, scores_N, 2)
    assert kept.cells_K.tolist() == [1, 4, 5, 2, 3]
    boxes_N4 = np.tile([0.0, 0.0, 9.0, 9.0], (6, 1)) + np.arange(6)[:, None] * 20
    cells = merged([Cells(boxes_N4, scores_N[:6], found_N[:6], np.zeros(6, np.int64))], 0.75)
    served = best_of_each_class(cells, 2)
    assert served.scores_N.tolist() == scores_N[kept.cells_K].tolist()
    annotated = Bag(0, np.array([6, 6]), 0.0)
    assert surest(annotated, found_N, scores_N, 2).cells_K.tolist() == [6, 6]
