"""Where the frames of one instance lie in its file: in encapsulated or native pixel data (PS3.5 A.4, 8.1), or in the
frames that were fetched of it so far (`gateway.archive.partial`).

Zero-length frames, fragmented frames, odd lengths in extended offset tables, overflown basic ones and truncation are
told apart, and frames are read in bulk with `pread`, without a lock.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.archive.partial import PartialInstance, is_partial
from gateway.operations.errors import CorruptFrame, FramesNotFetched, InvalidSlide
from gateway.slides.elements import ITEM, UNDEFINED, Element, Elements, truncated
from gateway.slides.header import ImageFile
from gateway.slides.places import PER_FRAME_GROUPS, Places, read_places

_ITEM_BYTES = b"\xfe\xff\x00\xe0"
_EXTENDED_OFFSETS, _EXTENDED_LENGTHS, _PIXEL_DATA = 0x7FE00001, 0x7FE00002, 0x7FE00010
_HEADER = 8
_ITEM_HEADER = struct.Struct("<4sI")
_CODESTREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff")
"""JPEG and JPEG-LS (SOI and the next marker), JPEG 2000 (SOC, SIZ): a frame begins there, if no table tells."""
_MAX_GAP = 64 * 1024
"""Frames this close together are read in one go: a read costs more than the bytes between them."""
_MAX_READ = 64 * 1024 * 1024
_MAX_ELEMENTS = 10_000
"""Between a header and its pixels there are a handful."""
_MAX_FRAME_BYTES = 1 << 28
"""No frame that can be read is longer (see `decode`); a damaged table may say so, and would be given that memory."""


class Frames(Protocol):
    """The encoded frames of one instance. `path` is the file that holds them."""

    @property
    def path(self) -> Path: ...

    def __len__(self) -> int: ...

    def read(self, fd: int, frames: list[int]) -> list[memoryview]:
        """The encoded bytes of some frames; a frame of zero length comes empty. `fd` is `path`, open.

        Raises TruncatedFile, CorruptFrame, FramesNotFetched.
        """


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrames:
    """The frames of a whole file: frame f lies in bytes `starts_F[f]:ends_F[f]`, with item headers if encapsulated.
    `swapped`: bytes are stored in words with the high one first (PS3.5 A.3)."""

    path: Path
    encapsulated: bool
    starts_F: NDArray[np.int64]
    ends_F: NDArray[np.int64]
    swapped: bool = False

    def __len__(self) -> int:
        return len(self.starts_F)

    def read(self, fd: int, frames: list[int]) -> list[memoryview]:
        try:
            extents = _read_extents(fd, self.starts_F[frames], self.ends_F[frames])
        except EOFError:
            raise truncated(self.path) from None
        except ValueError:
            raise CorruptFrame(_MISPLACED) from None
        if self.encapsulated:
            return [_unwrap(extent) for extent in extents]
        if self.swapped:
            return [memoryview(np.frombuffer(extent, "<u2").byteswap().tobytes()) for extent in extents]
        return extents


@dataclass(frozen=True, slots=True, eq=False)
class FetchedFrames:
    """The frames that were fetched of a partial instance when it was opened: `extents_F2` as its index has them."""

    path: Path
    extents_F2: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.extents_F2)

    def read(self, fd: int, frames: list[int]) -> list[memoryview]:
        starts, ends = self.extents_F2[frames, 0], self.extents_F2[frames, 1]
        if (starts < 0).any():
            raise _not_fetched()
        if not (ends > starts).any():
            return [memoryview(b"")] * len(frames)
        try:
            return _read_extents(fd, starts, ends)
        except (EOFError, OSError, ValueError):
            raise _not_fetched() from None


def _not_fetched() -> FramesNotFetched:
    return FramesNotFetched("Frames of the slide are not in the frame cache. Let them be fetched, then read again.")


def _read_extents(fd: int, starts_E: NDArray[np.int64], ends_E: NDArray[np.int64]) -> list[memoryview]:
    """Extents of an open file, neighbours in one read. Raises EOFError where the file ends before they do, ValueError
    for one that is longer than any frame."""
    order = np.argsort(starts_E, kind="stable").tolist()
    starts, ends = starts_E.tolist(), ends_E.tolist()
    result = [memoryview(b"")] * len(starts)
    first = 0
    while first < len(order):
        origin, end, last = starts[order[first]], ends[order[first]], first
        while last + 1 < len(order) and 0 <= starts[order[last + 1]] - end <= _MAX_GAP:
            if ends[order[last + 1]] - origin > _MAX_READ:
                break
            last += 1
            end = ends[order[last]]
        if end - origin > _MAX_FRAME_BYTES:
            raise ValueError("longer than any frame")
        data = memoryview(os.pread(fd, end - origin, origin))
        if len(data) != end - origin:
            raise EOFError
        for extent in order[first : last + 1]:
            result[extent] = data[starts[extent] - origin : ends[extent] - origin]
        first = last + 1
    return result


def _unwrap(item: memoryview) -> memoryview:
    """The frame inside its item, or joined from its fragments (PS3.5 A.4)."""
    fragments: list[memoryview] = []
    position = 0
    while position < len(item):
        if position + _HEADER > len(item):
            raise CorruptFrame(_MISPLACED)
        tag, length = _ITEM_HEADER.unpack_from(item, position)
        position += _HEADER
        fragments.append(item[position : position + length])
        position += length
        if tag != _ITEM_BYTES or position > len(item):
            raise CorruptFrame(_MISPLACED)
    return fragments[0] if len(fragments) == 1 else memoryview(b"".join(fragments))


_MISPLACED = "The slide's frames are not where its offset table says. Send it to the archive again."


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One VOLUME instance with its frames. `places` is None where they simply follow each other (TILED_FULL)."""

    file: ImageFile
    frames: Frames
    places: Places | None


