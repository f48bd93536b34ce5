"""Multi-frame images written tile by tile: one frame is in memory at a time, whatever the size of the whole.

The frames of a TILED_FULL image (PS3.3 C.7.6.17.3) come as an iterable, so that masks may lie on disk or be made as
they are written; `sparse` writes images of which some frames are left out. Pixel data are native (PS3.5 8.1.1) or
JPEG-LS, one fragment a frame (PS3.5 A.4).
"""

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from gateway.operations.errors import PathserveError

_TILE_PX = 512
BUFFER_BYTES = 1 << 20
_MOST_NATIVE_BYTES = 0xFFFFFFFE
_JPEG_LS_GROWTH = 4
"""Noise grows: a sample of 8 or 16 bits takes at most 32 or 64 (LIMIT of ISO 14495-1 A.2.1), beside the headers."""
_JPEG_LS_HEADERS_BYTES = 1024
_ENCODERS = min(8, os.cpu_count() or 1)
"""Frames that are encoded at a time."""
_MOST_BASIC_BYTES = (1 << 32) // _JPEG_LS_GROWTH
"""Raw size up to which the 32 bits of the basic offset table are sure to hold."""
_PIXEL_DATA, _EXTENDED_OFFSETS, _EXTENDED_LENGTHS = 0x0010, 0x0001, 0x0002
"""Elements of group 7FE0."""
_ITEM, _SEQUENCE_END = 0xE000, 0xE0DD
"""Elements of group FFFE."""
_UNDEFINED = 0xFFFFFFFF

