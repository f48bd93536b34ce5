"""golden.npz: what was asked and answered comes back; of large maps, as far as machines agree."""

import numpy as np
import pytest

from exporters import golden
from exporters.card import GOLDEN_TOLERANCE

pytestmark = pytest.mark.training


def test_large_answers_are_kept_in_steps_far_below_the_tolerance() -> None:
    rng = np.random.default_rng(0)
    inputs = {"image": rng.integers(0, 256, (1, 8, 8, 3), np.uint8)}
    few, many = (rng.standard_normal((1, side, 256), np.float32) for side in (8, 1024))
    answers = {"few": few, "many": many, "index": np.arange(many.size)}
    packed = golden.pack(inputs, answers)
    asked, found = golden.unpack(packed)
    np.testing.assert_array_equal(asked["image"], inputs["image"])
    np.testing.assert_array_equal(found["few"], few)
    np.testing.assert_array_equal(found["index"], answers["index"])
    assert found["many"].dtype == np.float32
    np.testing.assert_allclose(found["many"], many, rtol=0, atol=GOLDEN_TOLERANCE / 8)
    whole = golden.pack(inputs, {"many": many[:, :512], "rest": many[:, 512:]})
    assert len(golden.pack(inputs, {"many": many})) < 0.7 * len(whole)
