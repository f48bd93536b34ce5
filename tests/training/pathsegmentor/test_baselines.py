"""Baselines that need no network: the stain's threshold, box oracles, the fitted test of absence."""

import numpy as np
import pytest
from scipy import stats

from training.pathsegmentor.baselines import (
    ABSENT_BELOW,
    BetaTest,
    box_instances,
    box_union,
    mask_statistics,
    otsu,
)
from training.pathsegmentor.descriptors import dice, instances

EOSIN, HAEMATOXYLIN = (230, 150, 190), (80, 60, 140)


def test_otsu_finds_haematoxylin_and_not_dark_eosin():
    image = np.full((64, 64, 3), EOSIN, np.uint8)
    nucleus = np.zeros((64, 64), bool)
    nucleus[20:40, 20:40] = True
    image[nucleus] = HAEMATOXYLIN
    image[50:60, 5:60] = (190, 40, 110)  # much eosin
    assert dice(otsu(image), nucleus) == 1.0


def test_otsu_of_one_colour_is_empty():
    assert not otsu(np.full((16, 16, 3), EOSIN, np.uint8)).any()


def test_boxes_of_all_and_of_each():
    truth = np.zeros((40, 40), bool)
    truth[2:12, 2:12] = np.tri(10, dtype=bool)
    truth[28:38, 28:38] = np.tri(10, dtype=bool)
    each, union = box_instances(truth, instances(truth)), box_union(truth)
    assert (each.sum(), union.sum()) == (200, 36 * 36)
    assert dice(each, truth) > dice(union, truth) > 0
    assert not box_union(np.zeros((5, 5), bool)).any()


def test_what_belongs_to_no_instance_is_its_own_box():
    truth = np.zeros((20, 20), bool)
    truth[0, :3] = True  # too small to count as an instance
    np.testing.assert_array_equal(box_instances(truth, instances(truth)), truth)


def test_the_p_value_is_that_of_a_kolmogorov_smirnov_test_of_one_observation():
    rng = np.random.default_rng(3)
    rows = rng.beta((9, 5, 3, 4), (2, 5, 6, 4), (200, 4))
    test = BetaTest.fit(["nucleus"] * 200, rows)
    asked = np.array([0.7, 0.5, 0.3, 0.4])
    each = [
        stats.ks_1samp([v], stats.beta(*ab).cdf).pvalue for v, ab in zip(asked, test.shapes["nucleus"], strict=True)
    ]
    assert test.p("nucleus", asked) == pytest.approx(np.prod(each) ** 0.25)
    called = [test.p("nucleus", row) < ABSENT_BELOW for row in rows]
    assert np.mean(called) < 0.05
    assert test.p("nucleus", np.array([0.05, 0.99, 0.99, 0.99])) < ABSENT_BELOW


def test_an_empty_mask_is_absent_and_an_unknown_prompt_is_never_called_so():
    test = BetaTest.fit(["gland"] * 3, np.full((3, 4), 0.5))
    assert test.shapes == {}
    nothing = mask_statistics(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), np.zeros((4, 4), bool))
    assert test.p("gland", nothing) == 0.0
    assert test.p("gland", np.full(4, 0.01)) == 1.0


def test_statistics_are_means_inside_the_mask():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = (255, 51, 0)
    mask = np.array([[True, False], [False, False]])
    np.testing.assert_allclose(mask_statistics(image, np.full((2, 2), 0.9), mask), [0.9, 1.0, 0.2, 0.0])
