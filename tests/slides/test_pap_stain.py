"""The stain gate: Papanicolaou is accepted, of other laboratories too; H&E, Giemsa and glass are not."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gateway.slides import Slide, find_tissue, pap_stain, plan_tiles, quality, stream_tiles
from gateway.slides.pap_stain import judge
from gateway.slides.rescale import rescaled
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import plan_windows
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


def of_slide(folder: Path, mpp: float = 1.0) -> pap_stain.StainVerdict:
    """Of the pixels that are kept of a slide's tiles, as an analysis judges them."""
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=mpp, tile_px=128)
        rows = [quality.measure(batch.images_BHWC) for batch in stream_tiles(slide, plan, batch=32)]
    return judge(quality.colours(np.concatenate(rows)))


def as_screened(folder: Path) -> pap_stain.StainVerdict:
    """Of the windows that a detector of cells reads, enlarged where the slide is coarser."""
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        plan = plan_windows(
            slide, find_tissue(slide), mpp=0.375, side_px=512, region=None, min_tissue=0.25, overlap_px=0
        )
        rows = [quality.measure(batch.images_BHWC) for batch in stream_windows(slide, plan, batch=8, resize=rescaled)]
    return judge(quality.colours(np.concatenate(rows)))


@pytest.mark.parametrize("read", [of_slide, as_screened])
def test_a_real_slide_in_haematoxylin_and_eosin_is_refused(
    cmu_slide: Path, read: Callable[[Path], pap_stain.StainVerdict]
) -> None:
    verdict = read(cmu_slide)
    assert verdict.verdict == "other"
    assert verdict.counterstain_share < 0.05 / 2
    assert verdict.spread_deg < 100 - 10


def test_a_second_real_slide_in_haematoxylin_and_eosin_is_refused(metaplasia_slide: Path) -> None:
    verdict = of_slide(metaplasia_slide, mpp=4.0)
    assert verdict.verdict == "other"
    assert verdict.counterstain_share < 0.05 / 2
    assert verdict.spread_deg < 65 - 10


def test_a_real_slide_in_papanicolaou_is_accepted_whatever_its_specimen() -> None:
    assert of_slide(data_path("slides", "csf_breast_pap")).verdict == "papanicolaou"


def of_hues(*parts: tuple[float, float]) -> np.ndarray:
    """(1000, 3): glass is not among them; each part is a share and the hue that it has, in degrees."""
    hues_P = np.radians(np.repeat([hue for _, hue in parts], [round(1000 * share) for share, _ in parts]))
    across_P, up_P = 0.3 * np.cos(hues_P), 0.3 * np.sin(hues_P)
    density_P3 = 0.3 + np.stack(
        [across_P * 2 / 3, -across_P / 3 + up_P / np.sqrt(3), -across_P / 3 - up_P / np.sqrt(3)], axis=1
    )
    return np.rint(245 * 10**-density_P3).astype(np.uint8)


@pytest.mark.parametrize(
    ("parts", "share", "spread_deg", "verdict"),
    [
        # Green, or orange, but for the nuclei.
        (((0.6, 5), (0.4, 45)), 0.6, 40, "papanicolaou"),
        (((0.59, 162), (0.41, 188)), 0.41, 26, "papanicolaou"),
        (((0.59, 172), (0.41, 188)), 0.41, 16, "other"),
        # A fifth: between the two ends, 46 degrees.
        (((0.8, 135), (0.2, 185)), 0.2, 50, "papanicolaou"),
        (((0.8, 143), (0.2, 185)), 0.2, 42, "other"),
        # Some of another hue than H&E's.
        (((0.94, 115), (0.06, 185)), 0.06, 70, "papanicolaou"),
        (((0.9, 105), (0.06, 179), (0.04, 185)), 0.04, 74, "other"),
        (((0.94, 125), (0.06, 185)), 0.06, 60, "other"),
        # None, with counterstains at either end of H&E's hues or not.
        (((0.5, 45), (0.5, 150)), 0, 105, "papanicolaou"),
        (((0.5, 60), (0.5, 155)), 0, 95, "other"),
    ],
)
def test_the_fewer_counterstains_are_seen_the_farther_apart_the_hues_must_lie(
    parts: tuple[tuple[float, float], ...], share: float, spread_deg: float, verdict: str
) -> None:
    found = judge(of_hues(*parts))
    assert found.verdict == verdict
    assert found.counterstain_share == pytest.approx(share)
    assert found.spread_deg == pytest.approx(spread_deg, abs=2)


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
