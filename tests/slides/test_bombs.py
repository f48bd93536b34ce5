"""Frames whose codestream claims more than the header does: refused before they are given memory."""

import contextlib
import io
import resource
import struct
import time

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from PIL import Image as PillowImage

from gateway.operations.errors import CorruptFrame, InvalidSlide, SlideError, UnsupportedTransferSyntax
from gateway.slides import Slide
from gateway.slides.decode import FrameDecoder
from tests.slides.made import NATIVE, full, header, picture, rename_syntax, write

FRAME = picture(80, 64)
HUGE = 2**16 - 1


def sized(data: bytes, marker: bytes) -> bytes:
    """A JPEG stream whose start of frame says 65,535 × 65,535."""
    position = data.index(marker) + 5
    return data[:position] + struct.pack(">HH", HUGE, HUGE) + data[position + 4 :]


def j2k(siz: dict[int, int], data: bytes | None = None) -> bytes:
    """A JPEG 2000 stream with some 32-bit words of its SIZ segment replaced, by offset behind the marker."""
    stream = bytearray(imagecodecs.jpeg2k_encode(FRAME, level=0, codecformat="j2k") if data is None else data)
    start = stream.index(b"\xff\x51") + 2
    for offset, value in siz.items():
        stream[start + offset : start + offset + 4] = struct.pack(">I", value)
    return bytes(stream)


def jxl_of(side_px: int) -> bytes:
    """The head of a JPEG XL stream (not small, 30 bits a side, no ratio) over another one's body."""
    value, shift = 0x0AFF, 16
    for bits, count in ((0, 1), (3, 2), (side_px - 1, 30), (0, 3), (3, 2), (side_px - 1, 30)):
        value |= bits << shift
        shift += count
    return value.to_bytes(11, "little") + bytes(imagecodecs.jpegxl_encode(FRAME))[11:]


def j2k_precincts(*, in_tile: bool = False, by_component: bool = False) -> tuple[str, bytes]:
    """A blank picture of a few bytes whose precincts are single pixels: 1.7 GB of books."""
    blank = np.zeros((1024, 1024, 3), np.uint8)
    stream = bytes(imagecodecs.jpeg2k_encode(blank, level=0, codecformat="j2k"))
    start = stream.index(b"\xff\x52")
    length = int.from_bytes(stream[start + 2 : start + 4], "big")
    coding = bytearray(stream[start : start + 2 + length])
    levels = coding[9]
    coding[4] |= 1
    coding[2:4] = (length + levels + 1).to_bytes(2, "big")
    coding += b"\0" + b"\x11" * levels
    if by_component:
        parameters = bytes(coding[9:])
        more = b"\xff\x53" + (5 - 1 + len(parameters)).to_bytes(2, "big") + b"\0\1" + parameters
        return J2K, stream[: start + 2 + length] + more + stream[start + 2 + length :]
    if not in_tile:
        return J2K, stream[:start] + bytes(coding) + stream[start + 2 + length :]
    tile = stream.index(b"\xff\x90")
    part = int.from_bytes(stream[tile + 6 : tile + 10], "big") + len(coding)
    head = stream[tile : tile + 6] + part.to_bytes(4, "big") + stream[tile + 10 : tile + 12]
    return J2K, stream[:tile] + head + bytes(coding) + stream[tile + 12 :]


