"""Every codec against a second decoder of another make, and every word for a colour space against the picture."""

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pydicom
import pytest
import simplejpeg
from PIL import Image as PillowImage
from pydicom.pixels import convert_color_space
from pydicom.pixels.encoders import RLELosslessEncoder

from gateway.operations.errors import CorruptFrame, InvalidSlide
from gateway.slides import Slide
from gateway.slides.decode import SUPPORTED, FrameDecoder
from tests.slides.made import BIG_ENDIAN, IMPLICIT, JPEG, NATIVE, cut, full, picture, with_adobe, without_segments

RLE = "1.2.840.10008.1.2.5"
JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{n}" for n in (51, 57, 70))
JPEG_LS, JPEG_LS_NEAR = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
JPEG_2000_LOSSLESS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (90, 91))
HTJ2K_LOSSLESS, HTJ2K_RPCL, HTJ2K = (f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203))
JPEG_XL_LOSSLESS, JPEG_XL_RECOMPRESSED, JPEG_XL = (f"1.2.840.10008.1.2.4.{n}" for n in (110, 111, 112))

FRAME = (64, 80)
IMAGE = picture(150, 130, seed=1)
Codec = Callable[[np.ndarray], bytes]


def to_ybr(image: np.ndarray) -> np.ndarray:
    return np.asarray(convert_color_space(image, "RGB", "YBR_FULL"))


def of_ybr(encode: Codec) -> Codec:
    """Encodes the planes Y, Cb, Cr as if they were colours: what YBR_FULL means outside JPEG."""
    return lambda image: encode(to_ybr(image))


def native(image: np.ndarray) -> bytes:
    return image.tobytes()


def planes(image: np.ndarray) -> bytes:
    return np.moveaxis(image, 2, 0).tobytes()


def rle(image: np.ndarray) -> bytes:
    rows, columns, _ = image.shape
    return RLELosslessEncoder.encode(
        image, encoding_plugin="pydicom", rows=rows, columns=columns, samples_per_pixel=3, bits_allocated=8,
        bits_stored=8, pixel_representation=0, photometric_interpretation="RGB", planar_configuration=0,
        number_of_frames=1,
    )  # fmt: skip


def jpeg(subsampling: str) -> Codec:
    return lambda image: simplejpeg.encode_jpeg(image, quality=92, colorsubsampling=subsampling)


def jpeg_of_planes(image: np.ndarray) -> bytes:
    """JPEG whose components are R, G and B as they are, and which says nothing of it."""
    data = imagecodecs.jpeg8_encode(image, level=95, colorspace="RGB", outcolorspace="RGB", subsampling="444")
    bare = bytearray(without_segments(bytes(data), 0xE0, 0xEE))
    for marker, step in ((b"\xff\xc0", 3), (b"\xff\xda", 2)):
        first = bare.index(marker) + (10 if step == 3 else 5)
        bare[first : first + 3 * step : step] = b"\1\2\3"
    return bytes(bare)


def jpeg_lossless(image: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(image, lossless=True))


def jpeg_2000(level: int, *, mct: bool = True, codecformat: str = "j2k") -> Codec:
    return lambda image: bytes(
        imagecodecs.jpeg2k_encode(image, level=level, codecformat=codecformat, reversible=level == 0, mct=mct)
    )


def htj2k(image: np.ndarray) -> bytes:
    return bytes(imagecodecs.htj2k_encode(image, reversible=True))


def jpeg_xl_of_jpeg(image: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpegxl_encode_jpeg(jpeg("422")(image)))


def jpeg_xl(**options) -> Codec:
    return lambda image: bytes(imagecodecs.jpegxl_encode(image, **options))


