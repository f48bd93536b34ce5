"""What lies where on a composed slide: patches of background on a grid, and cells of the slide's class in them.

As in synthetic bags a share of the slide's cells, drawn from Beta(1.2, 8) and clipped to [0.005, 0.30], is of its
class; the number follows the background, whose annotated nuclei are NILM. In a NILM slide as many NILM cells are placed
in the same way: that something was pasted tells nothing of the class. The background of a slide is of one block of
fields, as if of one patient; its cells are of the whole part.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

from training.errors import TaskInvalid
from training.smartccs.bags import share
from training.smartccs.compose_scene import RADIUS_PX, REACH_PX, Cell, Scene, Windows

LEAST_SIDE_PX = 1024
SHAPES = ("smear", "disc")
"""A smear is drawn out over the slide; what is prepared from a liquid is a disc."""
_MARGIN_SHARE, _LEAST_MARGIN_PX = 0.04, 64
_GAPS = 0.05
"""Share of the patches within the outline that are bare glass."""
_ALIKE = 6
"""Patches that lie together and are of one field, on average."""
_AS_NEAR = 8
"""Points that may lie as near to a place as each other."""
_CELLS, _PLACES, _APART_PX = 3, 60, 100
_ANGLES, _RINGS = 32, (0.65, 0.8, 0.95)
"""Where a cell's surroundings are compared: angles, and rings in parts of the radius."""
ORIENTATIONS = 8


@dataclass(frozen=True, slots=True)
class Pasted:
    """A cell in a patch: its middle in pixels of the patch's window, and how it is turned (0 to 7)."""

    cell: Cell
    x_px: int
    y_px: int
    turn: int


@dataclass(slots=True, eq=False)
class Patch:
    """A window of background: field, left and top in it, how it is turned, and the cells pasted into it."""

    field: int
    left_px: int
    top_px: int
    turn: int
    pasted: list[Pasted] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A whole slide. `patches` by row and column of the grid, which begins at `origin_px` in x and y, its places being
    `pitch_px` wide; `glass_3`: its glass, RGB; `nuclei`: how many annotated NILM nuclei the background has; `share`:
    what part of all cells was to be placed."""

    side_px: int
    origin_px: int
    pitch_px: int
    columns: int
    label: int
    share: float
    nuclei: int
    glass_3: np.ndarray
    patches: dict[tuple[int, int], Patch]

    def corner(self, place: tuple[int, int]) -> tuple[int, int]:
        """Left and top of a patch's window in the slide."""
        row, column = (self.origin_px + line * self.pitch_px - REACH_PX for line in place)
        return column, row


def turned(image_HWC: np.ndarray, turn: int) -> np.ndarray:
    """A square picture in one of eight orientations: mirrored from 4 on, then turned left by quarters."""
    return np.rot90(image_HWC[:, ::-1] if turn >= 4 else image_HWC, turn % 4)


def turned_offset(x: float, y: float, turn: int) -> tuple[float, float]:
    """Where `turned` brings what lies at x, y from the picture's middle."""
    x = -x if turn >= 4 else x
    for _ in range(turn % 4):
        x, y = y, -x
    return x, y


def lay_out(
    scene: Scene,
    rng: np.random.Generator,
    side_px: int,
    label: int,
    shape: str = "smear",
    density: float = 1.0,
    pasted: bool = True,
) -> Layout:
    """A square slide of the class `label`. `density`: of the patches within the outline, how many are
    there; `pasted`: whether cells are placed. Raises TaskInvalid for too small a side, an unknown shape, and a class
    that the part has no cell of."""
    if side_px < LEAST_SIDE_PX:
        raise TaskInvalid(f"A slide of {side_px} px has no room for a smear. Ask for {LEAST_SIDE_PX} px or more.")
    if shape not in SHAPES:
        raise TaskInvalid(f"There is no shape {shape!r}. Name one of: {', '.join(SHAPES)}.")
    cells = scene.require(label)
    margin_px = max(_LEAST_MARGIN_PX, round(side_px * _MARGIN_SHARE))
    columns = (side_px - 2 * margin_px) // scene.pitch_px
    places = _within(rng, columns, shape)
    kept = rng.random(len(places)) < density * (1 - _GAPS)
    kept[int(rng.integers(len(places)))] |= density > 0
    groups = sorted({scene.fields[windows.field].group for windows in scene.windows})
    group = groups[int(rng.integers(len(groups)))]
    choice = [windows for windows in scene.windows if scene.fields[windows.field].group == group]
    patches, nuclei = {}, 0
    sources = _sources(rng, places, choice)
    for place, windows, here in zip(places, sources, kept.tolist(), strict=True):
        if here:
            patches[place], inside = _patch(scene, rng, windows)
            nuclei += inside
    part = share(rng)
    glass_3 = scene.glass(choice[int(rng.integers(len(choice)))].field)
    origin_px = (side_px - columns * scene.pitch_px) // 2
    layout = Layout(side_px, origin_px, scene.pitch_px, columns, label, part, nuclei, glass_3, patches)
    if patches and pasted:
        _place(scene, rng, layout, cells, max(1, round(nuclei * part / (1 - part))))
    return layout


