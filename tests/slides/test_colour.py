"""ICC profiles: what LittleCMS says of every pixel, once; and what is said where a profile cannot be used."""

import io
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from PIL import Image as PillowImage
from PIL import ImageCms

from gateway.slides import Slide, TissueMask, colour, plan_tiles, stream_tiles
from tests.slides.made import BRIGHTFIELD, EPIFLUORESCENCE, JPEG, cut, full, header, optical_path, picture, place, write

IMAGE = picture(150, 130, seed=7)
FRAME = (64, 48)
WIDE = bytes(imagecodecs.cms_profile("adobergb"))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()

# IEC 61966-2-1 and Adobe RGB (1998) 4.3: both have the white D65, so no adaptation lies between them.
ADOBE_TO_XYZ = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])
XYZ_TO_SRGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])


def as_the_standards_say(image: np.ndarray) -> np.ndarray:
    linear = np.clip((image / 255.0) ** 2.19921875 @ ADOBE_TO_XYZ.T @ XYZ_TO_SRGB.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(int)


def slide_with(path, profile: bytes | None, **options):
    return full(path / "slide.dcm", IMAGE, FRAME, OpticalPathSequence=[optical_path("1", profile=profile)], **options)


def uncalibrated(file) -> list[str]:
    with Slide.open([file]) as slide:
        return [remark.text for remark in slide.remarks if remark.key == "colour-not-calibrated"]


def test_colours_are_those_of_the_standards(tmp_path):
    with Slide.open([slide_with(tmp_path, WIDE)]) as slide:
        ours = slide.read_level(0).astype(int)
        assert slide.header.icc_profile
        assert slide.remarks == ()
    assert np.abs(ours - as_the_standards_say(IMAGE)).max() <= 2
    assert np.abs(ours - IMAGE).mean() > 5, "the profile moves the colours"
    assert np.abs(ours - as_the_standards_say(as_the_standards_say(IMAGE))).mean() > 5, "once is not twice"


def test_the_table_says_what_littlecms_says():
    colour.to_srgb.cache_clear()
    convert = colour.to_srgb(WIDE)
    random = np.random.default_rng(1).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(WIDE)), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, target, "RGB", "RGB", ImageCms.Intent.PERCEPTUAL)
    theirs = np.asarray(ImageCms.applyTransform(PillowImage.fromarray(random), transform))
    before = random.copy()
    assert convert.colours is None
    with ThreadPoolExecutor(4) as pool:
        for ours in pool.map(convert, [random] * 80):
            assert np.array_equal(ours, theirs)
    assert convert.colours is not None, "9.6 million pixels were asked"
    assert np.array_equal(random, before)
    assert colour.to_srgb(bytes(bytearray(WIDE))) is convert, "one table for all slides of a scanner"


def test_tiles_and_overview_are_converted_once(tmp_path):
    """A level in JPEG, so that the overview is reduced while it is decoded."""
    large = np.kron(picture(48, 32, seed=3), np.ones((16, 16, 1), np.uint8))
    file = full(
        tmp_path / "a.dcm", large, (256, 256), lambda i: simplejpeg.encode_jpeg(i, quality=98, colorsubsampling="444"),
        JPEG, "YBR_FULL", OpticalPathSequence=[optical_path("1", profile=WIDE)],
    )  # fmt: skip
    expected = as_the_standards_say(large)
    with Slide.open([file]) as slide:
        for reduced in (slide.thumbnail(192), slide.overview(2.0)[0]):
            assert reduced.shape == (128, 192, 3)
            theirs = expected.reshape(128, 4, 192, 4, 3).mean(axis=(1, 3))
            assert np.abs(reduced - theirs).mean() < 3
        plan = plan_tiles(slide, TissueMask(np.ones(large.shape[:2], np.bool_), 0.5, 1.0), mpp=0.5, tile_px=64)
        for batch in stream_tiles(slide, plan, batch=7):
            for i, tile in enumerate(batch.images_BHWC):
                y, x = plan.rows_N[batch.start + i] * 64, plan.columns_N[batch.start + i] * 64
                assert np.abs(tile - expected[y : y + 64, x : x + 64]).mean() < 4


def test_an_srgb_profile_is_no_work(tmp_path):
    assert colour.to_srgb(SRGB) is None
    file = slide_with(tmp_path, SRGB)
    with Slide.open([file]) as slide:
        assert np.array_equal(slide.read_level(0), IMAGE)
    assert uncalibrated(file) == []


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (b"no profile" * 30, "damaged"),
        (WIDE[:300], "damaged"),
        (WIDE[:140] + bytes(len(WIDE) - 140), "damaged"),
        (LAB, "colour space Lab"),
        (None, "missing"),
    ],
)
def test_a_profile_that_cannot_be_used_is_said_and_colours_stay(tmp_path, profile, words):
    file = slide_with(tmp_path, profile)
    [text] = uncalibrated(file)
    assert words in text
    with Slide.open([file]) as slide:
        assert np.array_equal(slide.read_level(0), IMAGE)
        assert slide.header.icc_profile == (profile is not None)


def test_damage_in_a_profile_never_ends_a_slide():
    rng = np.random.default_rng(3)
    for _ in range(200):
        damaged = bytearray(WIDE)
        for position in rng.integers(0, len(WIDE), 4):
            damaged[position] = rng.integers(256)
        try:
            convert = colour.to_srgb(bytes(damaged))
        except colour.UnusableProfile:
            continue
        assert convert is None or callable(convert)


def test_the_profile_is_that_of_the_optical_path_that_is_read(tmp_path):
    dataset = header((150, 130), FRAME, 24)
    dataset.OpticalPathSequence = [optical_path("A", EPIFLUORESCENCE, SRGB), optical_path("B", BRIGHTFIELD, WIDE)]
    frames = [frame.tobytes() for frame in cut(IMAGE, FRAME)]
    with Slide.open([write(tmp_path / "a.dcm", dataset, frames * 2)]) as slide:
        assert np.abs(slide.read_level(0) - as_the_standards_say(IMAGE)).max() <= 2


def test_background_stays_white(tmp_path):
    dataset = header((150, 130), FRAME, 1)
    dataset.OpticalPathSequence = [optical_path("1", profile=WIDE)]
    place(dataset, [(1, 1)])
    with Slide.open([write(tmp_path / "a.dcm", dataset, [cut(IMAGE, FRAME)[0].tobytes()])]) as slide:
        assert (slide.read_level(0)[64:] == 255).all()