def dcmtk(tool: str) -> Callable[[Path, Codec], np.ndarray]:
    """Decodes a file with a tool of dcmtk, which has its own JPEG (IJG 6b), JPEG-LS and RLE decoders."""

    def decode(file: Path, _: Codec) -> np.ndarray:
        plain = file.with_suffix(".plain")
        subprocess.run([tool, str(file), str(plain)], check=True, timeout=60, capture_output=True)
        dataset = pydicom.dcmread(plain)
        count, rows, columns = int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns)
        pixels = np.frombuffer(dataset.PixelData, np.uint8)[: count * rows * columns * 3]
        if dataset.PlanarConfiguration == 1:
            frames = np.moveaxis(pixels.reshape(count, 3, rows, columns), 1, 3)
        else:
            frames = pixels.reshape(count, rows, columns, 3)
        if dataset.PhotometricInterpretation == "YBR_FULL":
            frames = np.asarray(convert_color_space(frames, "YBR_FULL", "RGB"))
        return joined(list(frames))

    return decode


def by_frame(decode: Callable[[bytes], np.ndarray]) -> Callable[[Path, Codec], np.ndarray]:
    return lambda _, encode: joined([decode(encode(frame)) for frame in cut(IMAGE, FRAME)])


def joined(frames: list[np.ndarray]) -> np.ndarray:
    rows = [np.concatenate(frames[i : i + 2], axis=1) for i in range(0, len(frames), 2)]
    return np.concatenate(rows)[: IMAGE.shape[0], : IMAGE.shape[1]]


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(PillowImage.open(io.BytesIO(data)).convert("RGB"))


def pillow_of_jpeg_xl(data: bytes) -> np.ndarray:
    """The JPEG file inside a recompressed one, by libjpeg."""
    return pillow(bytes(imagecodecs.jpegxl_decode_jpeg(data)))


def itself(file: Path, encode: Codec) -> np.ndarray:
    """For lossless codecs the picture is the best second decoder."""
    return IMAGE


def with_openslide(file: Path, encode: Codec) -> np.ndarray:
    with openslide.OpenSlide(file) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


