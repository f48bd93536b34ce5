"""Where the frames of an image lie: in the file (encapsulation, PS3.5 A.4) and in the image (PS3.3 C.7.6.17.3).

wsidicom reads the header and the per-frame positions. The byte positions are read here, because zero-length frames,
fragmented frames, odd lengths in extended offset tables and truncation must be told apart, and because frames are read
in bulk with `pread`, without a lock.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from wsidicom.file.io import WsiDicomReader, WsiDicomReadIO
from wsidicom.instance.dataset import TileType

from gateway.operations.errors import CorruptFrame, InvalidSlide, TruncatedFile

_ITEM = b"\xfe\xff\x00\xe0"
_DELIMITER = b"\xfe\xff\xdd\xe0"
_EXTENDED_OFFSETS = b"\xe0\x7f\x01\x00"
_EXTENDED_LENGTHS = b"\xe0\x7f\x02\x00"
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_HEADER = 8
_ITEM_HEADER = struct.Struct("<4sI")
_MAX_GAP = 64 * 1024
"""Frames this close together are read in one go: a read costs more than the bytes between them."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameFile:
    """The frames of one file: frame f lies in bytes `starts_F[f]:ends_F[f]`, item headers included if encapsulated."""

    path: Path
    encapsulated: bool
    starts_F: NDArray[np.int64]
    ends_F: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts_F)

    def read(self, fd: int, frames: list[int]) -> list[memoryview]:
        """The encoded bytes of some frames in rising order, neighbours in one read. Zero-length frames come empty.

        Raises TruncatedFile, CorruptFrame.
        """
        starts, ends = self.starts_F[frames].tolist(), self.ends_F[frames].tolist()
        result: list[memoryview] = []
        first = 0
        while first < len(frames):
            last = first
            while last + 1 < len(frames) and starts[last + 1] - ends[last] <= _MAX_GAP:
                last += 1
            origin, size = starts[first], ends[last] - starts[first]
            data = memoryview(os.pread(fd, size, origin))
            if len(data) != size:
                raise TruncatedFile(_truncated(self.path))
            for i in range(first, last + 1):
                item = data[starts[i] - origin : ends[i] - origin]
                result.append(_unwrap(item) if self.encapsulated else item)
            first = last + 1
        return result


def _unwrap(item: memoryview) -> memoryview:
    """The frame inside its item, or joined from its fragments (PS3.5 A.4)."""
    fragments: list[memoryview] = []
    position = 0
    while position < len(item):
        tag, length = _ITEM_HEADER.unpack_from(item, position)
        position += _HEADER
        fragments.append(item[position : position + length])
        position += length
        if tag != _ITEM or position > len(item):
            raise CorruptFrame("The slide's frames are not where its offset table says. Send it to the archive again.")
    return fragments[0] if len(fragments) == 1 else memoryview(b"".join(fragments))


def _truncated(path: Path) -> str:
    return f"{path.name} ends before its pixel data does. The copy is incomplete: send the slide to the archive again."


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Where an instance's frames lie in the total pixel matrix: 0-based tile rows and columns of each frame, or None
    where they simply follow each other (TILED_FULL). `plane_F` selects the frames of the focal plane and optical path
    that is read."""

    rows_F: NDArray[np.int64]
    columns_F: NDArray[np.int64]
    plane_F: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One VOLUME instance with its frame positions; `frame_offset` counts the frames of earlier concatenation parts."""

    frames: FrameFile
    frame_offset: int
    positions: Positions | None


def read_instance(path: Path, frame_width_px: int, frame_height_px: int) -> Instance:
    """Find the frames of one VOLUME instance. Raises TruncatedFile, InvalidSlide."""
    with path.open("rb") as stream:
        try:
            reader = WsiDicomReader(WsiDicomReadIO(stream, filepath=path))
            dataset = reader.dataset
            count, frame_offset = dataset.frame_count, dataset.frame_offset
            positions = None
            if dataset.tile_type != TileType.FULL:
                positions = _sparse_positions(dataset.frame_positions, frame_width_px, frame_height_px)
            pixel_data = reader._deferred_reader.seek_to_pixel_data()  # no public name gives the offset
        except (EOFError, struct.error) as error:
            raise TruncatedFile(_truncated(path)) from error
        except InvalidSlide:
            raise
        except Exception as error:
            # wsidicom raises from many layers (its own errors, pydicom's, KeyError, ValueError) for a bad header.
            raise InvalidSlide(
                f"{path.name} is a whole-slide image whose header cannot be used ({type(error).__name__}). Check how "
                "the slide was converted."
            ) from error
        explicit = not reader.transfer_syntax.is_implicit_VR
        table = _FrameTable(stream, path, explicit)
        if reader.transfer_syntax.is_encapsulated:
            frames = table.encapsulated(pixel_data, count)
        else:
            frames = table.native(pixel_data, count, frame_width_px * frame_height_px * 3)
    if positions is not None and len(positions.rows_F) != count:
        raise InvalidSlide(f"{path.name} gives positions for {len(positions.rows_F)} of its {count} frames.")
    return Instance(frames=frames, frame_offset=frame_offset, positions=positions)