Frame = npt.NDArray[Any]
Window = tuple[slice, slice]
Bits = Literal[1, 8, 16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a total pixel matrix of `rows` × `columns` is cut: tiles of one size, row by row from the top left.

    The last tiles of a row and of a column reach beyond the matrix; what lies there is 0.
    """

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int

    @classmethod
    def of(cls, rows: int, columns: int) -> "Tiling":
        """Tiles of at most 512 pixels, as even as can be. Sides are multiples of 8, so that each frame of a bit mask
        begins with a byte: not all readers expect otherwise."""
        return cls(rows=rows, columns=columns, tile_rows=_even_side(rows), tile_columns=_even_side(columns))

    @property
    def tiles(self) -> int:
        """The number of tiles that cover the matrix once."""
        return -(-self.rows // self.tile_rows) * -(-self.columns // self.tile_columns)

    def windows(self) -> Iterator[Window]:
        """The (rows, columns) of the matrix under each tile, cut at the matrix's edge, in the order of the frames."""
        for row in range(-(-self.rows // self.tile_rows)):
            for column in range(-(-self.columns // self.tile_columns)):
                yield self.window(row, column)

    def window(self, row: int, column: int) -> Window:
        """The (rows, columns) of the matrix under one tile, cut at the matrix's edge."""
        top, left = row * self.tile_rows, column * self.tile_columns
        return (
            slice(top, min(top + self.tile_rows, self.rows)),
            slice(left, min(left + self.tile_columns, self.columns)),
        )


def _even_side(size_px: int) -> int:
    tiles = -(-size_px // _TILE_PX)
    return -(-size_px // (8 * tiles)) * 8


def write_tiled(
    path: Path,
    dataset: Dataset,
    tiling: Tiling,
    frames: Iterable[Frame],
    *,
    bits: Bits,
    channels: int = 1,
    jpeg_ls: bool = False,
) -> None:
    """Write `dataset`, which has file meta information and no pixel data yet, with those of `frames` to `path`; what
    describes the pixels is set on it, in place.

    `frames` yields `channels` × `tiling.tiles` arrays (h, w), all tiles of a channel (a segment) before the next one's:
    bool or 0 and 1 for 1 bit, uint8, uint16; edge tiles as large as the others, or cut at the matrix's edge. Memory
    stays that of a few frames. The same arguments give the same bytes. Raises OSError, and PathserveError where the
    frames do not fit the tiling or are too many for native pixel data.
    """
    count = channels * tiling.tiles
    describe_pixels(dataset, tiling, count, bits, jpeg_ls=jpeg_ls)
    dataset.DimensionOrganizationType = "TILED_FULL"
    windows = (window for _ in range(channels) for window in tiling.windows())
    with path.open("wb", buffering=BUFFER_BYTES) as stream:
        dcmwrite(stream, dataset, enforce_file_format=True)
        write_pixels(stream, tiling, windows, frames, count, bits, jpeg_ls=jpeg_ls)


def fits_uncompressed(tiling: Tiling, count: int, bits: Bits) -> bool:
    """Whether so many frames can be stored without compression: the length of native pixel data has 32 bits."""
    return _native_bytes(tiling, count, bits) <= _MOST_NATIVE_BYTES


def _native_bytes(tiling: Tiling, count: int, bits: Bits) -> int:
    return -(-tiling.tile_rows * tiling.tile_columns * bits * count // 8)


def describe_pixels(dataset: Dataset, tiling: Tiling, count: int, bits: Bits, *, jpeg_ls: bool) -> None:
    """What describes `count` frames of pixels (PS3.3 C.7.6.3), set on `dataset`, in place."""
    dataset.Rows, dataset.Columns = tiling.tile_rows, tiling.tile_columns
    dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns = tiling.rows, tiling.columns
    dataset.NumberOfFrames = count
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless if jpeg_ls else ExplicitVRLittleEndian


def write_pixels(
    stream: BinaryIO,
    tiling: Tiling,
    windows: Iterable[Window],
    frames: Iterable[Frame],
    count: int,
    bits: Bits,
    *,
    jpeg_ls: bool,
) -> None:
    """Write the pixel data element: `count` frames, one for each of `windows`. Raises as `write_tiled`."""
    tiles = _checked(tiling, windows, frames, bits)
    if jpeg_ls:
        frame_bytes = tiling.tile_rows * tiling.tile_columns * bits // 8
        _write_jpeg_ls(stream, tiles, count, extended=frame_bytes * count > _MOST_BASIC_BYTES)
    else:
        _write_native(stream, tiles, _native_bytes(tiling, count, bits), bits)


def _checked(tiling: Tiling, windows: Iterable[Window], frames: Iterable[Frame], bits: Bits) -> Iterator[Frame]:
    """The frames as they are stored, each of a tile's full size; raises where there are too few, too many, or others
    than the windows ask for."""
    full = (tiling.tile_rows, tiling.tile_columns)
    stored = np.uint16 if bits == 16 else np.uint8
    given = iter(frames)
    for rows, columns in windows:
        frame = next(given, None)
        if frame is None:
            raise PathserveError("A tiled image has fewer frames than its size asks for. Report this.")
        cut = (rows.stop - rows.start, columns.stop - columns.start)
        if frame.shape not in (full, cut) or not np.can_cast(frame.dtype, stored):
            raise PathserveError("A frame of a tiled image has another size or type than its tile. Report this.")
        if frame.shape != full:
            whole = np.zeros(full, stored)
            whole[: cut[0], : cut[1]] = frame
            frame = whole
        yield np.ascontiguousarray(frame, dtype=stored)
    if next(given, None) is not None:
        raise PathserveError("A tiled image has more frames than its size asks for. Report this.")


def _write_native(stream: BinaryIO, frames: Iterator[Frame], length: int, bits: Bits) -> None:
    padded = length + length % 2
    if padded > _MOST_NATIVE_BYTES:
        raise PathserveError(
            "The image has more than 4 GiB of pixels, which cannot be stored uncompressed. Store it compressed."
        )
    _element_head(stream, _PIXEL_DATA, b"OW" if bits == 16 else b"OB", padded)
    for chunk in _packed(frames) if bits == 1 else (frame.astype("<u2" if bits == 16 else "u1") for frame in frames):
        stream.write(chunk.tobytes())
    stream.write(b"\0" * (padded - length))


def _packed(frames: Iterator[Frame]) -> Iterator[npt.NDArray[np.uint8]]:
    """Eight pixels a byte, the first in the lowest bit, without a gap between frames (PS3.5 8.1.1, annex D)."""
    rest = np.zeros(0, np.uint8)
    for frame in frames:
        bits = np.concatenate((rest, frame.ravel())) if rest.size else frame.ravel()
        whole = bits.size - bits.size % 8
        rest = bits[whole:].copy()
        yield np.packbits(bits[:whole], bitorder="little")
    yield np.packbits(rest, bitorder="little")


def _write_jpeg_ls(stream: BinaryIO, frames: Iterator[Frame], count: int, *, extended: bool) -> None:
    """Encapsulated pixel data. The offset tables are written empty and filled in at the end, when they are known:
    the basic one (PS3.5 A.4), or the extended one (PS3.3 C.7.6.3.1.8) where 32 bits might not be enough."""
    table = bytes(8 * count if extended else 4 * count)
    if extended:
        _element_head(stream, _EXTENDED_OFFSETS, b"OV", len(table))
        offsets_at = stream.tell()
        stream.write(table)
        _element_head(stream, _EXTENDED_LENGTHS, b"OV", len(table))
        lengths_at = stream.tell()
        stream.write(table)
        _element_head(stream, _PIXEL_DATA, b"OB", _UNDEFINED)
        _item_head(stream, _ITEM, 0)
    else:
        _element_head(stream, _PIXEL_DATA, b"OB", _UNDEFINED)
        _item_head(stream, _ITEM, len(table))
        offsets_at = stream.tell()
        stream.write(table)
    lengths = np.zeros(count, "<u8")
    for number, encoded in enumerate(_in_jpeg_ls(frames)):
        _item_head(stream, _ITEM, len(encoded))
        stream.write(encoded)
        lengths[number] = len(encoded)
    _item_head(stream, _SEQUENCE_END, 0)
    offsets = np.concatenate((np.zeros(1, "<u8"), np.cumsum(lengths + 8)[:-1]))  # 8: the head of an item
    stream.seek(offsets_at)
    stream.write(offsets.astype("<u8" if extended else "<u4").tobytes())
    if extended:
        stream.seek(lengths_at)
        stream.write(lengths.tobytes())


def _in_jpeg_ls(frames: Iterator[Frame]) -> Iterator[bytes]:
    """The frames encoded, of even lengths and in their order, some of them at a time."""
    with ThreadPoolExecutor(_ENCODERS, thread_name_prefix="jpeg-ls") as pool:
        ahead: deque[Future[bytes]] = deque()
        for frame in frames:
            ahead.append(pool.submit(_jpeg_ls, frame))
            if len(ahead) > _ENCODERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _jpeg_ls(frame: Frame) -> bytes:
    encoded = imagecodecs.jpegls_encode(frame, out=frame.nbytes * _JPEG_LS_GROWTH + _JPEG_LS_HEADERS_BYTES)
    return bytes(encoded) + b"\0" * (len(encoded) % 2)


def _element_head(stream: BinaryIO, element: int, vr: bytes, length: int) -> None:
    """Tag, VR and 32-bit length of an element of group 7FE0 (PS3.5 7.1.2)."""
    stream.write(struct.pack("<HH2s2xL", 0x7FE0, element, vr, length))


def _item_head(stream: BinaryIO, element: int, length: int) -> None:
    stream.write(struct.pack("<HHL", 0xFFFE, element, length))
