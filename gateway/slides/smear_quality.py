"""Whether a smear can be judged: how many squamous cells are seen on it, and what hides the others.

Of every detector tile a row of `WIDTH` float32 figures is kept (`measure`), of that tile alone; `summarise` adds the
rows of a slide up. The questions are those of The Bethesda System for Reporting Cervical Cytology (3rd edition, 2015,
chapter "Specimen adequacy"): squamous cellularity, obscuring by blood or inflammation, air drying. Focus and pen are
ours. What the limits were measured on is said in docs/slides.md.
"""

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.slides.quality import focus
from gateway.slides.stain import glass_colour
from gateway.slides.tissue import pen_ink

VERSION = "1"
"""Of the rows' layout and meaning: rows of another version are not used."""
FIGURES = ("stained", "cytoplasm", "obscured", "blood", "pen", "focus", "nuclei", "smudged")
"""Of a row, in this order. Shares of the tile's area: what is stained (ink is not), sheets of cytoplasm that nothing
hides, what is obscured, blood, ink; then the tile's focus, its nuclei, and those of them without a sharp edge."""
WIDTH = len(FIGURES)

SQUAMOUS_CELL_UM2 = 680.0
"""Area of cytoplasm that stands for a cell, overlap counted in: by the annotated nuclei of the first tile of CRIC's 161
fields. The estimate is then 0.55 to 1.43 times what is annotated in a block of them (13 blocks)."""
BLURRED = 0.01
"""Focus (`gateway.slides.quality`) below which a tile of 0.375 µm a pixel is out of focus. None of CRIC's 161 tiles is
so, nor where they are enlarged from 0.5 µm, and 1 % of the stained area with a simulated softer scanner; behind a
Gaussian blur of 0.5 µm 57 % is (75 % enlarged), of 0.75 µm all."""
EMPTY = 0.02
"""Share of stained and inked area below which a tile has nothing to be judged."""
LEAST_NUCLEI = 20
"""With fewer in a smear, one clump of smudged leucocytes would decide."""

_Number = TypeVar("_Number", np.uint8, np.float32)
_Mask = NDArray[np.bool_]
_Density = NDArray[np.float32]
_NUCLEI_UM, _SHEETS_UM = 0.75, 1.5
"""µm a pixel: nuclei are looked for in a picture of the first scale, the rest in one of the second."""
_STAINED_OD, _DARK_OD = 0.08, 0.2
_SHEET_PX = 9
"""Side of the square that fits into a sheet of cytoplasm, and into no red cell or leucocyte: 13.5 µm."""
_AROUND_PX = 21
"""Side of the square in which it is asked whether most is hidden: 31.5 µm."""
_HIDDEN = 0.4
_DENSE_OD = 0.45
_TEXTURE_PX = 7
"""Side of the square, 10.5 µm, in which red cells differ among themselves and cytoplasm does not."""
_TEXTURE, _WARM_OD, _THICK_OD = 0.4, 0.08, 0.7
_SMOOTH_PX, _EDGE_PX = 5, 11
_GAP_PX, _STROKE_PX, _UNDER_PX, _RIM_PX = 7, 27, 41, 21
"""Ink's gaps of up to 10.5 µm are closed; what is then at least 40.5 µm wide is a stroke; gaps in it of up to 61.5 µm
are what it covers; its rim is 15 µm."""
_INKED = 0.1
"""Share of ink from which on nothing else is said of a tile: ink's edges outweigh the cells', and it is as dark as what
obscures."""
_NUCLEUS_OD, _NUCLEUS_UM2 = 0.12, (15.0, 400.0)
_SMUDGED = 0.4
"""Steepest change of density in a nucleus, per pixel, over its mean density: 11 % of CRIC's nuclei lie below, and 86 %
after simulated air drying."""


@dataclass(frozen=True, slots=True)
class SmearFigures:
    """A smear's figures. `squamous_cells`: an estimate, of those that nothing hides.

    Shares (0..1): `obscured_share`, `blood_share` and `blurred_share` of the stained area of tiles that are neither
    empty nor inked; `air_dried_share`: nuclei without a sharp edge, of those in such tiles that are in focus (0 where
    there are fewer than `LEAST_NUCLEI`); `pen_share`: the part of ink in ink and stained area; `empty_share` of the
    tiles. `stained_area_um2`: of all tiles.
    """

    squamous_cells: int
    obscured_share: float
    blurred_share: float
    blood_share: float
    air_dried_share: float
    pen_share: float
    empty_share: float
    stained_area_um2: float