def _sparse_positions(positions: object, frame_width_px: int, frame_height_px: int) -> Positions:
    columns, rows = positions.columns - 1, positions.rows - 1  # type: ignore[attr-defined]
    if (columns % frame_width_px).any() or (rows % frame_height_px).any():
        raise InvalidSlide("The slide's frames do not lie on a regular grid. Convert it to TILED_FULL.")
    plane = np.ones(len(columns), np.bool_)
    z, paths = positions.z_offsets, positions.optical_path_identifiers  # type: ignore[attr-defined]
    if z is not None:
        planes = np.unique(z)
        plane &= z == planes[np.argmin(np.abs(planes - np.median(planes)))]
    if paths is not None:
        plane &= paths == paths[0]
    return Positions(rows_F=rows // frame_height_px, columns_F=columns // frame_width_px, plane_F=plane)


class _FrameTable:
    """Reads offset tables and item headers of one open file (little endian)."""

    def __init__(self, stream: BinaryIO, path: Path, explicit: bool) -> None:
        self._fd = stream.fileno()
        self._size = os.fstat(self._fd).st_size
        self._path = path
        self._explicit = explicit

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise TruncatedFile(_truncated(self._path))
        return os.pread(self._fd, length, offset)

    def _element(self, offset: int) -> tuple[bytes, int, int]:
        """Tag, value offset and value length of the element at `offset`."""
        if self._explicit:
            head = self._read(offset, 12)
            if head[4:6] in (b"OB", b"OW", b"OV"):
                return head[:4], offset + 12, int.from_bytes(head[8:12], "little")
            return head[:4], offset + 8, int.from_bytes(head[6:8], "little")
        head = self._read(offset, 8)
        return head[:4], offset + 8, int.from_bytes(head[4:8], "little")

    def native(self, offset: int, count: int, frame_bytes: int) -> FrameFile:
        tag, value, length = self._element(offset)
        if tag != _PIXEL_DATA or value + length > self._size:
            raise TruncatedFile(_truncated(self._path))
        if length < count * frame_bytes:
            raise InvalidSlide(f"{self._path.name} holds fewer pixels than its header says.")
        starts = value + np.arange(count, dtype=np.int64) * frame_bytes
        return FrameFile(self._path, False, starts, starts + frame_bytes)

    def encapsulated(self, offset: int, count: int) -> FrameFile:
        offsets: NDArray[np.int64] | None = None
        tag, value, length = self._element(offset)
        if tag == _EXTENDED_OFFSETS:
            offsets = np.frombuffer(self._read(value, length), "<u8").astype(np.int64)
            tag, value, length = self._element(value + length)
            if tag == _EXTENDED_LENGTHS:
                tag, value, length = self._element(value + length)
        if tag != _PIXEL_DATA:
            raise TruncatedFile(_truncated(self._path))
        head = self._read(value, _HEADER)
        if head[:4] != _ITEM:
            raise InvalidSlide(f"{self._path.name} has no offset table item at the head of its pixel data.")
        table = self._read(value + _HEADER, int.from_bytes(head[4:], "little"))
        first = value + _HEADER + len(table)
        if offsets is None and len(table) == 4 * count:
            offsets = np.frombuffer(table, "<u4").astype(np.int64)
        # A basic table overflows beyond 4 GiB and some writers leave nonsense: then the items themselves are walked.
        if offsets is None or len(offsets) != count or offsets[0] != 0 or (np.diff(offsets) < _HEADER).any():
            return self._walk(first, count)
        starts = first + offsets
        ends = np.append(starts[1:], self._end_of_items(int(starts[-1])))
        return FrameFile(self._path, True, starts, ends)

    def _end_of_items(self, position: int) -> int:
        """The end of the run of items that starts at `position`."""
        while position < self._size:
            head = self._read(position, _HEADER)
            if head[:4] != _ITEM:
                break
            position += _HEADER + int.from_bytes(head[4:], "little")
        if position > self._size:
            raise TruncatedFile(_truncated(self._path))
        return position

    def _walk(self, position: int, count: int) -> FrameFile:
        starts: list[int] = []
        while position < self._size:
            head = self._read(position, _HEADER)
            if head[:4] != _ITEM:
                break
            starts.append(position)
            position += _HEADER + int.from_bytes(head[4:], "little")
        if position > self._size or len(starts) < count:
            raise TruncatedFile(_truncated(self._path))
        if count == 1:
            del starts[1:]
        if len(starts) != count:
            raise InvalidSlide(
                f"{self._path.name} holds {len(starts)} fragments for {count} frames and no offset table. Convert it "
                "with an offset table."
            )
        starts_F = np.asarray(starts, np.int64)
        return FrameFile(self._path, True, starts_F, np.append(starts_F[1:], position))
