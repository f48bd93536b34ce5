"""A file that is parsed in bounded time, whatever it says: for headers of files that others wrote."""

from pathlib import Path
from typing import Protocol

from pydicom import Dataset
from pydicom.filereader import read_dataset, read_preamble

HEADER_READS = 100_000
"""Reads that a header may take. pydicom makes two or three for an element and one for an item, which it needs about
15 µs and 1 kB for; headers of real slides, without their per-frame groups, take a few thousand."""

HEAD_READS = 400_000
"""The same where per-frame groups are read with the rest: those of undefined length are parsed, and take about forty
reads a frame."""


def is_systems(error: BaseException) -> bool:
    """True for an error of the disk. pydicom raises OSErrors too, without a number, for a damaged data set."""
    return isinstance(error, OSError) and error.errno is not None


class Stream(Protocol):
    """What a header is read from."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


class BoundedReads:
    """`stream`, of which at most `most` reads are made: then ValueError, as for any other header that is none."""

    def __init__(self, stream: Stream, most: int = HEADER_READS) -> None:
        self._stream = stream
        self._left = most

    def read(self, size: int = -1) -> bytes:
        """As a file's. Raises ValueError after the last read allowed."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("the header has more elements than any slide's")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """As a file's."""
        return self._stream.tell()


def read_meta(path: Path) -> Dataset:
    """The file meta information (PS3.10 7.1). pydicom's own function knows no bound.

    Raises OSError, InvalidDicomError, ValueError, and what else pydicom makes of a damaged element.
    """
    with path.open("rb") as file:
        stream = BoundedReads(file)
        read_preamble(stream, force=False)
        return read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 0x0002)
