"""The choice of the level: by pixel spacing, never upsampled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.slide import Level
from gateway.operations.errors import ResolutionTooCoarse
from gateway.slides import choose_level


def level(index: int, mpp: float) -> Level:
    return Level(
        index=index,
        width_px=1000,
        height_px=1000,
        mpp_x=mpp,
        mpp_y=mpp,
        frame_width_px=256,
        frame_height_px=256,
        sop_instance_uids=("1.2",),
        transfer_syntax_uid="1.2.840.10008.1.2.4.50",
    )


@pytest.mark.parametrize(
    ("levels_mpp", "wanted", "index", "field_px", "mpp"),
    [
        ([0.25, 0.5, 1.0], 0.5, 1, 224, 0.5),
        ([0.25, 1.0], 0.5, 0, 448, 0.5),
        ([0.499, 0.998], 0.5, 0, 224, 0.499),
        ([0.25, 0.505], 0.5, 1, 224, 0.505),
        ([0.25, 0.52], 0.5, 0, 448, 0.5),
        ([0.7], 0.5, 0, 224, 0.7),
        ([0.75, 1.5], 0.5, 0, 224, 0.75),
        ([0.23], 0.5, 0, 487, 0.23 * 487 / 224),
        ([1.0, 0.5, 0.25], 0.5, 1, 224, 0.5),
    ],
)
def test_choice(levels_mpp, wanted, index, field_px, mpp):
    reading = choose_level([level(i, value) for i, value in enumerate(levels_mpp)], wanted, 224)
    assert (reading.level.index, reading.field_px) == (index, field_px)
    assert reading.mpp == pytest.approx(mpp)


def test_too_coarse_names_both_figures():
    with pytest.raises(ResolutionTooCoarse, match=r"0\.76.*0\.5.*0\.75"):
        choose_level([level(0, 0.76), level(1, 1.5)], 0.5, 224)


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=8), st.floats(0.2, 2), st.sampled_from([64, 224, 512]))
def test_never_upsampled_and_close_to_what_was_asked(levels_mpp, wanted, tile_px):
    levels = [level(i, mpp) for i, mpp in enumerate(levels_mpp)]
    if min(levels_mpp) > 1.5 * wanted:
        with pytest.raises(ResolutionTooCoarse):
            choose_level(levels, wanted, tile_px)
        return
    reading = choose_level(levels, wanted, tile_px)
    assert reading.field_px >= tile_px
    if reading.level.mpp <= wanted:
        # The nearest whole pixel: half a level pixel over the whole tile.
        assert abs(reading.mpp - wanted) <= 0.5 * reading.level.mpp / tile_px + 1e-9
    else:
        assert reading.mpp == reading.level.mpp <= 1.5 * wanted