def read_instance(image: ImageFile) -> Instance:
    """Find the frames of one VOLUME instance. Raises TruncatedFile, InvalidSlide, FramesNotFetched (it was evicted)."""
    header = image.dataset
    count = int(header.get("NumberOfFrames") or 1)
    if count < 1:
        raise InvalidSlide(f"{image.path.name} holds no frames. Check how the slide was converted.")
    try:
        fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise InvalidSlide("A file of the slide vanished while it was opened. Try again.") from None
    try:
        elements = Elements(fd, image.path, explicit=image.explicit, big_endian=image.big_endian)
        groups = data = None
        position = image.rest
        for _ in range(_MAX_ELEMENTS):
            if position >= elements.size:
                break
            element = elements.at(position)
            if element.tag in (_EXTENDED_OFFSETS, _PIXEL_DATA):
                data = element
                break
            if element.tag == PER_FRAME_GROUPS:
                groups = element
            position = elements.after(element)
        places = None
        if header.get("DimensionOrganizationType") != "TILED_FULL":
            places = read_places(elements, groups, header, count)
        if is_partial(image.path):
            return Instance(image, _fetched(image, count), places)
        if data is None:
            raise truncated(image.path)
        table = _FrameTable(elements, image.path)
        if image.encapsulated:
            frames = table.encapsulated(data, count)
        else:
            frame_bytes = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel)
            frames = table.native(data, count, frame_bytes, swapped=image.big_endian and data.vr == b"OW")
    finally:
        os.close(fd)
    return Instance(image, frames, places)


def _fetched(image: ImageFile, count: int) -> FetchedFrames:
    part = PartialInstance(image.path)
    try:
        extents_F2 = part.extents()
    except (OSError, ValueError):
        raise _not_fetched() from None
    if len(extents_F2) != count:
        raise _not_fetched()
    return FetchedFrames(part.frames_file, extents_F2)


class _FrameTable:
    """Reads offset tables and item headers of one open file."""

    def __init__(self, elements: Elements, path: Path) -> None:
        self._elements = elements
        self._path = path

    def native(self, data: Element, count: int, frame_bytes: int, *, swapped: bool) -> StoredFrames:
        if data.tag != _PIXEL_DATA or data.end > self._elements.size:
            raise truncated(self._path)
        if data.length < count * frame_bytes:
            raise InvalidSlide(f"{self._path.name} holds fewer pixels than its header says.")
        if swapped and frame_bytes % 2:
            raise InvalidSlide(f"{self._path.name} has words that two frames share. Convert it to little endian.")
        starts = data.value + np.arange(count, dtype=np.int64) * frame_bytes
        return StoredFrames(self._path, False, starts, starts + frame_bytes, swapped)

    def encapsulated(self, data: Element, count: int) -> StoredFrames:
        elements = self._elements
        offsets: NDArray[np.int64] | None = None
        if data.tag == _EXTENDED_OFFSETS:
            offsets = np.frombuffer(elements.bytes_at(data.value, data.length), "<u8").astype(np.int64)
            data = elements.at(data.end)
            if data.tag == _EXTENDED_LENGTHS:
                data = elements.at(data.end)
        if data.tag != _PIXEL_DATA:
            raise truncated(self._path)
        basic = elements.at(data.value)
        if data.length != UNDEFINED or basic.tag != ITEM:
            raise InvalidSlide(f"{self._path.name} has no offset table item at the head of its pixel data.")
        table = elements.bytes_at(basic.value, basic.length)
        if offsets is None and len(table) == 4 * count:
            offsets = np.frombuffer(table, "<u4").astype(np.int64)
        # A basic table overflows beyond 4 GiB and some writers leave nonsense: then the items themselves are walked.
        if offsets is None or not self._plausible(offsets, basic.end, count):
            return self._walk(basic.end, count)
        starts = basic.end + offsets
        ends = np.append(starts[1:], self._items(int(starts[-1]))[1])
        return StoredFrames(self._path, True, starts, ends)

    def _plausible(self, offsets_F: NDArray[np.int64], first: int, count: int) -> bool:
        if len(offsets_F) != count or offsets_F[0] != 0 or (np.diff(offsets_F) < _HEADER).any():
            return False
        last = first + int(offsets_F[-1])
        return last + _HEADER > self._elements.size or self._elements.at(last).tag == ITEM

    def _items(self, position: int) -> tuple[list[int], int]:
        """Where the items begin of the run that starts at `position`, and where it ends."""
        starts: list[int] = []
        while position < self._elements.size:
            item = self._elements.at(position)
            if item.tag != ITEM:
                break
            starts.append(position)
            position = item.end
        if position > self._elements.size:
            raise truncated(self._path)
        return starts, position

    def _walk(self, position: int, count: int) -> StoredFrames:
        starts, end = self._items(position)
        if len(starts) < count:
            raise truncated(self._path)
        if count == 1:
            del starts[1:]
        elif len(starts) > count:
            starts = [start for start in starts if self._elements.bytes_at(start + _HEADER, 3) in _CODESTREAM_STARTS]
        if len(starts) != count:
            raise InvalidSlide(
                f"{self._path.name} has neither one fragment for each of its {count} frames nor an offset table. "
                "Convert it with an offset table."
            )
        starts_F = np.asarray(starts, np.int64)
        return StoredFrames(self._path, True, starts_F, np.append(starts_F[1:], end))
