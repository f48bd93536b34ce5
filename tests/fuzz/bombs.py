"""Frames whose code streams promise far more pixels than the header: a few bytes that ask for gigabytes."""

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from gateway.slides.decode import SUPPORTED

Bomb = Callable[[Random], bytes]
_RLE = "1.2.840.10008.1.2.5"
_SIDE = 65_500


def _picture(rng: Random) -> np.ndarray:
    return np.frombuffer(rng.randbytes(16 * 16 * 3), np.uint8).reshape(16, 16, 3)


def _marked(data: bytes, markers: tuple[int, ...], side: int = _SIDE) -> bytes:
    """A JPEG or JPEG-LS stream whose frame header (SOFn) says it is `side` × `side` pixels."""
    out = bytearray(data)
    for marker in markers:
        at = out.find(bytes((0xFF, marker)))
        if at >= 0:
            struct.pack_into(">HH", out, at + 5, side, side)
    return bytes(out)


def jpeg(rng: Random) -> bytes:
    return _marked(bytes(imagecodecs.jpeg8_encode(_picture(rng))), (0xC0, 0xC1, 0xC2))


def jpeg_lossless(rng: Random) -> bytes:
    return _marked(bytes(imagecodecs.ljpeg_encode(_picture(rng)[..., 0])), (0xC3,))


def jpeg_ls(rng: Random) -> bytes:
    return _marked(bytes(imagecodecs.jpegls_encode(_picture(rng))), (0xF7,))


def jpeg_2000(rng: Random) -> bytes:
    """SIZ says 2^31 pixels a side, in one tile, or in as many tiles as there are pixels."""
    out = bytearray(imagecodecs.jpeg2k_encode(_picture(rng), codecformat="j2k", reversible=True, level=0))
    at = out.find(b"\xff\x51")
    side = rng.choice((1 << 16, 1 << 20, (1 << 31) - 1))
    struct.pack_into(">II", out, at + 6, side, side)
    tile = rng.choice((1, 16, side))
    struct.pack_into(">II", out, at + 22, tile, tile)
    return bytes(out)


def htj2k(rng: Random) -> bytes:
    out = bytearray(imagecodecs.htj2k_encode(_picture(rng)))
    at = out.find(b"\xff\x51")
    side = rng.choice((1 << 16, 1 << 20))
    struct.pack_into(">II", out, at + 6, side, side)
    return bytes(out)


def jpeg_xl(rng: Random) -> bytes:
    """A bare header (ISO/IEC 18181-1 D.2) of 2^20 or 2^30 pixels a side, square, the rest as it pleases."""
    side = rng.choice((1 << 20, 1 << 28, 1 << 30))
    bits = (0, 1), (3, 2), (side - 1, 30), (1, 3), (1, 1)
    value = position = 0
    for number, width in bits:
        value |= number << position
        position += width
    return b"\xff\x0a" + value.to_bytes(8, "little") + rng.randbytes(200)


def jpeg_xl_real(rng: Random) -> bytes:
    """A true stream of 12,000 × 12,000 equal pixels: kilobytes that decode to 432 MB."""
    return bytes(imagecodecs.jpegxl_encode(np.zeros((12_000, 12_000, 3), np.uint8), effort=1))


def run_length(rng: Random) -> bytes:
    """PS3.5 G.3: three segments that unpack to 1.5 GB."""
    segment = b"\x81\x00" * (4 << 20)
    header = struct.pack("<16I", 3, 64, 64 + len(segment), 64 + 2 * len(segment), *[0] * 12)
    return header + segment * 3


def run_length_header(rng: Random) -> bytes:
    """Segments that lie anywhere, thousands of them."""
    words = [rng.choice((0, 3, 15, 64, 65, 2**31, 2**32 - 1, rng.randrange(1 << 32))) for _ in range(16)]
    return struct.pack("<16I", *words) + rng.randbytes(500)


_BOMBS: dict[str, tuple[tuple[str, ...], Bomb]] = {
    "jpeg": (("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"), jpeg),
    "jpeg-lossless": (("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), jpeg_lossless),
    "jpeg-ls": (("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), jpeg_ls),
    "jpeg-2000": (("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201"), jpeg_2000),
    "htj2k": (("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.203"), htj2k),
    "jpeg-xl": (("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.112"), jpeg_xl),
    "jpeg-xl-real": (("1.2.840.10008.1.2.4.110",), jpeg_xl_real),
    "rle": ((_RLE,), run_length),
    "rle-header": ((_RLE,), run_length_header),
}
NAMES = tuple(_BOMBS)
_KNOWN = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.202")
"""Encapsulated transfer syntaxes of 22 and of 23 characters."""


def plant(rng: Random, name: str, path: Path) -> None:
    """Replace all frames of an encapsulated slide instance by one bomb, under its transfer syntax."""
    syntaxes, bomb = _BOMBS[name]
    syntax = rng.choice([uid for uid in syntaxes if uid in SUPPORTED] or list(syntaxes))
    dataset = pydicom.dcmread(path)
    frame = bomb(rng)
    # The same bytes for each frame would make a bomb of the file; a few will do, the rest are empty.
    count = int(dataset.NumberOfFrames)
    frames = [frame if number < 2 else b"\0\0" for number in range(count)]
    dataset.PixelData = encapsulate(frames, has_bot=rng.random() < 0.5)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.PhotometricInterpretation = rng.choice(("RGB", "YBR_FULL_422") if name == "jpeg" else ("RGB",))
    # pydicom writes only syntaxes that it knows: the file is written under one of the same length first.
    known = syntax if syntax == _RLE else _KNOWN[len(syntax) - 22]
    dataset.file_meta.TransferSyntaxUID = UID(known)
    dcmwrite(path, dataset, enforce_file_format=False, overwrite=True)
    path.write_bytes(path.read_bytes().replace(known.encode(), syntax.encode(), 1))
