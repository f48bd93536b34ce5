"""A partial instance on the local disk: its header, and those of its frames that were fetched so far.

Three files stand for the instance `SOP`: `SOP.header.dcm` (PS3.10, everything but the pixel data, with the transfer
syntax of the stored instance in its file meta information), `SOP.frames` (encoded frames, one after the other, in the
order in which they came) and `SOP.index` (where each frame lies in it). Frames are appended and synchronised before the
index names them, so that a kill at any moment leaves a shorter, right index.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Self
from zlib import crc32

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmwrite

from gateway.operations.disk import written_whole

_HEADER, _FRAMES, _INDEX = ".header.dcm", ".frames", ".index"
_NOT_FETCHED = -1
_MODE = 0o600


def is_partial(file: Path) -> bool:
    """True where the file is the head of a partial instance."""
    return file.name.endswith(_HEADER)


def header_of(folder: Path, sop: str) -> Path:
    """The head of the partial instance `sop` in `folder`."""
    return folder / f"{sop}{_HEADER}"


@dataclass(frozen=True, slots=True)
class PartialInstance:
    """The partial instance whose head is `header`. One writer at a time; readers at any time."""

    header: Path

    @classmethod
    def create(cls, folder: Path, dataset: Dataset, frames: int) -> Self:
        """Write the head of an instance of which no frame is there yet. Raises OSError.

        `dataset` has no pixel data; its `file_meta` names the stored instance's transfer syntax. `frames` is the
        number of its frames. What was fetched earlier under this name is forgotten. Nothing is flushed to the disk: a
        head that a power cut may have damaged is known by its `checksum`, and made anew.
        """
        part = cls(header_of(folder, str(dataset.SOPInstanceUID)))
        head = BytesIO()
        dcmwrite(head, dataset, enforce_file_format=True)
        part.header.unlink(missing_ok=True)
        part.frames_file.unlink(missing_ok=True)
        _write(part._beside(_INDEX), np.full((frames, 2), _NOT_FETCHED, "<i8").tobytes())
        _write(part.header, head.getvalue())
        return part

    def checksum(self) -> int:
        """CRC-32 of the head. Raises OSError."""
        return crc32(self.header.read_bytes())

    def is_usable(self, frames: int) -> bool:
        """Whether the index is that of so many frames, and they lie in `frames_file`. Raises OSError."""
        try:
            extents_F2 = self.extents()
        except (FileNotFoundError, ValueError):
            return False
        size = self.frames_file.stat().st_size if self.frames_file.exists() else 0
        return len(extents_F2) == frames and _in_order(extents_F2) and extents_F2.max(initial=0) <= size

    @property
    def frames_file(self) -> Path:
        """The file that the index points into; it may not exist while no frame was fetched."""
        return self._beside(_FRAMES)

    def extents(self) -> npt.NDArray[np.int64]:
        """(F, 2): for each frame its first byte and its end in `frames_file`; -1, -1 where it was not fetched.

        A frame that was fetched and is empty (the instance has none there) has its end at its first byte. Raises
        OSError, ValueError (a damaged index).
        """
        raw = np.frombuffer(self._beside(_INDEX).read_bytes(), "<i8")
        return raw.reshape(-1, 2).astype(np.int64)

    def missing(self, frames: Sequence[int]) -> list[int]:
        """Those of `frames` that were not fetched yet. Raises OSError, ValueError."""
        extents_F2 = self.extents()
        return [frame for frame in frames if extents_F2[frame, 0] == _NOT_FETCHED]

    def append(self, frames: Iterable[tuple[int, bytes]]) -> int:
        """Add encoded frames by number; they are on disk when this returns. Returns their bytes. Raises OSError.

        Where `frames` raises, none of them is added.
        """
        extents_F2 = self.extents()
        with open(self.frames_file, "ab", opener=_private) as out:
            begin = position = max(0, int(extents_F2.max(initial=0)))
            out.truncate(begin)  # what an append that was cut short has left
            for number, data in frames:
                out.write(data)
                extents_F2[number] = position, position + len(data)
                position += len(data)
            out.flush()
            os.fsync(out.fileno())
        with written_whole(self._beside(_INDEX), private=True) as index:
            index.write(extents_F2.astype("<i8").tobytes())
        return position - begin

    def remove(self) -> None:
        """Remove all that is there of the instance, the head first."""
        for file in (self.header, self._beside(_INDEX), self.frames_file):
            file.unlink(missing_ok=True)

    def _beside(self, ending: str) -> Path:
        return self.header.with_name(self.header.name.removesuffix(_HEADER) + ending)


def _in_order(extents_F2: npt.NDArray[np.int64]) -> bool:
    return bool(((extents_F2[:, 0] >= _NOT_FETCHED) & (extents_F2[:, 1] >= extents_F2[:, 0])).all())


def _write(target: Path, data: bytes) -> None:
    """Replace a file whole, for readers of this moment."""
    part = target.with_name(f".{target.name}.part")
    try:
        with open(part, "wb", opener=_private) as out:
            out.write(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _MODE)
