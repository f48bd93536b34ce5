"""The report's pictures: the thumbnail, and what was found drawn over it: classes, attention, cells, segments."""

import hashlib
from collections.abc import Mapping
from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from gateway.domain.bethesda import CLASSES
from gateway.domain.report import Picture
from gateway.domain.slide import TileGrid
from gateway.reports.spatial import UNCERTAIN, AttentionMap, CellMap, tile_under

_NOTHING = -2
_GREY = np.array([205, 205, 205], dtype=np.float32)
_HATCH = np.array([20, 20, 20], dtype=np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. ITU-R BT.601
_HATCH_PX = 6
_OPACITY = 0.5
_SEGMENT_OPACITY = 0.7
_HALF = 0.5
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_HEAT_STEPS = 256
# Lightness falls evenly along it, so that it can be read without colour (anchors of ColorBrewer's YlOrRd).
_HEAT_S3 = np.stack(
    [
        np.interp(np.linspace(0, 1, _HEAT_STEPS), [0, 0.25, 0.5, 0.75, 1], anchors)
        for anchors in ([255, 254, 253, 227, 128], [255, 217, 141, 26, 0], [204, 118, 60, 28, 38])
    ],
    axis=1,
).astype(np.float32)
_DOTS_SHARE, _DOT_MOST = 0.05, 0.008
"""The part of a picture that a class's dots may cover, and a dot's largest radius, of the picture's longer side."""
_MEDIA = {"PNG": "image/png", "JPEG": "image/jpeg"}

Rgb = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Tiles = npt.NDArray[np.int32]


def thumbnail_jpeg(thumbnail_HW3: Rgb, *, quality: int = 88) -> bytes:
    """The thumbnail (H, W, 3) uint8 RGB as a JPEG."""
    return _encode(thumbnail_HW3, "JPEG", quality=quality)


def tissue_map(
    thumbnail_HW3: Rgb,
    grid: TileGrid,
    rows_N: Tiles,
    columns_N: Tiles,
    classes_N: Tiles,
    colors: Mapping[int, str],
    level_size_px: tuple[int, int],
) -> bytes:
    """A PNG of the thumbnail in grey under the classes of its tiles, in translucent colour.

    `thumbnail_HW3` (H, W, 3) uint8 RGB shows the whole level that `grid` lies on, whose size is `level_size_px`
    (width, height). `rows_N`, `columns_N`: grid positions of the N tiles; `classes_N`: their class index, or
    UNCERTAIN (-1), which is drawn grey and hatched. `colors`: class index -> #RRGGBB.
    """
    class_HW = _under_pixels(thumbnail_HW3, grid, rows_N, columns_N, classes_N, level_size_px)
    base_HW3 = _in_grey(thumbnail_HW3)
    drawn_HW3 = base_HW3.copy()
    for index, color in colors.items():
        _blend(drawn_HW3, base_HW3, class_HW == index, np.array(_rgb(color), dtype=np.float32))
    uncertain_HW = class_HW == UNCERTAIN
    _blend(drawn_HW3, base_HW3, uncertain_HW, _GREY)
    y_H1, x_1W = np.ogrid[: class_HW.shape[0], : class_HW.shape[1]]
    _blend(drawn_HW3, base_HW3, uncertain_HW & ((x_1W + y_H1) % _HATCH_PX < 2), _HATCH)
    drawn_HW3[_edges(class_HW)] *= 0.75
    return _map_png(drawn_HW3)


def attention_map(thumbnail_HW3: Rgb, grid: TileGrid, attention: AttentionMap, level_size_px: tuple[int, int]) -> bytes:
    """A PNG of the thumbnail in grey under the attention of its tiles, from pale yellow (none) to dark red (the most).

    `thumbnail_HW3` and `level_size_px` as in `tissue_map`. Tiles that weigh nothing are tinted too: they were read.
    """
    step_N = np.rint(attention.attention_N * (_HEAT_STEPS - 1)).astype(np.int32)
    step_HW = _under_pixels(thumbnail_HW3, grid, attention.rows_N, attention.columns_N, step_N, level_size_px)
    base_HW3 = _in_grey(thumbnail_HW3)
    drawn_HW3 = base_HW3.copy()
    read_HW = step_HW != _NOTHING
    _blend(drawn_HW3, base_HW3, read_HW, _HEAT_S3[step_HW[read_HW]])
    return _map_png(drawn_HW3)


def cell_map(thumbnail_HW3: Rgb, level_size_px: tuple[int, int], cells: CellMap) -> bytes:
    """A PNG of the thumbnail in grey under a dot for each cell, in the colour of its class.

    `thumbnail_HW3` (H, W, 3) uint8 RGB shows the whole level whose pixels the boxes count, `level_size_px` (width,
    height). The dots of a class are smaller the more there are, and the gravest class is drawn last: a few cells of it
    are not lost among thousands of others.
    """
    height, width = thumbnail_HW3.shape[:2]
    middles_N2 = (cells.boxes_N4[:, :2] + cells.boxes_N4[:, 2:]) / 2
    at_N2 = np.floor(middles_N2 * (np.array([width, height]) / np.array(level_size_px))).astype(np.intp)
    x_N, y_N = np.clip(at_N2, 0, [width - 1, height - 1]).T
    drawn_HW3 = _in_grey(thumbnail_HW3)
    for number in sorted(set(cells.classes_N.tolist()), key=lambda number: CLASSES[number].severity):
        of_class_N = cells.classes_N == number
        dots_HW = np.zeros((height, width), np.uint8)
        dots_HW[y_N[of_class_N], x_N[of_class_N]] = 1
        share_px = height * width * _DOTS_SHARE / np.count_nonzero(of_class_N)
        radius = int(np.clip(np.sqrt(share_px / np.pi), 1, max(1.0, _DOT_MOST * max(height, width))))
        side = 2 * radius + 1
        dots_HW = cv2.dilate(dots_HW, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
        drawn_HW3[dots_HW > 0] = _rgb(CLASSES[number].color)
        if radius > 1:
            drawn_HW3[(dots_HW > 0) & (cv2.erode(dots_HW, _CROSS) == 0)] *= 0.6
    return _map_png(drawn_HW3)


def segment_picture(picture_HW3: Rgb, coverage_HW: Floats, color: str) -> bytes:
    """A PNG of a picture (H, W, 3) uint8 RGB in grey under a segment in its colour, with its outline.

    `coverage_HW` (H, W) in 0..1 (`masks.coverage_of`); `color`: #RRGGBB. The colour is stronger the more of a pixel
    lies in the segment, by the root of that share: a few nuclei under a pixel are seen.
    """
    base_HW3 = _in_grey(picture_HW3)
    tint_HW1 = (np.sqrt(coverage_HW) * np.float32(_SEGMENT_OPACITY))[..., None]
    drawn_HW3: Floats = base_HW3 * (1 - tint_HW1) + np.array(_rgb(color), dtype=np.float32) * tint_HW1
    drawn_HW3[_edges((coverage_HW >= _HALF).astype(np.int32))] *= 0.6
    return _map_png(drawn_HW3)


def field_picture(pixels_HW3: Rgb, mask_HW: npt.NDArray[np.bool_], color: str) -> bytes:
    """A JPEG of a field (H, W, 3) uint8 RGB in its own colours, with the outline of a mask (H, W) two pixels wide:
    #RRGGBB inside, white outside, so that it shows on any ground."""
    mask_U8 = mask_HW.astype(np.uint8)
    drawn_HW3 = pixels_HW3.copy()
    drawn_HW3[(cv2.dilate(mask_U8, _CROSS) > 0) & ~mask_HW] = 255
    drawn_HW3[(cv2.erode(mask_U8, _CROSS, borderValue=1) == 0) & mask_HW] = _rgb(color)
    return _encode(drawn_HW3, "JPEG", quality=90)


def picture(role: str, file: str, data: bytes, series: str) -> Picture:
    """The record of an encoded picture (PNG or JPEG) that lies in `file`: its size, media type and sha256."""
    with Image.open(BytesIO(data)) as image:
        width, height = image.size
        media_type = _MEDIA[image.format or ""]
    return Picture(
        role=role,
        file=file,
        media_type=media_type,
        sha256=hashlib.sha256(data).hexdigest(),
        width_px=width,
        height_px=height,
        series=series,
    )


def _under_pixels(
    thumbnail_HW3: Rgb, grid: TileGrid, rows_N: Tiles, columns_N: Tiles, values_N: Tiles, level_size_px: tuple[int, int]
) -> Tiles:
    """The value of the tile under each of the thumbnail's pixels, _NOTHING where none was read; (H, W)."""
    height, width = thumbnail_HW3.shape[:2]
    level_width, level_height = level_size_px
    row_H = tile_under(height, level_height, grid.field_px, grid.rows)
    column_W = tile_under(width, level_width, grid.field_px, grid.columns)
    # One row and column more than the grid has: index -1 finds nothing there.
    values_GG = np.full((grid.rows + 1, grid.columns + 1), _NOTHING, dtype=np.int32)
    values_GG[rows_N, columns_N] = values_N
    return values_GG[np.ix_(row_H, column_W)]


def _in_grey(thumbnail_HW3: Rgb) -> Floats:
    return np.repeat((thumbnail_HW3.astype(np.float32) @ _LUMA)[..., None], 3, axis=2)


def _blend(drawn_HW3: Floats, base_HW3: Floats, where_HW: npt.NDArray[np.bool_], color: Floats) -> None:
    """`color`: (3,), or (K, 3) for each of the K pixels."""
    drawn_HW3[where_HW] = base_HW3[where_HW] * (1 - _OPACITY) + color * _OPACITY


def _map_png(drawn_HW3: Floats) -> bytes:
    # Full colour, though a palette would halve the file: quantising puts specks of one class's colour into another.
    # For such pictures zlib's level 3 packs closer than the default and costs a tenth of `optimize`.
    return _encode(np.rint(drawn_HW3).astype(np.uint8), "PNG", compress_level=3)


def _edges(class_HW: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour belongs to another class."""
    edges_HW = np.zeros(class_HW.shape, dtype=np.bool_)
    edges_HW[:, :-1] |= class_HW[:, :-1] != class_HW[:, 1:]
    edges_HW[:-1] |= class_HW[:-1] != class_HW[1:]
    return edges_HW


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _encode(pixels_HW3: Rgb, format_: str, **options: int | bool) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, format_, **options)
    return buffer.getvalue()
