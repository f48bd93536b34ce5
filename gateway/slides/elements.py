"""Data elements of an open file, one head at a time: what must be found in large files without parsing all of them.

pydicom builds a data set for every item of a sequence; the per-frame groups of a sparse slide have hundreds of
thousands. Here only heads are read (PS3.5 7.1), through one window of bounded size.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

from gateway.operations.errors import TruncatedFile

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_WINDOW = 1 << 18


def truncated(path: Path) -> TruncatedFile:
    """The error for a file that ends too early."""
    return TruncatedFile(
        f"{path.name} ends before its pixel data does. The copy is incomplete: send the slide to the archive again."
    )


class Element(NamedTuple):
    """One element's tag, and where its value lies; `length` may be UNDEFINED, `vr` empty (items, implicit VR)."""

    tag: int
    value: int
    length: int
    vr: bytes = b""

    @property
    def end(self) -> int:
        return self.value + self.length


class Elements:
    """Reads one open file; not for several threads. Raises TruncatedFile where it ends inside what is asked for."""

    def __init__(self, fd: int, path: Path, *, explicit: bool, big_endian: bool) -> None:
        self._fd = fd
        self._path = path
        self._explicit = explicit
        order = ">" if big_endian else "<"
        self._signed = struct.Struct(f"{order}i")
        self._head = struct.Struct(f"{order}HHI")
        self._short = struct.Struct(f"{order}H")
        self._long = struct.Struct(f"{order}I")
        self.size = os.fstat(fd).st_size
        self._start = 0
        self._window = b""

    def bytes_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on."""
        begin = self._reach(offset, length)
        return self._window[begin : begin + length]

    def _reach(self, offset: int, length: int) -> int:
        """Have these bytes in the window; returns where they begin in it."""
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._window):
            if offset + length > self.size:
                raise truncated(self._path)
            self._window = os.pread(self._fd, max(length, _WINDOW), offset)
            self._start, begin = offset, 0
            if length > len(self._window):
                raise truncated(self._path)
        return begin

    def at(self, offset: int) -> Element:
        """The element whose head starts at `offset`."""
        begin = self._reach(offset, 8)
        group, number, length = self._head.unpack_from(self._window, begin)
        tag = group << 16 | number
        # Some writers lapse into implicit VR inside sequences: then there are no two capital letters.
        vr = self._window[begin + 4 : begin + 6]
        if not self._explicit or group == 0xFFFE or not (b"AA" <= vr <= b"ZZ"):
            return Element(tag, offset + 8, length)
        if vr not in _LONG_VRS:
            return Element(tag, offset + 8, self._short.unpack_from(self._window, begin + 6)[0], vr)
        return Element(tag, offset + 12, self._long.unpack(self.bytes_at(offset + 8, 4))[0], vr)

    def after(self, element: Element) -> int:
        """The offset behind an element, its delimiter included. Takes time for its length only, however it nests."""
        if element.length != UNDEFINED:
            return element.end
        depth, position = 1, element.value
        while depth:
            inner = self.at(position)
            if inner.tag in (ITEM_END, SEQUENCE_END):
                depth -= 1
                position = inner.value
            elif inner.length == UNDEFINED:
                depth += 1
                position = inner.value
            else:
                position = inner.end
        return position

    def signed(self, element: Element) -> int:
        """The value of an SL element."""
        value: int = self._signed.unpack(self.bytes_at(element.value, 4))[0]
        return value

    def text(self, element: Element) -> str:
        """The value of a short text element, without padding."""
        return self.bytes_at(element.value, min(element.length, 64)).decode("ascii", "replace").strip(" \0")
