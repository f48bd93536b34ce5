"""Which instances make up a level, and which frame lies where on it (PS3.3 C.7.6.17.3, C.8.12.14).

A level may be one instance, the parts of a concatenation, or many instances that each hold some of its frames. Of
several focal planes the middle one is read; of several optical paths the one that `optical_path` chose.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from gateway.operations.errors import InvalidSlide
from gateway.slides.frames import Instance
from gateway.slides.places import shared_height_um, shared_optical_path

_MAX_FRAME_POSITIONS, _MAX_MATRIX_PX = 1 << 24, 1 << 40
"""Far above any slide (200,000² pixels in frames of 240² make 0.7 million), far below what a bad header can say."""
_BRIGHTFIELD = {("111744", "DCM"), ("A-00118", "SRT"), ("373117002", "SCT")}
_ABSENT = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """The frames of one level: `frame_at_RC[row, column]` counts through the frames of `instances`, one after the
    other; -1 where the level has none by design. `planes` is the number of focal planes, of which one is read."""

    instances: tuple[Instance, ...]
    frame_at_RC: NDArray[np.int32]
    planes: int


def optical_path(headers: Sequence[Dataset]) -> str | None:
    """The identifier of the optical path to read; None where no level has more than one.

    Of several, the only one under brightfield illumination (PS3.3 C.8.12.5, CID 8123). Raises InvalidSlide where the
    header leaves the choice open: two paths may show different stains or lights, and to pick one would be a guess.
    """
    brightfield: dict[str, bool] = {}
    of_level: dict[tuple[int, int], set[str]] = defaultdict(set)
    for header in headers:
        of_level[header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows].update(_paths(header))
        for path in header.get("OpticalPathSequence") or ():
            name = str(path.get("OpticalPathIdentifier") or "")
            light = path.get("IlluminationTypeCodeSequence") or ()
            codes = {(str(code.get("CodeValue")), str(code.get("CodingSchemeDesignator"))) for code in light}
            brightfield[name] = brightfield.get(name, False) or bool(codes & _BRIGHTFIELD)
    if all(len(names) < 2 for names in of_level.values()):
        return None
    chosen = [name for name, bright in brightfield.items() if bright]
    if len(chosen) != 1:
        raise InvalidSlide(
            f"The slide has {len(brightfield)} optical paths and its header calls {len(chosen)} of them brightfield, "
            "so it does not say which to read. Send the slide's brightfield images alone."
        )
    return chosen[0]


def lay_out(instances: Sequence[Instance], path: str | None) -> Layout:
    """Choose the instances of one level and place their frames. Raises InvalidSlide (incomplete, or contradictory)."""
    header = instances[0].file.dataset
    width_px, height_px = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
    frame_width_px, frame_height_px = int(header.Columns), int(header.Rows)
    rows, columns = -(-height_px // frame_height_px), -(-width_px // frame_width_px)
    if rows * columns > _MAX_FRAME_POSITIONS or width_px * height_px > _MAX_MATRIX_PX:
        raise InvalidSlide(
            f"A level of {width_px} × {height_px} pixels in frames of {frame_width_px} × {frame_height_px} cannot be a "
            "slide. Check how it was converted."
        )
    images = [image for image in _images(instances) if _shows(image[0], path)]
    if not images:
        raise InvalidSlide("A level of the slide lacks the brightfield optical path. Send the slide's images again.")
    if images[0][0].places is None:
        return _tiled_full(images, path, rows, columns)
    return _tiled_sparse(images, path, rows, columns)


def _images(instances: Sequence[Instance]) -> list[list[Instance]]:
    """The instances by image: the parts of a concatenation in order, by focal plane, then as they were acquired."""
    images: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        header = instance.file.dataset
        images[str(header.get("SOPInstanceUIDOfConcatenationSource") or header.SOPInstanceUID)].append(instance)
    for parts in images.values():
        parts.sort(key=_offset)
        total = max(int(part.file.dataset.get("InConcatenationTotalNumber") or 1) for part in parts)
        if len(parts) < total:
            raise InvalidSlide(f"The slide is incomplete: {len(parts)} of {total} parts of a level. Send it again.")
        expected = 0
        for part in parts:
            if len(parts) > 1 and _offset(part) != expected:
                raise InvalidSlide("The slide is incomplete: a part of a level is missing. Send it again.")
            expected += len(part.frames)
    return [images[uid] for uid in sorted(images, key=lambda uid: (_acquired(images[uid][0]), uid))]


def _offset(part: Instance) -> int:
    return int(part.file.dataset.get("ConcatenationFrameOffsetNumber") or 0)


def _acquired(instance: Instance) -> int:
    return int(instance.file.dataset.get("InstanceNumber") or 0)


def _shows(instance: Instance, path: str | None) -> bool:
    """Whether the instance has frames of this optical path."""
    if path is None:
        return True
    if instance.places is not None and (instance.places.path_F != "").any():
        return bool((instance.places.path_F == path).any())
    shared = shared_optical_path(instance.file.dataset)
    return shared == path if shared else path in _paths(instance.file.dataset)


def _paths(header: Dataset) -> list[str]:
    return [str(item.get("OpticalPathIdentifier") or "") for item in header.get("OpticalPathSequence") or ()]


def _tiled_full(images: list[list[Instance]], path: str | None, rows: int, columns: int) -> Layout:
    """Frames follow each other by column, row, focal plane and optical path. Several such images of one level are
    focal planes, each in its own, or repeats: the middle one is read."""
    heights = [_height_um(image[0].file.dataset) for image in images]
    if len(images) > 1 and None not in heights and len(set(heights)) == len(images):
        images = [image for _, image in sorted(zip(heights, images, strict=True), key=lambda pair: pair[0] or 0.0)]
        parts, planes = images[(len(images) - 1) // 2], len(images)
    else:
        parts, planes = images[0], len(images)
    header = parts[0].file.dataset
    if rows * columns > 1 and header.get("DimensionOrganizationType") != "TILED_FULL":
        raise InvalidSlide(
            "The slide says neither that its frames follow each other (TILED_FULL) nor where they lie. Convert it."
        )
    inside = int(header.get("TotalPixelMatrixFocalPlanes") or 1)
    size, count = rows * columns, sum(len(part.frames) for part in parts)
    shared = shared_optical_path(header)
    paths = [shared] if shared else _paths(header)
    number = paths.index(path) if path in paths else 0
    if count < size * inside * max(1, len(paths)):
        raise InvalidSlide(
            f"A level of {columns} × {rows} frames holds only {count}. The slide is incomplete: send it again."
        )
    first = size * (number * inside + (inside - 1) // 2)
    frame_at_RC = np.arange(first, first + size, dtype=np.int32).reshape(rows, columns)
    return Layout(instances=tuple(parts), frame_at_RC=frame_at_RC, planes=max(planes, inside))


def _height_um(header: Dataset) -> float | None:
    """The height of an image's focal plane above the slide, where its shared groups or its origin say it."""
    shared_um = shared_height_um(header)
    if shared_um is not None:
        return shared_um
    for origin in header.get("TotalPixelMatrixOriginSequence") or ():
        if origin.get("ZOffsetInSlideCoordinateSystem") is not None:
            return float(origin.ZOffsetInSlideCoordinateSystem)
    return None


