"""A whole slide as levels and frames: opened from local files, read by many threads."""

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from gateway.domain.slide import Level, SlideHeader, SlideRemark
from gateway.operations.errors import FramesNotFetched, InvalidSlide, PathserveError
from gateway.slides.colour import UnusableProfile, colours_of
from gateway.slides.decode import FrameDecoder, check_transfer_syntax, visible
from gateway.slides.frames import FetchedFrames, Instance, read_instance
from gateway.slides.header import select_series, size_contradiction, slide_header, spacing_um
from gateway.slides.layout import lay_out, optical_path

_MAX_LEVEL_PX = 64 * 1024 * 1024
_MAX_OVERVIEW_PX = 4_000_000
_EXTENT_TOLERANCE = 0.02
WHITE = 255


THUMBNAIL_PX = 1024
_READ_FRAMES, _READ_BYTES = 64, 32 * 1024 * 1024
_MAX_OPEN_FILES = 32
"""A level of more instances (one a frame, in the worst case) opens their files as they are read."""
_NO_FILE = -1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LevelImage:
    """The frames of one level: `frame_at_RC[row, column]` counts through the frames of `instances`, one after the
    other, or is -1 where the level has none by design (it is background); instance i begins at `offsets_I[i]`.
    `uncalibrated` ends a sentence about why its colours could not be made sRGB."""

    level: Level
    instances: tuple[Instance, ...]
    offsets_I: NDArray[np.int64]
    fds: tuple[int, ...]
    frame_at_RC: NDArray[np.int32]
    decoder: FrameDecoder
    header: Dataset
    focal_planes: int
    uncalibrated: str | None

    def read_frames(self, frames: Sequence[int]) -> list[memoryview]:
        """Encoded frames by number, neighbours in one read; one of zero length, which is missing, comes as empty bytes.

        Thread-safe. Raises TruncatedFile, CorruptFrame, FramesNotFetched, IndexError (a number that no frame has).
        """
        if len(frames) and not 0 <= min(frames) <= max(frames) < self.offsets_I[-1]:
            raise IndexError("the level has no such frame")
        result: list[memoryview] = []
        first = 0
        while first < len(frames):
            part = int(np.searchsorted(self.offsets_I, frames[first], "right")) - 1
            offset, end = int(self.offsets_I[part]), int(self.offsets_I[part + 1])
            last = first
            while last < len(frames) and offset <= frames[last] < end:
                last += 1
            result += self._read(part, [frame - offset for frame in frames[first:last]])
            first = last
        return result

    def at_once(self, most: int) -> int:
        """How many frames to read in one go: `most`, fewer where they are large."""
        return max(1, min(most, _READ_BYTES // (3 * self.level.frame_width_px * self.level.frame_height_px)))

    def _read(self, part: int, frames: list[int]) -> list[memoryview]:
        instance = self.instances[part]
        if self.fds:
            return instance.frames.read(self.fds[part], frames)
        fd = _open(instance)
        try:
            return instance.frames.read(fd, frames)
        finally:
            _close_file(fd)


class Slide:
    """One series of VOLUME images, finest level first. A context manager; reads are thread-safe.

    Levels are told apart by TotalPixelMatrix and PixelSpacing alone (ImageType value 4 and flavours are unreliable).
    """

    def __init__(self, images: Sequence[LevelImage], optical_path: str | None) -> None:
        self.images = tuple(images)
        self.levels: tuple[Level, ...] = tuple(image.level for image in images)
        self.remarks: tuple[SlideRemark, ...] = _remarks(images, optical_path)
        self.header: SlideHeader = slide_header(images[0].header)

    @classmethod
    def open(cls, files: Sequence[Path], series: str | None = None) -> Self:
        """Open a slide from its local files. `series` picks one where the files hold several.

        A file may be the head of a partial instance. What is fetched of it later is seen when it is opened again.

        Raises NotDicom, TruncatedFile, InvalidSlide, NoVolumeImage, MissingPixelSpacing, UnsupportedTransferSyntax,
        FramesNotFetched (a partial instance was evicted meanwhile).
        """
        images: list[LevelImage] = []
        try:
            volumes = select_series(files, series)
            for volume in volumes:
                check_transfer_syntax(volume.transfer_syntax)
            path = optical_path([volume.dataset for volume in volumes])
            groups: dict[tuple[int, int, float, float], list[Instance]] = defaultdict(list)
            for volume in volumes:
                size = int(volume.dataset.TotalPixelMatrixColumns), int(volume.dataset.TotalPixelMatrixRows)
                groups[(*size, *spacing_um(volume))].append(read_instance(volume))
            # Finest first: by pixel size, then by matrix size (two levels may give the same rounded spacing).
            for key in sorted(groups, key=lambda key: (key[2] + key[3], -key[0] * key[1])):
                images.append(_open_level(len(images), groups[key], path))
            _check_extents([image.level for image in images])
            return cls(images, path)
        except PathserveError:
            _close(images)
            raise
        except Exception as error:
            # Values are decoded when they are asked for, and pydicom raises nearly anything for a damaged one.
            _close(images)
            raise InvalidSlide(
                f"The slide's header cannot be used ({type(error).__name__}). Check how the slide was converted, or "
                "send it to the archive again."
            ) from error

    def image(self, index: int) -> LevelImage:
        """The frames of one level."""
        return self.images[index]

    def source_dataset(self, index: int) -> Dataset:
        """The header of the level's first instance, without per-frame groups and pixels."""
        return self.images[index].header

    def read_level(self, index: int) -> NDArray[np.uint8]:
        """A whole level as (H, W, 3) uint8 RGB. Raises InvalidSlide above 64 megapixels: those are read by tiles."""
        level = self.levels[index]
        if level.width_px * level.height_px > _MAX_LEVEL_PX:
            raise InvalidSlide(f"A level of {level.width_px} × {level.height_px} pixels is too large to read at once.")
        return self._reduced(index, level.width_px, level.height_px)

    def overview(self, um_per_px: float, max_pixels: int = _MAX_OVERVIEW_PX) -> tuple[NDArray[np.uint8], float]:
        """The whole slide at about `um_per_px`, coarser where it would exceed `max_pixels`: ((H, W, 3) uint8 RGB, µm
        per pixel in fact). Reads the coarsest level that is fine enough, frame by frame, so memory stays bounded."""
        index, um_per_px = self._overview(um_per_px, max_pixels)
        finest = self.levels[0]
        width_um, height_um = finest.width_px * finest.mpp_x, finest.height_px * finest.mpp_y
        width_px = max(1, round(width_um / um_per_px))
        height_px = max(1, round(height_um / um_per_px))
        return self._reduced(index, width_px, height_px), width_um / width_px

    def overview_level(self, um_per_px: float, max_pixels: int = _MAX_OVERVIEW_PX) -> int:
        """The index of the level that `overview` reads for these arguments."""
        return self._overview(um_per_px, max_pixels)[0]

    def _overview(self, um_per_px: float, max_pixels: int) -> tuple[int, float]:
        finest = self.levels[0]
        width_um, height_um = finest.width_px * finest.mpp_x, finest.height_px * finest.mpp_y
        um_per_px = max(um_per_px, (width_um * height_um / max_pixels) ** 0.5, finest.mpp)
        return max((level.index for level in self.levels if level.mpp <= um_per_px * 1.02), default=0), um_per_px

    def thumbnail(self, max_px: int = THUMBNAIL_PX) -> NDArray[np.uint8]:
        """The whole slide with its longer side at most `max_px`: (H, W, 3) uint8 RGB."""
        return self.overview(self.thumbnail_um_per_px(max_px))[0]

    def thumbnail_um_per_px(self, max_px: int = THUMBNAIL_PX) -> float:
        """What a pixel of the thumbnail measures."""
        finest = self.levels[0]
        return max(finest.width_px * finest.mpp_x, finest.height_px * finest.mpp_y) / max_px

    def _reduced(self, index: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """A level scaled down to the given size; each frame is reduced as it is decoded."""
        image, level = self.images[index], self.levels[index]
        scale_x, scale_y = width_px / level.width_px, height_px / level.height_px
        factor = min(1 / scale_x, 1 / scale_y)
        step = image.at_once(_READ_FRAMES)
        canvas = np.full((height_px, width_px, 3), WHITE, np.uint8)

        def draw(row: int) -> None:
            present = np.flatnonzero(image.frame_at_RC[row] >= 0)
            for first in range(0, len(present), step):
                columns = present[first : first + step]
                frames = image.read_frames(image.frame_at_RC[row, columns].tolist())
                for column, data in zip(columns.tolist(), frames, strict=True):
                    if data:
                        paste(row, column, data)

        def paste(row: int, column: int, data: memoryview) -> None:
            x, y = column * level.frame_width_px, row * level.frame_height_px
            right, bottom = (
                min(x + level.frame_width_px, level.width_px),
                min(y + level.frame_height_px, level.height_px),
            )
            x1, x2, y1, y2 = round(x * scale_x), round(right * scale_x), round(y * scale_y), round(bottom * scale_y)
            if x1 == x2 or y1 == y2:
                return
            if (right - x, bottom - y) == (level.frame_width_px, level.frame_height_px):
                frame = image.decoder.reduced(data, factor)
            else:
                frame = visible(image.decoder(data), bottom - y, right - x)
            if frame.shape[:2] != (y2 - y1, x2 - x1):
                frame = np.asarray(cv2.resize(frame, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA))
            canvas[y1:y2, x1:x2] = frame

        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for _ in pool.map(draw, range(image.frame_at_RC.shape[0])):
                pass
        return canvas

    def close(self) -> None:
        """Close the slide's files; repeated calls have no effect."""
        _close(self.images)
        self.images = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(images: Sequence[LevelImage]) -> None:
    for image in images:
        for fd in image.fds:
            _close_file(fd)


def _open_level(index: int, instances: list[Instance], path: str | None) -> LevelImage:
    """One level from its instances."""
    syntaxes = {instance.file.transfer_syntax for instance in instances}
    shapes = {(int(instance.file.dataset.Columns), int(instance.file.dataset.Rows)) for instance in instances}
    if len(syntaxes) > 1 or len(shapes) > 1:
        raise InvalidSlide("The parts of one level differ in transfer syntax or frame size. Send the slide again.")
    layout = lay_out(instances, path)
    header = layout.instances[0].file.dataset
    x_um, y_um = spacing_um(layout.instances[0].file)
    level = Level(
        index=index,
        width_px=int(header.TotalPixelMatrixColumns),
        height_px=int(header.TotalPixelMatrixRows),
        mpp_x=x_um,
        mpp_y=y_um,
        frame_width_px=int(header.Columns),
        frame_height_px=int(header.Rows),
        sop_instance_uids=tuple(str(instance.file.dataset.SOPInstanceUID) for instance in layout.instances),
        transfer_syntax_uid=syntaxes.pop(),
    )
    try:
        to_srgb, uncalibrated = colours_of(header, path), None
    except UnusableProfile as problem:
        to_srgb, uncalibrated = None, str(problem)
    decoder = FrameDecoder(
        level.transfer_syntax_uid,
        str(header.PhotometricInterpretation),
        level.frame_height_px,
        level.frame_width_px,
        planar=header.get("PlanarConfiguration") == 1,
        to_srgb=to_srgb,
    )
    offsets_I = np.cumsum([0, *(len(instance.frames) for instance in layout.instances)])
    fds: list[int] = []
    if len(layout.instances) <= _MAX_OPEN_FILES:
        try:
            fds.extend(_open(instance) for instance in layout.instances)
        except PathserveError:
            for fd in fds:
                _close_file(fd)
            raise
    return LevelImage(
        level=level,
        instances=layout.instances,
        offsets_I=offsets_I,
        fds=tuple(fds),
        frame_at_RC=layout.frame_at_RC,
        decoder=decoder,
        header=header,
        focal_planes=layout.planes,
        uncalibrated=uncalibrated,
    )


def _open(instance: Instance) -> int:
    """The open file with the instance's frames, or -1: nothing was fetched of it yet.

    Where frames lie is known of the file whose header was read: another one in its place (who fetches the slide anew
    makes one, and so may whoever keeps a folder) would give other frames under the same numbers.
    """
    try:
        fd = os.open(instance.frames.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if isinstance(instance.frames, FetchedFrames):
            return _NO_FILE
        raise InvalidSlide("A file of the slide vanished while it was opened. Try again.") from None
    except OSError:
        raise InvalidSlide("A file of the slide cannot be opened. Check the file and its permissions.") from None
    if instance.file.is_replaced():
        _close_file(fd)
        raise FramesNotFetched("A file of the slide was replaced while it was read. Let it be fetched, then read.")
    return fd


def _close_file(fd: int) -> None:
    if fd != _NO_FILE:
        os.close(fd)


def _remarks(images: Sequence[LevelImage], path: str | None) -> tuple[SlideRemark, ...]:
    """What was chosen or could not be done, for the whole slide."""
    remarks: list[SlideRemark] = []
    problem = next((image.uncalibrated for image in images if image.uncalibrated), None)
    if problem is not None:
        text = f"The colours of the slide are read as they are: its ICC profile {problem}."
        remarks.append(SlideRemark("colour-not-calibrated", text))
    planes = max(image.focal_planes for image in images)
    if planes > 1:
        text = f"The slide has {planes} focal planes or repeats; the middle one, or the first acquired, was read."
        remarks.append(SlideRemark("focal-plane-chosen", text))
    if path is not None:
        text = "The slide has several optical paths; the one under brightfield illumination was read."
        remarks.append(SlideRemark("optical-path-chosen", text))
    contradictions = [said for image in images if (said := size_contradiction(image.header)) is not None]
    remarks.extend(SlideRemark("size-contradicted", said) for said in contradictions[:1])
    return tuple(remarks)


def _check_extents(levels: Sequence[Level]) -> None:
    """All levels must show the same area, or a mask found on one is wrong on another."""
    finest = levels[0]
    for level in levels:
        if abs(level.mpp_x - level.mpp_y) > _EXTENT_TOLERANCE * level.mpp:
            raise InvalidSlide(
                f"The slide's pixels are not square ({level.mpp_x:g} × {level.mpp_y:g} µm). Convert the slide again."
            )
        for size, mpp, full in (
            (level.width_px, level.mpp_x, finest.width_px * finest.mpp_x),
            (level.height_px, level.mpp_y, finest.height_px * finest.mpp_y),
        ):
            if abs(size * mpp - full) > max(_EXTENT_TOLERANCE * full, 2 * mpp):
                raise InvalidSlide(
                    f"The slide's levels do not cover the same area: {full:.0f} µm and {size * mpp:.0f} µm. Its pixel "
                    "spacing or matrix size is wrong: convert the slide again."
                )
