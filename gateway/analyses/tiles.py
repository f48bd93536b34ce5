"""Per-tile outputs of one slide on disk, appended batch by batch, so that a killed analysis goes on where it stopped.

File layout: a header record, then one record a batch. A record is `length, crc32` (little-endian uint32) and the
payload; the header's payload is JSON that names what the outputs belong to (plan, model, engine), a batch's payload is
the number of image frames missing under it (uint32) and float32 values. A record that a kill cut short fails its
checksum and is dropped with all that follows.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from gateway.operations.disk import disk_errors
from gateway.operations.errors import RowsOutdated

_PREFIX = struct.Struct("<II")
_MISSING = struct.Struct("<I")


class TileStore:
    """Outputs of shape (N, `width`) float32 of one slide, complete up to row `done`; `load` reads them."""

    def __init__(self, file: FileIO, width: int) -> None:
        self._file = file
        self.width = width
        self.done = 0

    @classmethod
    def open(cls, path: Path, *, belongs_to: Mapping[str, str], width: int) -> Self:
        """Open for appending. Outputs that belong to anything else (another plan, another engine) are thrown away.
        Raises DiskFull, StateError."""
        with disk_errors(), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what found no room would be in it still, and fail once more as the file is closed.
            file = opened.enter_context(path.open("r+b" if path.exists() else "w+b", buffering=0))
            store = cls(file, width)
            store._begin(_header(belongs_to, width))
            opened.pop_all()
        return store

    def _begin(self, header: bytes) -> None:
        """Go behind the last sound record, or begin anew."""
        records = _records(self._file)
        if next(records, None) != header:
            self._file.seek(0)
            self._file.truncate()
            self._write(header)
            return
        good_end = _PREFIX.size + len(header)
        for payload in records:
            self.done += self._rows(payload)
            good_end += _PREFIX.size + len(payload)
        self._file.seek(good_end)
        self._file.truncate()

    def append(self, values_BC: npt.NDArray[np.float32], missing: Sequence[tuple[int, int]] = ()) -> None:
        """Append the next rows and bring them to disk; of the frames missing under them their number. Raises
        DiskFull."""
        if values_BC.ndim != 2 or values_BC.shape[1] != self.width:
            raise ValueError(f"expected (batch, {self.width}) values, got {values_BC.shape}")
        payload = _MISSING.pack(len(missing)) + np.ascontiguousarray(values_BC, dtype="<f4").tobytes()
        self._write(payload)
        self.done += self._rows(payload)

    def close(self) -> None:
        with disk_errors():
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self, payload: bytes) -> int:
        return (len(payload) - _MISSING.size) // (4 * self.width)

    def _write(self, payload: bytes) -> None:
        """Raises DiskFull, StateError; a part of the record may then be there, which its checksum gives away."""
        left = memoryview(_PREFIX.pack(len(payload), zlib.crc32(payload)) + payload)
        with disk_errors():
            while left:
                left = left[self._file.write(left) :]
            os.fdatasync(self._file.fileno())


def load(
    path: Path,
    *,
    belongs_to: Mapping[str, str],
    width: int,
    rows: int,
    columns: slice = slice(None),
    picked_M: npt.NDArray[np.integer] | None = None,
) -> tuple[npt.NDArray[np.float32], int]:
    """The outputs of a finished slide of `rows` tiles, and the number of frames missing under them: float32, all rows
    and columns, or `columns` of the rows `picked_M` (rising). No more than these is held in memory.

    Raises RowsOutdated where they belong to anything else, or are not all there.
    """
    wanted_M = np.arange(rows) if picked_M is None else picked_M
    taken = np.empty((len(wanted_M), len(range(*columns.indices(width)))), np.float32)
    done = missing = 0
    for values_BC, lacking in each(path, belongs_to=belongs_to, width=width, rows=rows):
        first, end = np.searchsorted(wanted_M, [done, done + len(values_BC)])
        taken[first:end] = values_BC[wanted_M[first:end] - done, columns]
        missing += lacking
        done += len(values_BC)
    return taken, missing


def each(
    path: Path, *, belongs_to: Mapping[str, str], width: int, rows: int
) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """The same, batch by batch as they were appended: rows (B, width) and the number of frames missing under them.

    Raises RowsOutdated, at the end where they are not all there.
    """
    if not path.exists():
        raise _outdated()
    done = 0
    with disk_errors(), path.open("rb") as file:
        records = _records(file)
        mine = next(records, None) == _header(belongs_to, width)
        for payload in records if mine else ():
            values_BC = np.frombuffer(payload, "<f4", offset=_MISSING.size).reshape(-1, width)
            done += len(values_BC)
            yield values_BC, _MISSING.unpack_from(payload)[0]
    if not mine or done != rows:
        raise _outdated()


def is_complete(path: Path, *, belongs_to: Mapping[str, str], width: int, rows: int) -> bool:
    """Whether `load` would find them all. Reads them through, since a kill may have cut the last ones short."""
    try:
        for _ in each(path, belongs_to=belongs_to, width=width, rows=rows):
            pass
    except RowsOutdated:
        return False
    return True


def _outdated() -> RowsOutdated:
    return RowsOutdated(
        "The stored tile outputs do not belong to the slide and model of this analysis: one of them was changed "
        "while it ran. They are computed anew."
    )


def _header(belongs_to: Mapping[str, str], width: int) -> bytes:
    return json.dumps({**belongs_to, "width": width}, sort_keys=True).encode()


def _records(file: IO[bytes]) -> Iterator[bytes]:
    """The payloads of all sound records from the start of the file."""
    file.seek(0)
    while len(prefix := file.read(_PREFIX.size)) == _PREFIX.size:
        length, checksum = _PREFIX.unpack(prefix)
        payload = file.read(length)
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield payload
