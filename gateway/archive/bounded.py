"""A file that is parsed in bounded time, whatever it says: for headers of files that others wrote."""

from typing import BinaryIO

HEADER_READS = 100_000
"""Reads that a header may take. pydicom makes two or three for an element and one for an item, which it needs about
15 µs and 1 kB for; headers of real slides, without their per-frame groups, take a few thousand."""


class BoundedReads:
    """`stream`, of which at most `most` reads are made: then ValueError, as for any other header that is none."""

    def __init__(self, stream: BinaryIO, most: int = HEADER_READS) -> None:
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
