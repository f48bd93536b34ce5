"""Outlines of a mask, and how they stay few."""

import cv2
import numpy as np
import pytest

from gateway.analyses import shown_mask
from gateway.analyses.shown_mask import polygons_of


def filled(polygons, shape: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [np.rint(np.array(ring) - 0.5).astype(np.int32) for ring in polygon], 1)
    return canvas > 0


def test_what_touches_by_a_corner_stays_apart_and_a_hole_is_a_hole() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:10, 2:10] = True
    mask[4:7, 4:7] = False
    mask[10:12, 10:12] = True
    mask[15, 15] = True
    polygons, tolerance_um = polygons_of(mask, (100.0, 50.0), (0.5, 0.25))
    assert sorted(len(polygon) for polygon in polygons) == [1, 1, 2]
    assert tolerance_um == 0.25
    speck = np.array(min((polygon[0] for polygon in polygons), key=lambda ring: np.ptp(np.array(ring)[:, 0])))
    assert speck.min(axis=0) == pytest.approx((107.5, 53.75), abs=0.1)
    assert speck.max(axis=0) == pytest.approx((108.0, 54.0), abs=0.1)


def test_no_mask_has_more_corners_than_a_viewer_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown_mask, "MOST_CORNERS", 400)
    mask = np.zeros((256, 256), bool)
    mask[::4, ::4] = mask[1::4, ::4] = mask[::4, 1::4] = mask[1::4, 1::4] = True
    mask[100:200, 100:200] = True
    polygons, tolerance_um = polygons_of(mask, (0.0, 0.0), (1.0, 1.0))
    corners = sum(len(ring) - 1 for polygon in polygons for ring in polygon)
    assert 3 <= corners <= 400
    assert tolerance_um > 0.5
    shown, square = filled(polygons, mask.shape), np.zeros_like(mask)
    square[100:200, 100:200] = True
    assert (shown & square).sum() > 0.9 * square.sum()
    assert (shown & ~square).sum() < 0.1 * square.sum()
