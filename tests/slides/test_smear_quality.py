"""A smear's figures: each damage raises its own and leaves the others; cells are counted; tiles do not touch."""

import csv
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
import pytest

from gateway.slides import smear_quality
from gateway.slides.smear_quality import SmearFigures, measure, summarise
from tests.conftest import data_path
from tests.support.smears import MPP, TILE_UM2, smear
from training.smartccs import damage

SHARES = ("obscured_share", "blood_share", "blurred_share", "air_dried_share", "pen_share", "empty_share")


@cache
def tiles(cells: int = 14) -> np.ndarray:
    return np.stack([smear(cells, seed) for seed in range(4)])


def figures(change: Callable[[np.ndarray], np.ndarray] | None = None, cells: int = 14) -> SmearFigures:
    """Of four drawn tiles, changed."""
    pictures = tiles(cells) if change is None else np.stack([change(tile) for tile in tiles(cells)])
    return summarise(measure(pictures, MPP), TILE_UM2)


def raised(changed: SmearFigures) -> set[str]:
    """The shares that are far above those of the same tiles as they were drawn."""
    drawn = figures()
    return {share for share in SHARES if getattr(changed, share) > getattr(drawn, share) + 0.25}


def test_a_good_smear_lacks_nothing() -> None:
    drawn = figures()
    assert max(getattr(drawn, share) for share in SHARES) < 0.15, drawn


@pytest.mark.parametrize(
    ("change", "own"),
    [
        (lambda tile: damage.blurred(tile, MPP), {"blurred_share"}),
        (lambda tile: damage.bloody(tile, MPP, 1.0, 0.2), {"blood_share", "obscured_share"}),
        (lambda tile: damage.bloody(tile, MPP, 3.0, 2.0), {"blood_share", "obscured_share"}),
        (lambda tile: damage.air_dried(tile, MPP), {"air_dried_share"}),
        (lambda tile: damage.marked(tile, MPP, "blue"), {"pen_share"}),
        (lambda tile: damage.marked(tile, MPP, "green"), {"pen_share"}),
        (lambda tile: damage.marked(tile, MPP, "black"), {"pen_share"}),
        (lambda tile: np.full_like(tile, 243), {"empty_share"}),
        (lambda tile: damage.giemsa(tile, MPP), set()),
    ],
    ids=["blur", "blood", "thick blood", "air drying", "blue pen", "green pen", "black pen", "empty", "Giemsa"],
)
def test_a_damage_raises_its_own_figure_and_no_other(change: Callable[[np.ndarray], np.ndarray], own: set[str]) -> None:
    assert raised(figures(change)) == own


def test_real_smears_lack_nothing() -> None:
    """Six fields of CRIC, of six blocks, and the nuclei that are annotated in their upper left tiles."""
    names, nuclei = ("cric_178", "cric_102", "cric_002", "cric_189", "cric_194", "cric_003"), 0
    folder = data_path("cytology_cric")
    with (folder / "cells.csv").open(newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            inside = max(float(row["x"]), float(row["y"])) * 0.245 / MPP < 512
            nuclei += inside and row["file_name"].removesuffix(".jpg") in names
    fields = [cv2.cvtColor(cv2.imread(str(folder / "images" / f"{name}.jpg")), cv2.COLOR_BGR2RGB) for name in names]
    scale = {"fx": 0.245 / MPP, "fy": 0.245 / MPP, "interpolation": cv2.INTER_AREA}
    pictures = np.stack([cv2.resize(field, None, **scale)[:512, :512] for field in fields])
    found = summarise(measure(pictures, MPP), TILE_UM2)
    assert max(getattr(found, share) for share in SHARES) < 0.4, found
    assert nuclei / 2 < found.squamous_cells < 2 * nuclei


def test_cells_are_counted_and_hidden_ones_are_not() -> None:
    few, many = figures(cells=5), figures(cells=15)
    assert many.squamous_cells > 2 * few.squamous_cells > 0
    assert figures(lambda tile: damage.bloody(tile, MPP)).squamous_cells < 0.2 * figures().squamous_cells
    assert figures(lambda tile: np.full_like(tile, 243)).squamous_cells == 0


def test_red_cells_and_leucocytes_are_no_squamous_cells() -> None:
    glass = np.full((512, 512, 3), 243, np.uint8)
    blood = summarise(measure(damage.bloody(glass, MPP, 0.1, 0.0)[None], MPP), TILE_UM2)
    assert blood.stained_area_um2 > 0.05 * TILE_UM2
    assert blood.squamous_cells <= 1
    assert blood.blood_share > 0.7


def test_a_row_is_of_its_own_tile_alone() -> None:
    rows = measure(tiles(), MPP)
    assert rows.shape == (4, smear_quality.WIDTH)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[2], measure(tiles()[2:3], MPP)[0])
    assert len(measure(tiles()[:0], MPP)) == 0


def test_figures_do_not_depend_on_the_scale_that_a_slide_was_read_at() -> None:
    at = figures()
    coarse = summarise(measure(tiles()[:, ::2, ::2].copy(), 2 * MPP), TILE_UM2)
    assert coarse.squamous_cells == pytest.approx(at.squamous_cells, rel=0.1)
    assert coarse.stained_area_um2 == pytest.approx(at.stained_area_um2, rel=0.1)


def test_shares_are_of_what_is_stained() -> None:
    """An empty tile beside a bad one changes no share but its own."""
    bad = measure(np.stack([damage.blurred(tile, MPP) for tile in tiles()]), MPP)
    empty = measure(np.full((4, 512, 512, 3), 243, np.uint8), MPP)
    both = summarise(np.concatenate([bad, empty]), TILE_UM2)
    assert both.blurred_share == summarise(bad, TILE_UM2).blurred_share == 1.0
    assert both.empty_share == 0.5


def test_strokes_found_with_the_tissue_count_as_pen() -> None:
    rows = measure(tiles(), MPP)
    stained_mm2 = summarise(rows, TILE_UM2).stained_area_um2 / 1e6
    assert summarise(rows, TILE_UM2, pen_area_mm2=stained_mm2).pen_share == pytest.approx(0.5)


def test_a_slide_without_a_tile_has_figures() -> None:
    none = summarise(np.empty((0, smear_quality.WIDTH), np.float32), TILE_UM2)
    assert (none.squamous_cells, none.empty_share, none.obscured_share) == (0, 1.0, 0.0)
