"""A slide of given pixels: written as the phantom is, of any size, but drawn by the caller.

Nothing is known here of what it shows. A caller that composes it of real fields says so in the identity's description.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.slides.phantom import ENCODINGS, encoder
from gateway.slides.phantom_dicom import Identity, LevelFile, write_label, write_level

Image = NDArray[np.uint8]
Draw = Callable[[int, int, int, int], Image]
"""Pixels of the finest level by left, top, width and height: (height, width, 3) uint8 RGB."""


def write_given(
    out: Path,
    draw: Draw,
    *,
    width_px: int,
    height_px: int,
    mpp: float,
    identity: Identity,
    encoding: str = "jpeg",
    quality: int = 80,
    frame_px: int = 256,
    levels: int | None = None,
) -> tuple[Path, ...]:
    """Write a series of DICOM whole-slide images (PS3.3 A.32.8) of what `draw` gives to the folder `out`; its files.

    `draw` is asked once for each row of frames, over the slide's whole width, from the top down; each further level is
    the one before, halved (`levels` None = down to one frame). Memory follows the width, not the area: frames wait on
    disk, in `out`, until their level is whole. `identity` has its UIDs. Raises ValueError for arguments that make no
    slide and for pixels of another shape.
    """
    if encoding not in ENCODINGS or frame_px % 2 or min(width_px, height_px) < frame_px or not identity.study_uid:
        raise ValueError("a slide has a known encoding, frames of even side, one at least, and its identity's UIDs")
    out.mkdir(parents=True, exist_ok=True)
    for earlier in out.glob("level-*.dcm"):
        earlier.unlink()
    pyramid = _Level(out, encoder(encoding, quality), frame_px, levels, width_px, height_px)
    try:
        for top in range(0, height_px, frame_px):
            height = min(frame_px, height_px - top)
            strip = draw(0, top, width_px, height)
            if strip.shape != (height, width_px, 3) or strip.dtype != np.uint8:
                raise ValueError(f"the pixels drawn at {top} are not ({height}, {width_px}, 3) uint8")
            pyramid.add(strip)
        files: list[Path] = []
        for index, level in enumerate(pyramid):
            file = LevelFile(
                index=index,
                width_px=level.width_px,
                height_px=level.height_px,
                spacing_mm=mpp * 2**index / 1000,
                frame_px=frame_px,
                encoding=ENCODINGS[encoding],
                compression_ratio=level.ratio(),
            )
            files += write_level(out, identity, file, level.rows())
    finally:
        pyramid.close()
    files.append(write_label(out, identity, len(files) + 1))
    return tuple(files)


class _Level:
    """One level while it grows: its encoded frames, in a file without a name, and the level that is half as fine."""

    def __init__(
        self,
        folder: Path,
        encode: Callable[[Image], bytes],
        frame_px: int,
        levels: int | None,
        width_px: int,
        height_px: int,
    ) -> None:
        self.width_px, self.height_px = width_px, height_px
        self._encode, self._frame_px = encode, frame_px
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._lengths: list[list[int]] = []
        self._waiting: list[Image] = []
        self._done_px = 0
        last = max(width_px, height_px) <= frame_px if levels is None else levels == 1
        self._coarser = (
            None
            if last
            else _Level(
                folder,
                encode,
                frame_px,
                None if levels is None else levels - 1,
                -(-width_px // 2),
                -(-height_px // 2),
            )
        )

    def __iter__(self) -> Iterator["_Level"]:
        """This level and all that are coarser."""
        yield self
        if self._coarser is not None:
            yield from self._coarser

    def add(self, strip: Image) -> None:
        """The next rows of pixels: a part of a frame's height that ends with it, or with the level."""
        self._waiting.append(strip)
        waiting = sum(len(part) for part in self._waiting)
        self._done_px += len(strip)
        if waiting >= self._frame_px or self._done_px == self.height_px:
            self._write(self._waiting[0] if len(self._waiting) == 1 else np.vstack(self._waiting))
            self._waiting = []

    def _write(self, band: Image) -> None:
        side = self._frame_px
        padded = cv2.copyMakeBorder(band, 0, side - len(band), 0, -self.width_px % side, cv2.BORDER_REPLICATE)
        frames = [
            self._encode(np.ascontiguousarray(padded[:, left : left + side], np.uint8))
            for left in range(0, padded.shape[1], side)
        ]
        self._file.write(b"".join(frames))
        self._lengths.append([len(frame) for frame in frames])
        if self._coarser is not None:
            self._coarser.add(_halved(band))

    def rows(self) -> Iterator[list[bytes]]:
        """The encoded frames, row by row."""
        self._file.seek(0)
        for lengths in self._lengths:
            yield [self._file.read(length) for length in lengths]

    def ratio(self) -> float:
        """Compression ratio over all frames."""
        lengths = [length for row in self._lengths for length in row]
        return self._frame_px**2 * 3 * len(lengths) / sum(lengths)

    def close(self) -> None:
        for level in self:
            level._file.close()


def _halved(strip: Image) -> Image:
    """Half as fine, by means of four pixels; an odd edge is repeated."""
    height, width = strip.shape[:2]
    even = (
        cv2.copyMakeBorder(strip, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if height % 2 or width % 2
        else strip
    )
    return np.asarray(cv2.resize(even, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA), np.uint8)