def measure(images_BHWC: NDArray[np.uint8], mpp: float) -> NDArray[np.float32]:
    """The figures (B, WIDTH) of tiles (B, H, W, 3) uint8 RGB of `mpp` µm a pixel, each row of its own tile alone."""
    rows_BF = np.empty((len(images_BHWC), WIDTH), np.float32)
    for row_F, image_HWC in zip(rows_BF, images_BHWC, strict=True):
        row_F[:] = _figures(image_HWC, mpp)
    return rows_BF


def summarise(rows_NF: NDArray[np.float32], tile_area_um2: float, pen_area_mm2: float = 0.0) -> SmearFigures:
    """The figures of a smear from those of its tiles, each of which stands for `tile_area_um2` that no other has.

    `pen_area_mm2`: of the strokes that were found with the tissue (`gateway.slides.tissue`), which are not read.
    """
    stained_N, cytoplasm_N, obscured_N, blood_N, pen_N, focus_N, nuclei_N, smudged_N = rows_NF.astype(np.float64).T
    filled_N = stained_N + pen_N >= EMPTY
    judged_N = filled_N & (pen_N < _INKED)
    sharp_N = judged_N & (focus_N >= BLURRED)
    judged, nuclei = float(stained_N[judged_N].sum()), float(nuclei_N[sharp_N].sum())
    stained, pen = float(stained_N.sum()), max(float(pen_N.sum()), pen_area_mm2 * 1e6 / tile_area_um2)
    return SmearFigures(
        squamous_cells=round(float(cytoplasm_N.sum()) * tile_area_um2 / SQUAMOUS_CELL_UM2),
        obscured_share=_share(float(obscured_N[judged_N].sum()), judged),
        blurred_share=_share(float(stained_N[judged_N & ~sharp_N].sum()), judged),
        blood_share=_share(float(blood_N[judged_N].sum()), judged),
        air_dried_share=_share(float(smudged_N[sharp_N].sum()), nuclei) if nuclei >= LEAST_NUCLEI else 0.0,
        pen_share=_share(pen, pen + stained),
        empty_share=1 - _share(float(filled_N.sum()), len(rows_NF)),
        stained_area_um2=stained * tile_area_um2,
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _figures(image_HWC: NDArray[np.uint8], mpp: float) -> list[float]:
    """The figures of one tile, in the order of `FIGURES`."""
    fine_HWC = _density(_scaled(image_HWC, mpp / _NUCLEI_UM))
    fine = np.ascontiguousarray(fine_HWC[..., 0])
    dark = _dark(fine)
    red, green, blue = cv2.split(_scaled(fine_HWC, _NUCLEI_UM / _SHEETS_UM))
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    pen = _pen(red, green, blue)
    stained = (cv2.blur(most, (3, 3)) > _STAINED_OD) & ~pen
    blood = _blood(red, blue) & stained
    dark_share = _scaled(dark.astype(np.float32), _NUCLEI_UM / _SHEETS_UM)
    hiding = np.where(blood | (least > _DENSE_OD), np.float32(1), dark_share)
    obscured = stained & (cv2.blur(hiding, (_AROUND_PX, _AROUND_PX)) > _HIDDEN)
    cytoplasm = _opened(stained, _SHEET_PX) & ~obscured & ~blood & (dark_share < 0.5)
    shares = [float(mask.mean()) for mask in (stained, cytoplasm, obscured, blood, pen)]
    seen = cv2.resize((obscured | pen).view(np.uint8), fine.shape[::-1], interpolation=cv2.INTER_NEAREST) == 0
    return [*shares, focus(image_HWC), *_nuclei(fine, dark & seen)]


def _dark(red: _Density) -> _Mask:
    """What absorbs more red light than its surroundings: nuclei. Orange cytoplasm and red cells let red through."""
    apart = cv2.subtract(cv2.blur(red, (3, 3)), cv2.blur(red, (33, 33)))
    return np.asarray((apart > _NUCLEUS_OD) & (red > _DARK_OD))


def _nuclei(red: _Density, dark: _Mask) -> tuple[int, int]:
    """How many nuclei there are, and how many have no sharp edge: nowhere in them does the density change fast for its
    mean. That is so in air-dried cells, and out of focus."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(dark.view(np.uint8), connectivity=4)
    slope = cv2.magnitude(cv2.Sobel(red, -1, 1, 0, scale=0.125), cv2.Sobel(red, -1, 0, 1, scale=0.125))
    place_D = labels[dark]
    steepest = np.zeros(count, np.float32)
    np.maximum.at(steepest, place_D, slope[dark])
    density = np.bincount(place_D, red[dark], count)  # sums: a mean is that over the number of pixels
    area_px = stats[:, cv2.CC_STAT_AREA]
    least_um2, most_um2 = _NUCLEUS_UM2
    nuclei = (area_px * _NUCLEI_UM**2 >= least_um2) & (area_px * _NUCLEI_UM**2 <= most_um2)
    nuclei[0] = False
    smudged = steepest * area_px < _SMUDGED * density
    return int(nuclei.sum()), int((nuclei & smudged).sum())


def _blood(red: _Density, blue: _Density) -> _Mask:
    """Red cells, which absorb blue and hardly any red light: by their grain, or where they lie so thick that none is
    seen. Orange cytoplasm is smooth and less dense; its edge is not counted with it."""
    side = (_TEXTURE_PX, _TEXTURE_PX)
    warm = cv2.max(cv2.subtract(blue, red), 0.0)
    mean = cv2.blur(warm, side)
    spread = cv2.sqrt(cv2.max(cv2.subtract(cv2.blur(cv2.multiply(warm, warm), side), cv2.multiply(mean, mean)), 0.0))
    reddish = (mean > _WARM_OD) & (cv2.blur(red, side) < 0.5 * cv2.blur(blue, side))
    grainy, thick = reddish & (spread > _TEXTURE * mean), reddish & (mean > _THICK_OD)
    smooth = _opened(reddish & ~grainy & ~thick, _SMOOTH_PX)
    return np.asarray(thick | (grainy & ~_grown(smooth, _EDGE_PX)))


def _pen(red: _Density, green: _Density, blue: _Density) -> _Mask:
    """Ink, by the colours of `gateway.slides.tissue`, where it is as wide as a stroke: with what lies under it, whose
    colours are no ink's, and with its rim."""
    strokes = _opened(_closed(pen_ink(red, green, blue), _GAP_PX), _STROKE_PX)
    return _grown(_closed(strokes, _UNDER_PX), _RIM_PX) if strokes.any() else strokes


def _density(image_HWC: NDArray[np.uint8]) -> _Density:
    """Optical density (base 10) of each channel against the tile's own glass, where it has any; never negative."""
    white_3 = glass_colour(image_HWC[::4, ::4].reshape(-1, 3), tint=0.15, least=0.02)
    table_V3 = np.maximum(np.log10(white_3 / np.maximum(np.arange(256), 1)[:, None]), 0).astype(np.float32)
    return np.asarray(cv2.LUT(image_HWC, table_V3[None]), np.float32)


def _opened(mask: _Mask, side_px: int) -> _Mask:
    """The parts of a mask into which a square of that side fits."""
    opened = cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, np.ones((side_px, side_px), np.uint8))
    return np.asarray(opened, np.uint8).view(np.bool_)


def _closed(mask: _Mask, side_px: int) -> _Mask:
    """A mask with the gaps into which no square of that side fits."""
    closed = cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_CLOSE, np.ones((side_px, side_px), np.uint8))
    return np.asarray(closed, np.uint8).view(np.bool_)


def _grown(mask: _Mask, side_px: int) -> _Mask:
    """A mask with what lies within half that side of it."""
    grown = cv2.dilate(mask.view(np.uint8), np.ones((side_px, side_px), np.uint8))
    return np.asarray(grown, np.uint8).view(np.bool_)


def _scaled(image: NDArray[_Number], scale: float) -> NDArray[_Number]:
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), image.dtype)
