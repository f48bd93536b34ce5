"""What a frame's codestream says of itself, read from its head before any memory is given to decoding it.

A frame that claims to be larger than its image's header says would take as much memory as it likes; and the codestream,
not the header, decides which colour transform its decoder undoes.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

Bytes = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Codestream:
    """Size, components and bits of an encoded image. `rgb`: what its decoder gives, RGB (True) or YCbCr that it leaves
    as it is (False); None where the codestream does not say. All of it stands in the first `length` bytes."""

    rows: int
    columns: int
    components: int
    bits: int
    length: int
    rgb: bool | None = None


Reader = Callable[[Bytes], Codestream]
"""Reads the head of an encoded frame. Raises ValueError where it is not one (also struct.error, IndexError)."""

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_MAX_SCANS = 100
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_SOS, _EOI, _APP0, _APP14 = 0xDA, 0xD9, 0xE0, 0xEE


def jpeg(data: Bytes) -> Codestream:
    """JPEG (ITU-T T.81), its lossless process and JPEG-LS (T.87): the start of frame before the first scan.

    `rgb` follows libjpeg: a JFIF marker means YCbCr, else Adobe's says (its transform 0 is RGB), else components named
    R, G, B, or subsampled ones (RGB never is).
    """
    if bytes(data[:2]) != b"\xff\xd8":
        raise ValueError("no start of image")
    found: tuple[int, int, int, int] | None = None
    jfif, adobe, rgb, progressive = False, None, None, False
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise ValueError("no marker")
        code = data[position + 1]
        if code == 0xFF or code in _WITHOUT_LENGTH:
            position += 1 if code == 0xFF else 2
            continue
        if code in (_SOS, _EOI):
            break
        if code in _SOF:
            if found is not None:
                raise ValueError("two frames in one")
            bits, rows, columns, components = struct.unpack_from(">BHHB", data, position + 4)
            names = bytes(data[position + 10 : position + 10 + 3 * components : 3])
            sampling = bytes(data[position + 11 : position + 11 + 3 * components : 3])
            found = rows, columns, components, bits
            progressive = code in _PROGRESSIVE
            rgb = True if names == b"RGB" else False if len(set(sampling)) > 1 else None
        elif code == _APP0:
            jfif = jfif or bytes(data[position + 4 : position + 9]) == b"JFIF\0"
        elif code == _APP14 and bytes(data[position + 4 : position + 9]) == b"Adobe":
            adobe = data[position + 15]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if found is None:
        raise ValueError("no start of frame")
    if progressive:
        # Each scan is a pass over the whole image and may be a few bytes long; and each frame has its own.
        if bytes(data).count(b"\xff\xda") > _MAX_SCANS:
            raise ValueError("too many scans")
        position = len(data)
    said = False if jfif else adobe == 0 if adobe is not None else rgb
    return Codestream(*found, position, said)


_MARKER = re.compile(rb"\xff([\x80-\xff])", re.DOTALL)
_BETWEEN_SCANS = frozenset((_SOS, *range(0xD0, 0xD8)))


def jpeg_ls(data: Bytes) -> Codestream:
    """JPEG-LS (ITU-T T.87), which must be whole: CharLS does not return from a scan that breaks off."""
    found = jpeg(data)
    stream = bytes(data)
    markers = [marker[0] for marker in _MARKER.findall(stream, stream.index(b"\xff\xda") + 2)]
    if not markers or markers[-1] != _EOI or not _BETWEEN_SCANS.issuperset(markers[:-1]):
        raise ValueError("the scan breaks off")
    return replace(found, length=len(data))


_RLE_HEADER = struct.Struct("<16I")


def check_run_lengths(data: Bytes) -> None:
    """The header of an RLE frame in three colours (PS3.5 G.5): its decoder reads where it says. Raises ValueError."""
    segments, *offsets = _RLE_HEADER.unpack_from(data)
    if segments != 3 or not _RLE_HEADER.size <= offsets[0] < offsets[1] < offsets[2] < len(data):
        raise ValueError("not three segments")


_MAX_TILES, _MAX_PRECINCTS, _MAX_CODE_BLOCKS = 1 << 12, 1 << 16, 1 << 18
"""Parts that a decoder keeps books of, in one frame: at their smallest they take a hundred times the frame's memory."""
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93


