"""Tiles of drawn smears: squamous cells in Papanicolaou's colours on glass, 512 pixels of 0.375 µm a tile."""

import cv2
import numpy as np

MPP = 0.375
TILE_UM2 = (512 * MPP) ** 2
_STAINS = ((0.20, 0.07, 0.06), (0.03, 0.12, 0.22), (0.03, 0.16, 0.10), (0.55, 0.50, 0.30))
"""Optical densities (base 10) in red, green and blue: of cyan, orange and pink cytoplasm, and of a nucleus."""


def smear(cells: int = 14, seed: int = 0) -> np.ndarray:
    """(512, 512, 3) uint8 RGB with that many cells of 45 µm, at random: each a polygon of one colour with a nucleus of
    8 µm, and grain all over."""
    rng = np.random.default_rng(seed)
    stains_SHW = np.zeros((len(_STAINS), 512, 512), np.float32)
    for number in range(cells):
        middle_2 = rng.uniform(40, 472, 2)
        angles_V, radii_V = np.sort(rng.uniform(0, 2 * np.pi, 9)), rng.uniform(48, 66, 9)
        corners_V2 = middle_2 + radii_V[:, None] * np.stack([np.cos(angles_V), np.sin(angles_V)], 1)
        stains_SHW[number % 3] += cv2.fillPoly(np.zeros((512, 512), np.uint8), [np.rint(corners_V2).astype(int)], 1)
        at = (round(middle_2[0]), round(middle_2[1]))
        stains_SHW[3] += cv2.circle(np.zeros((512, 512), np.uint8), at, 11, 1, cv2.FILLED)
    stains_SHW *= 1 + rng.normal(0, 0.08, (512, 512)).astype(np.float32)
    light_HW3 = 245 * 10 ** -np.tensordot(stains_SHW, np.array(_STAINS, np.float32), axes=(0, 0))
    return np.clip(np.rint(light_HW3 + rng.normal(0, 1.5, (512, 512, 1))), 0, 255).astype(np.uint8)
