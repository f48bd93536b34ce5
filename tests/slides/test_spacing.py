"""Pixel spacing: what is missing, absurd or contradicts itself is said or refused, never guessed."""

import pydicom
import pytest

from gateway.operations.errors import InvalidSlide, MissingPixelSpacing
from gateway.slides import Slide
from tests.slides.made import full, picture

IMAGE = picture(150, 130)


def slide(path, *, spacing=(0.0005, 0.0005), name="a", image=IMAGE, **values):
    file = full(path / f"{name}.dcm", image, (64, 64), **values)
    dataset = pydicom.dcmread(file)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    if spacing is None:
        del measures.PixelSpacing
    else:
        measures.PixelSpacing = list(spacing)
    dataset.save_as(file)
    return file


def test_the_size_of_the_imaged_volume_confirms_it(tmp_path):
    with Slide.open([slide(tmp_path, ImagedVolumeWidth=0.075, ImagedVolumeHeight=0.065)]) as opened:
        assert "size-contradicted" not in {remark.key for remark in opened.remarks}
    # Which side is called width depends on how the slide lay; writers differ.
    with Slide.open([slide(tmp_path, ImagedVolumeWidth=0.065, ImagedVolumeHeight=0.075)]) as opened:
        assert "size-contradicted" not in {remark.key for remark in opened.remarks}


@pytest.mark.parametrize("width", [0.085, 0.066])
def test_a_size_that_is_a_little_off_is_said(tmp_path, width):
    file = slide(tmp_path, ImagedVolumeWidth=width, ImagedVolumeHeight=0.065)
    with Slide.open([file]) as opened:
        [text] = [remark.text for remark in opened.remarks if remark.key == "size-contradicted"]
        assert "contradicts" in text
        assert opened.levels[0].mpp == pytest.approx(0.5)


@pytest.mark.parametrize("factor", [0.5, 2, 1000])
def test_a_size_of_another_magnification_is_refused(tmp_path, factor):
    file = slide(tmp_path, ImagedVolumeWidth=0.075 * factor, ImagedVolumeHeight=0.065 * factor)
    with pytest.raises(MissingPixelSpacing, match="contradicts"):
        Slide.open([file])


@pytest.mark.parametrize("spacing", [None, (0, 0), (0.0005, 0), (-0.0005, -0.0005), (0.5, 50), (1e-9, 1e-9)])
def test_spacing_that_cannot_be(tmp_path, spacing):
    with pytest.raises(MissingPixelSpacing):
        Slide.open([slide(tmp_path, spacing=spacing)])


def test_pixels_that_are_not_square(tmp_path):
    with Slide.open([slide(tmp_path, spacing=(0.0005, 0.000505))]) as opened:
        assert opened.levels[0].mpp_x == pytest.approx(0.505)
        assert opened.levels[0].mpp_y == pytest.approx(0.5)
    with pytest.raises(InvalidSlide, match="not square"):
        Slide.open([slide(tmp_path, spacing=(0.0005, 0.001))])


def test_levels_whose_spacing_does_not_fit_their_size(tmp_path):
    half = slide(tmp_path, name="b", image=IMAGE[::2, ::2].copy(), spacing=(0.0005, 0.0005))
    with pytest.raises(InvalidSlide, match="same area"):
        Slide.open([slide(tmp_path), half])


def test_one_level_without_spacing_is_not_left_out_in_silence(tmp_path):
    half = slide(tmp_path, name="b", image=IMAGE[::2, ::2].copy(), spacing=None)
    with pytest.raises(MissingPixelSpacing):
        Slide.open([slide(tmp_path), half])