def jpeg_2000(data: Bytes) -> Codestream:
    """JPEG 2000 and HTJ2K (ITU-T T.800 A.5.1, A.6.1, A.6.2), bare or, against PS3.5 A.4.4, in a JP2 file."""
    position = 0
    if bytes(data[4:8]) == b"jP  ":
        position = bytes(data[:65536]).find(b"\xff\x4f\xff\x51")
    if position < 0 or bytes(data[position : position + 2]) != b"\xff\x4f":
        raise ValueError("no start of codestream")
    position += 2
    rows = columns = components = bits = 0
    rgb: bool | None = None
    while (marker := _word(data, position)) != _SOT:
        if marker == _SIZ:
            width, height, left, top, tile_width, tile_height = struct.unpack_from(">6I", data, position + 6)
            rows, columns = height - top, width - left
            components, bits = _word(data, position + 38), (data[position + 40] & 0x7F) + 1
            if not tile_width or not tile_height or _over(width, tile_width) * _over(height, tile_height) > _MAX_TILES:
                raise ValueError("too many tiles")
        elif marker == _COD:
            rgb = data[position + 8] == 1 or None
            _check_coding(data, position + 9, data[position + 4], rows, columns)
        elif marker == _COC:
            at = position + (5 if components < 257 else 6)
            _check_coding(data, at + 1, data[at], rows, columns)
        position += 2 + _word(data, position + 2)
    _check_tile_parts(data, position)
    return Codestream(rows, columns, components, bits, len(data), rgb)


def _word(data: Bytes, position: int) -> int:
    return data[position] << 8 | data[position + 1]


def _over(size: int, part: int) -> int:
    return -(-size // part)


def _check_coding(data: Bytes, position: int, style: int, rows: int, columns: int) -> None:
    """The coding parameters at `position` (T.800 A.6.1, table A.15) of a component of this size."""
    levels, block_width, block_height = data[position], 4 << (data[position + 1] & 15), 4 << (data[position + 2] & 15)
    if levels > 32 or _over(rows, block_height) * _over(columns, block_width) > _MAX_CODE_BLOCKS:
        raise ValueError("too many code-blocks")
    if style & 1:
        precincts = 0
        for level in range(levels + 1):
            sizes, scale = data[position + 5 + level], 1 << (levels - level)
            precincts += _over(_over(columns, scale), 1 << (sizes & 15)) * _over(_over(rows, scale), 1 << (sizes >> 4))
        if precincts > _MAX_PRECINCTS:
            raise ValueError("too many precincts")


def _check_tile_parts(data: Bytes, position: int) -> None:
    """The headers of the tile-parts (T.800 A.4.2) may change coding parameters; encoders of slides do not."""
    while position + 2 <= len(data) and _word(data, position) == _SOT:
        (length,) = struct.unpack_from(">I", data, position + 6)
        inner = position + 12
        while (marker := _word(data, inner)) != _SOD:
            if marker in (_COD, _COC):
                raise ValueError("tile-parts that differ in their coding")
            inner += 2 + _word(data, inner + 2)
        if not length:
            return
        position += max(length, 14)


_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def jpeg_xl(data: Bytes) -> Codestream:
    """JPEG XL (ISO/IEC 18181-1 C.3, 18181-2): bare or in its container. Its decoder gives RGB, whatever is inside.

    Components and bits are not read: the decoded image shows them.
    """
    bits = _Bits(_jxl_codestream(data))
    if bits.take(16) != 0x0AFF:
        raise ValueError("no signature")
    small = bits.take(1)
    rows = (bits.take(5) + 1) * 8 if small else bits.size()
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = _JXL_RATIOS[ratio - 1]
        columns = rows * numerator // denominator
    else:
        columns = (bits.take(5) + 1) * 8 if small else bits.size()
    return Codestream(rows, columns, 3, 8, len(data), True)


def _jxl_codestream(data: Bytes) -> bytes:
    """The head of the codestream: of the first `jxlc` or `jxlp` box, or the data themselves."""
    if bytes(data[4:8]) != b"JXL ":
        return bytes(data[:32])
    position = 0
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
            head = 16
        if kind in (b"jxlc", b"jxlp"):
            head += 4 if kind == b"jxlp" else 0
            return bytes(data[position + head : position + head + 32])
        if length < head:
            raise ValueError("no codestream")
        position += length


class _Bits:
    """Bits in rising order of significance (ISO/IEC 18181-1 B.2)."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("too short")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return value

    def size(self) -> int:
        return self.take((9, 13, 18, 30)[self.take(2)]) + 1
