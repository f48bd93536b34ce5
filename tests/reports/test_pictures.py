import hashlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from gateway.domain.bethesda import ASC_US, CLASSES, SCC
from gateway.domain.slide import TileGrid
from gateway.reports import (
    UNCERTAIN,
    CellMap,
    cell_map,
    field_picture,
    picture,
    segment_picture,
    thumbnail_jpeg,
    tissue_map,
)

GRID = TileGrid(level=0, mpp=0.5, tile_px=224, field_px=200, columns=4, rows=3)
LEVEL_PX = (870, 620)
COLORS = {0: "#ff0000", 1: "#0000ff"}


def pixels(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def draw(rows: list[int], columns: list[int], classes: list[int], *, shade: int = 200) -> np.ndarray:
    """The map over an even thumbnail, a tenth of the level in size, as (62, 87, 3)."""
    thumbnail = np.full((62, 87, 3), shade, dtype=np.uint8)
    data = tissue_map(
        thumbnail,
        GRID,
        np.array(rows, dtype=np.int32),
        np.array(columns, dtype=np.int32),
        np.array(classes, dtype=np.int32),
        COLORS,
        LEVEL_PX,
    )
    with Image.open(BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_each_tile_has_its_colour_in_its_place() -> None:
    drawn = draw([0, 2], [0, 3], [0, 1])
    assert tuple(drawn[10, 10]) == pytest.approx((228, 100, 100), abs=1)
    assert tuple(drawn[50, 70]) == pytest.approx((100, 100, 228), abs=1)
    red = (drawn[..., 0].astype(int) - drawn[..., 2]) > 60
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 19, 0, 19)
    blue = (drawn[..., 2].astype(int) - drawn[..., 0]) > 60
    rows, columns = np.nonzero(blue)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 59, 60, 79)


def test_no_tile_stays_plain_and_the_margin_beyond_the_grid_too() -> None:
    drawn = draw([0], [0], [0])
    assert (drawn[30:, 30:] == 200).all()
    assert (drawn[:, 82:] == 200).all()


def test_uncertain_is_grey_and_hatched() -> None:
    tile = draw([1], [1], [UNCERTAIN])[21:39, 21:39]
    assert (tile[..., 0] == tile[..., 1]).all()
    assert (tile[..., 0] == tile[..., 2]).all()
    assert set(np.unique(tile)) == {110, 202}
    assert len(set(tile[0, :, 0])) == 2
    assert len(set(tile[:, 0, 0])) == 2


def test_border_between_classes_is_drawn() -> None:
    drawn = draw([0, 0], [0, 1], [0, 1])
    assert drawn[10, 19, 0] < drawn[10, 18, 0]


def test_no_tiles_at_all() -> None:
    assert (draw([], [], []) == 200).all()


def test_colour_in_the_slide_does_not_pass_for_a_class() -> None:
    thumbnail = np.zeros((62, 87, 3), dtype=np.uint8)
    thumbnail[..., 0] = 255
    none = np.zeros(0, dtype=np.int32)
    with Image.open(BytesIO(tissue_map(thumbnail, GRID, none, none, none, COLORS, LEVEL_PX))) as image:
        drawn = np.asarray(image)
    assert (drawn == drawn[..., :1]).all()


def test_same_input_same_bytes() -> None:
    rng = np.random.default_rng(1)
    thumbnail = rng.integers(0, 255, (62, 87, 3), dtype=np.uint8)
    tiles = np.array([0, 1, 2], dtype=np.int32)
    maps = {tissue_map(thumbnail, GRID, tiles, tiles, tiles % 2, COLORS, LEVEL_PX) for _ in range(2)}
    assert len(maps) == 1


def test_thumbnail_keeps_its_colours() -> None:
    thumbnail = np.zeros((40, 50, 3), dtype=np.uint8)
    thumbnail[:, :25] = (190, 80, 150)
    thumbnail[:, 25:] = (240, 240, 240)
    with Image.open(BytesIO(thumbnail_jpeg(thumbnail))) as image:
        decoded = np.asarray(image)
    assert decoded.shape == thumbnail.shape
    assert np.abs(decoded[:, 2:20].astype(int) - (190, 80, 150)).max() < 12
    assert np.abs(decoded[:, 34:].astype(int) - 240).max() < 8


def test_picture_record() -> None:
    jpeg = thumbnail_jpeg(np.full((40, 50, 3), 128, dtype=np.uint8))
    record = picture("thumbnail", "thumbnail-1.jpg", jpeg, "1.2.3")
    assert (record.media_type, record.width_px, record.height_px) == ("image/jpeg", 50, 40)
    assert record.sha256 == hashlib.sha256(jpeg).hexdigest()


