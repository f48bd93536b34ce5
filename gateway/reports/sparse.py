"""Multi-frame images of which only some tiles are stored (TILED_SPARSE, PS3.3 C.7.6.17.3), written tile by tile.

Each frame then says where it lies (PS3.3 C.7.6.16.2.2, C.8.12.6.1) and which segment it is of (C.8.20.3.1). A whole
slide has frames by the hundred thousand, and a Python object for each part of each would take gigabytes: the per-frame
functional groups are written as bytes, a frame at a time (PS3.5 7.5).
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmwrite
from pydicom.tag import Tag

from gateway.operations.errors import PathserveError
from gateway.reports.tiled import BUFFER_BYTES, Bits, Frame, Tiling, describe_pixels, write_pixels

_MOST_DECIMALS = 16
"""Characters of a decimal string (PS3.5 6.2, DS)."""

Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """Where F frames lie, in the order in which they are stored. `tiles_F2` (F, 2): row and column of the tiling.
    `segments_F` (F,): the number of each one's segment (from 1); None where a frame holds several (a label map)."""

    tiles_F2: Ints
    segments_F: Ints | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plane:
    """Where a matrix lies in mm (x, y, z): the centre of its first pixel, the steps to the next row and column."""

    origin_3: npt.NDArray[np.float64]
    row_step_3: npt.NDArray[np.float64]
    column_step_3: npt.NDArray[np.float64]


def write_sparse(
    path: Path,
    dataset: Dataset,
    tiling: Tiling,
    plane: Plane,
    frames: Frames,
    pixels: Iterable[Frame],
    *,
    bits: Bits,
    jpeg_ls: bool = False,
) -> None:
    """Write `dataset`, which has file meta information and no pixel data yet, with `pixels`: one array for each of
    `frames`, as in `write_tiled`; what describes the frames is set on it, in place.

    Memory stays that of a few frames. The same arguments give the same bytes. Raises OSError, and PathserveError where
    the pixels do not fit the frames, are too many for native pixel data, or there are none.
    """
    count = len(frames.tiles_F2)
    if not count:
        raise PathserveError("An image has at least one frame, and this one would have none. Report this.")
    describe_pixels(dataset, tiling, count, bits, jpeg_ls=jpeg_ls)
    dataset.DimensionOrganizationType = "TILED_SPARSE"
    pointers = [_ROW, _COLUMN] if frames.segments_F is None else [_SEGMENT, _ROW, _COLUMN]
    organization = dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID
    dataset.DimensionIndexSequence = [_dimension(organization, *pointer) for pointer in pointers]
    windows = (tiling.window(row, column) for row, column in frames.tiles_F2.tolist())
    with path.open("wb", buffering=BUFFER_BYTES) as stream:
        dcmwrite(stream, dataset, enforce_file_format=True)
        stream.write(struct.pack("<HH2s2xL", 0x5200, 0x9230, b"SQ", 0xFFFFFFFF))
        for item in _groups(tiling, plane, frames):
            stream.write(item)
        stream.write(struct.pack("<HHL", 0xFFFE, 0xE0DD, 0))
        write_pixels(stream, tiling, windows, pixels, count, bits, jpeg_ls=jpeg_ls)


_SEGMENT = ("ReferencedSegmentNumber", "SegmentIdentificationSequence", "Segment")
_ROW = ("RowPositionInTotalImagePixelMatrix", "PlanePositionSlideSequence", "Row")
_COLUMN = ("ColumnPositionInTotalImagePixelMatrix", "PlanePositionSlideSequence", "Column")


def _dimension(organization: str, pointer: str, group: str, label: str) -> Dataset:
    """One item of the Dimension Index Sequence (PS3.3 C.7.6.17)."""
    item = Dataset()
    item.DimensionOrganizationUID = organization
    item.DimensionIndexPointer = Tag(pointer)
    item.FunctionalGroupPointer = Tag(group)
    item.DimensionDescriptionLabel = label
    return item


def _groups(tiling: Tiling, plane: Plane, frames: Frames) -> Iterator[bytes]:
    """The per-frame functional groups of each frame, encoded."""
    first_F2 = frames.tiles_F2.astype(np.int64) * [tiling.tile_rows, tiling.tile_columns]
    columns = [frames.tiles_F2[:, 0], frames.tiles_F2[:, 1]]
    if frames.segments_F is not None:
        columns.insert(0, frames.segments_F)
    index_FD = np.stack([np.unique(column, return_inverse=True)[1] + 1 for column in columns], axis=1).astype("<u4")
    for number, (down, across) in enumerate(first_F2.tolist()):
        at_3 = plane.origin_3 + down * plane.row_step_3 + across * plane.column_step_3
        offsets = (decimal_string(value).ljust(_MOST_DECIMALS).encode() for value in at_3.tolist())
        position = b"".join(
            (
                *(element(value) for element, value in zip(_OFFSETS, offsets, strict=True)),
                _COLUMN_POSITION(struct.pack("<l", across + 1)),
                _ROW_POSITION(struct.pack("<l", down + 1)),
            )
        )
        groups = _FRAME_CONTENT(_item(_INDEX_VALUES(index_FD[number].tobytes()))) + _PLANE_POSITION(_item(position))
        if frames.segments_F is not None:
            groups += _IDENTIFICATION(_item(_SEGMENT_NUMBER(struct.pack("<H", int(frames.segments_F[number])))))
        yield _item(groups)


def _element(keyword: str, vr: bytes) -> Callable[[bytes], bytes]:
    """What encodes values of an element (PS3.5 7.1.2)."""
    tag = Tag(keyword)
    head = struct.pack("<HH2s", tag.group, tag.element, vr)
    length = struct.Struct("<2xL" if vr == b"SQ" else "<H")
    return lambda value: head + length.pack(len(value)) + value


def _item(content: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


_FRAME_CONTENT = _element("FrameContentSequence", b"SQ")
_INDEX_VALUES = _element("DimensionIndexValues", b"UL")
_PLANE_POSITION = _element("PlanePositionSlideSequence", b"SQ")
_OFFSETS = [_element(f"{axis}OffsetInSlideCoordinateSystem", b"DS") for axis in "XYZ"]
_COLUMN_POSITION = _element("ColumnPositionInTotalImagePixelMatrix", b"SL")
_ROW_POSITION = _element("RowPositionInTotalImagePixelMatrix", b"SL")
_IDENTIFICATION = _element("SegmentIdentificationSequence", b"SQ")
_SEGMENT_NUMBER = _element("ReferencedSegmentNumber", b"US")


def decimal_string(value: float) -> str:
    """A number as precisely as VR DS can hold it."""
    return next(text for digits in range(15, 0, -1) if len(text := f"{value:.{digits}g}") <= _MOST_DECIMALS)
