"""Simulated damage of smears: what each does to a picture, and the same bytes for the same seed."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.smears import MPP, smear
from training.smartccs import damage

pytestmark = pytest.mark.training

GLASS = np.full((256, 256, 3), 243, np.uint8)


@pytest.mark.parametrize(
    "change",
    [damage.blurred, damage.bloody, damage.air_dried, damage.marked, damage.giemsa],
    ids=lambda change: change.__name__,
)
def test_a_picture_stays_a_picture_and_is_changed_alike_each_time(change: Callable[..., np.ndarray]) -> None:
    whole = smear()
    changed = change(whole.copy(), MPP)
    assert (changed.shape, changed.dtype) == (whole.shape, whole.dtype)
    assert np.array_equal(changed, change(whole, MPP))
    assert (changed != whole).any(axis=-1).mean() > 0.02


def test_blood_covers_as_often_as_asked_and_is_orange() -> None:
    bloody = damage.bloody(GLASS, MPP, layers=1.0, haze=0.0)
    covered = (bloody[..., 2] < 200).mean()
    assert covered == pytest.approx(1 - np.exp(-1), abs=0.08)
    red, _, blue = bloody[bloody[..., 2] < 200].mean(axis=0)
    assert red > 1.5 * blue
    assert not np.array_equal(bloody, damage.bloody(GLASS, MPP, layers=1.0, haze=0.0, seed=1))


def test_air_drying_makes_nuclei_larger_and_paler_and_leaves_glass_alone() -> None:
    drawn = smear(1)
    dried = damage.air_dried(drawn, MPP)
    before, after = drawn[..., 0] < 120, dried[..., 0] < 190
    assert after.sum() > 1.3 * before.sum() > 0
    assert dried[..., 0].min() > drawn[..., 0].min() + 30
    assert np.array_equal(damage.air_dried(GLASS, MPP), GLASS)


@pytest.mark.parametrize("ink", damage.INKS)
def test_a_stroke_is_as_wide_as_asked(ink: str) -> None:
    stroke = (damage.marked(GLASS, MPP, ink, width_um=30.0).min(axis=-1) < 120).sum(axis=0).mean() * MPP
    assert 28 < stroke < 45, "a slanted stroke is wider in columns"
