"""What slides are composed of: the fields of one part of CRIC, as one centre shows them.

Background is a window of a field without abnormal nuclei ("negative"), or of any field so far from its annotated
abnormal nuclei that none is near ("regions"). Not every cell is annotated, so a region may hold an abnormal nucleus
that nobody marked; the train part has no negative field. What is known of a cell is what is annotated.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from gateway.domain.bethesda import NAMES, NILM
from training.data.common import data_root, read_source
from training.errors import TaskInvalid
from training.smartccs import data
from training.smartccs.data import Field

REACH_PX = 48
"""How far a patch's soft edge reaches beyond it on either side."""
PITCHES_PX = {"negative": 832, "regions": 416}
"""Side of a patch of background in the slide, by where it is taken from: the wider, the fewer cells are cut."""
RADIUS_PX = 72
"""Of the disc about an annotated nucleus that is pasted, 18 µm: what is annotated in it belongs to the cell."""
BACKGROUNDS = tuple(PITCHES_PX)
MOST_SHOWN = 96
"""Fields that are held as the slides show them, 4 MB each; the one that was asked for longest ago goes first."""
LEAST_NEGATIVE = 3
"""Fewer negative fields than these are no background of their own unless asked for."""
_SAFE_PX = 110
"""From a window to the middle of an abnormal nucleus: 27 µm, a cell's radius."""
_STEP_PX = 16
_GLASS_SHARE = 0.05