J2K = "1.2.840.10008.1.2.4.90"
BOMBS = {
    "jpeg": ("1.2.840.10008.1.2.4.50", sized(simplejpeg.encode_jpeg(FRAME), b"\xff\xc0")),
    "jpeg extended": ("1.2.840.10008.1.2.4.51", sized(simplejpeg.encode_jpeg(FRAME), b"\xff\xc0")),
    "jpeg lossless": (
        "1.2.840.10008.1.2.4.70", sized(bytes(imagecodecs.jpeg8_encode(FRAME, lossless=True)), b"\xff\xc3")
    ),
    "jpeg-ls": ("1.2.840.10008.1.2.4.80", sized(bytes(imagecodecs.jpegls_encode(FRAME)), b"\xff\xf7")),
    "jpeg 2000": ("1.2.840.10008.1.2.4.90", j2k({4: 2**31, 8: 2**31, 20: 2**31, 24: 2**31})),
    "jpeg 2000, offset": ("1.2.840.10008.1.2.4.90", j2k({4: 2**32 - 1, 8: 2**32 - 1, 20: 2**32 - 1, 24: 2**32 - 1})),
    "jpeg 2000, tiles": ("1.2.840.10008.1.2.4.90", j2k({20: 1, 24: 1})),
    "jpeg 2000, precincts": j2k_precincts(),
    "jpeg 2000, precincts of a component": j2k_precincts(by_component=True),
    "jpeg 2000, precincts of a tile": j2k_precincts(in_tile=True),
    "htj2k": (
        "1.2.840.10008.1.2.4.201",
        j2k({4: 2**31, 8: 2**31, 20: 2**31, 24: 2**31}, bytes(imagecodecs.htj2k_encode(FRAME, reversible=True))),
    ),
    "jpeg xl": ("1.2.840.10008.1.2.4.110", jxl_of(2**30)),
    "jpeg xl, 2^16": ("1.2.840.10008.1.2.4.110", jxl_of(2**16)),
    "rle, more than it holds": ("1.2.840.10008.1.2.5", struct.pack("<16I", 15, *range(64, 124, 4)) + b"\x81\0" * 60),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("reduced", [False, True])
def test_a_frame_that_claims_more_than_the_header_takes_no_memory(name, reduced):
    syntax, data = BOMBS[name]
    decoder = FrameDecoder(syntax, "RGB", *((1024, 1024) if "precincts" in name else (64, 80)))
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CorruptFrame):
        decoder.reduced(data, 8) if reduced else decoder(data)
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "kB more at its peak"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_jpeg_ls_frame_that_breaks_off_ends(share):
    """CharLS would not return from it."""
    data = bytes(imagecodecs.jpegls_encode(FRAME))
    with pytest.raises(CorruptFrame):
        FrameDecoder("1.2.840.10008.1.2.4.80", "RGB", 64, 80)(data[: int(len(data) * share)])


@pytest.mark.parametrize("offsets", [(64, 2**31, 2**31 + 2), (64, 60, 70), (0, 64, 66), (64, 64, 64), (64, 70, 5000)])
def test_rle_segments_outside_the_frame(offsets):
    """Its decoder would read there."""
    with pytest.raises(CorruptFrame):
        FrameDecoder("1.2.840.10008.1.2.5", "RGB", 64, 80)(struct.pack("<16I", 3, *offsets, *[0] * 12) + bytes(2000))


def test_progressive_frames_and_endless_scans():
    """Not allowed in DICOM, but met; each scan of a few bytes costs a pass over the picture."""
    buffer = io.BytesIO()
    PillowImage.fromarray(FRAME).save(buffer, "JPEG", progressive=True, quality=90)
    data = buffer.getvalue()
    decoder = FrameDecoder("1.2.840.10008.1.2.4.50", "YBR_FULL_422", 64, 80)
    assert np.abs(decoder(data).astype(int) - FRAME).mean() < 6
    last = data.rindex(b"\xff\xda")
    with pytest.raises(CorruptFrame):
        decoder(data[:-2] + data[last:-2] * 200 + data[-2:])


def test_a_frame_with_much_behind_its_picture():
    """The decoder would ignore it, but it would lie in memory with every frame around it."""
    with pytest.raises(CorruptFrame, match="larger"):
        FrameDecoder("1.2.840.10008.1.2.4.50", "YBR_FULL_422", 64, 80)(simplejpeg.encode_jpeg(FRAME) + bytes(2**22))


