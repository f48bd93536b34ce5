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

from gateway.domain.slide import Level, SlideHeader
from gateway.operations.errors import InvalidSlide, PathserveError
from gateway.slides.decode import Decoder, check_transfer_syntax, decode_reduced, frame_decoder, visible
from gateway.slides.frames import Instance, read_instance
from gateway.slides.header import ImageFile, select_series, slide_header, spacing_um

_MAX_LEVEL_PX = 64 * 1024 * 1024
_MAX_FRAME_POSITIONS, _MAX_MATRIX_PX = 1 << 24, 1 << 40
"""Far above any slide (200,000² pixels in frames of 240² make 0.7 million), far below what a bad header can say."""
_EXTENT_TOLERANCE = 0.02
WHITE = 255


@dataclass(frozen=True, slots=True, eq=False)
class LevelImage:
    """The frames of one level: `frame_at_RC[row, column]` is the frame's number in the concatenation, or -1."""

    level: Level
    files: tuple[Instance, ...]
    fds: tuple[int, ...]
    frame_at_RC: NDArray[np.int32]
    decoder: Decoder
    photometric: str
    header: Dataset

    def read_frames(self, frames: Sequence[int]) -> list[memoryview]:
        """Encoded frames, by number in rising order; a missing frame (-1, or of zero length) comes as empty bytes.

        Thread-safe. Raises TruncatedFile, CorruptFrame.
        """
        result: list[memoryview] = []
        remaining = list(frames)
        while remaining:
            if remaining[0] < 0:
                result.append(memoryview(b""))
                del remaining[0]
                continue
            part = max(i for i, file in enumerate(self.files) if file.frame_offset <= remaining[0])
            offset, count = self.files[part].frame_offset, len(self.files[part].frames)
            run = 0
            while run < len(remaining) and offset <= remaining[run] < offset + count:
                run += 1
            result += self.files[part].frames.read(self.fds[part], [frame - offset for frame in remaining[:run]])
            del remaining[:run]
        return result


class Slide:
    """One series of VOLUME images, finest level first. A context manager; reads are thread-safe.

    Levels are told apart by TotalPixelMatrix and PixelSpacing alone (ImageType value 4 and flavours are unreliable).
    """

    def __init__(self, images: Sequence[LevelImage]) -> None:
        self.images = tuple(images)
        self.levels: tuple[Level, ...] = tuple(image.level for image in images)
        self.header: SlideHeader = slide_header(images[0].header)

    @classmethod
    def open(cls, files: Sequence[Path], series: str | None = None) -> Self:
        """Open a slide from its local files. `series` picks one where the files hold several.

        Raises NotDicom, TruncatedFile, InvalidSlide, NoVolumeImage, MissingPixelSpacing, UnsupportedTransferSyntax.
        """
        images: list[LevelImage] = []
        try:
            groups: dict[tuple[int, int, float, float], list[ImageFile]] = defaultdict(list)
            for volume in select_series(files, series):
                check_transfer_syntax(str(volume.dataset.file_meta.TransferSyntaxUID))
                x_um, y_um = spacing_um(volume)
                size = int(volume.dataset.TotalPixelMatrixColumns), int(volume.dataset.TotalPixelMatrixRows)
                groups[(*size, x_um, y_um)].append(volume)
            # Finest first: by pixel size, then by matrix size (two levels may give the same rounded spacing).
            for key in sorted(groups, key=lambda key: (key[2] + key[3], -key[0] * key[1])):
                images.append(_open_level(len(images), groups[key]))
            _check_extents([image.level for image in images])
            return cls(images)
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

    def overview(self, um_per_px: float, max_pixels: int = 4_000_000) -> tuple[NDArray[np.uint8], float]:
        """The whole slide at about `um_per_px`, coarser where it would exceed `max_pixels`: ((H, W, 3) uint8 RGB, µm
        per pixel in fact). Reads the coarsest level that is fine enough, frame by frame, so memory stays bounded."""
        finest = self.levels[0]
        width_um, height_um = finest.width_px * finest.mpp_x, finest.height_px * finest.mpp_y
        um_per_px = max(um_per_px, (width_um * height_um / max_pixels) ** 0.5, finest.mpp)
        index = max((level.index for level in self.levels if level.mpp <= um_per_px * 1.02), default=0)
        width_px = max(1, round(width_um / um_per_px))
        height_px = max(1, round(height_um / um_per_px))
        return self._reduced(index, width_px, height_px), width_um / width_px

    def thumbnail(self, max_px: int = 1024) -> NDArray[np.uint8]:
        """The whole slide with its longer side at most `max_px`: (H, W, 3) uint8 RGB."""
        finest = self.levels[0]
        width_um, height_um = finest.width_px * finest.mpp_x, finest.height_px * finest.mpp_y
        return self.overview(max(width_um, height_um) / max_px)[0]

    def _reduced(self, index: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """A level scaled down to the given size; each frame is reduced as it is decoded."""
        image, level = self.images[index], self.levels[index]
        scale_x, scale_y = width_px / level.width_px, height_px / level.height_px
        factor = min(1 / scale_x, 1 / scale_y)
        canvas = np.full((height_px, width_px, 3), WHITE, np.uint8)

        def draw(row: int) -> None:
            columns = np.flatnonzero(image.frame_at_RC[row] >= 0)
            for column, data in zip(columns, image.read_frames(image.frame_at_RC[row, columns].tolist()), strict=True):
                if not data:
                    continue
                x, y = int(column) * level.frame_width_px, row * level.frame_height_px
                right = min(x + level.frame_width_px, level.width_px)
                bottom = min(y + level.frame_height_px, level.height_px)
                x0, x1, y0, y1 = round(x * scale_x), round(right * scale_x), round(y * scale_y), round(bottom * scale_y)
                if x1 <= x0 or y1 <= y0:
                    continue
                if (right - x, bottom - y) == (level.frame_width_px, level.frame_height_px):
                    frame = decode_reduced(data, level.transfer_syntax_uid, image.photometric, image.decoder, factor)
                else:
                    frame = visible(image.decoder(data, None), bottom - y, right - x)
                if frame.shape[:2] != (y1 - y0, x1 - x0):
                    frame = np.asarray(cv2.resize(frame, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA))
                canvas[y0:y1, x0:x1] = frame

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
            os.close(fd)


def _open_level(index: int, files: list[ImageFile]) -> LevelImage:
    """One level from its files: the parts of one concatenation, or the most central of several focal planes."""
    parts = _one_image(files)
    header = parts[0].dataset
    columns, rows = int(header.Columns), int(header.Rows)
    syntaxes = {str(part.dataset.file_meta.TransferSyntaxUID) for part in parts}
    shapes = {(int(part.dataset.Columns), int(part.dataset.Rows)) for part in parts}
    if len(syntaxes) > 1 or len(shapes) > 1:
        raise InvalidSlide("The parts of one level differ in transfer syntax or frame size. Send the slide again.")
    x_um, y_um = spacing_um(parts[0])
    level = Level(
        index=index,
        width_px=int(header.TotalPixelMatrixColumns),
        height_px=int(header.TotalPixelMatrixRows),
        mpp_x=x_um,
        mpp_y=y_um,
        frame_width_px=columns,
        frame_height_px=rows,
        sop_instance_uids=tuple(str(part.dataset.SOPInstanceUID) for part in parts),
        transfer_syntax_uid=syntaxes.pop(),
    )
    photometric = str(header.PhotometricInterpretation)
    decoder = frame_decoder(level.transfer_syntax_uid, photometric, rows, columns)
    read = [(part.path, read_instance(part.path, columns, rows)) for part in parts]
    read.sort(key=lambda item: item[1].frame_offset)
    instances = tuple(instance for _, instance in read)
    frame_at_RC = _frame_map(level, instances, int(header.get("TotalPixelMatrixFocalPlanes") or 1))
    fds: list[int] = []
    try:
        fds.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path, _ in read)
    except OSError:
        for fd in fds:
            os.close(fd)
        raise InvalidSlide("A file of the slide vanished while it was opened. Try again.") from None
    return LevelImage(level, instances, tuple(fds), frame_at_RC, decoder, photometric, header)