Look = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Cell:
    """An annotated nucleus that can be pasted: its field and number in it, its Bethesda number, its middle in pixels
    of the field; `also`: others of the same class within the disc, as (dx, dy) from the middle."""

    field: int
    nucleus: int
    kind: int
    x_px: float
    y_px: float
    also: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Where in one field a window of background may begin: (N,2) int, left and top in pixels."""

    field: int
    corners_N2: np.ndarray


class Scene:
    """The fields of a part through `look`, which changes colours and optics, and `damage`, which changes what lies on
    the glass; both (H,W,3) uint8 to the same, or None.

    `background` None: the negative fields where there are enough. Raises TaskInvalid where no window is left,
    DataMissing, LeakageRefused.
    """

    def __init__(
        self, part: str, look: Look | None = None, damage: Look | None = None, background: str | None = None
    ) -> None:
        self.part = part
        self.fields = data.load(part)
        self._look, self._damage = look, damage
        negative = sum(field.negative for field in self.fields)
        self.background = background or ("negative" if negative >= LEAST_NEGATIVE else "regions")
        if self.background not in BACKGROUNDS:
            raise TaskInvalid(f"There is no background {background!r}. Name one of: {', '.join(BACKGROUNDS)}.")
        if self.background == "negative" and not negative:
            raise TaskInvalid(f"The part {part} has no field without abnormal nuclei. Ask for the background regions.")
        self.pitch_px = PITCHES_PX[self.background]
        self.window_px = self.pitch_px + 2 * REACH_PX
        self._shown = lru_cache(MOST_SHOWN)(self._show)
        self._glass: dict[int, np.ndarray] = {}
        self._size = cache(lambda index: _size_of(self.fields[index]))

    @cached_property
    def windows(self) -> tuple[Windows, ...]:
        """By field, where background may be taken from."""
        found = []
        for index, field in enumerate(self.fields):
            if field.negative or self.background == "regions":
                corners_N2 = _corners(field, self._size(index), self.window_px)
                if len(corners_N2):
                    found.append(Windows(index, corners_N2))
        if not found:
            raise TaskInvalid(f"No field of the part {self.part} has room for background of {self.window_px} px.")
        return tuple(found)

    @cached_property
    def cells(self) -> dict[int, tuple[Cell, ...]]:
        """By class, the cells whose disc lies within their field and holds no nucleus of a third class: in an abnormal
        cell's disc lie its own class and NILM only, in a NILM cell's only NILM."""
        found: dict[int, list[Cell]] = {kind: [] for kind in range(len(NAMES))}
        for index, field in enumerate(self.fields):
            height, width = self._size(index)
            middles_N2 = field.boxes_N4[:, :2] + field.boxes_N4[:, 2:] / 2
            for nucleus, (x, y) in enumerate(middles_N2):
                kind = int(field.classes_N[nucleus])
                away_N2 = middles_N2 - (x, y)
                near_N = np.hypot(*away_N2.T) < RADIUS_PX
                whole = min(x, y, width - x, height - y) > RADIUS_PX
                if kind < NILM or not whole or not np.isin(field.classes_N[near_N], (kind, NILM)).all():
                    continue
                near_N[nucleus] = False
                also = tuple((float(dx), float(dy)) for dx, dy in away_N2[near_N & (field.classes_N == kind)])
                found[kind].append(Cell(index, nucleus, kind, float(x), float(y), also))
        return {kind: tuple(cells) for kind, cells in found.items()}

    def require(self, kind: int) -> tuple[Cell, ...]:
        """The cells of a class. Raises TaskInvalid where the part has none, naming those that it has."""
        if not self.cells[kind]:
            held = ", ".join(NAMES[other] for other, cells in self.cells.items() if cells)
            raise TaskInvalid(f"The part {self.part} has no cell of {NAMES[kind]} to place. It has: {held}.")
        return self.cells[kind]

    def pixels(self, index: int) -> np.ndarray:
        """(H,W,3) uint8 RGB of a field, as the slides show it."""
        return self._shown(index)

    def glass(self, index: int) -> np.ndarray:
        """(3,) float: the colour of a field where nothing lies: the median of its brightest twentieth, judged by the
        darkest channel."""
        if index not in self._glass:
            self._shown(index)
        return self._glass[index]

    def _show(self, index: int) -> np.ndarray:
        image_HW3 = self.fields[index].read()
        image_HW3 = image_HW3 if self._look is None else self._look(image_HW3)
        pixels_N3 = image_HW3[::4, ::4].reshape(-1, 3)
        darkest_N = pixels_N3.min(1)
        bright_N = darkest_N >= np.quantile(darkest_N, 1 - _GLASS_SHARE)
        self._glass[index] = np.maximum(np.median(pixels_N3[bright_N], axis=0), 1.0)
        return image_HW3 if self._damage is None else self._damage(image_HW3)

    def lit(self, index: int, image_HW3: np.ndarray, glass_3: np.ndarray) -> np.ndarray:
        """A piece of a field as it would be in a slide whose glass has the colour `glass_3`."""
        gain_3 = glass_3 / self.glass(index)
        table = np.clip(np.rint(np.arange(256)[:, None] * gain_3), 0, 255).astype(np.uint8)
        return cv2.LUT(image_HW3, table[None])


def _size_of(field: Field) -> tuple[int, int]:
    """Height and width by the file's header; of one whose header says nothing, of its pixels. Raises DataMissing."""
    try:
        with Image.open(io.BytesIO(read_source(data_root(), field.source, "ABC"))) as image:
            return image.height, image.width
    except UnidentifiedImageError:
        height, width = field.read().shape[:2]
        return height, width


def _corners(field: Field, size_px: tuple[int, int], side_px: int) -> np.ndarray:
    """(N,2) int: left and top of the windows of a field of that height and width, on a lattice, that no abnormal
    nucleus is near."""
    height, width = size_px
    left, top = np.meshgrid(np.arange(0, width - side_px + 1, _STEP_PX), np.arange(0, height - side_px + 1, _STEP_PX))
    corners_N2 = np.stack([left.ravel(), top.ravel()], axis=1)
    boxes_K4 = field.boxes_N4[field.abnormal]
    middles_K2 = boxes_K4[:, :2] + boxes_K4[:, 2:] / 2
    offset_NK2 = middles_K2[None] - corners_N2[:, None]
    near_NK = ((offset_NK2 > -_SAFE_PX) & (offset_NK2 < side_px + _SAFE_PX)).all(2)
    return corners_N2[~near_NK.any(1)]
