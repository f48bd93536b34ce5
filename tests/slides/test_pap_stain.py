"""The stain gate: Papanicolaou is accepted, of other laboratories too; H&E, Giemsa and glass are not."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gateway.slides import Slide, find_tissue, pap_stain, plan_tiles, quality, stream_tiles
from gateway.slides.pap_stain import judge
from tests.conftest import data_path
from tests.support.smears import smear
from training.smartccs.centres import CENTRES, GIEMSA


@cache
def pixels(change: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """(P, 3) from all over three drawn tiles, changed."""
    tiles = [smear(seed=seed) for seed in range(3)]
    return np.concatenate([(tile if change is None else change(tile))[::4, ::4].reshape(-1, 3) for tile in tiles])


def test_papanicolaou_is_accepted() -> None:
    verdict = judge(pixels())
    assert verdict.verdict == "papanicolaou"
    assert verdict.counterstain_share > 0.3


@pytest.mark.parametrize("centre", CENTRES)
def test_other_laboratories_are_accepted(centre: str) -> None:
    assert judge(pixels(CENTRES[centre])).verdict == "papanicolaou"


def test_giemsa_is_refused() -> None:
    verdict = judge(pixels(GIEMSA))
    assert verdict.verdict == "other"
    assert verdict.counterstain_share < 0.01


def of_slide(folder: Path) -> pap_stain.StainVerdict:
    """Of the pixels that are kept of a slide's tiles, as an analysis judges them."""
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=1.0, tile_px=128)
        rows = [quality.measure(batch.images_BHWC) for batch in stream_tiles(slide, plan, batch=32)]
    return judge(quality.colours(np.concatenate(rows)))


def test_a_real_slide_in_haematoxylin_and_eosin_is_refused(cmu_slide: Path) -> None:
    verdict = of_slide(cmu_slide)
    assert verdict.verdict == "other"
    assert verdict.counterstain_share < pap_stain.LEAST_COUNTERSTAIN / 2


def test_a_real_slide_in_papanicolaou_is_accepted_whatever_its_specimen() -> None:
    assert of_slide(data_path("slides", "csf_breast_pap")).verdict == "papanicolaou"


def test_one_hue_alone_is_not_papanicolaou() -> None:
    """Orange and green lie outside H&E, yet a slide all of one hue may be anything."""
    for colour in ((230, 150, 60), (120, 210, 200)):
        verdict = judge(np.tile(np.array([colour], np.uint8), (1000, 1)))
        assert (verdict.verdict, verdict.counterstain_share, verdict.spread_deg) == ("other", 1.0, 0.0)


@pytest.mark.parametrize("tint", [(255, 255, 255), (240, 230, 205), (215, 225, 235)])
def test_the_colour_of_the_glass_is_allowed_for(tint: tuple[int, int, int]) -> None:
    tinted = np.rint(pixels() * (np.array(tint) / 255)).astype(np.uint8)
    refused = np.rint(pixels(GIEMSA) * (np.array(tint) / 255)).astype(np.uint8)
    assert (judge(tinted).verdict, judge(refused).verdict) == ("papanicolaou", "other")


@pytest.mark.parametrize("level", [60, 150])
def test_grey_is_no_stain(level: int) -> None:
    glass = np.full((500, 3), 243, np.uint8)
    for grey in (20, 5000):
        assert judge(np.concatenate([glass, np.full((grey, 3), level, np.uint8)])).verdict == "colourless"


@pytest.mark.parametrize("seen", [5000, 200_000])
def test_noisy_grey_is_no_stain_however_large_the_slide_is(seen: int) -> None:
    """Its noise has hues enough to be judged by, scattered over the whole circle."""
    noisy = np.random.default_rng(0).normal(120, 9, (seen, 3)).round().astype(np.uint8)
    verdict = judge(np.concatenate([np.full((seen, 3), 243, np.uint8), noisy]))
    assert verdict.stained > pap_stain.LEAST_PIXELS
    assert (verdict.verdict, verdict.counterstain_share, verdict.spread_deg) == ("colourless", 0.0, 0.0)


def test_a_slide_is_judged_by_its_hues_from_the_least_share_of_coloured_pixels_on() -> None:
    coloured = np.tile(np.array([[230, 150, 60]], np.uint8), (1000, 1))
    for greys, verdict in ((3000, "other"), (3001, "colourless")):
        assert judge(np.concatenate([coloured, np.full((greys, 3), 120, np.uint8)])).verdict == verdict


def test_too_little_to_judge() -> None:
    stained = np.tile(np.array([[230, 150, 60]], np.uint8), (pap_stain.LEAST_PIXELS - 1, 1))
    glass = np.full((5000, 3), 243, np.uint8)
    for colours in (np.empty((0, 3), np.uint8), glass, stained, np.concatenate([glass, stained])):
        assert judge(colours).verdict == "too little"
