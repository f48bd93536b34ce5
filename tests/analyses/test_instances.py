"""Masks split into objects: touching ones apart, none cut or counted twice at a block's border, and their shapes."""

import cv2
import numpy as np
import pytest

from gateway.analyses import instances
from gateway.analyses.instances import crofton_perimeters, irregularity, outlines_of, split, splitting_of
from gateway.domain.prompts import UNSPECIFIED, Level, Triple

NUCLEI = splitting_of(Triple(Level.NUCLEI, "nucleus", UNSPECIFIED), 0.25)
GLANDS = splitting_of(Triple(Level.TISSUE, "gland", "colon"), 1.0)


def discs(shape: tuple[int, int], *places: tuple[float, float, float]) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for row, column, radius in places:
        mask |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
    return mask


def outlined(mask: np.ndarray, splitting=NUCLEI, core=None, corner=(0, 0)):
    core = core or (slice(0, mask.shape[0]), slice(0, mask.shape[1]))
    return outlines_of(split(mask, splitting), mask.view(np.uint8) * 255, splitting, (0.25, 0.25), corner, core)


TEN = [(y, x, 10) for y in (30, 130) for x in (25, 73, 121, 169, 217)]
SQUARE = np.zeros((256, 256), bool)
SQUARE[50:90, 50:90] = True
BAR = np.zeros((256, 256), bool)
BAR[50:60, 20:220] = True


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (discs((256, 256), (127.5, 127.5, 20)), 0.002),
        (SQUARE, 0.11),
        (BAR, 0.84),
        (discs((256, 256), *TEN), 0.91),
    ],
)
def test_irregularity_of_known_shapes(mask: np.ndarray, expected: float) -> None:
    area = np.array([np.count_nonzero(mask)], float)
    found = irregularity(area, crofton_perimeters(mask.astype(np.int32), 2)[1:])
    assert found[0] == pytest.approx(expected, abs=0.006)


def test_objects_that_touch_are_parted_and_specks_left_out() -> None:
    mask = discs((200, 300), (100, 100, 14), (100, 125, 14), (40, 200, 20), (150, 250, 2))
    found = outlined(mask)
    assert len(found.area_um2_N) == 3
    assert found.area_um2_N.sum() == pytest.approx((np.count_nonzero(mask) - 13) / 16)
    halves = found.area_um2_N[np.argsort(found.area_um2_N)[:2]]
    assert halves[0] == pytest.approx(halves[1], rel=0.05)
    assert found.probability_N == pytest.approx(1)


def test_pixels_followed_one_by_one_are_split_as_the_whole_picture_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    mask = discs((300, 300), *((*rng.uniform(0, 300, 2), rng.uniform(5, 20)) for _ in range(60)))
    found = []
    for few in (1, mask.size + 1):
        monkeypatch.setattr(instances, "_FEW", few)
        found.append(split(mask, NUCLEI))
    assert np.array_equal(found[0].labels_HW, found[1].labels_HW)
    assert np.array_equal(found[0].marks_M2, found[1].marks_M2)
    assert len(found[0].marks_M2) > 20


def test_distances_of_each_piece_are_those_of_the_whole_picture() -> None:
    rng = np.random.default_rng(6)
    mask = discs((300, 400), *((*rng.uniform(0, 400, 2), rng.uniform(4, 30)) for _ in range(40))).view(np.uint8)
    count, pieces = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    assert count > 5
    at = np.flatnonzero(mask)
    found = instances._heights(mask, pieces, np.arange(1, count), at, pieces.ravel()[at])
    due = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * instances._FIXED
    assert np.array_equal(found, due.astype(np.uint16))


def test_one_wavy_object_stays_one() -> None:
    """Its summits lie less than a pixel above their saddle."""
    assert len(outlined(discs((100, 200), (50, 60, 20), (50, 66, 20), (50, 72, 20))).area_um2_N) == 1


def test_a_thin_object_is_one_too() -> None:
    mask = np.zeros((60, 120), bool)
    mask[30, 10:110] = True
    found = outlined(mask)
    assert len(found.area_um2_N) == 1
    # Its ring goes round the pixels: one through their centres would be a line, which no annotation may be.
    assert found.points_P2.tolist() == [[10, 30], [110, 30], [110, 31], [10, 31]]


def test_a_thin_slanting_object_has_a_ring_too() -> None:
    mask = np.zeros((120, 120), bool)
    mask[np.arange(10, 110), np.arange(10, 110)] = True
    found = outlined(mask)
    assert np.diff(found.first_G, append=len(found.points_P2)).tolist() == [4]


def test_outlines_run_round_the_objects_where_they_lie() -> None:
    mask = discs((100, 100), (50, 40, 15)) & ~discs((100, 100), (50, 40, 6))
    found = outlined(mask, corner=(1000, 2000))
    assert found.object_G.tolist() == [0, 0]  # the outer ring, then the hole
    outer = found.points_P2[: found.first_G[1]]
    assert outer.min(axis=0) == pytest.approx([2025.5, 1035.5])
    assert outer.max(axis=0) == pytest.approx([2055.5, 1065.5])


def test_no_object_is_cut_or_counted_twice_wherever_the_blocks_lie() -> None:
    """A crowded picture split at once, and by blocks whose borders lie anywhere: the same objects."""
    rng = np.random.default_rng(4)
    places = [(*rng.uniform(150, 850, 2), rng.uniform(7, 14)) for _ in range(450)]
    mask = discs((1000, 1000), *places)
    expected = outlined(mask)
    reach = NUCLEI.reach_px
    padded = np.pad(mask, reach + 500)
    for first in (-217, -64):
        areas, edges = [], []
        for top in range(first, 1000, 333):
            for left in range(first, 1000, 333):
                y, x = top + 500, left + 500
                part = padded[y : y + 333 + 2 * reach, x : x + 333 + 2 * reach]
                core = slice(reach, reach + 333)
                found = outlined(part.copy(), core=(core, core), corner=(top - reach, left - reach))
                areas += found.area_um2_N.tolist()
                edges.append(found.points_P2)
        assert sorted(areas) == pytest.approx(sorted(expected.area_um2_N.tolist()))
        points = {tuple(point) for batch in edges for point in batch.tolist()}
        assert points == {tuple(point) for point in expected.points_P2.tolist()}


def test_glands_are_parted_at_their_necks_only() -> None:
    lobed = discs((600, 600), (300, 250, 80), (300, 330, 80), (260, 290, 70))
    assert len(outlined(lobed, GLANDS).area_um2_N) == 1
    dumbbell = discs((600, 600), (300, 150, 90), (300, 400, 90))
    dumbbell[295:305, 150:400] = True
    found = outlined(dumbbell, GLANDS)
    assert len(found.area_um2_N) == 2
    assert found.area_um2_N.sum() * 16 == pytest.approx(np.count_nonzero(dumbbell), rel=0.01)


def test_only_what_comes_in_pieces_is_counted() -> None:
    assert splitting_of(Triple(Level.TISSUE, "tumor", "breast"), 1.0) is None
    fine = splitting_of(Triple(Level.CELL, "epithelial", "colon"), 0.5)
    assert (fine.h_px, fine.least_px) == (0.5, 9)
