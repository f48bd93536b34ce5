"""Where the parts of a DICOM file (PS3.10, explicit VR little endian) begin, to damage it exactly there."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0")
PIXEL_DATA = b"\xe0\x7f\x10\x00"


@dataclass(frozen=True, slots=True)
class Part:
    """One element or item header: it begins at `start`, its value at `value`; `length` as it says."""

    start: int
    value: int
    length: int
    tag: bytes
    vr: bytes

    @property
    def length_at(self) -> int:
        """Where its length field begins."""
        return self.value - (4 if not self.vr or self.vr in _LONG else 2)

    @property
    def length_bytes(self) -> int:
        return self.value - self.length_at


def parts_of(data: bytes) -> list[Part]:
    """Every element and item header of an undamaged file in order, nested ones included, frames not walked into."""
    return list(_walk(data, 132, len(data)))


def _walk(data: bytes, position: int, end: int) -> Iterator[Part]:
    while position + 8 <= end:
        tag = data[position : position + 4]
        if tag in _ITEMS:
            length = struct.unpack_from("<I", data, position + 4)[0]
            part = Part(position, position + 8, length, tag, b"")
            yield part
            # What an item holds follows it; an item of pixel data is the only one whose content is no elements.
            opaque = length != _UNDEFINED and not _is_element(data, part.value)
            position = part.value + (length if opaque and tag == _ITEMS[0] else 0)
            continue
        vr = data[position + 4 : position + 6]
        if vr in _LONG:
            value, length = position + 12, struct.unpack_from("<I", data, position + 8)[0]
        else:
            value, length = position + 8, struct.unpack_from("<H", data, position + 6)[0]
        yield Part(position, value, length, tag, vr)
        position = value if vr == b"SQ" or length == _UNDEFINED else value + length


def _is_element(data: bytes, position: int) -> bool:
    return data[position + 4 : position + 6].isalpha() and data[position + 4 : position + 6].isupper()


def pixel_data(data: bytes) -> Part | None:
    """The Pixel Data element of an undamaged file."""
    return next((part for part in parts_of(data) if part.tag == PIXEL_DATA and part.vr), None)
