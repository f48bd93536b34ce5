"""How a slide is stained: the directions of haematoxylin and eosin in optical density, and how much there is of each.

Macenko et al., "A method for normalizing histology slides for quantitative analysis" (IEEE ISBI 2009): the two stains
span the plane of the two greatest eigenvectors of the pixels' optical densities, and lie at the extreme angles in it.
"""

import numpy as np
from numpy.typing import NDArray

from gateway.domain.model import StainReference
from gateway.domain.report import StainFigures

_WHITE = 255.0
_SUPPOSED_GLASS = 245.0
_LEAST_OD = 0.15 / np.log(10)
"""The paper's beta (natural logarithm): paler pixels say nothing of a hue."""
_EXTREME_PERCENT = 1.0
"""The paper's alpha: robust extremes of the angle."""
_LEAST_PIXELS = 200
"""With fewer, two pixels would decide a robust extreme: no figures are given."""


def optical_density(colours_P3: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Optical density (base 10) of (P, 3) uint8 RGB against white; (P, 3)."""
    density: NDArray[np.float64] = np.log10(_WHITE / np.maximum(colours_P3.astype(np.float64), 1.0))
    return density


def glass_colour(colours_P3: NDArray[np.uint8], tint: float, least: float) -> NDArray[np.float64]:
    """The colour (3,) of a slide's own glass: the median of the brighter half of the pixels (P, 3) uint8 RGB that are
    bright and whose channels differ by at most `tint` of the highest; where fewer than `least` (0..1) of all are so,
    a light grey."""
    high_P, low_P = colours_P3.max(axis=1, initial=0).astype(int), colours_P3.min(axis=1, initial=255).astype(int)
    glass_G3 = colours_P3[(high_P >= 200) & (high_P - low_P <= tint * high_P)]
    if not len(glass_G3) or len(glass_G3) < least * len(colours_P3):
        return np.full(3, _SUPPOSED_GLASS)
    brightness_G = glass_G3.sum(axis=1, dtype=int)
    colour_3: NDArray[np.float64] = np.median(glass_G3[brightness_G >= np.median(brightness_G)], axis=0)
    return colour_3


def stained(od_P3: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pixels are stained enough to have a hue: every channel absorbs. (P,)"""
    dark: NDArray[np.bool_] = (od_P3 >= _LEAST_OD).all(axis=1)
    return dark


def stain_figures(colours_P3: NDArray[np.uint8], reference: StainReference | None) -> StainFigures | None:
    """The stains of (P, 3) uint8 RGB pixels from all over an H&E slide; None where too few of them are stained."""
    od_P3 = optical_density(colours_P3)
    od_P3 = od_P3[stained(od_P3)]
    if len(od_P3) < _LEAST_PIXELS:
        return None
    vectors_23 = _macenko(od_P3)
    amounts_2P = np.linalg.lstsq(vectors_23.T, od_P3.T, rcond=None)[0]
    haematoxylin_od, eosin_od = np.maximum(amounts_2P, 0).mean(axis=1).tolist()
    haematoxylin, eosin = (_direction(vector_3) for vector_3 in vectors_23)
    return StainFigures(
        haematoxylin_od=haematoxylin_od,
        eosin_od=eosin_od,
        haematoxylin=haematoxylin,
        eosin=eosin,
        distance_deg=None
        if reference is None
        else max(_angle_deg(haematoxylin, reference.haematoxylin), _angle_deg(eosin, reference.eosin)),
    )


def _macenko(od_P3: NDArray[np.float64]) -> NDArray[np.float64]:
    """The directions of haematoxylin and eosin, one a row; the one that absorbs more red is haematoxylin."""
    _, vectors_33 = np.linalg.eigh(np.cov(od_P3.T))
    plane_32 = vectors_33[:, [2, 1]]
    plane_32 *= np.where(plane_32.sum(axis=0) < 0, -1, 1)
    angles_P = np.arctan2(od_P3 @ plane_32[:, 1], od_P3 @ plane_32[:, 0])
    low, high = np.percentile(angles_P, [_EXTREME_PERCENT, 100 - _EXTREME_PERCENT])
    found_23 = np.array([plane_32 @ [np.cos(angle), np.sin(angle)] for angle in (low, high)])
    found_23 = np.maximum(found_23, 0)  # no stain gives light
    found_23 /= np.linalg.norm(found_23, axis=1, keepdims=True)
    order = np.argsort(-found_23[:, 0])
    return np.asarray(found_23[order], np.float64)


def _direction(vector_3: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = vector_3.tolist()
    return red, green, blue


def _angle_deg(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    cosine = np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
