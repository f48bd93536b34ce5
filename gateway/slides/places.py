"""Where frames lie in the total pixel matrix, as the functional groups say it (PS3.3 C.7.6.16, C.7.6.17.3)."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from gateway.operations.errors import InvalidSlide
from gateway.slides.elements import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, Element, Elements

PER_FRAME_GROUPS = 0x52009230
_MAX_FRAMES = 1 << 21
"""Frames of one instance whose places are read: a level of 200,000² pixels has 0.7 million; each takes 300 bytes."""
_PLANE_POSITION = 0x0048021A
_COLUMN, _ROW, _Z_OFFSET = 0x0048021E, 0x0048021F, 0x0040074A
_OPTICAL_PATH_IDENTIFICATION, _OPTICAL_PATH = 0x00480207, 0x00480106


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """The place of each frame of one instance: top left pixel in the total pixel matrix (0-based), height above the
    slide (NaN where nothing is said) and optical path ("" where nothing is said)."""

    x_F: NDArray[np.int64]
    y_F: NDArray[np.int64]
    z_um_F: NDArray[np.float64]
    path_F: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.x_F)


@dataclass(slots=True)
class _Place:
    """What one item of functional groups says; None, and "" of the path, where it says nothing."""

    x: int | None = None
    y: int | None = None
    z_um: float | None = None
    path: str = ""


def read_places(elements: Elements, groups: Element | None, header: Dataset, frames: int) -> Places | None:
    """The places of an instance's frames, from its per-frame groups, and from the shared ones what those leave out;
    None where neither says them. Raises InvalidSlide, TruncatedFile."""
    shared = _shared(header)
    if frames > _MAX_FRAMES:
        raise InvalidSlide(f"The slide has {frames} frames in one image, more than a slide can have. Convert it again.")
    if groups is not None:
        places = _frame_places(elements, groups, shared, frames)
    elif frames == 1:
        places = [shared]
    else:
        return None
    if any(place.x is None or place.y is None for place in places):
        return None
    if len(places) != frames:
        raise InvalidSlide(f"The slide gives positions for {len(places)} of its {frames} frames. Convert it again.")
    return Places(
        x_F=np.array([place.x for place in places], np.int64) - 1,
        y_F=np.array([place.y for place in places], np.int64) - 1,
        z_um_F=np.array([np.nan if place.z_um is None else place.z_um for place in places], np.float64),
        path_F=np.array([place.path for place in places], np.str_),
    )


def _frame_places(elements: Elements, groups: Element, shared: _Place, frames: int) -> list[_Place]:
    """What each item of the per-frame groups says beside the shared ones, in one walk over their heads: only what says
    a place is entered, and each of those sequences has one item."""
    places: list[_Place] = []
    place = _Place()
    within_undefined, item_is_inner = 0, False
    position, end = groups.value, elements.size if groups.length == UNDEFINED else groups.end
    while position < end:
        element = elements.at(position)
        position = element.value
        tag = element.tag
        if tag == ITEM:
            if not item_is_inner:
                if len(places) == frames:
                    raise InvalidSlide(
                        f"The slide has more per-frame groups than its {frames} frames. Convert it again."
                    )
                if place.x is None and places:
                    break  # so that no item of millions is kept: frames without a place have none all together
                place = replace(shared)
                places.append(place)
            item_is_inner = False
        elif tag == SEQUENCE_END:
            if not within_undefined:
                break
            within_undefined -= 1
            item_is_inner = False
        elif tag in (_PLANE_POSITION, _OPTICAL_PATH_IDENTIFICATION):
            item_is_inner = element.length > 0
            within_undefined += element.length == UNDEFINED
        elif tag != ITEM_END:
            if tag == _COLUMN:
                place.x = elements.signed(element)
            elif tag == _ROW:
                place.y = elements.signed(element)
            elif tag == _Z_OFFSET and element.length:
                place.z_um = _micrometres(elements.text(element))
            elif tag == _OPTICAL_PATH:
                place.path = elements.text(element)
            position = elements.after(element)
    return places


def _micrometres(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidSlide("The slide gives a frame a height that is no number. Check how it was converted.") from None


def _shared(header: Dataset) -> _Place:
    place = _Place()
    for groups in header.get("SharedFunctionalGroupsSequence") or ():
        for plane in groups.get("PlanePositionSlideSequence") or ():
            place.x = plane.get("ColumnPositionInTotalImagePixelMatrix")
            place.y = plane.get("RowPositionInTotalImagePixelMatrix")
            z_um = plane.get("ZOffsetInSlideCoordinateSystem")
            place.z_um = None if z_um is None else float(z_um)
        for path in groups.get("OpticalPathIdentificationSequence") or ():
            place.path = str(path.get("OpticalPathIdentifier") or "")
    return place


def shared_height_um(header: Dataset) -> float | None:
    """The height above the slide that all frames of the instance share; None where the shared groups name none."""
    return _shared(header).z_um


def shared_optical_path(header: Dataset) -> str:
    """The identifier of the optical path that all frames of the instance share, "" where the header names none."""
    return _shared(header).path