DJPEG, DJPLS, DRLE = dcmtk("dcmdjpeg"), dcmtk("dcmdjpls"), dcmtk("dcmdrle")
CASES: dict[str, tuple[str, str, Codec, Callable[[Path, Codec], np.ndarray], int]] = {
    # name: transfer syntax, photometric interpretation, encoder, second decoder, largest difference of a value
    "jpeg 4:2:2": (JPEG, "YBR_FULL_422", jpeg("422"), DJPEG, 2),
    "jpeg 4:2:0": (JPEG, "YBR_FULL_422", jpeg("420"), DJPEG, 2),
    "jpeg 4:4:4": (JPEG, "YBR_FULL", jpeg("444"), DJPEG, 2),
    "jpeg by openslide": (JPEG, "YBR_FULL_422", jpeg("422"), with_openslide, 2),
    "jpeg, header says rgb": (JPEG, "RGB", jpeg("422"), by_frame(pillow), 2),
    "jpeg rgb, no marker": (JPEG, "RGB", jpeg_of_planes, DJPEG, 2),
    "jpeg rgb, adobe": (JPEG, "RGB", lambda i: with_adobe(jpeg_of_planes(i), 0), by_frame(pillow), 2),
    "jpeg rgb, adobe, header says ybr": (
        JPEG, "YBR_FULL_422", lambda i: with_adobe(jpeg_of_planes(i), 0), by_frame(pillow), 2
    ),
    "jpeg ybr, adobe": (JPEG, "YBR_FULL", lambda i: with_adobe(jpeg("444")(i), 1), by_frame(pillow), 2),
    "jpeg ybr, subsampled, no marker, header says rgb": (
        JPEG, "RGB", lambda i: without_segments(jpeg("422")(i), 0xE0), by_frame(pillow), 2
    ),
    "jpeg extended, 8 bits": (JPEG_EXTENDED, "YBR_FULL_422", jpeg("422"), by_frame(pillow), 2),
    "jpeg lossless": (JPEG_LOSSLESS, "RGB", jpeg_lossless, DJPEG, 0),
    "jpeg lossless sv1": (JPEG_LOSSLESS_SV1, "RGB", jpeg_lossless, DJPEG, 0),
    "jpeg lossless ybr": (JPEG_LOSSLESS_SV1, "YBR_FULL", of_ybr(jpeg_lossless), itself, 2),
    "jpeg-ls": (JPEG_LS, "RGB", lambda i: bytes(imagecodecs.jpegls_encode(i)), DJPLS, 0),
    "jpeg-ls, near": (JPEG_LS_NEAR, "RGB", lambda i: bytes(imagecodecs.jpegls_encode(i, level=2)), DJPLS, 0),
    "jpeg-ls ybr": (JPEG_LS, "YBR_FULL", of_ybr(lambda i: bytes(imagecodecs.jpegls_encode(i))), itself, 2),
    "rle": (RLE, "RGB", rle, DRLE, 0),
    "rle ybr": (RLE, "YBR_FULL", of_ybr(rle), itself, 2),
    "uncompressed": (NATIVE, "RGB", native, with_openslide, 0),
    "uncompressed, implicit": (IMPLICIT, "RGB", native, itself, 0),
    "uncompressed, big endian": (BIG_ENDIAN, "RGB", native, itself, 0),
    "uncompressed ybr": (NATIVE, "YBR_FULL", of_ybr(native), itself, 2),
    "jpeg 2000 lossless, rct": (JPEG_2000_LOSSLESS, "YBR_RCT", jpeg_2000(0), by_frame(pillow), 0),
    "jpeg 2000 lossless, no transform": (JPEG_2000_LOSSLESS, "RGB", jpeg_2000(0, mct=False), by_frame(pillow), 0),
    "jpeg 2000 lossy, ict": (JPEG_2000, "YBR_ICT", jpeg_2000(45), by_frame(pillow), 1),
    "jpeg 2000 lossy, header says rgb": (JPEG_2000, "RGB", jpeg_2000(45), by_frame(pillow), 1),
    "jpeg 2000, ict, header says ybr_full": (JPEG_2000, "YBR_FULL", jpeg_2000(45), by_frame(pillow), 1),
    "jpeg 2000 of ybr planes": (JPEG_2000_LOSSLESS, "YBR_FULL", of_ybr(jpeg_2000(0, mct=False)), itself, 2),
    "jpeg 2000 in a jp2 file": (JPEG_2000_LOSSLESS, "YBR_RCT", jpeg_2000(0, codecformat="jp2"), itself, 0),
    "htj2k": (HTJ2K_LOSSLESS, "YBR_RCT", htj2k, by_frame(imagecodecs.htj2k_decode), 0),
    "htj2k rpcl": (HTJ2K_RPCL, "YBR_RCT", htj2k, by_frame(imagecodecs.htj2k_decode), 0),
    "jpeg 2000 that says htj2k": (HTJ2K, "YBR_RCT", jpeg_2000(0), by_frame(pillow), 0),
    "jpeg xl lossless": (JPEG_XL_LOSSLESS, "RGB", jpeg_xl(lossless=True), itself, 0),
    "jpeg xl, container": (
        JPEG_XL_LOSSLESS, "RGB", jpeg_xl(lossless=True, usecontainer=True), itself, 0
    ),
    "jpeg xl of jpeg": (JPEG_XL_RECOMPRESSED, "YBR_FULL_422", jpeg_xl_of_jpeg, by_frame(pillow_of_jpeg_xl), 3),
    "jpeg xl of jpeg, ybr_full": (
        JPEG_XL_RECOMPRESSED, "YBR_FULL", jpeg_xl_of_jpeg, by_frame(pillow_of_jpeg_xl), 3
    ),
    "jpeg xl lossy": (JPEG_XL, "XYB", jpeg_xl(distance=0.5), itself, 60),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pixels_equal_those_of_a_second_decoder(tmp_path, name):
    syntax, photometric, encode, second, bound = CASES[name]
    file = full(tmp_path / "slide.dcm", IMAGE, FRAME, encode, syntax, photometric)
    with Slide.open([file]) as slide:
        ours = slide.read_level(0)
    theirs = second(file, encode)
    assert ours.shape == theirs.shape == IMAGE.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= bound
    # Both could be wrong in the same way: the picture says what the colours are. A wrong transform moves them by 30.
    assert np.abs(ours.astype(int) - IMAGE.astype(int)).mean() < 6


def test_every_transfer_syntax_that_is_read_is_compared():
    assert {case[0] for case in CASES.values()} == SUPPORTED


def test_a_wrong_colour_transform_would_be_seen():
    for wrong in (to_ybr(IMAGE), np.asarray(convert_color_space(IMAGE, "YBR_FULL", "RGB")), IMAGE[..., ::-1]):
        assert np.abs(wrong.astype(int) - IMAGE.astype(int)).mean() > 30


@pytest.mark.parametrize("syntax", [NATIVE, IMPLICIT, RLE])
def test_colour_planes(tmp_path, syntax):
    """PlanarConfiguration 1: uncompressed pixels come plane by plane; RLE always does, whatever the header says."""
    encode = rle if syntax == RLE else planes
    with Slide.open([full(tmp_path / "slide.dcm", IMAGE, FRAME, encode, syntax, PlanarConfiguration=1)]) as slide:
        assert np.array_equal(slide.read_level(0), IMAGE)


def test_big_endian_words(tmp_path):
    """Pixel data as OW in the retired big endian syntax: the bytes of each word change places (PS3.5 A.3)."""
    file = full(tmp_path / "slide.dcm", IMAGE, FRAME, native, BIG_ENDIAN)
    data = file.read_bytes()
    head = data.index(b"\x7f\xe0\x00\x10OB")
    pixels = np.frombuffer(data[head + 12 :], ">u2").astype("<u2").tobytes()
    file.write_bytes(data[: head + 4] + b"OW" + data[head + 6 : head + 12] + pixels)
    assert np.array_equal(
        np.frombuffer(pydicom.dcmread(file).PixelData, ">u2"), np.frombuffer(pixels, "<u2").byteswap()
    )
    with Slide.open([file]) as slide:
        assert np.array_equal(slide.read_level(0), IMAGE)


@pytest.mark.parametrize(
    "values",
    [
        {"PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1},
        {"PhotometricInterpretation": "PALETTE COLOR", "SamplesPerPixel": 1},
        {"PhotometricInterpretation": "RGB", "BitsAllocated": 16, "BitsStored": 12},
        {"PhotometricInterpretation": "YBR_FULL_422"},
        {"PhotometricInterpretation": "HSV"},
    ],
)
def test_what_is_no_8_bit_colour_is_refused_with_a_reason(tmp_path, values):
    with pytest.raises(InvalidSlide, match=r"8-bit colour|photometric interpretation"):
        Slide.open([full(tmp_path / "slide.dcm", IMAGE, FRAME, native, **values)])


@pytest.mark.parametrize("encode", ["grey jpeg", "12-bit jpeg", "grey jpeg 2000", "16-bit jpeg 2000"])
def test_frames_that_are_no_8_bit_colour(encode):
    grey = IMAGE[:64, :80, 0]
    data, syntax = {
        "grey jpeg": (simplejpeg.encode_jpeg(grey[..., None].copy(), colorspace="GRAY"), JPEG),
        "12-bit jpeg": (
            imagecodecs.jpeg8_encode(IMAGE[:64, :80].astype(np.uint16) * 16, bitspersample=12), JPEG_EXTENDED
        ),
        "grey jpeg 2000": (imagecodecs.jpeg2k_encode(grey.copy(), level=0, codecformat="j2k"), JPEG_2000_LOSSLESS),
        "16-bit jpeg 2000": (
            imagecodecs.jpeg2k_encode(IMAGE[:64, :80].astype(np.uint16) * 257, level=0, codecformat="j2k"), JPEG_2000
        ),
    }[encode]  # fmt: skip
    with pytest.raises(CorruptFrame, match="8-bit colour"):
        FrameDecoder(syntax, "RGB", *FRAME)(bytes(data))
