"""The pixels of a composed slide, region by region: patches whose edges wave and fade into one another, and cells whose
rims take the colour of what is about them.

A cell is pasted as in seamless cloning (Pérez et al., SIGGRAPH 2003): its own gradients within the border that the
background gives. On a disc, and with optical density in place of light (so that a nucleus keeps its darkness over
thicker background), the solution is a sum of harmonic waves, of which the longest few are taken: what differs at the
rim within a cell's width is not carried inwards. The rim itself fades.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

from training.smartccs.compose_layout import Layout, Pasted, disc_of, window_of
from training.smartccs.compose_scene import RADIUS_PX, REACH_PX, Scene

Cover = Callable[[np.ndarray, int, int], np.ndarray]
"""What lies on the whole slide: (H,W,3) uint8 and its left and top in the slide, to the same."""
_FADE_PX = 24
"""Half of the width over which two patches fade; the line itself waves by what is left of the reach."""
_NOISE_SIDE_PX = 512
_RIM, _WAVES = 96, 3
"""Places on the rim, and waves around it."""
_MOST = 0.4
"""The most optical density (natural logarithm) by which a place on the rim counts as differing."""
_SOLID = 0.45
"""Share of the radius within which a cell is wholly its own."""
_LEAST_LIGHT = 2.0


class Painter:
    """Draws a layout. `draw` gives the same pixels of a place whatever region they are asked in."""

    def __init__(self, scene: Scene, layout: Layout, seed: int, cover: Cover | None = None) -> None:
        self._scene, self._layout, self._cover = scene, layout, cover
        self._done: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 0.8, (_NOISE_SIDE_PX, _NOISE_SIDE_PX, 1)) + layout.glass_3
        self._noise = np.clip(np.rint(noise), 0, 255).astype(np.uint8)
        shape = (2, layout.columns + 1, 3)
        self._waves = rng.uniform(90, 400, shape), rng.uniform(0, 2 * math.pi, shape)

    def draw(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB of a region of the slide."""
        parts = []
        for begin, end, seam, fades in self._pieces(top, height):
            if not fades:
                parts.append(self._row(seam, left, begin, width, end - begin))
                continue
            above = self._row(seam - 1, left, begin, width, end - begin)
            below = self._row(seam, left, begin, width, end - begin)
            along = np.arange(left, left + width, dtype=np.float32)[None]
            across = np.arange(begin, end, dtype=np.float32)[:, None]
            parts.append(_faded(above, below, self._weight(0, seam, across, along)))
        image = np.vstack(parts)
        return image if self._cover is None else self._cover(image, left, top)

    def _pieces(self, begin: int, length: int) -> list[tuple[int, int, int, bool]]:
        """A stretch of rows or columns in pieces: begin, end, the grid's line, and whether neighbours fade there (then
        the line between them), or which alone is there."""
        pieces, here, end = [], begin, begin + length
        while here < end:
            line = (here - self._layout.origin_px + REACH_PX) // self._layout.pitch_px
            inside = here - self._layout.origin_px - line * self._layout.pitch_px + REACH_PX
            fades = inside < 2 * REACH_PX
            until = min(end, here - inside + (2 * REACH_PX if fades else self._layout.pitch_px))
            pieces.append((here, until, line, fades))
            here = until
        return pieces

    def _row(self, row: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """A region as the patches of one row of the grid alone would fill it."""
        image = self._glass(left, top, width, height)
        for begin, end, seam, fades in self._pieces(left, width):
            right = self._piece((row, seam), begin, top, end - begin, height)
            before = self._piece((row, seam - 1), begin, top, end - begin, height) if fades else None
            here = image[:, begin - left : end - left]
            if fades and (right is not None or before is not None):
                across = np.arange(begin, end, dtype=np.float32)[None]
                along = np.arange(top, top + height, dtype=np.float32)[:, None]
                weight = self._weight(1, seam, across, along)
                here[:] = _faded(
                    np.ascontiguousarray(here) if before is None else before,
                    np.ascontiguousarray(here) if right is None else right,
                    weight,
                )
            elif right is not None:
                here[:] = right
        return image

    def _piece(self, place: tuple[int, int], left: int, top: int, width: int, height: int) -> np.ndarray | None:
        """A region of one patch; None where there is none."""
        patch = self._patch(place)
        if patch is None:
            return None
        x, y = self._layout.corner(place)
        return patch[top - y : top - y + height, left - x : left - x + width]

    def _weight(self, axis: int, line: int, across: np.ndarray, along: np.ndarray) -> np.ndarray:
        """(H,W) float32: how much of a pixel is the patch's before a line of the grid. The line waves along."""
        lengths, phases = self._waves
        which = min(max(line, 0), self._layout.columns)
        swing = (REACH_PX - _FADE_PX) / 3
        waves = sum(
            np.float32(swing) * np.sin(along * np.float32(2 * math.pi / length) + np.float32(phase))
            for length, phase in zip(lengths[axis, which], phases[axis, which], strict=True)
        )
        at = across - (self._layout.origin_px + line * self._layout.pitch_px) - waves
        ramp = np.clip(at / (2 * _FADE_PX) + 0.5, 0, 1)
        return np.asarray(1 - ramp * ramp * (3 - 2 * ramp), np.float32)

    def _glass(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        side = _NOISE_SIDE_PX
        shifted = np.roll(self._noise, (-(top % side), -(left % side)), axis=(0, 1))
        return np.tile(shifted, (-(-height // side), -(-width // side), 1))[:height, :width].copy()

    def _patch(self, place: tuple[int, int]) -> np.ndarray | None:
        """(window_px, window_px, 3) uint8 RGB of a patch with its cells; two rows of the grid are kept."""
        if place not in self._layout.patches:
            return None
        if place not in self._done:
            patch, glass_3 = self._layout.patches[place], self._layout.glass_3
            image = np.ascontiguousarray(self._scene.lit(patch.field, window_of(self._scene, patch), glass_3))
            for pasted in patch.pasted:
                self._paste(image, pasted)
            while len(self._done) >= 2 * self._layout.columns:
                self._done.popitem(last=False)
            self._done[place] = image
        return self._done[place]

    def _paste(self, image: np.ndarray, pasted: Pasted) -> None:
        own, reach = disc_of(self._scene, pasted.cell, pasted.turn), RADIUS_PX
        own = self._scene.lit(pasted.cell.field, np.ascontiguousarray(own), self._layout.glass_3)
        rows = slice(pasted.y_px - reach, pasted.y_px + reach + 1)
        columns = slice(pasted.x_px - reach, pasted.x_px + reach + 1)
        image[rows, columns] = pasted_into(image[rows, columns], own, self._layout.glass_3)


def pasted_into(under_DD3: np.ndarray, own_DD3: np.ndarray, glass_3: np.ndarray) -> np.ndarray:
    """(D,D,3) uint8: the disc within `own_DD3` laid over `under_DD3`, both squares of an odd side, without a border;
    nothing of it is brighter than the glass."""
    alpha_DD, waves_DDK, rim_KA, rim_A2 = _disc(len(own_DD3))
    light = [np.maximum(image.astype(np.float32), _LEAST_LIGHT) for image in (under_DD3, own_DD3)]
    under_A3, own_A3 = (cv2.blur(image, (5, 5))[rim_A2[:, 1], rim_A2[:, 0]] for image in light)
    differ_K3 = rim_KA @ np.clip(np.log(under_A3 / own_A3), -_MOST, _MOST)
    own_DD3 = np.minimum(light[1] * np.exp(waves_DDK @ differ_K3), glass_3)
    over_DD3 = light[0] + alpha_DD[..., None] * (own_DD3 - light[0])
    return np.clip(np.rint(over_DD3), 0, 255).astype(np.uint8)


@cache
def _disc(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(D,D) how much of a pixel is the cell's; (D,D,K) the harmonic waves of a disc, 1 and r^k cos, r^k sin of k times
    the angle; (K,A) how much of each stands at the rim; (A,2) the pixels of the rim, x and y."""
    radius = side // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    away_DD, angle_DD = np.hypot(x, y) / radius, np.arctan2(y, x)
    ramp_DD = np.clip((1 - away_DD) / (1 - _SOLID), 0, 1)
    angles_A = np.arange(_RIM) * 2 * math.pi / _RIM
    waves, rim = [np.ones_like(away_DD)], [np.full(_RIM, 1 / _RIM)]
    for k in range(1, _WAVES + 1):
        for wave in (np.cos, np.sin):
            waves.append(np.minimum(away_DD, 1) ** k * wave(k * angle_DD))
            rim.append(2 / _RIM * wave(k * angles_A))
    rim_A2 = np.rint(radius + (radius - 3) * np.stack([np.cos(angles_A), np.sin(angles_A)], 1)).astype(int)
    alpha_DD = ramp_DD * ramp_DD * (3 - 2 * ramp_DD)
    return alpha_DD.astype(np.float32), np.stack(waves, 2).astype(np.float32), np.stack(rim).astype(np.float32), rim_A2


def _faded(before: np.ndarray, after: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return cv2.blendLinear(before, after, weight, 1 - weight)