def _tiled_sparse(images: list[list[Instance]], path: str | None, rows: int, columns: int) -> Layout:
    """Each frame says where it lies, so images of one level complete each other. Of frames in one place at several
    heights the middle one is read (scanners follow the tissue, so the heights of a plane differ from place to place),
    of repeats at one height the first acquired."""
    found = [[_on_grid(part, path, rows, columns) for part in parts] for parts in images]
    place_F = np.concatenate([part.place_F for parts in found for part in parts])
    z_um_F = np.concatenate([part.z_um_F for parts in found for part in parts])
    order_F = np.arange(len(place_F))
    read_F = np.lexsort((order_F, z_um_F, place_F))
    read_F = read_F[place_F[read_F] >= 0]
    if not len(read_F):
        raise InvalidSlide("A level of the slide has no frames. The slide is incomplete: send it again.")
    place, z_um = place_F[read_F], z_um_F[read_F]
    again = np.zeros(len(read_F), np.bool_)
    again[1:] = (place[1:] == place[:-1]) & (z_um[1:] == z_um[:-1])
    read_F, place = read_F[~again], place[~again]
    _, first, heights = np.unique(place, return_index=True, return_counts=True)
    chosen = np.zeros(len(place_F), np.bool_)
    chosen[read_F[first + (heights - 1) // 2]] = True
    frame_at_RC = np.full(rows * columns, _ABSENT, np.int32)
    instances: list[Instance] = []
    begin = offset = 0
    for parts in images:
        end = begin + sum(len(part.frames) for part in parts)
        numbers = np.flatnonzero(chosen[begin:end])
        if len(numbers):
            frame_at_RC[place_F[begin + numbers]] = offset + numbers
            instances += parts
            offset += end - begin
        begin = end
    return Layout(instances=tuple(instances), frame_at_RC=frame_at_RC.reshape(rows, columns), planes=int(heights.max()))


@dataclass(frozen=True, slots=True, eq=False)
class _OnGrid:
    """The frames of one part: the place of each in row-major order (-1: of another optical path), and its height (0
    where nothing is said)."""

    place_F: NDArray[np.int64]
    z_um_F: NDArray[np.float64]


def _of_path(instance: Instance, path: str | None) -> NDArray[np.bool_]:
    places = instance.places
    assert places is not None, "only asked of frames that say where they lie"
    if path is None or (places.path_F == "").all():
        return np.ones(len(places), np.bool_)
    of_path: NDArray[np.bool_] = places.path_F == path
    return of_path


def _on_grid(part: Instance, path: str | None, rows: int, columns: int) -> _OnGrid:
    places = part.places
    if places is None:
        raise InvalidSlide("The parts of one level differ in how they are tiled. Send the slide again.")
    header = part.file.dataset
    width_px, height_px = int(header.Columns), int(header.Rows)
    if (places.x_F % width_px).any() or (places.y_F % height_px).any():
        raise InvalidSlide("The slide's frames do not lie on a regular grid. Convert it to TILED_FULL.")
    at_R, at_C = places.y_F // height_px, places.x_F // width_px
    if ((at_R < 0) | (at_R >= rows) | (at_C < 0) | (at_C >= columns)).any():
        raise InvalidSlide("The slide has frames outside its pixel matrix. Check how it was converted.")
    place_F = np.where(_of_path(part, path), at_R * columns + at_C, _ABSENT)
    return _OnGrid(place_F, np.nan_to_num(places.z_um_F))
