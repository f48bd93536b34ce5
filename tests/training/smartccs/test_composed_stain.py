"""The stain gate on composed slides: Papanicolaou passes as each centre shows it, a simulated Giemsa does not."""

from functools import cache

import numpy as np
import pytest

from gateway.slides import pap_stain
from gateway.slides.pap_stain import StainVerdict
from training.errors import TaskInvalid
from training.smartccs.compose_scene import Scene
from training.smartccs.composed_stain import LOOKS, TILE_MPP, TILE_PX, composed, main, seen
from training.smartccs.data import MPP

pytestmark = pytest.mark.training

GREEN, PINK = "cric_block_04", "cric_block_06"
"""The blocks of the test part that slides have their background of. The slide of the first is nearly all green; of the
second's cells most are pink and the rest grey-blue, and stain B turns these hues into those of H&E."""
NUMBERS = {GREEN: 3, PINK: 2}
"""A slide of each."""
SHOWN = [(block, look) for block in NUMBERS for look in LOOKS if (block, look) != (GREEN, "both")]
"""Without the green slide as "both" shows it, which is grey, at the limit of what has a colour."""


@cache
def slide(block: str) -> np.ndarray:
    found, pixels_SS3 = composed(Scene("test"), 0, NUMBERS[block], side_tiles=5)
    assert found == block
    return pixels_SS3


def judged(block: str, look: str) -> StainVerdict:
    return pap_stain.judge(seen(LOOKS[look](slide(block))))


@pytest.mark.parametrize(("block", "look"), SHOWN)
def test_a_composed_slide_is_judged_by_its_stain(real_data: None, block: str, look: str) -> None:
    """One is refused wrongly: nothing that is measured tells it from the real slides in H&E (docs/slides.md)."""
    accepted = look != "Giemsa" and (block, look) != (PINK, "stain B")
    assert judged(block, look).verdict == ("papanicolaou" if accepted else "other")


def test_giemsa_is_far_from_what_is_accepted(real_data: None) -> None:
    for block in NUMBERS:
        stain = judged(block, "Giemsa")
        assert stain.counterstain_share < 0.01
        assert stain.spread_deg < 60


def test_a_slide_is_seen_in_64_pixels_of_each_tile() -> None:
    side_px = round(3 * TILE_PX * TILE_MPP / MPP)
    pixels_P3 = seen(np.full((side_px, side_px, 3), (200, 100, 50), np.uint8))
    assert pixels_P3.shape == (3 * 3 * 64, 3)
    assert (pixels_P3 == (200, 100, 50)).all()


def test_a_slide_needs_room_for_a_smear(real_data: None) -> None:
    with pytest.raises(TaskInvalid, match="no room for a smear"):
        composed(Scene("test"), 0, 0, side_tiles=2)


def test_the_command_says_what_is_accepted(
    real_data: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.smartccs.composed_stain.PARTS", ("test",))
    monkeypatch.setattr("training.smartccs.composed_stain.composed", lambda scene, seed, number: (PINK, slide(PINK)))
    assert main(["--slides", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    refused = ("stain B", "Giemsa")
    assert [line for line in said if line.startswith("test")] == [
        f"test, {look}: {int(look not in refused)} accepted, {int(look in refused)} refused, 0 not judged"
        for look in LOOKS
    ]
    assert len([line for line in said if line.startswith(f"    {PINK}: ")]) == len(LOOKS)


def test_the_command_refuses_a_number_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--slides", "0"]) == 1
    assert "one slide at least" in capsys.readouterr().err
