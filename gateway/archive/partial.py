"""A partial instance on the local disk: its header, and those of its frames that were fetched so far.

Three files stand for the instance `SOP`: `SOP.header.dcm` (PS3.10, everything but the pixel data, with the transfer
syntax of the stored instance in its file meta information), `SOP.frames` (encoded frames, one after the other, in the
order in which they came) and `SOP.index` (where each frame lies in it). Frames are appended and synchronised before the
index names them, so that a kill at any moment leaves a shorter, right index.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmwrite

from gateway.operations.disk import written_whole

_HEADER, _FRAMES, _INDEX = ".header.dcm", ".frames", ".index"
_NOT_FETCHED = -1


def is_partial(file: Path) -> bool:
    """True where the file is the head of a partial instance."""
    return file.name.endswith(_HEADER)


@dataclass(frozen=True, slots=True)
class PartialInstance:
    """The partial instance whose head is `header`. One writer at a time; readers at any time."""

    header: Path

    @classmethod
    def create(cls, folder: Path, dataset: Dataset, frames: int) -> Self:
        """Write the head of an instance of which no frame is there yet. Raises OSError.

        `dataset` has no pixel data; its `file_meta` names the stored instance's transfer syntax. `frames` is the
        number of its frames. What was fetched earlier under this name is forgotten.
        """
        part = cls(folder / f"{dataset.SOPInstanceUID}{_HEADER}")
        part._write_index(np.full((frames, 2), _NOT_FETCHED, np.int64))
        part.frames_file.unlink(missing_ok=True)
        with written_whole(part.header) as out:
            dcmwrite(out, dataset, enforce_file_format=True)
        return part

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
        """Add encoded frames by number; they are on disk when this returns. Returns their bytes. Raises OSError."""
        extents_F2 = self.extents()
        with self.frames_file.open("ab") as out:
            begin = position = out.tell()
            for number, data in frames:
                out.write(data)
                extents_F2[number] = position, position + len(data)
                position += len(data)
            out.flush()
            os.fsync(out.fileno())
        self._write_index(extents_F2)
        return position - begin

    def remove(self) -> None:
        """Remove all that is there of the instance, the head first."""
        for file in (self.header, self._beside(_INDEX), self.frames_file):
            file.unlink(missing_ok=True)

    def _write_index(self, extents_F2: npt.NDArray[np.int64]) -> None:
        with written_whole(self._beside(_INDEX)) as out:
            out.write(extents_F2.astype("<i8").tobytes())

    def _beside(self, ending: str) -> Path:
        return self.header.with_name(self.header.name.removesuffix(_HEADER) + ending)
