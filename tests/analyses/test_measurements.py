"""Figures of a prompt's objects."""

import numpy as np
import pytest

from gateway.analyses.measurements import figures_of
from gateway.analyses.outline_codec import packed, unpacked
from gateway.reports.spatial import Outlines


def batch(areas: list[float], irregular: list[float]) -> Outlines:
    count = len(areas)
    return Outlines(
        points_P2=np.arange(6 * count, dtype=np.float32).reshape(-1, 2),
        first_G=np.arange(0, 3 * count, 3, dtype=np.int64),
        object_G=np.arange(count, dtype=np.int32),
        area_um2_N=np.array(areas, np.float32),
        irregularity_N=np.array(irregular, np.float32),
        probability_N=np.full(count, 0.75, np.float32),
    )


def test_figures_are_those_of_all_batches() -> None:
    figures = figures_of([batch([10, 20], [0, 0.5]), batch([30], [1])], tissue_mm2=0.5)
    assert (figures.count, figures.density_per_mm2, figures.mean_area_um2) == (3, 6, 20)
    assert (figures.area_p10_um2, figures.area_median_um2, figures.area_p90_um2) == pytest.approx((12, 20, 28))
    assert figures.irregularity == pytest.approx((20 * 0.5 + 30) / 60)
    assert figures.approximate


def test_no_objects_have_figures_too() -> None:
    """They were counted: there is none."""
    figures = figures_of([], tissue_mm2=1.0)
    assert (figures.count, figures.density_per_mm2) == (0, 0)
    sizes = figures.mean_area_um2, figures.area_p10_um2, figures.area_median_um2, figures.area_p90_um2
    assert {*sizes, figures.irregularity} == {None}


def test_outlines_come_back_as_they_were() -> None:
    given = batch([10, 20], [0, 0.5])
    back = unpacked(packed(given))
    for name in ("points_P2", "first_G", "object_G", "area_um2_N", "irregularity_N", "probability_N"):
        assert np.array_equal(getattr(back, name), getattr(given, name)), name