def _within(rng: np.random.Generator, columns: int, shape: str) -> list[tuple[int, int]]:
    """The places of the grid within the outline, whose edge waves."""
    waves = [(int(rng.integers(2, 6)), rng.uniform(0, 2 * math.pi), rng.uniform(0.01, 0.05)) for _ in range(4)]
    wide, high, power = (1.0, 0.85, 4.0) if shape == "smear" else (0.95, 0.95, 2.0)
    places = []
    for row in range(columns):
        for column in range(columns):
            x, y = (2 * (column + 0.5) / columns - 1) / wide, (2 * (row + 0.5) / columns - 1) / high
            away = (abs(x) ** power + abs(y) ** power) ** (1 / power)
            angle = math.atan2(y, x)
            if away <= 1 + sum(size * math.sin(count * angle + phase) for count, phase, size in waves):
                places.append((row, column))
    return places or [(columns // 2, columns // 2)]


def _sources(rng: np.random.Generator, places: list[tuple[int, int]], choice: list[Windows]) -> list[Windows]:
    """By place, of which field it is: that of the nearest of some points, so that neighbours are mostly of one."""
    at_N2 = np.array(places, np.float64)
    points_K2 = at_N2[rng.integers(len(places), size=-(-len(places) // _ALIKE))] + rng.uniform(-0.5, 0.5, 2)
    fields_K = rng.integers(len(choice), size=len(points_K2))
    return [choice[fields_K[point]] for point in nearest(at_N2, points_K2)]


def nearest(at_N2: np.ndarray, points_K2: np.ndarray) -> np.ndarray:
    """(N,) int: the nearest point to each place; of points as near as each other the first. Memory goes with N + K."""
    # The same point may be there several times: only its first place in the list counts.
    _, first_U = np.unique(points_K2, axis=0, return_index=True)
    first_U.sort()
    _, near_NQ = cKDTree(points_K2[first_U]).query(at_N2, k=range(1, min(_AS_NEAR, len(first_U)) + 1))
    near_NQ = first_U[np.sort(near_NQ, axis=1)]
    away_NQ = np.square(at_N2[:, None] - points_K2[near_NQ]).sum(2)
    return near_NQ[np.arange(len(at_N2)), away_NQ.argmin(1)]


def _patch(scene: Scene, rng: np.random.Generator, windows: Windows) -> tuple[Patch, int]:
    """A patch of a field, and how many annotated nuclei lie in the middle part of it that no neighbour covers."""
    left, top = windows.corners_N2[int(rng.integers(len(windows.corners_N2)))].tolist()
    boxes_N4 = scene.fields[windows.field].boxes_N4
    inside_N2 = boxes_N4[:, :2] + boxes_N4[:, 2:] / 2 - (left + REACH_PX, top + REACH_PX)
    nuclei = int(((inside_N2 >= 0) & (inside_N2 < scene.pitch_px)).all(1).sum())
    return Patch(windows.field, left, top, int(rng.integers(ORIENTATIONS))), nuclei


def _place(scene: Scene, rng: np.random.Generator, layout: Layout, cells: tuple[Cell, ...], count: int) -> None:
    """Place cells until `count` nuclei of the class are placed or no room is left. Of some cells and some places, clear
    of soft edges and of other cells, the two are taken whose surroundings are most alike."""
    places, least, most = list(layout.patches), 2 * REACH_PX + RADIUS_PX, scene.pitch_px - RADIUS_PX
    done = 0
    while done < count:
        free = []
        for _ in range(_PLACES):
            patch = layout.patches[places[int(rng.integers(len(places)))]]
            x, y = rng.integers(least, most, size=2).tolist()
            if all(math.hypot(x - other.x_px, y - other.y_px) >= _APART_PX for other in patch.pasted):
                free.append((patch, x, y))
        if not free:
            return
        drawn = rng.integers((len(cells), ORIENTATIONS), size=(_CELLS, 2)).tolist()
        tried = [(cells[number], turn) for number, turn in drawn]
        there_PA3 = np.stack([_around(scene, patch.field, window_of(scene, patch), x, y) for patch, x, y in free])
        own_CA3 = np.stack(
            [_around(scene, cell.field, disc_of(scene, cell, turn), RADIUS_PX, RADIUS_PX) for cell, turn in tried]
        )
        unlike_CP = np.abs(own_CA3[:, None] - there_PA3[None]).mean((2, 3))
        chosen, where = np.unravel_index(unlike_CP.argmin(), unlike_CP.shape)
        (cell, turn), (patch, x, y) = tried[chosen], free[where]
        patch.pasted.append(Pasted(cell, x, y, turn))
        done += 1 + len(cell.also)


def window_of(scene: Scene, patch: Patch) -> np.ndarray:
    """A view of a patch's pixels, turned, in the light of its field: (window_px, window_px, 3) uint8 RGB."""
    rows, columns = (slice(begin, begin + scene.window_px) for begin in (patch.top_px, patch.left_px))
    return turned(scene.pixels(patch.field)[rows, columns], patch.turn)


def disc_of(scene: Scene, cell: Cell, turn: int) -> np.ndarray:
    """A view of the square about a cell, turned, in the light of its field: (D,D,3) uint8 RGB, D twice the radius and
    one."""
    rows, columns = (slice(round(at) - RADIUS_PX, round(at) + RADIUS_PX + 1) for at in (cell.y_px, cell.x_px))
    return turned(scene.pixels(cell.field)[rows, columns], turn)


def _around(scene: Scene, field: int, image_HW3: np.ndarray, x: int, y: int) -> np.ndarray:
    """(A,3) float: optical density against the field's glass about a place, where a cell pasted there would fade."""
    return -np.log(np.maximum(image_HW3[y + _DOWN_A, x + _RIGHT_A], 2) / scene.glass(field))


_ANGLES_A = np.arange(_ANGLES) * 2 * math.pi / _ANGLES
_DOWN_A, _RIGHT_A = (
    np.rint(RADIUS_PX * np.outer(_RINGS, wave(_ANGLES_A)).ravel()).astype(int) for wave in (np.sin, np.cos)
)
