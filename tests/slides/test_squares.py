"""Squares cut from a level: the pixels of the level, black beyond it, each frame read once."""

from collections.abc import Callable

import numpy as np
import pytest

from gateway.operations.errors import Cancelled
from gateway.slides import Slide
from gateway.slides.cell_crops import padded
from gateway.slides.grid import tiles_under
from gateway.slides.squares import stream_squares

SQUARES = np.array(
    [
        [300, 200, 420, 320],
        [-30, -20, 60, 70],
        [2050, 1460, 2150, 1560],
        [500, 240, 530, 270],
        [0, 0, 700, 700],
        [310, 210, 400, 300],
        [2200, 10, 2250, 60],
    ]
)


def test_squares_are_the_pixels_of_the_level_and_black_beyond_it(slide: Slide) -> None:
    whole = slide.read_level(0)
    found = dict(stream_squares(slide, 0, SQUARES))
    assert sorted(found) == list(range(len(SQUARES)))
    for number, square_4 in enumerate(SQUARES[:-1]):
        np.testing.assert_array_equal(found[number], padded(whole, square_4))
    assert found[len(SQUARES) - 1].shape == (50, 50, 3)
    assert not found[len(SQUARES) - 1].any()


def test_colours_are_mapped_and_the_black_beyond_is_not(slide: Slide) -> None:
    plain = dict(stream_squares(slide, 0, SQUARES[1:2]))[0]
    mapped = dict(stream_squares(slide, 0, SQUARES[1:2], colour=lambda image: 255 - image))[0]
    np.testing.assert_array_equal(mapped[20:, 30:], 255 - plain[20:, 30:])
    assert not mapped[:20].any()
    assert not mapped[:, :30].any()


def test_every_frame_is_read_once_and_no_other(slide: Slide, note_frames: Callable[[], list[int]]) -> None:
    read = note_frames()
    list(stream_squares(slide, 0, SQUARES))
    assert len(read) == len(set(read)) == tiles_under(slide, slide.levels[0], SQUARES, "").frames


def test_none_is_read_where_there_is_no_square(slide: Slide) -> None:
    assert list(stream_squares(slide, 0, np.zeros((0, 4), np.int64))) == []


def test_a_cancelled_reading_ends(slide: Slide) -> None:
    with pytest.raises(Cancelled):
        list(stream_squares(slide, 0, SQUARES, cancelled=lambda: True))
