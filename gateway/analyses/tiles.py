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
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from gateway.operations.errors import DiskFull

_PREFIX = struct.Struct("<II")
_MISSING = struct.Struct("<I")


class TileStore:
    """Outputs of shape (N, `width`) float32 of one slide, complete up to row `done`.

    `missing` counts the image frames that were missing under these rows.
    """

    def __init__(self, file: IO[bytes], width: int) -> None:
        self._file = file
        self.width = width
        self.done = 0
        self.missing = 0

    @classmethod
    def open(cls, path: Path, *, belongs_to: Mapping[str, str], width: int) -> Self:
        """Open for appending. Outputs that belong to anything else (another plan, another engine) are thrown away."""
        header = json.dumps({**belongs_to, "width": width}, sort_keys=True).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("r+b" if path.exists() else "w+b")
        store = cls(file, width)
        records = _records(file)
        if next(records, None) != header:
            file.seek(0)
            file.truncate()
            store._write(header)
            return store
        good_end = _PREFIX.size + len(header)
        for payload in records:
            store._count(payload)
            good_end += _PREFIX.size + len(payload)
        file.seek(good_end)
        file.truncate()
        return store

    def append(self, values_BC: npt.NDArray[np.float32], missing: int = 0) -> None:
        """Append the next rows and bring them to disk. Raises DiskFull."""
        if values_BC.ndim != 2 or values_BC.shape[1] != self.width:
            raise ValueError(f"expected (batch, {self.width}) values, got {values_BC.shape}")
        payload = _MISSING.pack(missing) + np.ascontiguousarray(values_BC, dtype="<f4").tobytes()
        self._write(payload)
        self._count(payload)

    def read(self) -> npt.NDArray[np.float32]:
        """All rows so far, (done, width) float32."""
        records = _records(self._file)
        next(records)
        flat = np.frombuffer(b"".join(payload[_MISSING.size :] for payload in records), dtype="<f4")
        self._file.seek(0, os.SEEK_END)
        return flat.reshape(-1, self.width)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, payload: bytes) -> None:
        self.done += (len(payload) - _MISSING.size) // (4 * self.width)
        self.missing += _MISSING.unpack_from(payload)[0]

    def _write(self, payload: bytes) -> None:
        try:
            self._file.write(_PREFIX.pack(len(payload), zlib.crc32(payload)) + payload)
            self._file.flush()
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise DiskFull("The state folder cannot take more tile outputs: free some space, then retry.") from error


def _records(file: IO[bytes]) -> Iterator[bytes]:
    """The payloads of all sound records from the start of the file."""
    file.seek(0)
    while len(prefix := file.read(_PREFIX.size)) == _PREFIX.size:
        length, checksum = _PREFIX.unpack(prefix)
        payload = file.read(length)
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield payload
