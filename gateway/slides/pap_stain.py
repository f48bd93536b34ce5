"""Whether a slide is stained by Papanicolaou's method, of whatever laboratory, from the hues of its stained pixels.

Papanicolaou's counterstains make cytoplasm orange to red (orange G, eosin) and blue-green (light green), beside blue
to violet nuclei. Haematoxylin and eosin, and Giemsa, have blue to pink alone: they absorb green most. How much of each
counterstain is seen differs from smear to smear, and another laboratory's may lie nearer to blue and pink: so much hue
as neither haematoxylin and eosin nor Giemsa spans tells Papanicolaou too, and the more of a slide counterstains cover,
the less spread of its hues is asked for.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gateway.slides.stain import glass_colour

VERSION = "4"
"""Of the figures' meaning and of the rule."""

LEAST_PIXELS = 200
"""With fewer coloured pixels nothing is said of their hues."""
LEAST_SPREAD_DEG = 100.0
"""How far the hues of a slide in Papanicolaou must lie apart where hardly any counterstain is seen."""
COUNTERSTAINED, COUNTERSTAINED_DEG = (0.05, 0.4), (65.0, 20.0)
"""From the first share of counterstains on, so far; less with each more of them, to the last: a smear may be green all
over but for its nuclei. Set on CRIC's blocks of train and validation in four simulated centres and one for Giemsa, and
on four sets in H&E (docs/slides.md)."""

_GLASS_TINT, _GLASS_LEAST = 0.15, 0.02
_LEAST_OD = 0.1
_LEAST_SATURATION = 0.25
_COUNTERSTAIN_DEG = (180.0, 30.0)
"""The arc of hues that haematoxylin, eosin and Giemsa leave free, by way of 360: red at 180, orange, green, cyan, and
blue-green at 30."""
_TAILS_PERCENT = 5.0

LEAST_COLOURED = 0.25
"""The part of the stained pixels with a hue, below which a slide has no colour, however many they are: a scanner's
noise gives grey scattered hues, as far apart as Papanicolaou's. CRIC's fields have 0.43 and more."""

Verdict = Literal["papanicolaou", "other", "colourless", "too little"]


@dataclass(frozen=True, slots=True)
class StainVerdict:
    """What was judged, and the figures that decided. "colourless": there is something, and it has hardly any hue.

    `stained`: pixels with a hue; `counterstain_share` (0..1): those of them whose hue neither haematoxylin nor eosin
    nor Giemsa has; `spread_deg`: the arc that holds the middle 90 % of the hues. The figures are 0 where hues were not
    judged.
    """

    verdict: Verdict
    stained: int
    counterstain_share: float
    spread_deg: float


def judge(colours_P3: NDArray[np.uint8]) -> StainVerdict:
    """Judge (P, 3) uint8 RGB pixels from all over a slide, those of glass among them."""
    hues_P, dense = _hues_deg(colours_P3)
    if len(hues_P) < LEAST_COLOURED * dense:
        return StainVerdict("colourless", len(hues_P), 0.0, 0.0)
    if len(hues_P) < LEAST_PIXELS:
        return StainVerdict("too little", len(hues_P), 0.0, 0.0)
    first, last = _COUNTERSTAIN_DEG
    share = float(((hues_P >= first) | (hues_P < last)).mean())
    turned_P = np.exp(1j * np.radians(hues_P))
    about_P = np.degrees(np.angle(turned_P * np.conj(turned_P.mean())))
    low, high = np.percentile(about_P, [_TAILS_PERCENT, 100 - _TAILS_PERCENT])
    spread_deg = float(high - low)
    least_deg = LEAST_SPREAD_DEG if share < COUNTERSTAINED[0] else np.interp(share, COUNTERSTAINED, COUNTERSTAINED_DEG)
    return StainVerdict("papanicolaou" if spread_deg >= least_deg else "other", len(hues_P), share, spread_deg)


def _hues_deg(colours_P3: NDArray[np.uint8]) -> tuple[NDArray[np.float64], int]:
    """Hue of the optical density of the pixels that are stained and coloured, 0 <= hue < 360: what absorbs red alone
    is 0 (cyan), green alone 120 (magenta), blue alone 240 (yellow); and the number of those that are stained."""
    white_3 = glass_colour(colours_P3, tint=_GLASS_TINT, least=_GLASS_LEAST)
    red_P, green_P, blue_P = np.maximum(np.log10(white_3 / np.maximum(colours_P3, 1.0)), 0.0).T
    across_P, up_P = red_P - (green_P + blue_P) / 2, np.sqrt(0.75) * (green_P - blue_P)
    most_P = np.maximum(np.maximum(red_P, green_P), blue_P)
    dense_P = most_P >= _LEAST_OD
    coloured_P = dense_P & (np.hypot(across_P, up_P) >= _LEAST_SATURATION * most_P)
    hues_P: NDArray[np.float64] = np.degrees(np.arctan2(up_P[coloured_P], across_P[coloured_P])) % 360
    return hues_P, int(dense_P.sum())