def test_frames_too_large_to_be_held(tmp_path):
    file = full(tmp_path / "slide.dcm", FRAME, (64, 80))
    wide = {"Rows": 9000, "Columns": 9000, "TotalPixelMatrixRows": 9000, "TotalPixelMatrixColumns": 9000}
    changed = full(tmp_path / "wide.dcm", FRAME, (64, 80), **wide)
    with changed.open("r+b") as stream:
        data = stream.read()
        at = data.index(b"\xe0\x7f\x10\x00OB\0\0") + 8
        stream.seek(at)
        stream.write(struct.pack("<I", 9000 * 9000 * 3))
        stream.truncate(at + 4 + 9000 * 9000 * 3)
    with Slide.open([file]):
        pass
    with pytest.raises(InvalidSlide, match="too large"):
        Slide.open([changed])


def test_a_frame_that_is_a_hole_of_a_gigabyte(tmp_path):
    """Its item says so, and the file is that long: it is not read into memory."""
    dataset = header((80, 64), (64, 80), 1)
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    file = write(
        tmp_path / "slide.dcm", dataset, [simplejpeg.encode_jpeg(FRAME)], "1.2.840.10008.1.2.4.50", table="empty"
    )
    data = file.read_bytes()
    item = data.rindex(b"\xfe\xff\x00\xe0")
    with file.open("r+b") as stream:
        stream.seek(item + 4)
        stream.write(struct.pack("<I", 2**30))
        stream.truncate(item + 8 + 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Slide.open([file]) as slide, pytest.raises(CorruptFrame):
        slide.read_level(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def test_a_deflated_slide_is_refused_before_it_is_inflated(tmp_path):
    file = full(tmp_path / "slide.dcm", FRAME, (64, 80))
    rename_syntax(file, NATIVE, "1.2.840.10008.1.2.1.99")
    with pytest.raises(UnsupportedTransferSyntax, match="deflated"):
        Slide.open([file])


@pytest.mark.parametrize(
    "values", [{"TotalPixelMatrixRows": 2**31}, {"NumberOfFrames": 2**31 - 1}, {"Rows": 2**16 - 1}]
)
def test_absurd_sizes_in_the_header(tmp_path, values):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SlideError):
        Slide.open([full(tmp_path / "slide.dcm", FRAME, (64, 80), **values)])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("frames", [2_000_000, 2**22])
def test_millions_of_frames_that_lie_nowhere(tmp_path, frames):
    file = full(
        tmp_path / "slide.dcm", FRAME, (64, 80), DimensionOrganizationType="TILED_SPARSE", NumberOfFrames=frames
    )
    data = file.read_bytes()
    pixel_data = data.index(b"\xe0\x7f\x10\x00OB\0\0")
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 2_000_000
    groups = b"\x00\x52\x30\x92SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    file.write_bytes(data[:pixel_data] + groups + data[pixel_data:])
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(SlideError):
        Slide.open([file])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert time.process_time() - begin < 10


def test_random_damage_is_a_typed_error_or_a_picture():
    rng = np.random.default_rng(5)
    streams = {
        "1.2.840.10008.1.2.4.50": simplejpeg.encode_jpeg(FRAME),
        "1.2.840.10008.1.2.4.90": bytes(imagecodecs.jpeg2k_encode(FRAME, level=0, codecformat="j2k")),
        "1.2.840.10008.1.2.4.201": bytes(imagecodecs.htj2k_encode(FRAME, reversible=True)),
        "1.2.840.10008.1.2.4.80": bytes(imagecodecs.jpegls_encode(FRAME)),
        "1.2.840.10008.1.2.4.110": bytes(imagecodecs.jpegxl_encode(FRAME, lossless=True)),
        "1.2.840.10008.1.2.4.70": bytes(imagecodecs.jpeg8_encode(FRAME, lossless=True)),
    }
    for syntax, stream in streams.items():
        decoder = FrameDecoder(syntax, "RGB", 64, 80)
        for _ in range(60):
            damaged = bytearray(stream)
            for position in rng.integers(0, min(len(stream), 400), 3):
                damaged[position] = rng.integers(256)
            with contextlib.suppress(CorruptFrame):
                assert decoder(bytes(damaged)).shape <= (64, 80, 3)
