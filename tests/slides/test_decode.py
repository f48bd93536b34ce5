"""Frames to RGB: colour spaces that the stream does not name, syntaxes under the wrong name, damage."""

import imagecodecs
import numpy as np
import pydicom
import pytest
import simplejpeg
from pydicom.pixels import convert_color_space

from gateway.operations.errors import CorruptFrame, InvalidSlide, UnsupportedTransferSyntax
from gateway.slides import Slide
from gateway.slides.decode import FrameDecoder, visible

JPEG = "1.2.840.10008.1.2.4.50"
NATIVE = "1.2.840.10008.1.2.1"


@pytest.fixture
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (8, 10, 3)).astype(np.float32)
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)


def without_marker(data: bytes, marker: int) -> bytes:
    """A JPEG stream without its first segment of this kind."""
    start = data.index(bytes([0xFF, marker]))
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def test_rgb_jpeg_without_a_marker(picture):
    """libjpeg would guess YCbCr: white turns magenta. The header says RGB."""
    data = imagecodecs.jpeg8_encode(picture, level=95, colorspace="RGB", outcolorspace="RGB", subsampling="444")
    plain = without_marker(data, 0xEE) if b"Adobe" in data else data
    assert b"Adobe" not in plain
    assert b"JFIF" not in plain
    image = FrameDecoder(JPEG, "RGB", *picture.shape[:2])(plain, None)
    assert np.abs(image.astype(int) - picture).mean() < 4


def test_rgb_jpeg_with_an_adobe_marker(picture):
    data = imagecodecs.jpeg8_encode(picture, level=95, colorspace="RGB", outcolorspace="RGB", subsampling="444")
    if b"Adobe" not in data:
        data = data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + data[2:]
    for photometric in ("RGB", "YBR_FULL_422"):
        image = FrameDecoder(JPEG, photometric, *picture.shape[:2])(data, None)
        assert np.abs(image.astype(int) - picture).mean() < 4


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "YBR_FULL"])
def test_ycbcr_jpeg_whatever_the_header_says(picture, photometric):
    data = simplejpeg.encode_jpeg(picture, quality=95)
    image = FrameDecoder(JPEG, photometric, *picture.shape[:2])(data, None)
    assert np.abs(image.astype(int) - picture).mean() < 4


def test_uncompressed_ybr_full(picture):
    ybr = convert_color_space(picture, "RGB", "YBR_FULL")
    image = FrameDecoder(NATIVE, "YBR_FULL", *picture.shape[:2])(ybr.tobytes(), None)
    assert np.abs(image.astype(int) - picture).max() <= 2


@pytest.mark.parametrize("level", [0, 60])
@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203"])
def test_jpeg_2000_under_every_name(picture, uid, level):
    """Converters write plain JPEG 2000 under the HTJ2K UID."""
    data = imagecodecs.jpeg2k_encode(picture, level=level, codecformat="j2k", reversible=level == 0)
    image = FrameDecoder(uid, "YBR_RCT" if level == 0 else "YBR_ICT", *picture.shape[:2])(data, None)
    assert np.abs(image.astype(int) - picture).mean() < (0.01 if level == 0 else 4)


def test_htj2k(picture):
    data = imagecodecs.htj2k_encode(picture, reversible=True)
    image = FrameDecoder("1.2.840.10008.1.2.4.201", "YBR_RCT", *picture.shape[:2])(data, None)
    assert np.array_equal(image, picture)


def test_jpeg_xl(picture):
    data = imagecodecs.jpegxl_encode(picture, lossless=True)
    image = FrameDecoder("1.2.840.10008.1.2.4.110", "RGB", *picture.shape[:2])(data, None)
    assert np.array_equal(image, picture)


def test_the_scratch_image_is_used(picture):
    scratch = np.empty_like(picture)
    image = FrameDecoder(JPEG, "YBR_FULL_422", *picture.shape[:2])(simplejpeg.encode_jpeg(picture), scratch)
    assert np.shares_memory(image, scratch)


@pytest.mark.parametrize(
    ("uid", "photometric"),
    [(JPEG, "YBR_FULL_422"), (JPEG, "RGB"), (NATIVE, "RGB"), ("1.2.840.10008.1.2.4.90", "YBR_RCT"),
     ("1.2.840.10008.1.2.4.80", "RGB"), ("1.2.840.10008.1.2.5", "RGB"), ("1.2.840.10008.1.2.4.110", "RGB"),
     ("1.2.840.10008.1.2.4.70", "RGB"), ("1.2.840.10008.1.2.4.201", "YBR_RCT")],
)  # fmt: skip
@pytest.mark.parametrize("data", [b"\0" * 40, b"\xff\xd8\xff\xd9", b"x"])
def test_damage_is_a_corrupt_frame(uid, photometric, data):
    with pytest.raises(CorruptFrame):
        FrameDecoder(uid, photometric, 64, 80)(data, None)


def test_a_frame_larger_or_smaller_than_the_header_says(picture):
    data = simplejpeg.encode_jpeg(picture)
    with pytest.raises(CorruptFrame):
        FrameDecoder(JPEG, "YBR_FULL_422", 32, 32)(data, None)
    smaller = FrameDecoder(JPEG, "YBR_FULL_422", 256, 256)(data, None)
    assert visible(smaller, 60, 70).shape == (60, 70, 3)
    with pytest.raises(CorruptFrame):
        visible(smaller, 65, 70)


def test_what_cannot_be_decoded_is_said_when_the_slide_is_opened():
    with pytest.raises(UnsupportedTransferSyntax, match=r"4\.102"):
        FrameDecoder("1.2.840.10008.1.2.4.102", "RGB", 8, 8)
    with pytest.raises(InvalidSlide):
        FrameDecoder(NATIVE, "YBR_FULL_422", 8, 8)
    with pytest.raises(InvalidSlide):
        FrameDecoder(JPEG, "MONOCHROME2", 8, 8)


def test_plain_jpeg_2000_in_a_file_that_says_htj2k(make_phantom, tmp_path):
    source = make_phantom(150, 140, encoding="jpeg2000", levels=1, frame_px=64).files[0]
    dataset = pydicom.dcmread(source)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.203"
    dataset.save_as(tmp_path / "renamed.dcm")
    with Slide.open([source]) as named, Slide.open([tmp_path / "renamed.dcm"]) as renamed:
        assert np.array_equal(named.read_level(0), renamed.read_level(0))
