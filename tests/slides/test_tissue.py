"""Tissue: found where it is, and nowhere else."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from gateway.operations.errors import NoTissue
from gateway.slides import Slide, find_tissue, tissue_and_pen
from gateway.slides.tissue import tissue_of_picture
from tests.support.screening import write_smear

UM = 8.0
PINK, PURPLE = (225, 150, 195), (130, 80, 160)


def glass(white: tuple[int, int, int] = (243, 243, 244), noise: float = 2.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    picture = np.array(white) + rng.normal(0, noise, (400, 500, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def with_tissue(picture: np.ndarray, color: tuple[int, int, int] = PINK) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.ellipse(mask, (250, 200), (120, 90), 20, 0, 360, 1, -1)
    picture = picture.copy()
    picture[mask == 1] = np.clip(np.array(color) + picture[mask == 1].astype(int) - picture.mean(axis=(0, 1)), 0, 255)
    return picture, mask.astype(bool)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("coverage", [0.05, 0.35, 0.7])
def test_phantom_tissue_is_found(make_phantom, coverage):
    truth = make_phantom(4000, 3000, coverage=coverage, seed=4)
    with Slide.open(truth.files) as slide:
        found = find_tissue(slide)
    expected = truth.mask(found.um_per_px)
    assert found.mask.shape == expected.shape
    assert overlap(found.mask, expected) > 0.9
    assert found.area_mm2 == pytest.approx(truth.tissue_area_mm2, rel=0.08)


def test_slide_without_tissue(make_phantom):
    with Slide.open(make_phantom(tissue=False).files) as slide, pytest.raises(NoTissue):
        find_tissue(slide)


def test_real_slide(real_files):
    with Slide.open(real_files) as slide:
        found = find_tissue(slide)
        picture = slide.overview(8.0)[0]
    # Looked at: the strip of skin covers a bit less than half of the region.
    assert 0.45 < found.area_mm2 < 0.65
    assert picture[found.mask].mean() < 200
    assert picture[~found.mask].mean() > 225


@pytest.mark.parametrize("white", [(255, 255, 255), (243, 243, 244), (225, 225, 225), (240, 235, 225), (215, 220, 222)])
@pytest.mark.parametrize("color", [PINK, PURPLE])
def test_white_grey_and_tinted_glass(white, color):
    empty = glass(white)
    assert not tissue_of_picture(empty, UM).any()
    picture, mask = with_tissue(empty, color)
    assert overlap(tissue_of_picture(picture, UM), mask) > 0.95


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_compression_noise_on_glass_is_no_tissue(quality):
    _, data = cv2.imencode(".jpg", glass(noise=4.0), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert not tissue_of_picture(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), UM).any()


def test_picture_full_of_tissue():
    picture = np.full((400, 500, 3), PINK, np.uint8)
    picture[::3, ::4] = PURPLE
    assert tissue_of_picture(picture, UM).mean() > 0.99


def test_shadow_and_edge_of_the_coverslip_are_no_tissue():
    picture, mask = with_tissue(glass())
    shaded = picture.astype(float)
    shaded[:, :100] *= np.linspace(0.6, 1, 100)[None, :, None]
    shaded[380:384] *= 0.55
    assert overlap(tissue_of_picture(shaded.astype(np.uint8), UM), mask) > 0.93


@pytest.mark.parametrize("ink", [(20, 20, 25), (20, 40, 160), (10, 120, 60), (200, 30, 40)])
def test_pen_marks_are_no_tissue(ink):
    picture, mask = with_tissue(glass())
    cv2.line(picture, (20, 20), (470, 60), ink, 14)
    found = tissue_of_picture(picture, UM)
    assert overlap(found, mask) > 0.9


def test_dust_is_dropped_and_small_gaps_are_filled():
    picture, mask = with_tissue(glass())
    for x in range(20, 480, 40):
        picture[20:22, x : x + 2] = PURPLE
    picture[195:203, 245:253] = 243
    found = tissue_of_picture(picture, UM)
    assert not found[:60].any()
    assert found[190:210, 240:260].all()
    assert overlap(found, mask) > 0.95


def test_large_gaps_stay_glass():
    picture, _ = with_tissue(glass())
    picture[170:230, 220:280] = 243
    assert not tissue_of_picture(picture, UM)[185:215, 235:265].any()


def small_cells(diameter_um: float, noise: float = 2.0) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Cells that lie alone on glass, blue-green and orange, at 8 µm a pixel with soft edges; and where they lie."""
    fine = 8
    picture = np.full((400 * fine, 500 * fine, 3), (243, 243, 244), np.uint8)
    places = [(row, column) for row in range(40, 400, 80) for column in range(40, 500, 80)]
    for number, (row, column) in enumerate(places):
        color = ((150, 208, 214), (240, 176, 120))[number % 2]
        middle = (column * fine + number % fine, row * fine + number // fine)
        cv2.circle(picture, middle, round(diameter_um / 2), color, -1, cv2.LINE_AA)
    picture = cv2.resize(picture, (500, 400), interpolation=cv2.INTER_AREA).astype(float)
    picture += np.random.default_rng(5).normal(0, noise, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), places


@pytest.mark.parametrize("diameter_um", [16, 20, 30])
def test_cells_that_lie_alone_are_found_where_they_are_asked_for(diameter_um: float) -> None:
    picture, places = small_cells(diameter_um)
    found = tissue_of_picture(picture, UM, 64e-6)
    assert all(found[row - 3 : row + 4, column - 3 : column + 4].any() for row, column in places)
    assert found.sum() < len(places) * 100
    assert not tissue_of_picture(picture, UM).any()


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_compression_noise_is_no_cell(quality: int) -> None:
    _, data = cv2.imencode(".jpg", glass(noise=4.0), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert not tissue_of_picture(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), UM, 64e-6).any()


@pytest.mark.parametrize("ink", [(20, 20, 25), (20, 40, 160)])
def test_pen_is_known_where_nothing_else_is(ink: tuple[int, int, int], tmp_path: Path) -> None:
    folder = write_smear(tmp_path, np.full((1600, 1600, 3), ink, np.uint8))
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        found = tissue_and_pen(slide)
    assert (found.area_mm2, found.pen_area_mm2) == (0, pytest.approx(0.16))