def test_a_segment_is_drawn_the_stronger_the_more_of_a_pixel_it_covers() -> None:
    ground = np.full((8, 12, 3), 240, np.uint8)
    share = np.zeros((8, 12), np.float32)
    share[:, 4:8], share[:, 8:] = 0.04, 1
    drawn = pixels(segment_picture(ground, share, "#ff0000"))
    assert (drawn[4, 1] == 240).all()
    greens = [int(drawn[4, column, 1]) for column in (1, 5, 10)]
    assert greens[0] - greens[1] > 20  # a twenty-fifth of a pixel is seen
    assert greens == sorted(greens, reverse=True)
    assert drawn[4, 7].max() < drawn[4, 6].max()  # the outline


def test_a_field_keeps_its_colours_but_for_the_outline() -> None:
    ground = np.random.default_rng(2).integers(60, 200, (64, 64, 3)).astype(np.uint8)
    ground = np.repeat(np.repeat(ground[::16, ::16], 16, axis=0), 16, axis=1)  # a JPEG keeps it
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    drawn = pixels(field_picture(ground, mask, "#00ff00"))
    assert np.abs(drawn[32, 32] - ground[32, 32]).max() < 12
    assert np.abs(drawn[4, 4] - ground[4, 4]).max() < 12
    assert drawn[32, 15].min() > 180  # white outside
    assert drawn[32, 16, 1] > drawn[32, 16, 0] + 60  # its colour inside


def cells_at(middles_N2: np.ndarray, classes_N: np.ndarray) -> CellMap:
    """Cells of 20 pixels round these places of the level."""
    middles_N2 = np.asarray(middles_N2, np.float64).reshape(-1, 2)
    none = np.zeros(0, np.int32)
    return CellMap(
        series="2.25.1",
        boxes_N4=np.concatenate([middles_N2 - 10, middles_N2 + 10], axis=1),
        classes_N=np.asarray(classes_N, np.int32),
        scores_N=np.ones(len(middles_N2), np.float32),
        rows_M=none,
        columns_M=none,
        highest_M=none.astype(np.float32),
    )


def in_colour(drawn: np.ndarray, number: int) -> np.ndarray:
    """Where a picture (H, W, 3) has the colour of a class."""
    color = CLASSES[number].color
    return (drawn == [int(color[at : at + 2], 16) for at in (1, 3, 5)]).all(axis=-1)


def test_each_cell_is_a_dot_in_its_class_s_colour_where_it_lies() -> None:
    thumbnail = np.zeros((400, 300, 3), np.uint8)
    thumbnail[..., 0] = 255  # colour in the slide does not pass for a class
    cells = cells_at([[100, 200], [2900, 3900], [1500, 2000]], [ASC_US, ASC_US, SCC])
    drawn = pixels(cell_map(thumbnail, (3000, 4000), cells))
    rows, columns = np.nonzero(in_colour(drawn, ASC_US))
    upper = rows < 200
    assert (rows[upper].mean(), columns[upper].mean()) == pytest.approx((20, 10), abs=0.5)
    assert (rows[~upper].mean(), columns[~upper].mean()) == pytest.approx((390, 290), abs=0.5)
    rows, columns = np.nonzero(in_colour(drawn, SCC))
    assert (rows.mean(), columns.mean()) == pytest.approx((200, 150), abs=0.5)
    assert (drawn[100] == drawn[100, 0, 0]).all()


def test_a_grave_cell_is_not_lost_among_thousands() -> None:
    random = np.random.default_rng(3)
    middles_N2 = random.random((20_001, 2)) * (3000, 4000)
    classes_N = np.full(20_001, ASC_US)
    classes_N[0] = SCC
    drawn = pixels(cell_map(np.full((400, 300, 3), 220, np.uint8), (3000, 4000), cells_at(middles_N2, classes_N)))
    many, one = in_colour(drawn, ASC_US), in_colour(drawn, SCC)
    assert one.sum() >= 9
    assert 0.2 < many.mean() < 0.8, "the slide is still seen"


def test_cells_at_the_edge_and_none_at_all() -> None:
    thumbnail = np.full((40, 30, 3), 220, np.uint8)
    drawn = pixels(cell_map(thumbnail, (300, 400), cells_at([[-4, 0], [299, 399.9], [301, 402]], [SCC] * 3)))
    assert in_colour(drawn, SCC)[[0, -1], [0, -1]].all()
    assert (pixels(cell_map(thumbnail, (300, 400), cells_at([], []))) == 220).all()
