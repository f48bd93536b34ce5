"""A slide of given pixels: what the caller drew is what a reader finds, on every level, with a header that says so."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from gateway.domain.codes import Code
from gateway.slides import Slide
from gateway.slides.phantom import write_phantom
from gateway.slides.phantom_dicom import Identity, Preparation
from gateway.slides.phantom_given import write_given
from tests.slides.test_phantom import errors_of

CERVIX = Code("71252005", "SCT", "Cervix")
STAINS = (Code("12710003", "SCT", "hematoxylin stain"), Code("54221006", "SCT", "orange G stain"))
LIQUID = Preparation(
    Code("56757003", "SCT", "Scraping"),
    Code("448895004", "SCT", "Smear procedure"),
    Code("430346005", "SCT", "Liquid based cytologic material"),
)
IDENTITY = Identity(preparation=LIQUID, description="Composed, no patient").completed("a", "cytology", STAINS, CERVIX)
SIZE = {"width_px": 1301, "height_px": 1157, "mpp": 0.25}


def picture() -> np.ndarray:
    """(1157, 1301, 3) uint8: colours that change smoothly, each place another."""
    y, x = np.mgrid[: SIZE["height_px"], : SIZE["width_px"]]
    return np.stack([x % 256, y % 256, (x // 8 + y // 8) % 256], axis=2).astype(np.uint8)


def drawing(calls: list[tuple[int, int, int, int]]):
    whole = picture()

    def draw(left: int, top: int, width: int, height: int) -> np.ndarray:
        calls.append((left, top, width, height))
        return whole[top : top + height, left : left + width]

    return draw


def test_every_level_is_the_one_before_halved(tmp_path: Path) -> None:
    calls: list[tuple[int, int, int, int]] = []
    files = write_given(tmp_path, drawing(calls), identity=IDENTITY, encoding="uncompressed", **SIZE)
    assert calls == [(0, top, 1301, min(256, 1157 - top)) for top in range(0, 1157, 256)]
    expected = picture()
    with Slide.open(files) as slide:
        assert [(level.width_px, level.height_px) for level in slide.levels] == [
            (1301, 1157),
            (651, 579),
            (326, 290),
            (163, 145),
        ]
        assert [level.mpp for level in slide.levels] == pytest.approx([0.25, 0.5, 1.0, 2.0])
        for level in slide.levels:
            assert np.array_equal(slide.read_level(level.index), expected)
            height, width = expected.shape[:2]
            even = cv2.copyMakeBorder(expected, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            expected = cv2.resize(even, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}  # nothing waits on disk


def test_levels_of_which_a_row_of_frames_is_less_than_a_row_of_pixels(tmp_path: Path) -> None:
    """With frames of 8 pixels that is so from the fifth level on."""
    slide_px = 8 * 2**5
    grey = np.repeat(np.arange(slide_px, dtype=np.uint8)[:, None, None], slide_px, 1).repeat(3, 2)
    files = write_given(
        tmp_path,
        lambda left, top, width, height: grey[top : top + height, left : left + width],
        identity=IDENTITY,
        encoding="uncompressed",
        width_px=slide_px,
        height_px=slide_px,
        mpp=0.25,
        frame_px=8,
    )
    last = pydicom.dcmread(files[-2])
    assert last.NumberOfFrames == 1
    assert last.pixel_array[:, 0, 0].tolist() == pytest.approx([31 / 2 + 32 * row for row in range(8)], abs=2)


def test_lossy_pixels_and_ratio(tmp_path: Path) -> None:
    files = write_given(tmp_path, drawing([]), identity=IDENTITY, quality=95, levels=2, **SIZE)
    assert [path.name for path in files] == ["level-0.dcm", "level-1.dcm", "label.dcm"]
    with Slide.open(files) as slide:
        away = np.abs(slide.read_level(0).astype(int) - picture())
    assert np.median(away) <= 3
    header = pydicom.dcmread(files[0])
    ratio = float(header.LossyImageCompressionRatio)
    assert ratio == pytest.approx(header.NumberOfFrames * 256**2 * 3 / len(header.PixelData), rel=0.02)


def test_the_header_says_specimen_preparation_and_that_there_is_no_patient(tmp_path: Path) -> None:
    files = write_given(tmp_path, drawing([]), identity=IDENTITY, **SIZE)
    with Slide.open(files) as slide:
        header = slide.header
    assert CERVIX.same_as(header.site)
    assert [stain.code for stain in header.stains] == ["12710003", "54221006"]
    for path in files:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        assert (dataset.SeriesDescription, dataset.QualityControlSubject) == ("Composed, no patient", "YES")
        steps = dataset.SpecimenDescriptionSequence[0].SpecimenPreparationSequence
        said = [
            (item.ConceptNameCodeSequence[0].CodeValue, item.ConceptCodeSequence[0].CodeValue)
            for step in steps
            for item in step.SpecimenPreparationStepContentItemSequence
            if item.ValueType == "CODE"
        ]
        assert said == [
            ("111701", "17636008"),
            ("17636008", "56757003"),
            ("111701", "433465004"),
            ("111704", "448895004"),
            ("111707", "430346005"),
            ("111701", "127790008"),
            ("424361007", "12710003"),
            ("424361007", "54221006"),
        ]


@pytest.mark.validators
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    for path in write_given(tmp_path, drawing([]), identity=IDENTITY, **SIZE):
        assert errors_of(path, {}) == []


def test_the_uids_of_phantoms_stay(tmp_path: Path) -> None:
    """Recorded before an identity had a preparation and a description; one that has them has other UIDs."""
    truth = write_phantom(tmp_path / "a", width_px=700, height_px=600, seed=1, label_only=True)
    plain = write_phantom(tmp_path / "b", width_px=700, height_px=600, seed=1)
    assert plain.series_uid == "2.25.35431635954363543067593813027101562156"
    assert truth.series_uid != plain.series_uid
    described = write_phantom(
        tmp_path / "c", width_px=700, height_px=600, seed=1, identity=Identity(description="Composed")
    )
    assert described.series_uid != plain.series_uid


@pytest.mark.parametrize(
    "changes",
    [{"encoding": "gif"}, {"width_px": 100}, {"frame_px": 255}, {"identity": Identity()}],
)
def test_arguments_that_make_no_slide(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a slide has"):
        write_given(tmp_path, drawing([]), **{"identity": IDENTITY, **SIZE, **changes})


def test_pixels_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drawn at 0"):
        write_given(tmp_path, lambda *_: np.zeros((3, 3, 3), np.uint8), identity=IDENTITY, **SIZE)
    assert not list(tmp_path.glob("level-*"))