def _one_image(files: list[ImageFile]) -> list[ImageFile]:
    images: dict[str, list[ImageFile]] = defaultdict(list)
    for file in files:
        whole = file.dataset.get("SOPInstanceUIDOfConcatenationSource") or file.dataset.SOPInstanceUID
        images[str(whole)].append(file)
    # Several images of one size are focal planes or repeats: the first acquired is the one in focus by convention.
    key = min(images, key=lambda uid: (int(images[uid][0].dataset.get("InstanceNumber") or 0), uid))
    parts = images[key]
    parts.sort(key=lambda part: int(part.dataset.get("ConcatenationFrameOffsetNumber") or 0))
    total = max(int(part.dataset.get("InConcatenationTotalNumber") or 1) for part in parts)
    if len(parts) < total:
        raise InvalidSlide(f"The slide is incomplete: {len(parts)} of {total} parts of a level. Send it again.")
    return parts


def _frame_map(level: Level, instances: tuple[Instance, ...], focal_planes: int) -> NDArray[np.int32]:
    rows = -(-level.height_px // level.frame_height_px)
    columns = -(-level.width_px // level.frame_width_px)
    count = sum(len(instance.frames) for instance in instances)
    if rows * columns > _MAX_FRAME_POSITIONS or level.width_px * level.height_px > _MAX_MATRIX_PX:
        raise InvalidSlide(
            f"A level of {level.width_px} × {level.height_px} pixels in frames of {level.frame_width_px} × "
            f"{level.frame_height_px} cannot be a slide. Check how it was converted."
        )
    expected = 0
    for instance in instances:
        if instance.frame_offset != expected:
            raise InvalidSlide("The slide is incomplete: a part of a level is missing. Send it again.")
        expected += len(instance.frames)
    if instances[0].positions is None:
        if count < rows * columns * focal_planes:
            raise InvalidSlide(
                f"A level of {columns} × {rows} frames holds only {count}. The slide is incomplete: send it again."
            )
        first = rows * columns * (focal_planes // 2)
        return np.arange(first, first + rows * columns, dtype=np.int32).reshape(rows, columns)
    frame_at_RC = np.full((rows, columns), -1, np.int32)
    for instance in instances:
        positions = instance.positions
        if positions is None:
            raise InvalidSlide("The parts of one level differ in how they are tiled. Send the slide again.")
        if not (_within(positions.rows_F, rows) and _within(positions.columns_F, columns)):
            raise InvalidSlide("The slide has frames outside its pixel matrix. Check how it was converted.")
        numbers = instance.frame_offset + np.flatnonzero(positions.plane_F)
        frame_at_RC[positions.rows_F[positions.plane_F], positions.columns_F[positions.plane_F]] = numbers
    return frame_at_RC


def _within(positions_F: NDArray[np.int64], count: int) -> bool:
    return bool(((positions_F >= 0) & (positions_F < count)).all())


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
